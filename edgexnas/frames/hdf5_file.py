"""Open HDF5 files, and say why one does not open."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from edgexnas.errors import SourceError
from edgexnas.frames.reading import reading
from edgexnas.hdf5_library import h5py_for

__all__ = ["open_hdf5_file"]


def open_hdf5_file(path: Path, *, swmr: bool = False) -> Any:
    """Open a file for reading.

    Parameters
    ----------
    path
        The file.
    swmr
        Another process may be writing it (single writer, multiple readers).

    Raises
    ------
    SourceError
        If it is damaged, or another program is writing it.
    MissingDependencyError
        If h5py is not installed.
    """
    h5py = h5py_for(f"reading the HDF5 file {path}")
    # Without it plain files are still readable; check_filters refuses the others.
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  (importing it registers the filters)
    with reading(str(path)):
        try:
            return h5py.File(path, "r", swmr=swmr)
        except OSError as error:
            reason = _held_by_a_writer(error, path)
            if reason is None:
                raise
            raise SourceError(reason) from error


def _held_by_a_writer(error: OSError, path: Path) -> str | None:
    text = str(error)
    if "unable to lock file" in text:
        return (
            f"{path} is locked by another program that writes it; wait until that is done, copy "
            "the file, or set HDF5_USE_FILE_LOCKING=FALSE if nothing writes it"
        )
    # What an SWMR writer sets, and leaves behind if it crashes.
    if "already open for" in text or "consistency flags" in text:
        return (
            f"{path} is open in another program that writes it; follow it as "
            f"file://{path}?follow=1, or run h5clear -s on it if that program has crashed"
        )
    return None
