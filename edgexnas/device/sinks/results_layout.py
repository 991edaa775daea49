"""How results are laid out in HDF5 files, and how such a file is created; see docs/forms.md.

::

    /                           attributes format "edgexnas results", version 2
    /entry                      NXentry, default "peaks" or "patches"
        title, start_time
        process                 NXprocess: program, version, source
        bundles                 one row for each bundle that made results
        series/name, identity   one row for each series
        frames/commits          one row for each frame that is stored, written after its data
        peaks                   NXdata, scatter of the peaks: one row for each peak
        patches                 NXdata, for ptychography: amplitude and phase, if kept
        spots                   NXdata, peaks merged over frames, if kept
        merges                  one row where the merging of a series begins, goes on or ends

Only what a row of `frames/commits` points at, with `offset` and `count`, is stored; rows of peaks
beyond the last commit remain of a write that was cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PeakFlag
from edgexnas.device.sinks.results import FRAME_STATES, MERGE_STATES, NAME_BYTES
from edgexnas.ptycho import PATTERN_SIZE
from edgexnas.spots import SPOT_COLUMNS, SpotFlag

if TYPE_CHECKING:
    from edgexnas.device.sinks.results import FrameResult, ServiceIdentity

__all__ = [
    "BUNDLE",
    "COMMIT",
    "FORMAT",
    "MERGE",
    "PEAK_COLUMNS",
    "VERSION",
    "begin_file",
    "peak_columns",
    "segments",
]

FORMAT = "edgexnas results"
VERSION = 2
"""Version of this layout; version 1 had no attributes that say so."""

COMMIT = np.dtype(
    [
        ("series", "<i4"),
        ("number", "<i8"),
        ("offset", "<i8"),
        ("count", "<i4"),
        ("overflow", "<i4"),
        ("status", "u1"),
        ("flags", "<u2"),
        # A bundle is replaced a few times in the life of a file.
        ("bundle", "<i2"),
        ("detector_id", "<i8"),
        ("timestamp_s", "<f8"),
        ("row_px", "<f8"),
        ("col_px", "<f8"),
    ]
)
"""A row of `frames/commits`: status counts `FRAME_STATES`, row and col are of a patch."""

BUNDLE = np.dtype(
    [
        ("bundle_digest", "S64"),
        ("model_id", "S100"),
        ("sequence", "<i8"),
        ("engine", "S64"),
        ("precision", "S16"),
    ]
)
"""A row of `bundles`: fields of `ServiceIdentity`, whose texts are ASCII and as short as this."""

MERGE = np.dtype(
    [
        ("series", "<i4"),
        ("bundle", "<i2"),
        ("state", "u1"),
        # How many rows the file had by then: what is of the merging, and what was before.
        ("commits", "<i8"),
        ("spots", "<i8"),
        ("omega_start_deg", "<f8"),
        ("omega_step_deg", "<f8"),
        ("tolerance_px", "<f8"),
        ("gap_frames", "<i4"),
        ("valley", "<f8"),
        ("coverage", "<f8"),
    ]
)
"""A row of `merges`: state counts `MERGE_STATES`, then fields of `MergeSettings`."""

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

# A chunk is the least that a column takes, and a file has ten of them: 16 KiB each.
ROW_CHUNK, COMMIT_CHUNK, NAME_CHUNK = 4096, 512, 16

CACHE_BYTES = 2**18
"""HDF5 keeps 8 MiB of chunks of each column if not told; here only the last one is written to."""


def segments(folder: Path, name: str) -> dict[int, Path]:
    """Find the files of results in a folder by their number."""
    found = {}
    for path in folder.glob(f"{name}_*.h5"):
        number = path.stem[len(name) + 1 :]
        # Others may have files of like names there, as of a copy.
        if number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))


def peak_columns(results: Sequence[FrameResult]) -> dict[str, npt.NDArray[Any]]:
    """Return the `PEAK_COLUMNS` of some frames' peaks, one frame after the other."""
    found = [(result.number, result.peaks) for result in results if result.peaks is not None]
    if not found:
        return {name: np.empty(0, type_) for name, (type_, _) in PEAK_COLUMNS.items()}
    # One array a field, and not one a frame and field: frames have few peaks and come by hundreds.
    positions = np.concatenate([peaks.positions_px for _, peaks in found])
    intervals = np.concatenate([peaks.intervals_px for _, peaks in found])
    return {
        "row_px": positions[:, 0],
        "col_px": positions[:, 1],
        "row_interval_px": intervals[:, 0],
        "col_interval_px": intervals[:, 1],
        "intensity": np.concatenate([peaks.intensities for _, peaks in found]),
        "flags": np.concatenate([peaks.flags for _, peaks in found]),
        "frame": np.repeat([number for number, _ in found], [len(peaks) for _, peaks in found]),
    }


