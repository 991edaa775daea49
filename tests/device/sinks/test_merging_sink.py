"""Spots beside peaks in a service's sink, through restarts and failures too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgexnas.bragg import Peaks
from edgexnas.device.sinks import results_file
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.merging_sink import MergingSink
from edgexnas.device.sinks.results import (
    FrameResult,
    SeriesBegun,
    SeriesEnded,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.device.sinks.results_file import read_merge, read_spots
from edgexnas.errors import ConfigurationError
from edgexnas.merging import MergeSettings
from edgexnas.spots import SpotFlag

IDENTITY = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0", "a" * 64)
OTHER_BUNDLE = replace(IDENTITY, bundle_digest="b" * 64, sequence=2)
SETTINGS = MergeSettings(omega_start_deg=0.0, omega_step_deg=0.25)
FRAMES = 12


def result(number: int) -> FrameResult:
    """Frames of a spot on 2 to 6, one on 4 to 9, and one on each frame alone."""
    places = [(10.1, 10.2)] * (2 <= number <= 6) + [(40.3, 20.4)] * (4 <= number <= 9)
    places += [(60.0 + number % 2 * 9, 5.0 + number * 3)]
    positions = np.array(places, np.float32)
    peaks = Peaks(
        positions_px=positions + np.float32(0.01 * number),
        intervals_px=np.full(positions.shape, 0.2, np.float32),
        quantiles_px=np.zeros((*positions.shape, 3), np.float32),
        maxima=positions.astype(np.int32),
        intensities=np.linspace(50, 90 + number, len(positions), dtype=np.float32),
        flags=np.zeros(len(positions), np.uint8),
        frame_number=number,
        overflow=0,
    )
    return FrameResult("a", number, 0, peaks=peaks)


def opened(folder: Path, *, identity: ServiceIdentity = IDENTITY, inner: Any = None) -> MergingSink:
    sink = MergingSink(inner or Hdf5Sink(folder, spots=True), SETTINGS, stored=(folder, "results"))
    sink.open(identity)
    sink.begin(SeriesBegun("a", identity="a #1"))
    return sink


def run(folder: Path, numbers: Sequence[int], *, complete: bool, **options: Any) -> None:
    sink = opened(folder, **options)
    for number in numbers:
        sink.write([result(number)])
    sink.end(SeriesEnded("a", {}, complete))
    sink.close()


def stored(folder: Path) -> npt.NDArray[np.void]:
    """Stored spots of all files, by their frames."""
    tables = [batch.spots.table for batch in read_spots(folder)]
    return np.sort(np.concatenate(tables), order=["first_frame", "last_frame", "row_px"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.void]:
    """What a run without a restart stores."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, range(FRAMES), complete=True)
    return stored(folder)


def test_spots_are_stored_beside_their_peaks(whole: npt.NDArray[np.void]) -> None:
    assert len(whole) == FRAMES + 2
    long = whole[whole["peaks"] > 1]
    assert long[["first_frame", "last_frame"]].tolist() == [(2, 6), (4, 9)]


@pytest.mark.parametrize("at", range(1, FRAMES))
def test_a_restart_in_the_middle_of_a_spot_loses_and_repeats_none(
    tmp_path: Path, whole: npt.NDArray[np.void], at: int
) -> None:
    run(tmp_path, range(at), complete=False)
    run(tmp_path, range(at, FRAMES), complete=True)
    np.testing.assert_array_equal(stored(tmp_path), whole)


def test_a_death_between_peaks_and_their_spots_loses_none(
    tmp_path: Path, whole: npt.NDArray[np.void]
) -> None:
    run(tmp_path, range(5), complete=False)
    # What a process leaves that dies once its frames are stored.
    peaks_alone = Hdf5Sink(tmp_path, spots=True)
    peaks_alone.open(IDENTITY)
    peaks_alone.begin(SeriesBegun("a", identity="a #1"))
    peaks_alone.write([result(number) for number in range(5, 9)])
    peaks_alone.close()
    run(tmp_path, range(9, FRAMES), complete=True)
    np.testing.assert_array_equal(stored(tmp_path), whole)


class FullDisk(Hdf5Sink):
    """Cannot write spots once."""

    full = True

    def write_spots(self, spots: SeriesSpots) -> None:
        if self.full and len(spots.spots):
            self.full = False
            raise OSError(28, "No space left on device")
        super().write_spots(spots)


def test_a_sink_that_fails_and_is_opened_again_goes_on(
    tmp_path: Path, whole: npt.NDArray[np.void]
) -> None:
    sink = opened(tmp_path, inner=FullDisk(tmp_path, spots=True))
    sink.write([result(0)])
    with pytest.raises(OSError, match="No space"):
        sink.write([result(1), result(2)])
    sink.close()
    sink.open(IDENTITY)
    sink.begin(SeriesBegun("a", identity="a #1"))
    sink.write([result(number) for number in range(3, FRAMES)])
    sink.end(SeriesEnded("a", {}))
    sink.close()
    np.testing.assert_array_equal(stored(tmp_path), whole)


def test_another_bundle_begins_anew_and_its_spots_name_it(
    tmp_path: Path, whole: npt.NDArray[np.void]
) -> None:
    run(tmp_path, range(FRAMES), complete=True)
    run(tmp_path, range(FRAMES), complete=True, identity=OTHER_BUNDLE)
    by_bundle = {batch.bundle_digest[0]: batch.spots.table for batch in read_spots(tmp_path)}
    assert set(by_bundle) == {"a", "b"}
    for table in by_bundle.values():
        assert len(table) == len(whole)


