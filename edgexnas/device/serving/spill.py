"""Frames that wait on disk, in the order in which they came."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgexnas.device.serving.series_run import FrameTask
from edgexnas.device.sources.encoded_frames import EncodedPixels

__all__ = ["SpillFolder"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

FILE_BYTES = 64 * 2**20
"""A file is ended once it is longer, and deleted once it is read."""


@dataclass(slots=True)
class _Kept:
    """A frame on disk: all but its pixels, where their bytes are, and what makes them pixels."""

    task: FrameTask
    path: Path
    offset: int
    size: int
    restore: Callable[[Bytes], None]


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
        content, restore = _content(task)
        with self._lock:
            if self._bytes + content.nbytes > self.most_bytes:
                return False
            if self._path is None or self._length >= FILE_BYTES:
                self._files += 1
                self._path, self._length = self.folder / f"{self._files:08d}.frames", 0
            with self._path.open("ab") as file:
                # What a failed write has left behind is not in the way of the next.
                file.truncate(self._length)
                file.write(content.data)
            self._kept.append(_Kept(task, self._path, self._length, content.nbytes, restore))
            self._length += content.nbytes
            self._bytes += content.nbytes
            task.pixels = task.encoded = None
        return True

    def take(self) -> FrameTask | None:
        """Read the oldest frame back, with an error if that fails; None if there is none."""
        with self._lock:
            if not self._kept:
                return None
            kept = self._kept.popleft()
            task = kept.task
            self._bytes -= kept.size
            try:
                content = np.fromfile(kept.path, np.uint8, kept.size, offset=kept.offset)
                if content.size != kept.size:
                    raise OSError(f"the file ends after {content.size} of {kept.size} bytes")
                kept.restore(content)
            except OSError as error:
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


def _content(task: FrameTask) -> tuple[Bytes, Callable[[Bytes], None]]:
    """Give the bytes of a frame as it is, decoded or not, and what puts them back."""
    encoded, pixels = task.encoded, task.pixels
    if encoded is not None:
        decoder = encoded.decoder

        def put_encoded(content: Bytes) -> None:
            task.encoded = EncodedPixels(content, decoder, content.nbytes)

        return np.frombuffer(encoded.payload, np.uint8), put_encoded
    assert pixels is not None
    dtype, shape = pixels.dtype, pixels.shape

    def put_pixels(content: Bytes) -> None:
        task.pixels = content.view(dtype).reshape(shape)

    return np.ascontiguousarray(pixels).reshape(-1).view(np.uint8), put_pixels
