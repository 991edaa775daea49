"""What pixels of a frame and a scan position have to be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = ["MAXIMUM_FRAME_BYTES", "as_pixels", "as_position", "frame_bytes"]

MAXIMUM_FRAME_BYTES = 2**30
"""Largest frame that a source decodes, 16384² of uint32; a message that claims more is refused."""


def as_pixels(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Give (H, W) real numbers in native byte order, C-contiguous; a copy only if they are not.

    Raises
    ------
    InputError
        If they are not two-dimensional, empty, or no real numbers.
    """
    if np.ma.is_masked(values):
        raise InputError(
            "a frame is a numpy masked array, whose mask would be lost; give its data, and the "
            "detector's mask with the series"
        )
    try:
        pixels = np.asarray(values)
    except ValueError:
        raise InputError("a frame is no array; give (H, W) real numbers") from None
    if pixels.ndim != 2 or not pixels.size or pixels.dtype.kind not in "uif":
        raise InputError(
            f"a frame has shape {pixels.shape} and dtype {pixels.dtype}; give (H, W) real numbers"
        )
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def as_position(values: object) -> tuple[float, float]:
    """Give a (row, col) position in metres.

    Raises
    ------
    InputError
        If they are not two finite numbers.
    """
    try:
        row, col = (float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(f"the position {values!r} is no pair; give (row, col) in metres") from None
    if not (math.isfinite(row) and math.isfinite(col)):
        raise InputError(f"the position ({row}, {col}) is not finite; leave it out if unknown")
    return row, col


def frame_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Check what a message says of its frame and tell how many bytes that is.

    Raises
    ------
    InputError
        If it is no (H, W), has no pixels, or is larger than `MAXIMUM_FRAME_BYTES`.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(f"a frame of shape {tuple(shape)} is no image (H, W)")
    size = shape[0] * shape[1] * dtype.itemsize
    if size > MAXIMUM_FRAME_BYTES:
        raise InputError(
            f"a frame of {shape[0]}×{shape[1]} {dtype} takes {size} bytes, more than the "
            f"{MAXIMUM_FRAME_BYTES} that are decoded"
        )
    return size
