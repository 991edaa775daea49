"""Files that are read once, and files and folders that no other user could have changed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

__all__ = ["Guard", "check_folder", "read_once"]


class Guard(NamedTuple):
    """Who may own, write and read a file or a folder, beside this process's user.

    Only the thing itself is judged, not the folders above it: who can rename those can put another
    guarded thing of this user there, and nothing of his own.
    """

    root: bool = False
    """Whether root may own it, as everything in /etc."""
    secret: bool = False
    """Whether others must not even read it, nor reach it under a second name."""
    links: bool = False
    """Whether its name may be a symbolic link; what the link leads to is judged."""

    def complaint(self, status: os.stat_result) -> str | None:
        """Say why another user could have changed it, or None."""
        user, mode = os.geteuid(), stat.S_IMODE(status.st_mode)
        if status.st_uid != user and not (self.root and status.st_uid == 0):
            return f"belongs to user {status.st_uid}, not to {user}"
        # A write entry of an access control list shows as the group's write bit.
        if mode & 0o022:
            return f"can be written by others (mode {mode:04o})"
        if self.secret and mode & 0o077:
            return f"can be read by others (mode {mode:04o})"
        if self.secret and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            return f"has {status.st_nlink} names"
        return None


def check_folder(path: Path, guard: Guard) -> str | None:
    """Say why a folder cannot be relied on, or None.

    Raises
    ------
    OSError
        If it is not there.
    """
    status = path.stat() if guard.links else path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder of its own"
    return guard.complaint(status)


def read_once(path: Path, *, most_bytes: int, guard: Guard | None = None) -> bytes | None:
    """Read a regular file in one go, so that what is checked is what is used.

    Parameters
    ----------
    path
        File to read; a link to a regular file will do if `guard` does not forbid it.
    most_bytes
        Size up to which a file is read.
    guard
        What the file is held against before it is read; None takes anybody's file.

    Returns
    -------
    Its content; None if it is larger than `most_bytes`.

    Raises
    ------
    OSError
        If it cannot be read, is no regular file, or `guard` rejects it; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if guard is not None and not guard.links:
        flags |= os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name holds a NUL", str(path)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        complaint = None if guard is None else guard.complaint(status)
        if complaint is not None:
            raise PermissionError(errno.EPERM, f"it {complaint}", str(path))
        if status.st_size > most_bytes:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            # The file may grow meanwhile: one byte more tells.
            content = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    return content if len(content) <= most_bytes else None
