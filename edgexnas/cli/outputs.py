"""Reject a file that a command cannot write, before its work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgexnas.errors import ConfigurationError

__all__ = ["HDF5_SUFFIXES", "check_output"]

HDF5_SUFFIXES = (".h5", ".hdf5", ".nxs")


def check_output(
    path: Path, *, inputs: Iterable[Path | str] = (), suffixes: Sequence[str] = ()
) -> None:
    """Reject a place that cannot be written, or that holds what the command reads.

    Parameters
    ----------
    path
        File to write; a device or a pipe is as good.
    inputs
        Files that the command reads; what does not exist, such as a URL, counts for nothing.
    suffixes
        What the name may end in, so that it promises no other form; empty for anything.

    Raises
    ------
    ConfigurationError
        Naming the place and what to give instead.
    """
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent} for {path.name}; make it first")
    regular = path.is_file() or not path.exists()
    if suffixes and regular and path.suffix.lower() not in suffixes:
        raise ConfigurationError(
            f"{path} would not be what its name says, for this command writes HDF5; let the name "
            f"end in {', '.join(suffixes)}"
        )
    if not path.exists():
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"{path} cannot be written, for its folder is read-only; choose another"
            )
        return
    for read in map(Path, inputs):
        if read.exists() and path.samefile(read):
            raise ConfigurationError(
                f"{path} is what this command reads, and would be lost; specify another output"
            )
