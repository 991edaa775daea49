"""One writer a folder of results: a lock that ends with its process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgexnas.errors import EdgexnasError

__all__ = ["FolderInUseError", "FolderLock"]

LOCK_FILE = ".edgexnas.lock"

_log = logging.getLogger("edgexnas.device.serving")


class FolderInUseError(EdgexnasError):
    """Somebody else writes results to a folder; later it may be free."""


@dataclass(slots=True)
class _Held:
    """A folder that this process has locked, and for which names of results."""

    descriptor: int
    names: set[str] = field(default_factory=set)


# Record locks belong to the process: it could lock twice, and closing the file once would unlock.
_held: dict[str, _Held] = {}
_holding = threading.Lock()


class FolderLock:
    """The right to write results of one name to a folder, for one service at a time.

    A process locks a folder as a whole, and its sinks share it under different names. The system
    ends the lock with the process, also if that is killed, so that a file that remains locks
    nothing.

    Parameters
    ----------
    folder
        Where results go.
    name
        How their files begin.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._place: str | None = None

    def check(self) -> None:
        """Find out whether the folder is free, and leave nothing behind.

        Raises
        ------
        FolderInUseError
            If somebody else has it.
        """
        if self._folder.is_dir() and self._place is None:
            self.acquire()
            self.release()

    def acquire(self) -> None:
        """Lock the folder, which exists; nothing happens if it is locked by this lock already.

        Raises
        ------
        FolderInUseError
            If another process writes to it, or another sink of this process under the same name.
        OSError
            If no file can be made in it.
        """
        if self._place is not None:
            return
        # Whatever path leads to it.
        place = os.path.realpath(self._folder)
        with _holding:
            held = _held.get(place)
            if held is None:
                held = _held[place] = _Held(self._locked())
            elif self._name in held.names:
                raise self._taken(f"this process ({os.getpid()})")
            held.names.add(self._name)
            self._place = place

    def release(self) -> None:
        """Unlock the folder; releasing again does nothing."""
        place, self._place = self._place, None
        if place is None:
            return
        with _holding:
            held = _held[place]
            held.names.discard(self._name)
            if held.names:
                return
            del _held[place]
            # While it is still locked, so that nobody locks a file that is about to go.
            with suppress(OSError):
                os.unlink(os.path.join(place, LOCK_FILE))
            os.close(held.descriptor)

    def _locked(self) -> int:
        path = self._folder / LOCK_FILE
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            descriptor = os.open(path, flags, 0o644)
            try:
                self._lock(descriptor)
                # The one before may have unlinked it between the two calls.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").partition(" ")
                who = f"process {pid} on {host.strip()}" if pid else "another process"
                raise self._taken(who) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            _log.warning(
                "%s is on a file system that cannot lock (%s); see to it that one service alone "
                "writes there",
                self._folder,
                error.strerror,
            )

    def _taken(self, who: str) -> FolderInUseError:
        return FolderInUseError(
            f"folder {self._folder} is written to by {who}; stop that service, or specify "
            "another folder"
        )
