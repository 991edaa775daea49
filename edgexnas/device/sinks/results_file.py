"""Read the results that a service has stored, while it runs and after a crash too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results import (
    FRAME_STATES,
    MERGE_STATES,
    FrameState,
    MergeMark,
    SeriesKey,
    SeriesSpots,
)
from edgexnas.device.sinks.results_layout import (
    COMMIT,
    PEAK_COLUMNS,
    VERSION,
    segments,
)
from edgexnas.errors import SourceError
from edgexnas.merging import MergeSettings
from edgexnas.spots import SPOT, SPOT_COLUMNS, Spots

__all__ = [
    "StoredFrame",
    "StoredMerge",
    "committed_frames",
    "read_merge",
    "read_results",
    "read_series",
    "read_spots",
]

ROWS_AT_ONCE = 4096

MALFORMED = (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError)
"""What h5py raises for files that are damaged or something else."""

FloatArray = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A committed frame.

    Attributes
    ----------
    series, number
        Which frame.
    state
        How it ended; see `FRAME_STATES`. Only one that is "done" has a result.
    timestamp_s
        The detector's own time in Unix seconds; NaN if unknown.
    positions_px, intervals_px
        (n, 2) float32, (row, col) in pixels; None for ptychography.
    intensities
        (n,) float32 counts above background; None for ptychography.
    flags
        (n,) uint8, a combination of `PeakFlag`; None for ptychography.
    amplitude, phase_rad
        (64, 64) float32; None for Bragg peaks, and where patches were not kept.
    position_px
        (row, col) of the patch in object pixels, NaN where unknown.
    overflow
        How many peaks were found beyond the finder's capacity and are missing here.
    frame_flags
        Bits that hold for the whole frame.
    detector_id
        Number that the detector itself gave the frame; None if unknown.
    bundle_digest
        SHA-256 of the bundle that made the result; empty in files of version 1.
    series_identity
        As of `SeriesBegun`; empty in files of version 1.
    """

    series: str
    number: int
    state: FrameState
    timestamp_s: float
    positions_px: FloatArray | None = None
    intervals_px: FloatArray | None = None
    intensities: FloatArray | None = None
    flags: npt.NDArray[np.uint8] | None = None
    amplitude: FloatArray | None = None
    phase_rad: FloatArray | None = None
    position_px: tuple[float, float] = (np.nan, np.nan)
    overflow: int = 0
    frame_flags: int = 0
    detector_id: int | None = None
    bundle_digest: str = ""
    series_identity: str = ""

    @property
    def failed(self) -> bool:
        """Whether it has no result."""
        return self.state != "done"


def read_results(path: Path, *, name: str = "results") -> Iterator[StoredFrame]:
    """Read the committed frames of a file, or of all files of a folder, in their order.

    Raises
    ------
    SourceError
        If there is no file of results, or one is damaged or of a newer version.
    """
    yield from _read(path, name, _frames)


def read_spots(path: Path, *, name: str = "results") -> Iterator[SeriesSpots]:
    """Read the merged spots of a file, or of all files of a folder, one series of a file at a time.

    Raises
    ------
    SourceError
        If there is no file of results, or one is damaged or of a newer version.
    """
    yield from _read(path, name, _spots)


