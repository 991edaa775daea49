"""h5py, or the sentence that says how to get it."""

from __future__ import annotations

from typing import Any

from edgexnas.errors import MissingDependencyError

__all__ = ["h5py_for"]


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
