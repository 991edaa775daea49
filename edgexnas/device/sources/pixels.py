"""What pixels, scan position and time of a frame have to be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = [
    "MAXIMUM_FRAME_BYTES",
    "UNITS_M",
    "as_pixels",
    "as_position",
    "as_time_s",
    "frame_bytes",
]

MAXIMUM_FRAME_BYTES = 2**30
"""Largest frame that a source decodes, 16384² of uint32; a message that claims more is rejected."""

LATEST_S = 4_102_444_800.0
"""The year 2100: a later time stamp is not credible."""

UNITS_M = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
"""Unit of a scan position → metres."""


def as_pixels(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return (H, W) real numbers in native byte order, C-contiguous; a copy only if they are not.

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
        raise InputError("a frame is not an array; expected (H, W) real numbers") from None
    if pixels.ndim != 2 or not pixels.size or pixels.dtype.kind not in "uif":
        raise InputError(
            f"a frame has shape {pixels.shape} and dtype {pixels.dtype}; "
            "expected (H, W) real numbers"
        )
    # Compiled loops and kernels read raw memory: order and layout must be what they take.
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def as_position(values: object) -> tuple[float, float]:
    """Return a (row, col) position in metres.

    Raises
    ------
    InputError
        If they are not two finite numbers.
    """
    try:
        row, col = (float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(
            f"the position {values!r} is not a pair; expected (row, col) in metres"
        ) from None
    if not (math.isfinite(row) and math.isfinite(col)):
        raise InputError(f"the position ({row}, {col}) is not finite; leave it out if unknown")
    return row, col


def as_time_s(seconds: float | None) -> float | None:
    """Return the Unix seconds of a frame; None for a time that is unset or not credible.

    A frame is worth more than its time stamp: a clock that was never set, or a damaged field, must
    not cost the frame.
    """
    return seconds if seconds is not None and 0 < seconds < LATEST_S else None


def frame_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Check what a message says of its frame and tell how many bytes that is.

    Raises
    ------
    InputError
        If it is no (H, W), has no pixels, or is larger than `MAXIMUM_FRAME_BYTES`.
    """
    # Before anything is allocated: the numbers come from the network.
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(f"a frame of shape {tuple(shape)} is not an image (H, W)")
    # Python's integers: numpy's would overflow, and a claim of 2^32 x 2^32 look small.
    size = shape[0] * shape[1] * dtype.itemsize
    if size > MAXIMUM_FRAME_BYTES:
        raise InputError(
            f"a frame of {shape[0]}×{shape[1]} {dtype} takes {size} bytes, more than the "
            f"{MAXIMUM_FRAME_BYTES} that are decoded"
        )
    return size
