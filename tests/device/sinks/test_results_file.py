"""What readers get of files of results, whole, of other versions, or damaged."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.bragg import Peaks
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import FrameResult, SeriesBegun, SeriesSpots, ServiceIdentity
from edgexnas.device.sinks.results_file import (
    StoredFrame,
    committed_frames,
    read_results,
    read_spots,
)
from edgexnas.device.sinks.results_layout import COMMIT, PEAK_COLUMNS, VERSION
from edgexnas.errors import SourceError
from edgexnas.spots import SPOT, Spots

FILES = Path(__file__).parent / "files"
IDENTITY = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0", "a" * 64)


def result(number: int, count: int = 2, **fields: Any) -> FrameResult:
    positions = np.full((count, 2), number, np.float32)
    peaks = Peaks(
        positions_px=positions,
        intervals_px=positions / 2,
        quantiles_px=np.zeros((count, 2, 3), np.float32),
        maxima=np.zeros((count, 2), np.int32),
        intensities=np.arange(count, dtype=np.float32),
        flags=np.zeros(count, np.uint8),
        frame_number=number,
        overflow=3,
    )
    return replace(FrameResult("a", number, 0, 1.5, peaks), **fields)


def write(folder: Path, *results: FrameResult, **options: Any) -> Path:
    """Write results to a file of their own and return it."""
    sink = Hdf5Sink(folder, **options)
    sink.open(IDENTITY)
    for item in results:
        sink.write([item])
    sink.close()
    assert sink.path is not None
    return sink.path


class TestVersions:
    def test_peaks_of_version_1_are_read(self) -> None:
        frames = list(read_results(FILES / "peaks_v1_000001.h5"))
        assert [(f.series, f.number, f.state) for f in frames] == [
            *(("a", number, "done") for number in range(5)),
            ("b", 7, "done"),
            ("b", 8, "failed"),
        ]
        for frame in frames[:5]:
            assert frame.positions_px is not None
            assert frame.positions_px.tolist() == [[frame.number] * 2] * (frame.number % 4)
        assert (frames[0].detector_id, frames[0].bundle_digest, frames[0].series_identity) == (
            None,
            "",
            "",
        )

    def test_patches_of_version_1_are_read(self) -> None:
        patch, failed = read_results(FILES / "patches_v1_000001.h5")
        np.testing.assert_array_equal(patch.phase_rad, np.full((64, 64), -0.5, np.float32))
        assert patch.position_px == (1.5, 2.5)
        assert (failed.state, failed.amplitude) == ("failed", None)

    def test_frames_of_version_1_are_of_an_unknown_bundle(self, tmp_path: Path) -> None:
        shutil.copy(FILES / "peaks_v1_000001.h5", tmp_path / "results_000001.h5")
        committed = Hdf5Sink(tmp_path).committed()
        assert {key: list(kept) for key, kept in committed.items()} == {
            ("a", "", ""): [(0, 5)],
            ("b", "", ""): [(7, 9)],
        }

    def test_a_newer_version_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path, result(0))
        with h5py.File(path, "r+") as file:
            file.attrs["version"] = VERSION + 1
        with pytest.raises(SourceError, match="version is 3, and 2 is the newest"):
            list(read_results(path))


class TestFrames:
    def test_a_frame_is_read_with_all_that_is_known_of_it(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.begin(SeriesBegun("a", identity="/data/scan.h5 1234 bytes"))
        swapped = replace(IDENTITY, sequence=2, bundle_digest="b" * 64)
        sink.write([result(0, detector_id=17, flags=5), result(1, made_by=swapped)])
        sink.close()
        first, second = read_results(tmp_path)
        assert (first.detector_id, first.frame_flags, first.overflow) == (17, 5, 3)
        assert (first.bundle_digest, second.bundle_digest) == ("a" * 64, "b" * 64)
        assert first.series_identity == "/data/scan.h5 1234 bytes"
        assert (second.detector_id, second.frame_flags) == (None, 0)

    def test_a_frame_that_was_not_processed_says_so_and_may_come_again(
        self, tmp_path: Path
    ) -> None:
        path = write(
            tmp_path,
            result(0),
            FrameResult("a", 1, 0, error="dark"),
            FrameResult("a", 2, 0, not_processed="dropped"),
            FrameResult("a", 3, 0, not_processed="lost"),
        )
        assert [f.state for f in read_results(path)] == ["done", "failed", "dropped", "lost"]
        ((key, kept),) = committed_frames(path).items()
        assert (key.series, list(kept)) == ("a", [(0, 2)])

    def test_more_than_one_block_of_commits_is_read(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.write([result(number, number % 2) for number in range(5000)])
        sink.close()
        assert [f.number for f in read_results(tmp_path)] == list(range(5000))

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 4)), max_size=9))
    def test_what_is_written_is_read(self, frames: list[tuple[int, int]]) -> None:
        with _folder() as folder:
            path = write(Path(folder), *(result(number, count) for number, count in frames))
            assert [(f.number, _count(f)) for f in read_results(path)] == frames

    @settings(max_examples=60, deadline=None)
    @given(
        st.tuples(
            st.integers(-1, 2),  # series
            st.integers(-1, 8),  # offset
            st.integers(-1, 8),  # count
            st.integers(0, 5),  # status
            st.integers(-1, 2),  # bundle
        )
    )
    def test_commits_that_point_at_nothing_are_refused(self, values: tuple[int, ...]) -> None:
        series, offset, count, status, bundle = values
        sound = series == bundle == 0 and offset >= 0 and count >= 0
        sound = sound and offset + count <= 4 and status < 4
        with _folder() as folder:
            path = write(Path(folder), result(0), result(1))
            with h5py.File(path, "r+") as file:
                row = np.zeros(1, COMMIT)
                for name, value in zip(
                    ("series", "offset", "count", "status", "bundle"), values, strict=True
                ):
                    row[name] = value
                file["entry/frames/commits"][1:] = row
            try:
                frame = list(read_results(path))[1]
            except SourceError:
                assert not sound
            else:
                assert sound
                assert _count(frame) == count

    @pytest.mark.parametrize("lacking", ["entry", "entry/frames", "entry/peaks/flags"])
    def test_a_file_that_lacks_a_part_is_refused(self, tmp_path: Path, lacking: str) -> None:
        path = write(tmp_path, result(0))
        with h5py.File(path, "r+") as file:
            del file[lacking]
        with pytest.raises(SourceError, match="cannot be read as results"):
            list(read_results(path))

    @pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"PK" * 500])
    def test_what_is_no_hdf5_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "results_000001.h5").write_bytes(content)
        with pytest.raises(SourceError, match="cannot be read as results"):
            list(read_results(tmp_path))


class TestSpots:
    TABLE = np.zeros(3, SPOT)
    TABLE["omega_deg"] = 0.1, 0.2, 0.3
    TABLE["first_frame"] = 4, 5, 6

    def test_spots_are_read_by_series(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path, spots=True)
        sink.open(IDENTITY)
        sink.write([result(0)])
        sink.write_spots(SeriesSpots("a", Spots.from_table(self.TABLE)))
        sink.write_spots(SeriesSpots("b", Spots.from_table(self.TABLE[:1])))
        sink.close()
        first, second = read_spots(tmp_path)
        assert (first.series, second.series) == ("a", "b")
        np.testing.assert_array_equal(first.spots.table, self.TABLE)
        np.testing.assert_array_equal(second.spots.table, self.TABLE[:1])
        assert [frame.number for frame in read_results(tmp_path)] == [0]

    def test_spots_that_a_crash_cut_off_are_not_read(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path, spots=True)
        sink.open(IDENTITY)
        sink.write_spots(SeriesSpots("a", Spots.from_table(self.TABLE)))
        sink.close()
        assert sink.path is not None
        with h5py.File(sink.path, "r+") as file:
            file["entry/spots/row_px"].resize((5,))
        (spots,) = read_spots(sink.path)
        assert len(spots.spots) == 3

    def test_a_file_without_spots_has_none(self, tmp_path: Path) -> None:
        assert list(read_spots(write(tmp_path, result(0)))) == []


class TestSpace:
    def test_a_closed_file_keeps_no_space_that_it_does_not_use(self, tmp_path: Path) -> None:
        path = write(tmp_path, *(result(number) for number in range(30)))
        # A chunk of each column, and of commits.
        used = 4096 * sum(np.dtype(kind).itemsize for kind, _ in PEAK_COLUMNS.values())
        assert path.stat().st_size < 2 * used
        assert len(list(read_results(path))) == 30
        with h5py.File(path, "r+") as file:
            file["entry/title"][()] = "still sound"

    def test_a_file_that_is_read_while_it_is_closed_stays_readable(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.write([result(number) for number in range(3)])
        reading = read_results(tmp_path)
        assert next(reading).number == 0
        sink.close()
        assert [frame.number for frame in reading] == [1, 2]


def _count(frame: StoredFrame) -> int:
    assert frame.positions_px is not None
    return len(frame.positions_px)


def _folder() -> Any:
    return tempfile.TemporaryDirectory()