@dataclass(frozen=True)
class StoredMerge:
    """What is stored of the newest merging of a series.

    Attributes
    ----------
    path, name
        As of `read_merge`.
    key
        The series, without a bundle.
    mark
        The newest mark; None in files of earlier releases, and where peaks were not merged.
    bundle_digest
        SHA-256 of the bundle in use at that mark; empty if there is none.
    first
        Number of the file, of the row of commits and of the row of spots with which it begins.
    ends
        Of each file, how many rows of commits there were where spots were ended.
    """

    path: Path
    name: str
    key: SeriesKey
    mark: MergeMark | None
    bundle_digest: str
    first: tuple[int, int, int]
    ends: tuple[tuple[int, ...], ...]

    def frames(self) -> Iterator[StoredFrame | None]:
        """Read its frames in the order in which they were merged; None where spots were ended."""
        yield from self._read(self._events)

    def spots(self) -> Spots:
        """Read its spots, of all bundles."""
        return Spots.joined(list(self._read(self._spots)))

    def _read(self, read: Callable[[Any, int], Iterator[T]]) -> Iterator[T]:
        numbers = itertools.count()

        def read_numbered(entry: Any) -> Iterator[T]:
            number = next(numbers)
            if number >= self.first[0]:
                yield from read(entry, number)

        yield from _read(self.path, self.name, read_numbered)

    def _events(self, entry: Any, file: int) -> Iterator[StoredFrame | None]:
        begins = self.first[1] if file == self.first[0] else 0
        ends = list(self.ends[file]) if file < len(self.ends) else []
        for row, frame in _numbered_frames(entry, self.key):
            while ends and ends[0] <= row:
                del ends[0]
                yield None
            if row >= begins:
                yield frame
        yield from (None for _ in ends)

    def _spots(self, entry: Any, file: int) -> Iterator[Spots]:
        if "spots" not in entry:
            return
        table, of, series, _ = _spot_rows(entry)
        begins = self.first[2] if file == self.first[0] else 0
        rows = np.isin(of[:, 0], _rows_of(series, self.key))
        rows[:begins] = False
        yield Spots.from_table(table[rows])


def read_series(path: Path, *, name: str = "results") -> list[tuple[str, str]]:
    """Read (name, identity) of each series of a file, or of all files of a folder, in their order.

    Raises
    ------
    SourceError
        As of `read_results`.
    """
    return list(_read(path, name, lambda entry: iter(_series(entry))))


def read_merge(
    path: Path, series: str, identity: str = "", *, name: str = "results"
) -> StoredMerge:
    """Find what is stored of the newest merging of a series, in a file or all files of a folder.

    Raises
    ------
    SourceError
        As of `read_results`; reading its frames and spots does too.
    """
    key = SeriesKey.of(series, identity, "")
    first, mark, digest = (0, 0, 0), None, ""
    ends: list[list[int]] = []
    for file, rows in enumerate(_read(path, name, partial(_marks, key=key))):
        ends.append([])
        for found, bundle, commits, spots in rows:
            mark, digest = found, bundle
            if found.state == "begun":
                first, ends = (file, commits, spots), [[] for _ in ends]
            elif found.state == "ended":
                ends[-1].append(commits)
    return StoredMerge(path, name, key, mark, digest, first, tuple(map(tuple, ends)))


