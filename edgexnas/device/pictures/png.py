"""Write an image of palette indices as PNG (ISO/IEC 15948), with zlib alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = ["encode_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INDEXED = 3


def encode_png(indices: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image whose pixels are indices into a palette.

    Parameters
    ----------
    indices
        (H, W) uint8, each less than the palette's length.
    palette
        (n, 3) uint8 red, green, blue; 1 ≤ n ≤ 256.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    InputError
        For an empty image, a palette of the wrong shape, or an index that it does not have.
    """
    if indices.ndim != 2 or not indices.size or indices.dtype != np.uint8:
        raise InputError(
            f"the image is {indices.dtype} of shape {indices.shape}; expected (H, W) uint8 indices"
        )
    if palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 256:
        raise InputError(f"the palette has shape {palette.shape}; expected (1 … 256, 3) colours")
    if indices.max() >= len(palette):
        raise InputError(
            f"the image asks for colour {indices.max()}, the palette has {len(palette)}"
        )
    height, width = indices.shape
    # Width before height, as PNG has it; 8 bits an index, no interlacing.
    header = struct.pack(">IIBBBBB", width, height, 8, _INDEXED, 0, 0, 0)
    # Each row begins with its filter: 0, none. Other filters do nothing for palette indices.
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = indices
    # Level 1: the page asks for a picture each second, beside the detector's frames.
    data = zlib.compress(rows.data, 1)
    colours = np.ascontiguousarray(palette, np.uint8).tobytes()
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", colours),
            _chunk(b"IDAT", data),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(
        (struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body)))
    )
