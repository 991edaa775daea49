"""The kernels for peaks give what the CPU gives, to the last bit, on a GPU and as CPU code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.bragg import decode_offsets, scale_patches
from edgexnas.device.kernels import PeakKernels
from edgexnas.errors import ConfigurationError
from edgexnas.frames import open_frames
from edgexnas.peak_finding import Background, FinderSettings, PeakFinder, estimate_background

pytestmark = pytest.mark.parametrize("session", ["stand-in", "gpu"], indirect=True)

LOOSE = FinderSettings(0, 1, 1, 0.5, 1)
DTYPES = [np.uint16, np.float32]


def crowded(seed: int, shape: tuple[int, int], dtype: Any = np.uint16) -> np.ndarray:
    """A frame of few different values with spots on a slope, so that ties and overlaps abound."""
    random = np.random.default_rng(seed)
    frame = random.poisson(np.linspace(2, 30, shape[1]), shape).astype(dtype)
    spots = random.random(shape) < 0.01
    frame[spots] += random.integers(1, 60, int(spots.sum())).astype(dtype) * 20
    return frame


def run(session: Any, finder: PeakFinder, frame: np.ndarray) -> dict[str, np.ndarray]:
    """Run the kernels on one frame and copy everything back."""
    kernels = PeakKernels(session, finder, frame.dtype, spare=7)
    uploaded = session.device_buffer(frame.shape, frame.dtype)
    uploaded.upload(frame)
    counts = session.device_buffer((finder.settings.capacity, 121), np.float32)
    for _ in range(2):
        with session.current():
            kernels.enqueue_find(uploaded.pointer, session.compute, counts=counts.pointer)
            session.compute.synchronize()
    found, kept, bad = kernels.header.download().tolist()
    arrays = {
        "maxima": np.stack(np.divmod(kernels.kept.download()[:kept], frame.shape[1]), axis=1),
        "flags": kernels.flags.download()[:kept],
        "intensities": kernels.intensities.download()[:kept],
        "counts": counts.download()[:kept].reshape(-1, 11, 11),
        "scaled": kernels.scaled.download()[:kept].reshape(-1, 11, 11),
        "thresholds": kernels.thresholds(),
        "overflow": np.array(found - kept),
        "bad": np.array(bad),
    }
    kernels.close()
    return arrays


def assert_same(session: Any, finder: PeakFinder, frame: np.ndarray, least: int) -> None:
    expected, given = finder.find(frame), run(session, finder, frame)
    np.testing.assert_array_equal(given["thresholds"], finder.thresholds(frame.dtype))
    assert len(expected) >= least
    for name in ("maxima", "flags", "intensities", "counts", "overflow"):
        np.testing.assert_array_equal(given[name], getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(given["scaled"], scale_patches(expected.counts))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((70, 97), np.uint16), ((64, 64), np.float32), ((9, 300), np.uint16), ((300, 9), np.int32),
     ((41, 52), np.uint8)],
)  # fmt: skip
def test_crowded_frames_give_identical_peaks_and_patches(session, shape, dtype):
    frame = crowded(3, shape, np.int64).clip(0, 255 if dtype is np.uint8 else None).astype(dtype)
    finder = PeakFinder(LOOSE, shape=shape, background=estimate_background([frame]))
    assert_same(session, finder, frame, least=15)


def test_frames_of_a_few_columns_give_identical_peaks(session):
    for width in range(1, 10):
        frame = crowded(width, (40, width))
        accepting = replace(LOOSE, ridge_fraction=1.0)
        assert_same(session, PeakFinder(accepting, shape=frame.shape), frame, least=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_gaps_and_saturated_pixels_give_identical_flags(session, dtype):
    frame = crowded(5, (80, 90), dtype)
    random = np.random.default_rng(6)
    mask = random.random(frame.shape) < 0.01
    mask[:, 40:43] = True
    frame[mask] = 65535
    frame[random.random(frame.shape) < 0.002] = 65535
    settings = FinderSettings(2, 1, 1, 0.5, 2, saturation=60000)
    finder = PeakFinder(
        settings, shape=frame.shape, background=estimate_background([frame], mask=mask), mask=mask
    )
    assert_same(session, finder, frame, least=20)
    assert np.bitwise_or.reduce(finder.find(frame).flags) == 15


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saturation", [None, 500, 5000])
def test_plateaus_and_the_crests_of_rings_are_judged_alike(session, dtype, saturation):
    random = np.random.default_rng(6)
    rows, cols = np.indices((90, 100))
    expected = 4 + 300 * np.exp(-((np.hypot(rows - 40, cols - 40) - 30) ** 2) / 3)
    for _ in range(40):
        row, col, width = *random.uniform(-3, 103, 2), random.uniform(0.8, 5)
        height = 10 ** random.uniform(1.5, 4)
        expected += height * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / (2 * width**2))
    frame = np.minimum(random.poisson(expected), 5000).astype(dtype)
    mask = random.random(frame.shape) < 0.005
    settings = FinderSettings(saturation=saturation)
    for hidden in (None, mask):
        background = estimate_background([frame], mask=hidden)
        finder = PeakFinder(settings, shape=frame.shape, background=background, mask=hidden)
        assert_same(session, finder, frame, least=8)


def test_without_a_background_or_peaks_nothing_is_found(session):
    finder = PeakFinder(shape=(50, 60))
    assert_same(session, finder, np.zeros((50, 60), np.uint16), least=0)


@pytest.mark.parametrize("capacity", [1, 7, 40, 41])
def test_beyond_the_capacity_the_brightest_stay_and_the_rest_is_counted(session, capacity):
    frame = crowded(8, (60, 70))
    settings = FinderSettings(0, 1, 1, 0.5, 1, capacity=capacity)
    level = np.linspace(0, 9.3, frame.size, dtype=np.float32).reshape(frame.shape)
    finder = PeakFinder(settings, shape=frame.shape, background=Background(level, np.sqrt(level)))
    assert_same(session, finder, frame, least=capacity)
    assert finder.find(frame).overflow > 10


def test_of_equally_bright_peaks_beyond_the_capacity_the_first_stay(session):
    frame = np.zeros((60, 60), np.uint16)
    frame[5::6, 5::6] = 300
    frame[5::6, 6::6] = 100
    frame[6::6, 5::6] = 100
    finder = PeakFinder(FinderSettings(capacity=30), shape=frame.shape)
    assert_same(session, finder, frame, least=30)


def test_a_pixel_that_is_not_finite_is_named_unless_it_is_masked(session):
    frame, mask = crowded(2, (40, 50), np.float32), np.zeros((40, 50), np.bool_)
    frame[3, 4], mask[3, 4], frame[7, 8], frame[9, 9] = np.nan, True, np.inf, np.nan
    assert run(session, PeakFinder(shape=(40, 50), mask=mask), frame)["bad"] == 7 * 50 + 8


def test_offsets_become_frame_coordinates_as_on_the_cpu(session):
    frame = crowded(9, (64, 80))
    finder = PeakFinder(LOOSE, shape=frame.shape)
    expected, levels = finder.find(frame), (0.1, 0.25, 0.5, 0.9)
    count, capacity = len(expected), finder.settings.capacity
    offsets = np.sort(np.random.default_rng(1).normal(size=(capacity, 2, 4)).astype(np.float32))
    kernels = PeakKernels(session, finder, frame.dtype)
    shapes = {"positions": (2,), "intervals": (2,), "quantiles": (2, 4), "maxima": (2,),
              "intensities": (), "flags": ()}  # fmt: skip
    kinds = {"maxima": np.int32, "flags": np.uint8}
    outputs = {
        name: session.staged_buffer((capacity, *item), kinds.get(name, np.float32), mapped=True)
        for name, item in shapes.items()
    }
    outputs["header"] = session.staged_buffer((3,), np.int32, mapped=True)
    uploaded, given = (
        session.device_buffer(array.shape, array.dtype) for array in (frame, offsets)
    )
    uploaded.upload(frame)
    given.upload(offsets)
    pointers = {name: buffer.pointer for name, buffer in outputs.items()}
    with session.current():
        kernels.enqueue_find(uploaded.pointer, session.compute)
        kernels.enqueue_decode(given.pointer, 4, 2, pointers, session.compute)
        session.compute.synchronize()
    placed = decode_offsets(offsets[:count], levels, expected.maxima - 5)
    assert outputs["header"].array[:2].tolist() == [count, count]
    for name, array in (
        ("positions", placed.positions_px), ("intervals", placed.intervals_px),
        ("quantiles", placed.quantiles_px), ("maxima", expected.maxima),
        ("intensities", expected.intensities), ("flags", expected.flags),
    ):  # fmt: skip
        np.testing.assert_array_equal(outputs[name].array[:count], array, err_msg=name)


@pytest.mark.real
def test_a_real_raw_frame_gives_identical_peaks(session, real_data: Path):
    pytest.importorskip("fabio")
    with open_frames(real_data / "raw_bragg_frames" / "F2K_Seb_Lyso0675.edf.bz2") as series:
        frame = np.ascontiguousarray(np.asarray(series[0])[850:1050, 800:1050])
    finder = PeakFinder(shape=frame.shape, background=estimate_background([frame]))
    assert_same(session, finder, frame, least=20)


def test_a_dtype_without_kernels_is_refused_by_name(session):
    with pytest.raises(ConfigurationError, match="float64"):
        PeakKernels(session, PeakFinder(shape=(8, 8)), np.float64)