def committed_frames(path: Path) -> dict[SeriesKey, NumberRanges]:
    """Read which frames have ended with a result, or failed, in a file, by series and bundle.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    found: dict[SeriesKey, NumberRanges] = {}
    for rows, series, bundles in _read(path, "", _commits):
        # What was not processed may come again, and is processed then.
        ended = rows[rows["status"] <= FRAME_STATES.index("failed")]
        for index, bundle in np.unique(ended[["series", "bundle"]]).tolist():
            name, identity = series[index]
            key = SeriesKey.of(name, identity, bundles[bundle])
            kept = found.setdefault(key, NumberRanges())
            chosen = (ended["series"] == index) & (ended["bundle"] == bundle)
            numbers = np.unique(ended["number"][chosen])
            cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
            for part in np.split(numbers, cuts):
                kept.add_range(int(part[0]), int(part[-1]) + 1)
    return found


def _read(path: Path, name: str, read: Callable[[Any], Iterator[T]]) -> Iterator[T]:
    """Read the entry of a file, or of each file of a folder, once its version is checked."""
    import h5py

    paths = list(segments(path, name).values()) if path.is_dir() else [path]
    if not paths:
        raise SourceError(
            f"{path} holds no {name}_*.h5; specify the folder that a service wrote to"
        )
    for part in paths:
        try:
            if not part.is_file():
                # HDF5 would wait for somebody to write to a pipe.
                raise OSError("it is not a regular file")
            # As a reader beside a writer: a file whose writer was killed opens in no other way.
            with h5py.File(part, "r", libver="latest", swmr=True) as file:
                version = int(file.attrs.get("version", 1))
                # Rather no results than some that are read by the wrong rules.
                if version > VERSION:
                    raise ValueError(
                        f"its version is {version}, and {VERSION} is the newest that this "
                        "edgexnas reads; install a newer one"
                    )
                yield from read(file["entry"])
        except MALFORMED as error:
            raise SourceError(
                f"{part} cannot be read as results: {error}; specify the folder that a service "
                "wrote to, or a file of it"
            ) from error


def _commits(
    entry: Any,
) -> Iterator[tuple[npt.NDArray[np.void], list[tuple[str, str]], list[str]]]:
    """Read rows of commits with (name, identity) of each series and the digest of each bundle."""
    commits = entry["frames/commits"]
    # Rows that a writer adds from here on are left to the next reading. Rows of version 1 lack
    # fields, and a file of version 1 has no table of bundles.
    for start in range(0, len(commits), ROWS_AT_ONCE):
        stored = commits[start : start + ROWS_AT_ONCE]
        rows = np.zeros(len(stored), COMMIT)
        rows["detector_id"] = -1
        for field in stored.dtype.names:
            rows[field] = stored[field]
        # Names are read after the commits, so each commit's series and bundle are among them.
        series = _series(entry)
        bundles = _texts(entry["bundles"], "bundle_digest") if "bundles" in entry else [""]
        _check_rows(rows, len(series), len(bundles))
        yield rows, series, bundles


def _texts(dataset: Any, field: str | None = None) -> list[str]:
    # A SWMR reader sees rows that were added only after asking.
    dataset.refresh()
    rows = dataset[:] if field is None else dataset[:][field]
    return [text.decode(errors="replace") for text in rows.tolist()]


def _check_rows(rows: npt.NDArray[np.void], series: int, bundles: int) -> None:
    """Reject rows that point at what cannot be, which nothing else would notice."""
    limits = {"series": series, "bundle": bundles, "status": len(FRAME_STATES)}
    for name, limit in limits.items():
        if not ((rows[name] >= 0) & (rows[name] < limit)).all():
            raise ValueError(f"a row of commits has a {name} beyond 0 to {limit - 1}")
    if (rows["offset"] < 0).any() or (rows["count"] < 0).any():
        raise ValueError("a row of commits has a negative offset or count")


def _frames(entry: Any) -> Iterator[StoredFrame]:
    for _, frame in _numbered_frames(entry):
        yield frame


def _rows_of(series: list[tuple[str, str]], key: SeriesKey) -> list[int]:
    """Rows of a file's table of series, of (name, identity), that are one series."""
    return [
        n for n, (name, identity) in enumerate(series) if SeriesKey.of(name, identity, "") == key
    ]


