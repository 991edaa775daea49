"""How results lie in HDF5 files, and how a file is begun.

::

    /entry                      NXentry, default "peaks" or "patches"
        title, start_time
        process                 NXprocess: program, version, model, engine
        series/name             the names of the series, by their index
        frames/commits          one row a frame that is stored, written after its data
        peaks                   NXdata, scatter of the peaks: one row a peak
        patches                 NXdata, for ptychography: amplitude and phase, if kept

Only what a row of `frames/commits` points at, with `offset` and `count`, is stored; rows of peaks
beyond the last commit are left-overs of a write that was cut off.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgexnas.ptycho import PATTERN_SIZE

if TYPE_CHECKING:
    from edgexnas.device.sinks.results import ServiceIdentity

__all__ = ["COMMIT", "PEAK_COLUMNS", "begin_file", "segments"]

NAME_BYTES = 256
"""Names of series are cut to this many bytes: SWMR allows no strings of variable length."""

COMMIT = np.dtype(
    [
        ("series", "<i4"),
        ("number", "<i8"),
        ("offset", "<i8"),
        ("count", "<i4"),
        ("overflow", "<i4"),
        ("status", "u1"),
        ("timestamp_s", "<f8"),
        ("row_px", "<f8"),
        ("col_px", "<f8"),
    ]
)
"""A row of `frames/commits`: status 0 is done and 1 failed; row and col are of a patch."""

PEAK_COLUMNS = {
    "row_px": ("<f4", "px"),
    "col_px": ("<f4", "px"),
    "row_interval_px": ("<f4", "px"),
    "col_interval_px": ("<f4", "px"),
    "intensity": ("<f4", "counts"),
    "flags": ("u1", ""),
    "frame": ("<i8", ""),
}
"""Columns of peaks with their type and unit; `frame` is the frame's number in its series."""

PEAK_CHUNK, COMMIT_CHUNK, NAME_CHUNK = 4096, 512, 16

CACHE_BYTES = 2**18
"""HDF5 keeps 8 MiB of chunks of each column if not told; here only the last one is written to."""


def segments(folder: Path, name: str) -> dict[int, Path]:
    """Find the files of results in a folder by their number."""
    found = {}
    for path in folder.glob(f"{name}_*.h5"):
        number = path.stem[len(name) + 1 :]
        if number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))


def begin_file(path: Path, identity: ServiceIdentity, *, patches: bool) -> Any:
    """Create a file of results that others can read while it is written.

    Returns
    -------
    The open `h5py.File`, in SWMR mode.

    Raises
    ------
    OSError
        If it exists or cannot be written.
    """
    import h5py

    file = h5py.File(path, "x", libver="latest", rdcc_nbytes=CACHE_BYTES)
    try:
        default = "peaks" if identity.task == "bragg" else "patches"
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "edgexnas"})
        entry = _group(file, "entry", "NXentry")
        entry.attrs["default"] = default
        entry["title"] = f"{identity.source} by {identity.model_id}"
        entry["start_time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        process = _group(entry, "process", "NXprocess")
        process["program"], process["version"] = "edgexnas", identity.version
        for field in ("model_id", "sequence", "engine", "precision", "source"):
            process[field] = getattr(identity, field)
        series = _group(entry, "series", "NXcollection")
        _rows(series, "name", np.dtype(f"S{NAME_BYTES}"), NAME_CHUNK)
        frames = _group(entry, "frames", "NXcollection")
        _rows(frames, "commits", COMMIT, COMMIT_CHUNK)
        if identity.task == "bragg":
            _begin_peaks(entry)
        elif patches:
            _begin_patches(entry)
        file.swmr_mode = True
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


def _begin_peaks(entry: Any) -> None:
    peaks = _group(entry, "peaks", "NXdata")
    peaks.attrs.update({"signal": "intensity", "axes": ["col_px", "row_px"]})
    peaks.attrs.update({"row_px_indices": 0, "col_px_indices": 0})
    peaks.attrs["title"] = "Bragg peaks"
    for name, (type_, unit) in PEAK_COLUMNS.items():
        column = _rows(peaks, name, np.dtype(type_), PEAK_CHUNK)
        if unit:
            column.attrs["units"] = unit
    for axis in ("row", "col"):
        peaks[f"{axis}_px"].attrs["long_name"] = f"{axis} (px)"


def _begin_patches(entry: Any) -> None:
    patches = _group(entry, "patches", "NXdata")
    patches.attrs.update({"signal": "amplitude", "auxiliary_signals": ["phase"]})
    for name, unit in (("amplitude", ""), ("phase", "rad")):
        shape = (PATTERN_SIZE, PATTERN_SIZE)
        column = patches.create_dataset(
            name, (0, *shape), "<f4", maxshape=(None, *shape), chunks=(1, *shape)
        )
        column.attrs["units"] = unit


def _group(parent: Any, name: str, kind: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _rows(group: Any, name: str, dtype: np.dtype[Any], chunk: int) -> Any:
    return group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(chunk,))
