"""Read the results that a service has stored, while it runs and after a crash too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results_layout import segments
from edgexnas.errors import SourceError

__all__ = ["StoredFrame", "committed_frames", "read_results"]

ROWS_AT_ONCE = 4096

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A committed frame.

    Attributes
    ----------
    series, number
        Which frame.
    failed
        Whether it has no result.
    timestamp_s
        The detector's own time in Unix seconds; NaN if it said none.
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
    """

    series: str
    number: int
    failed: bool
    timestamp_s: float
    positions_px: FloatArray | None = None
    intervals_px: FloatArray | None = None
    intensities: FloatArray | None = None
    flags: npt.NDArray[np.uint8] | None = None
    amplitude: FloatArray | None = None
    phase_rad: FloatArray | None = None
    position_px: tuple[float, float] = (np.nan, np.nan)


def read_results(path: Path, *, name: str = "results") -> Iterator[StoredFrame]:
    """Read the committed frames of a file, or of all files of a folder, in their order.

    Raises
    ------
    SourceError
        If there is no file of results, or one cannot be read.
    """
    paths = list(segments(path, name).values()) if path.is_dir() else [path]
    if not paths:
        raise SourceError(f"{path} holds no {name}_*.h5; give the folder that a service wrote to")
    for part in paths:
        try:
            with _reading(part) as file:
                yield from _frames(file["entry"])
        except (OSError, KeyError) as error:
            raise SourceError(f"{part} cannot be read as results: {error}") from error


def committed_frames(path: Path) -> dict[str, NumberRanges]:
    """Read which frames of which series a file holds.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    found: dict[str, NumberRanges] = {}
    try:
        with _reading(path) as file:
            entry = file["entry"]
            for rows, names in _commits(entry):
                for index in np.unique(rows["series"]).tolist():
                    kept = found.setdefault(names[index], NumberRanges())
                    numbers = np.unique(rows["number"][rows["series"] == index])
                    cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
                    for part in np.split(numbers, cuts):
                        kept.add_range(int(part[0]), int(part[-1]) + 1)
    except KeyError as error:
        raise OSError(f"it has no {error}") from error
    return found


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    import h5py

    if not path.is_file():
        # HDF5 would wait for somebody to write to a pipe.
        raise OSError(f"{path} is no regular file")
    # As a reader beside a writer: a file whose writer was killed opens in no other way.
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        yield file


def _commits(entry: Any) -> Iterator[tuple[npt.NDArray[Any], list[str]]]:
    commits = entry["frames/commits"]
    # The names are read after the commits, so each commit's series is among them.
    for start in range(0, len(commits), ROWS_AT_ONCE):
        rows = commits[start : start + ROWS_AT_ONCE]
        entry["series/name"].refresh()
        yield rows, [name.decode(errors="replace") for name in entry["series/name"][:].tolist()]


def _frames(entry: Any) -> Iterator[StoredFrame]:
    peaks, patches = entry.get("peaks"), entry.get("patches")
    for rows, names in _commits(entry):
        first = int(rows["offset"].min())
        end = int((rows["offset"] + rows["count"]).max())
        # Frames of one block lie together, so one read a column serves all of them.
        columns = {} if peaks is None else {name: peaks[name][first:end] for name in peaks}
        for row in rows:
            where = slice(int(row["offset"]) - first, int(row["offset"] + row["count"]) - first)
            fields: dict[str, Any] = {"position_px": (float(row["row_px"]), float(row["col_px"]))}
            if peaks is not None:
                fields |= _peaks(columns, where)
            elif patches is not None and row["count"]:
                fields["amplitude"] = patches["amplitude"][int(row["offset"])]
                fields["phase_rad"] = patches["phase"][int(row["offset"])]
            yield StoredFrame(
                names[row["series"]],
                int(row["number"]),
                bool(row["status"]),
                float(row["timestamp_s"]),
                **fields,
            )


def _peaks(columns: dict[str, npt.NDArray[Any]], where: slice) -> dict[str, Any]:
    column = {name: values[where] for name, values in columns.items()}
    return {
        "positions_px": np.stack([column["row_px"], column["col_px"]], axis=1),
        "intervals_px": np.stack([column["row_interval_px"], column["col_interval_px"]], axis=1),
        "intensities": column["intensity"],
        "flags": column["flags"],
    }