def test_a_lost_frame_is_a_gap_and_one_that_comes_late_is_not_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = FrameResult("a", 4, 0, error="it was lost", not_processed="lost")
    sink = opened(tmp_path)
    sink.write([result(2), result(3), lost, result(5), result(6), result(4), result(7)])
    sink.end(SeriesEnded("a", {}))
    sink.close()
    (spot,) = (row for row in stored(tmp_path) if row["first_frame"] == 2 and row["peaks"] == 4)
    assert spot["last_frame"] == 6
    assert spot["flags"] & SpotFlag.GAP
    assert "1 frames came after later ones and are not merged" in caplog.text


def test_spots_of_the_last_frames_are_stored_by_the_end_alone(
    tmp_path: Path, whole: npt.NDArray[np.void]
) -> None:
    run(tmp_path, range(FRAMES), complete=False)
    assert len(stored(tmp_path)) < len(whole)
    run(tmp_path, [], complete=True)
    np.testing.assert_array_equal(stored(tmp_path), whole)


@pytest.mark.parametrize("again", [[], [FRAMES - 1], range(FRAMES)])
def test_a_series_that_ended_repeats_no_spots(
    tmp_path: Path, whole: npt.NDArray[np.void], again: Sequence[int]
) -> None:
    for _ in range(3):
        run(tmp_path, range(FRAMES), complete=True)
        run(tmp_path, again, complete=True)
    np.testing.assert_array_equal(stored(tmp_path), whole)


class DiesAtEnd(Hdf5Sink):
    """Stores the last spots, and dies before their mark."""

    def write_spots(self, spots: SeriesSpots) -> None:
        super().write_spots(replace(spots, mark=None))


def test_a_death_between_the_last_spots_and_their_mark_repeats_none(
    tmp_path: Path, whole: npt.NDArray[np.void]
) -> None:
    run(tmp_path, range(FRAMES), complete=True, inner=DiesAtEnd(tmp_path, spots=True))
    run(tmp_path, [], complete=True)
    np.testing.assert_array_equal(stored(tmp_path), whole)
    assert read_merge(tmp_path, "a", "a #1").mark is not None


def test_frames_that_follow_on_the_end_are_a_wedge_of_their_own(tmp_path: Path) -> None:
    run(tmp_path, range(5), complete=True)
    run(tmp_path, range(5, FRAMES), complete=True)
    table = stored(tmp_path)
    run(tmp_path, [], complete=True)
    assert len(stored(tmp_path)) == len(table)
    long = table[table["peaks"] > 1]
    assert long[["first_frame", "last_frame"]].tolist() == [(2, 4), (5, 6), (5, 9)]


@pytest.mark.parametrize("at", range(1, FRAMES))
def test_a_bundle_that_is_replaced_in_a_series_repeats_none_after_a_restart(
    tmp_path: Path, whole: npt.NDArray[np.void], at: int
) -> None:
    sink = opened(tmp_path)
    for number in range(at):
        made_by = IDENTITY if number < 4 else OTHER_BUNDLE
        sink.write([replace(result(number), made_by=made_by)])
    sink.end(SeriesEnded("a", {}, complete=False))
    sink.close()
    # Of a file all frames come again, because the new bundle has not made those before.
    for first in (0, at):
        run(tmp_path, range(first, FRAMES), complete=first == at, identity=OTHER_BUNDLE)
    newest = read_merge(tmp_path, "a", "a #1").spots().table
    np.testing.assert_array_equal(np.sort(newest, order=["first_frame", "last_frame"]), whole)
    if at > 4:
        np.testing.assert_array_equal(stored(tmp_path), whole)


def test_a_series_goes_on_by_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    run(tmp_path, range(5), complete=False)
    settings = MergeSettings(omega_start_deg=10.0, omega_step_deg=0.25)
    sink = MergingSink(Hdf5Sink(tmp_path, spots=True), settings, stored=(tmp_path, "results"))
    sink.open(IDENTITY)
    sink.begin(SeriesBegun("a", identity="a #1"))
    with pytest.raises(ConfigurationError, match=r"10\.0.*specify the same, or another folder"):
        sink.write([result(5)])
    sink.close()


def test_a_peak_that_is_not_finite_is_stored_and_not_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = result(3)
    assert broken.peaks is not None
    broken.peaks.intensities[1], broken.peaks.positions_px[0] = np.nan, np.inf
    sink = opened(tmp_path)
    sink.write([result(1), result(2), broken, result(4)])
    sink.end(SeriesEnded("a", {}))
    sink.close()
    assert "2 peaks have a position or an intensity that is not finite" in caplog.text
    run(tmp_path, range(5, FRAMES), complete=True)
    assert np.isfinite(stored(tmp_path)["row_px"]).all()


def test_a_new_series_reads_no_results_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, range(3), complete=True)
    monkeypatch.setattr(results_file, "_numbered_frames", None)
    sink = opened(tmp_path)
    sink.begin(SeriesBegun("b", identity="b #1"))
    sink.write([replace(result(0), series="b")])
    sink.close()


def test_angles_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="specify omega_start_deg and omega_step_deg"):
        MergingSink(Hdf5Sink(tmp_path, spots=True), MergeSettings())
