"""Where this package reads the disk: a file is read once, so that what is checked is used."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["read_once"]


def read_once(path: Path, *, most_bytes: int) -> bytes | None:
    """Read a regular file in one go, so that what is checked is what is used.

    Parameters
    ----------
    path
        File to read; a link to a regular file will do.
    most_bytes
        Size up to which a file is read.

    Returns
    -------
    Its content; None if it is larger than `most_bytes`.

    Raises
    ------
    OSError
        If it cannot be read or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if status.st_size > most_bytes:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            # The file may grow meanwhile: one byte more tells.
            content = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    return content if len(content) <= most_bytes else None