def begin_file(path: Path, identity: ServiceIdentity, *, patches: bool, spots: bool) -> Any:
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

    # SWMR needs the latest format; "x", because no file of results is ever written over.
    file = h5py.File(path, "x", libver="latest", rdcc_nbytes=CACHE_BYTES)
    try:
        default = "peaks" if identity.task == "bragg" else "patches"
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "edgexnas"})
        file.attrs.update({"format": FORMAT, "version": VERSION})
        entry = _group(file, "entry", "NXentry", default=default)
        entry["title"] = f"{identity.source} by {identity.model_id}"
        entry["start_time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        process = _group(entry, "process", "NXprocess")
        process["program"], process["version"] = "edgexnas", identity.version
        process["source"] = identity.source
        _rows(entry, "bundles", BUNDLE, NAME_CHUNK)
        series = _group(entry, "series", "NXcollection")
        for name in ("name", "identity"):
            _rows(series, name, np.dtype(f"S{NAME_BYTES}"), NAME_CHUNK)
        commits = _rows(_group(entry, "frames", "NXcollection"), "commits", COMMIT, COMMIT_CHUNK)
        commits.attrs["status_meanings"] = " ".join(FRAME_STATES)
        # SWMR allows no new datasets later, so all that may be needed is created now.
        if identity.task == "bragg":
            peaks = _scatter(entry, "peaks", "Bragg peaks", PEAK_COLUMNS)
            _explain_flags(peaks["flags"], PeakFlag)
        elif patches:
            _begin_patches(entry)
        if spots:
            # The series is the last one that is written.
            columns = SPOT_COLUMNS | {"bundle": ("<i2", ""), "series": ("<i4", "")}
            table = _scatter(entry, "spots", "Bragg peaks merged over frames", columns)
            _explain_flags(table["flags"], SpotFlag)
            merges = _rows(entry, "merges", MERGE, NAME_CHUNK)
            merges.attrs["state_meanings"] = " ".join(MERGE_STATES)
        # Last: from here on a reader, or a crash at any point, finds a file that opens.
        file.swmr_mode = True
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


def _scatter(entry: Any, name: str, title: str, columns: Mapping[str, tuple[str, str]]) -> Any:
    """Create a table as columns that NeXus tools plot as points at (col, row)."""
    axes = {"row_px_indices": 0, "col_px_indices": 0, "axes": ["col_px", "row_px"]}
    group = _group(entry, name, "NXdata", signal="intensity", title=title, **axes)
    for column, (type_, unit) in columns.items():
        _rows(group, column, np.dtype(type_), ROW_CHUNK, unit)
    for axis in ("row", "col"):
        group[f"{axis}_px"].attrs["long_name"] = f"{axis} (px)"
    return group


def _explain_flags(flags: Any, kind: type[IntFlag]) -> None:
    """Describe bits as the CF conventions do, so that the file explains itself."""
    flags.attrs["flag_masks"] = np.array([flag.value for flag in kind], flags.dtype)
    flags.attrs["flag_meanings"] = " ".join(str(flag.name).lower() for flag in kind)


def _begin_patches(entry: Any) -> None:
    patches = _group(entry, "patches", "NXdata", signal="amplitude", auxiliary_signals=["phase"])
    for name, unit in (("amplitude", ""), ("phase", "rad")):
        # A chunk is one patch, so that reading one decodes no others.
        _rows(patches, name, np.dtype("<f4"), 1, unit, item=(PATTERN_SIZE, PATTERN_SIZE))


def _group(parent: Any, name: str, kind: str, **attributes: Any) -> Any:
    group = parent.create_group(name)
    group.attrs.update({"NX_class": kind, **attributes})
    return group


def _rows(
    group: Any,
    name: str,
    dtype: np.dtype[Any],
    chunk: int,
    unit: str = "",
    *,
    item: tuple[int, ...] = (),
) -> Any:
    """Create an empty dataset that grows by rows, each of the shape `item`."""
    dataset = group.create_dataset(
        name, (0, *item), dtype, maxshape=(None, *item), chunks=(chunk, *item)
    )
    if unit:
        dataset.attrs["units"] = unit
    return dataset
