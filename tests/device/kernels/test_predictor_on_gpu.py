"""A predictor whose engine runs on a GPU does everything to frames there, with the same peaks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from edgexnas.bragg import Peaks, decode_offsets, scale_patches
from edgexnas.device import Predictor
from edgexnas.device.bragg.predictor import lanes_of
from edgexnas.errors import EngineError, InputError
from edgexnas.peak_finding import PeakFinder, estimate_background


@pytest.fixture
def frames(spot_frame) -> list[np.ndarray]:
    return [spot_frame(seed=seed) for seed in range(4)]


def expected(predictor, frames: list[np.ndarray], shown: list[np.ndarray]) -> list:
    """Positions of each frame, by the reference on the CPU."""
    background = estimate_background(shown)
    settings = predictor.manifest.preprocessing.finder
    finder = PeakFinder(settings, shape=frames[0].shape, background=background, compiled=False)
    found = [finder.find(frame) for frame in frames]
    levels = predictor.manifest.quantile_levels
    return [
        decode_offsets(
            predictor.engine.offsets(scale_patches(peaks.counts)), levels, peaks.maxima - 5
        )
        for peaks in found
    ]


def collect(stream: Iterator[Peaks], numbers: list[int]) -> None:
    for peaks in stream:
        numbers.append(peaks.frame_number)


def test_process_gives_what_the_cpu_gives_through_the_pipeline(predictor, frames):
    for number, reference in enumerate(expected(predictor, frames, frames[:1])):
        peaks = predictor.process(frames[number])
        assert peaks.frame_number == number
        np.testing.assert_array_equal(peaks.quantiles_px, reference.quantiles_px)
    assert len(predictor._shared._resources) == 1
    predictor.calibrate_background(frames)
    reference = expected(predictor, frames, frames)[2]
    np.testing.assert_array_equal(predictor.process(frames[2]).positions_px, reference.positions_px)
    assert len(predictor._shared._resources) == 1


def test_a_series_is_streamed_in_order_and_gives_its_memory_back(predictor, frames):
    before = predictor.engine.session.device_bytes
    peaks = list(predictor.stream(np.stack(frames)))
    assert [found.frame_number for found in peaks] == [0, 1, 2, 3]
    for found, reference in zip(peaks, expected(predictor, frames, frames), strict=True):
        np.testing.assert_array_equal(found.positions_px, reference.positions_px)
    assert predictor.engine.session.device_bytes == before


def test_frames_of_an_iterable_come_out_one_by_one(predictor, frames):
    taken = []

    def live():
        for frame in frames:
            taken.append(len(taken))
            yield frame

    for number, peaks in enumerate(predictor.stream(live())):
        assert taken == list(range(number + 1))
        reference = expected(predictor, frames, frames[:1])[number]
        np.testing.assert_array_equal(peaks.positions_px, reference.positions_px)


def test_a_bad_frame_in_a_series_loses_none_before_it(predictor, frames):
    stack = np.stack(frames).astype(np.float32)
    predictor.calibrate_background(stack[:1])
    stack[2, 5, 6] = np.nan
    seen: list[int] = []
    with pytest.raises(InputError, match=r"frame 2: pixel \(row 5, col 6\)"):
        collect(predictor.stream(stack), seen)
    assert seen == [0, 1]


def test_a_dtype_without_kernels_is_found_on_the_cpu_and_said(predictor, frames, caplog):
    with caplog.at_level(logging.WARNING):
        peaks = predictor.process(frames[0].astype(np.int64))
    assert "found on the CPU, because there are no CUDA kernels for int64" in caplog.text
    reference = expected(predictor, frames[:1], frames[:1])[0]
    np.testing.assert_array_equal(peaks.positions_px, reference.positions_px)


def test_a_closed_predictor_refuses_frames_and_has_freed_them(predictor, frames):
    predictor.process(frames[0])
    session = predictor.engine.session
    assert session.host_bytes > 0
    predictor.close()
    assert (session.device_bytes, session.host_bytes) == (0, 0)
    with pytest.raises(EngineError, match="closed"):
        predictor.process(frames[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"minimum_counts": 1600},
        {"threshold": 60},
        {"saturation": 1200},
        {"mask_hot": False},
        {"mask_hot": False, "threshold": 1, "minimum_counts": 0},
        {"mask": np.arange(128)[None, :] // 8 * np.ones((96, 1), int) == 7},
    ],
    ids=str,
)
def test_every_option_gives_the_peaks_and_flags_of_the_cpu(
    options, session, place_engine, bundle_path, keys, spot_frame
):
    frames = np.stack([spot_frame(seed=seed) for seed in range(5)])
    frames = np.minimum(frames, 1700)
    frames[:, 50, 20] = 900
    given = {"trust": keys, "engine": "onnxruntime", "cache": False, **options}
    with Predictor(bundle_path, **given) as predictor:
        predictor.engine.close()
        predictor._shared.engine = place_engine(session)
        peaks = list(predictor.stream(frames))
        assert len(predictor._shared._resources) == 0
        finder = lanes_of(predictor).detection().finder(list(frames))
        assert finder.used(frames.dtype) == predictor.finder_report
    for found, reference in zip(peaks, map(finder.find, frames), strict=True):
        np.testing.assert_array_equal(found.maxima, reference.maxima)
        np.testing.assert_array_equal(found.flags, reference.flags)
        np.testing.assert_array_equal(found.intensities, reference.intensities)
