"""float32 arrays as .npy files: equal bytes for equal arrays, and no other bytes accepted."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

__all__ = ["decode_npy", "encode_npy"]

START = struct.Struct("<6sBBH")
"""Magic, version and header length: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""

FloatArray = npt.NDArray[np.float32]


def encode_npy(array: FloatArray) -> bytes:
    """Write a .npy file (format 1.0); numpy.save pads its header differently between versions."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {array.shape}, }}"
    padded = header.ljust(-(-(START.size + len(header) + 1) // 64) * 64 - START.size - 1)
    start = START.pack(b"\x93NUMPY", 1, 0, len(padded) + 1)
    return start + f"{padded}\n".encode() + array.tobytes()


def decode_npy(raw: bytes, item: tuple[int, ...]) -> FloatArray | None:
    """Read a .npy file that `encode_npy` wrote, without believing its header.

    The number of items follows from the length of the data.

    Returns
    -------
    (n, *item) float32, read-only, n at least 1; None if the file is anything else.
    """
    if len(raw) < START.size:
        return None
    # The header itself is a Python literal, which numpy evaluates; it is never parsed here.
    body = memoryview(raw)[START.size + START.unpack_from(raw)[3] :]
    count, rest = divmod(len(body), 4 * math.prod(item))
    if not count or rest:
        return None
    # A view of the file, so that `encode_npy` below compares what will be used.
    array = np.frombuffer(body, "<f4").reshape(count, *item)
    return array if encode_npy(array) == raw else None