def _numbered_frames(entry: Any, key: SeriesKey | None = None) -> Iterator[tuple[int, StoredFrame]]:
    """Read frames, of one series if told, with their rows of commits."""
    kind = next((kind for kind in ("peaks", "patches") if kind in entry), None)
    read = 0
    for rows, series, bundles in _commits(entry):
        numbers = np.arange(read, read + len(rows))
        read += len(rows)
        if key is not None:
            chosen = np.isin(rows["series"], _rows_of(series, key))
            rows, numbers = rows[chosen], numbers[chosen]
            if not len(rows):
                continue
        # Of the block, not of each frame: HDF5 reads a chunk of 4,096 rows for a single one.
        first = int(rows["offset"].min())
        end = int((rows["offset"] + rows["count"]).max())
        columns: dict[str, npt.NDArray[Any]] = {}
        if kind is not None:
            data = entry[kind]
            names = PEAK_COLUMNS if kind == "peaks" else ("amplitude", "phase")
            if any(len(data[name]) < end for name in names):
                raise ValueError(f"commits point at {end} rows of {kind}, and fewer are there")
            if kind == "peaks":
                # Frames of one block lie together, so one read a column serves all of them.
                columns = {name: data[name][first:end] for name in names}
        # In the order of COMMIT; as Python's numbers, which cost a tenth of numpy's.
        for at, (index, number, offset, count, *about) in zip(
            numbers.tolist(), rows.tolist(), strict=True
        ):
            overflow, status, flags, bundle, detector_id, timestamp_s, row, col = about
            data_of: dict[str, Any] = {}
            if kind == "peaks":
                data_of = _peaks(columns, slice(offset - first, offset - first + count))
            elif kind == "patches" and count:
                data_of["amplitude"] = data["amplitude"][offset]
                data_of["phase_rad"] = data["phase"][offset]
            name, identity = series[index]
            frame = StoredFrame(
                name,
                number,
                FRAME_STATES[status],
                timestamp_s,
                **data_of,
                position_px=(row, col),
                overflow=overflow,
                frame_flags=flags,
                detector_id=None if detector_id < 0 else detector_id,
                bundle_digest=bundles[bundle],
                series_identity=identity,
            )
            yield at, frame


def _peaks(columns: dict[str, npt.NDArray[Any]], where: slice) -> dict[str, Any]:
    column = {name: values[where] for name, values in columns.items()}
    return {
        "positions_px": np.stack([column["row_px"], column["col_px"]], axis=1),
        "intervals_px": np.stack([column["row_interval_px"], column["col_interval_px"]], axis=1),
        "intensities": column["intensity"],
        "flags": column["flags"],
    }


def _marks(entry: Any, key: SeriesKey) -> Iterator[list[tuple[MergeMark, str, int, int]]]:
    """Read the marks of a series, each with how many rows of commits and spots came before."""
    found = []
    if "merges" in entry:
        rows = entry["merges"][:]
        wanted = _rows_of(_series(entry), key)
        digests = _texts(entry["bundles"], "bundle_digest")
        for row in rows[np.isin(rows["series"], wanted)]:
            given = {field.name: row[field.name].item() for field in fields(MergeSettings)}
            # Merging without a rotation of its own, as of a series that states its angles.
            given = {name: None if np.isnan(value) else value for name, value in given.items()}
            state = MERGE_STATES[row["state"]]
            mark = MergeMark(state, MergeSettings(**given), row["coverage"].item())
            digest = digests[row["bundle"]]
            found.append((mark, digest, int(row["commits"]), int(row["spots"])))
    yield found


def _series(entry: Any) -> list[tuple[str, str]]:
    names = _texts(entry["series/name"])
    identities = _texts(entry["series/identity"]) if "identity" in entry["series"] else []
    return list(zip(names, identities or [""] * len(names), strict=False))


def _spot_rows(
    entry: Any,
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64], list[tuple[str, str]], list[str]]:
    """Read all spots, the rows of the series and the bundle of each, and what these rows name."""
    # The series is written last: a spot that a crash cut off has none.
    series = entry["spots/series"][:]
    digests = _texts(entry["bundles"], "bundle_digest") if "bundles" in entry else []
    # Files of earlier releases have spots without a bundle.
    bundle = entry["spots/bundle"][: len(series)] if "bundle" in entry["spots"] else None
    table = np.empty(len(series), SPOT)
    for column in SPOT_COLUMNS:
        table[column] = entry["spots"][column][: len(series)]
    of = np.stack([series, np.full(len(series), -1) if bundle is None else bundle], axis=1)
    return table, of, _series(entry), digests


def _spots(entry: Any) -> Iterator[SeriesSpots]:
    if "spots" not in entry:
        return
    table, of, series, digests = _spot_rows(entry)
    for index, row in np.unique(of, axis=0).tolist():
        chosen = Spots.from_table(table[(of == (index, row)).all(axis=1)])
        name, identity = series[index]
        digest = digests[row] if 0 <= row < len(digests) else ""
        yield SeriesSpots(name, chosen, identity, digest)
