"""Frames in a .npy file, mapped into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgexnas.errors import SourceError
from edgexnas.frames.identity import SeriesIdentity
from edgexnas.frames.reading import check_shape, reading
from edgexnas.frames.series import ArrayFrames


def open_array_file(path: Path) -> ArrayFrames:
    """Open a .npy file of (n, H, W) or (H, W) real numbers.

    Raises
    ------
    SourceError
        If the file is truncated, or holds something else.
    """
    with reading(str(path)):
        # Mapped, so that opening a series larger than memory costs nothing.
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
    if stack.ndim == 2:
        stack = stack[None]
    if stack.ndim != 3 or stack.dtype.kind not in "uif":
        raise SourceError(
            f"{path} holds {stack.dtype} of shape {stack.shape}; "
            "save real numbers of shape (n, H, W)"
        )
    check_shape(stack.shape[1:], len(stack), str(path))
    return ArrayFrames(stack, source=str(path), identity=SeriesIdentity.of(path))
