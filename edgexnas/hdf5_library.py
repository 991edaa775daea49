"""h5py, or the sentence that says how to get it, and new files that it makes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgexnas.errors import MissingDependencyError

__all__ = ["h5py_for", "new_hdf5"]


def h5py_for(purpose: str) -> Any:
    """Import h5py.

    Parameters
    ----------
    purpose
        What needs it, as the beginning of the sentence that is raised.

    Raises
    ------
    MissingDependencyError
        If h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError.of("h5py", extra="device", purpose=purpose) from None
    return h5py


@contextmanager
def new_hdf5(path: Path, purpose: str) -> Iterator[Any]:
    """Give a new HDF5 file in memory that is written when the block ends without an exception.

    HDF5 itself does not survive a full disk: objects that it could not flush end the process later.

    Parameters
    ----------
    path
        File to write or replace.
    purpose
        As of `h5py_for`.

    Raises
    ------
    MissingDependencyError
        If h5py is not installed.
    OSError
        If the file cannot be written.
    """
    content = io.BytesIO()
    with h5py_for(purpose).File(content, "w") as file:
        yield file
    path.write_bytes(content.getbuffer())
