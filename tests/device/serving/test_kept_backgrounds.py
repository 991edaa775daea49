"""A restart in the midst of a series goes on with the background that the series began with."""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device import PeakPredictor
from edgexnas.device.serving.kept_backgrounds import MOST_FILES, KeptBackgrounds
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import SeriesKey
from edgexnas.device.sinks.results_file import read_results
from edgexnas.device.sources.events import SeriesStart
from edgexnas.peak_finding import Background, estimate_background

KEY = SeriesKey.of("a", "scan-1", "digest")
SHAPE = (96, 128)

Serve = Callable[..., None]


@pytest.fixture
def serve(peak_predictor: PeakPredictor, told_source: Any, frame_of: Any, tmp_path: Path) -> Serve:
    """`serve(folder, numbers, frames, mask=None)` runs a service over these frames of a series."""

    def run(folder: str, numbers: Any, frames: Any, mask: Any = None) -> None:
        start = SeriesStart("a", identity="scan-1", mask=mask)
        events = [start, *(frame_of(number, frames[number]) for number in numbers)]
        settings = PipelineSettings(background_frames=4, background_wait_ms=60_000)
        sinks = [Hdf5Sink(tmp_path / folder)]
        Service(peak_predictor, told_source(events), sinks, settings=settings).run()

    return run


@pytest.fixture(scope="session")
def rising_frames(spot_frame: Callable[..., Any]) -> list[Any]:
    """Sixteen frames; the later ones are so noisy that an estimate from them hides peaks."""
    noise = np.random.default_rng(0)
    return [
        (spot_frame(seed=n) + noise.poisson(0 if n < 8 else 900, SHAPE)).astype(np.uint16)
        for n in range(16)
    ]


def peaks(folder: Path) -> dict[int, list[float]]:
    """Counts of each peak above the background; the network's last digits depend on its batch."""
    return {
        frame.number: [] if frame.intensities is None else frame.intensities.tolist()
        for frame in read_results(folder)
    }


def test_two_runs_over_the_halves_of_a_series_find_what_one_run_finds(
    serve: Serve, rising_frames: list[Any], tmp_path: Path
) -> None:
    serve("whole", range(16), rising_frames)
    serve("halves", range(8), rising_frames)
    serve("halves", range(8, 16), rising_frames)
    whole = peaks(tmp_path / "whole")
    assert peaks(tmp_path / "halves") == whole
    # The frames do tell: with a background of the second half itself it differs.
    serve("second", range(8, 16), rising_frames)
    assert peaks(tmp_path / "second") != {n: whole[n] for n in range(8, 16)}


