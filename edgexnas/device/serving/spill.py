"""Frames that wait on disk, in the order in which they came."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.device.serving.series_run import FrameTask

__all__ = ["SpillFolder"]

FILE_BYTES = 64 * 2**20
"""A file is ended once it is longer, and deleted once it is read."""


@dataclass(slots=True)
class _Kept:
    """A frame on disk: all but its pixels, and where these are."""

    task: FrameTask
    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class SpillFolder:
    """A bounded store on disk, first in, first out.

    It holds what was not processed yet: it begins empty, and what is in it when the process dies
    is gone, like the frames in memory.

    Parameters
    ----------
    parent
        Folder in which a folder of its own is made.
    most_bytes
        Most bytes on disk.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """

    def __init__(self, parent: Path, most_bytes: int) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="edgexnas-spill-", dir=parent))
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._files = 0
        self._path: Path | None = None
        self._length = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, task: FrameTask) -> bool:
        """Write a frame behind the others; False if it does not fit.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        pixels = task.pixels
        assert pixels is not None
        with self._lock:
            if self._bytes + pixels.nbytes > self.most_bytes:
                return False
            if self._path is None or self._length >= FILE_BYTES:
                self._files += 1
                self._path, self._length = self.folder / f"{self._files:08d}.frames", 0
            with self._path.open("ab") as file:
                # What a failed write has left behind is not in the way of the next.
                file.truncate(self._length)
                file.write(np.ascontiguousarray(pixels).data)
            self._kept.append(_Kept(task, self._path, self._length, pixels.dtype, pixels.shape))
            self._length += pixels.nbytes
            self._bytes += pixels.nbytes
            task.pixels = None
        return True

    def take(self) -> FrameTask | None:
        """Read the oldest frame back, with an error if that fails; None if there is none."""
        with self._lock:
            if not self._kept:
                return None
            kept = self._kept.popleft()
            task, count = kept.task, int(np.prod(kept.shape))
            self._bytes -= count * kept.dtype.itemsize
            try:
                pixels = np.fromfile(kept.path, kept.dtype, count, offset=kept.offset)
                task.pixels = pixels.reshape(kept.shape)
            except (OSError, ValueError) as error:
                task.error = f"it could not be read back from {kept.path}: {error}"
            self._forget(kept.path)
            return task

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _forget(self, path: Path) -> None:
        """Delete a file of which all has been read."""
        if self._kept and self._kept[0].path == path:
            return
        if path == self._path:
            self._path = None
        path.unlink(missing_ok=True)