@pytest.mark.parametrize("change", ["gone", "malformed", "of another mask"])
def test_a_background_that_cannot_be_used_is_estimated_anew_and_that_is_logged(
    serve: Serve,
    rising_frames: list[Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    serve("halves", range(8), rising_frames)
    (kept,) = (tmp_path / "halves" / "backgrounds").iterdir()
    mask = None
    if change == "gone":
        kept.unlink()
    elif change == "malformed":
        kept.write_bytes(kept.read_bytes()[:-40])
    else:
        mask = np.zeros(SHAPE, np.bool_)
        mask[0, 0] = True
    serve("halves", range(8, 16), rising_frames, mask)
    assert "goes on without the background that it began with" in caplog.text
    assert len(peaks(tmp_path / "halves")) == 16


def test_a_series_of_which_nothing_is_stored_shows_its_own_background(
    serve: Serve, rising_frames: list[Any], tmp_path: Path
) -> None:
    serve("results", range(8), rising_frames)
    for path in (tmp_path / "results").glob("*.h5"):
        path.unlink()
    serve("results", range(8, 16), rising_frames)
    serve("second", range(8, 16), rising_frames)
    assert peaks(tmp_path / "results") == peaks(tmp_path / "second")


@pytest.fixture
def background(spot_frame: Callable[..., Any]) -> Background:
    frames = [spot_frame(seed=seed) for seed in range(4)]
    for frame in frames:
        frame[50, 60] = 5000
    return estimate_background(frames)


def test_what_is_read_is_what_was_kept(tmp_path: Path, background: Background) -> None:
    kept = KeptBackgrounds(tmp_path)
    kept.keep(background, KEY, None)
    read = kept.find(KEY, None, SHAPE)
    assert read is not None
    assert background.hot is not None
    assert np.array_equal(read.level, background.level)
    assert np.array_equal(read.noise, background.noise)
    assert np.array_equal(read.hot, background.hot)
    assert read.saturation == background.saturation
    for other in ("identity", "bundle_digest"):
        assert kept.find(KEY._replace(**{other: "other"}), None, SHAPE) is None
    assert kept.find(KEY, None, (96, 96)) is None


def test_the_newest_files_alone_are_kept(tmp_path: Path, background: Background) -> None:
    kept = KeptBackgrounds(tmp_path)
    for number in range(MOST_FILES + 3):
        kept.keep(background, KEY._replace(identity=str(number)), None)
        # Newer than the one before whatever the resolution of the file system's clock.
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, (number, number))
    kept.keep(background, KEY, None)
    assert len(list(tmp_path.iterdir())) == MOST_FILES
    assert kept.find(KEY, None, SHAPE) is not None


def test_a_folder_that_takes_no_file_is_logged(
    tmp_path: Path, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    KeptBackgrounds(tmp_path / "file").keep(background, KEY, None)
    assert "cannot be kept" in caplog.text


def kept_arrays(**changed: Any) -> bytes:
    arrays: dict[str, Any] = {
        "shape": np.array(SHAPE, np.int64),
        "tiles": np.ones((2, 3, 4), np.float32),
        "saturation": np.float64(np.nan),
        "hot": np.array([5], np.int64),
    }
    content = io.BytesIO()
    np.savez(content, **(arrays | changed))
    return content.getvalue()


def compressed() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiles.npy", bytes(10**7))
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        compressed(),
        kept_arrays(more=np.zeros(1)),
        kept_arrays(tiles=np.ones((2, 3, 5), np.float32)),
        kept_arrays(tiles=np.full((2, 3, 4), np.nan, np.float32)),
        kept_arrays(tiles=np.full((2, 3, 4), -1, np.float32)),
        kept_arrays(tiles=np.ones((2, 3, 4))),
        kept_arrays(saturation=np.float64(-1)),
        kept_arrays(saturation=np.array([1.0])),
        kept_arrays(hot=np.array([-1])),
        kept_arrays(hot=np.array([96 * 128])),
        kept_arrays(hot=np.array([[1]])),
        kept_arrays(hot=np.array([object()])),
        kept_arrays(shape=np.array([96, 127])),
    ],
)
def test_a_malformed_file_is_no_background(
    content: bytes, tmp_path: Path, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptBackgrounds(tmp_path)
    kept.keep(background, KEY, None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(kept_arrays())
    assert kept.find(KEY, None, SHAPE) is not None
    path.write_bytes(content)
    assert kept.find(KEY, None, SHAPE) is None
    assert "cannot be used" in caplog.text


@given(place=st.integers(0, 1200), byte=st.integers(0, 255))
def test_no_altered_byte_raises(
    place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    logging.disable(logging.WARNING)
    try:
        folder = tmp_path_factory.mktemp("kept")
        kept = KeptBackgrounds(folder)
        kept.keep(estimate_background([np.ones(SHAPE, np.uint16)]), KEY, None)
        (path,) = folder.iterdir()
        content = bytearray(kept_arrays())
        content[place % len(content)] = byte
        path.write_bytes(content)
        found = kept.find(KEY, None, SHAPE)
        assert found is None or found.level.shape == SHAPE
    finally:
        logging.disable(logging.NOTSET)
