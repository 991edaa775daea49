"""Compressed pixels, as detectors send and store them: lz4, bitshuffle with lz4, and blosc.

The compiled codecs are those that hdf5plugin brings for HDF5: it has wheels for every platform
that edgexnas runs on, and versions 5.0 to 7.1 export the functions. They are called directly, so
a frame is decoded into its own memory, without the global interpreter lock and without going
through an HDF5 file. Every size that a payload claims is checked against the frame that it should
be, before anything is decoded.

Two dialects are about:

* areaDetector: the frame as one lz4 block, or bitshuffle's blocks back to back;
* DECTRIS and HDF5: the same after a header of 12 bytes, uint64 with the bytes of the frame and
  uint32 with those of a block (both big-endian); lz4 then is in such blocks too, each after its
  size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from struct import Struct
from struct import error as struct_error
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources.pixels import frame_bytes
from edgexnas.errors import InputError, MissingDependencyError

__all__ = ["CODECS", "Codec", "FrameMemory", "compress", "decompress", "prepare_codecs"]

Codec: TypeAlias = Literal["none", "lz4", "bslz4", "blosc", "lz4-hdf5", "bslz4-hdf5"]
"""areaDetector's, then those with the header of DECTRIS and HDF5."""

CODECS: tuple[str, ...] = get_args(Codec)

FrameMemory: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any] | None]
"""Lends memory for a frame of a shape and dtype, with whatever is in it; None if it has none."""

Payload: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
Bytes: TypeAlias = npt.NDArray[np.uint8]

_HEADER = Struct(">QI")
_SIZE = Struct(">I")
_BLOCK_BYTES = 8192
"""Block that bitshuffle takes by itself and DECTRIS states."""

_EIGHT = 8
"""bitshuffle transposes eight elements at a time; what is left over is stored as it is."""

# lz4 counts bytes in C ints.
_MOST_LZ4_BYTES = 2**31 - 2**24
_LZ4_EXPANSION = 255
"""A byte of lz4 gives at most so many bytes."""

_LEAST_VERSION = "hdf5plugin>=5"


def decompress(
    codec: str,
    payload: Payload,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    memory: FrameMemory | None = None,
) -> npt.NDArray[Any]:
    """Decode a frame.

    Parameters
    ----------
    codec
        One of `CODECS`.
    payload
        The encoded bytes; they are not copied.
    shape, dtype
        What the frame has to be, (H, W); big-endian frames are given in native byte order.
    memory
        Where pixels are written, if it has a place; None for new memory.

    Returns
    -------
    (H, W) in that memory or its own; for "none" and a native dtype a view of the payload.

    Raises
    ------
    InputError
        If the payload is malformed, or its sizes are not those of the frame.
    MissingDependencyError
        If hdf5plugin is not installed.
    """
    stored = np.dtype(dtype)
    size = frame_bytes(shape, stored)
    # A view, without a copy: ctypes takes its address, and releases the interpreter's lock.
    source = np.frombuffer(payload, np.uint8)
    if codec == "none":
        if source.size != size:
            raise InputError(
                f"a frame of {shape[0]}×{shape[1]} {stored} has {size} bytes, not {source.size}"
            )
        return _native(source.view(stored).reshape(shape), memory)
    decode = _DECODERS.get(codec)
    if decode is None:
        raise InputError(f"frames are compressed with {codec!r}; known are {', '.join(CODECS)}")
    if not source.size:
        raise InputError(f"a frame compressed with {codec} has no bytes")
    # Foreign byte order is turned in a second step, whose result goes to the lent memory.
    pixels = _place(memory if stored.isnative else None, shape, stored)
    decode(source, pixels.reshape(-1).view(np.uint8), stored.itemsize)
    return _native(pixels, memory)


def compress(codec: str, pixels: npt.NDArray[Any]) -> bytes:
    """Encode a frame, as a detector does.

    Raises
    ------
    InputError
        If the codec is unknown.
    MissingDependencyError
        If hdf5plugin is not installed.
    """
    frame = np.ascontiguousarray(pixels)
    if codec == "none":
        return frame.tobytes()
    encode = _ENCODERS.get(codec)
    if encode is None:
        raise InputError(f"the codec {codec!r} is unknown; specify one of {', '.join(CODECS)}")
    return encode(frame.reshape(-1).view(np.uint8), frame.dtype.itemsize)


def prepare_codecs() -> None:
    """Load the codecs, so that the first frame does not wait for them.

    Raises
    ------
    MissingDependencyError
        If hdf5plugin is not installed.
    """
    # All three: which one comes is known with the first frame only.
    _bitshuffle(), _lz4(), _blosc()


def _place(
    memory: FrameMemory | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    lent = None if memory is None else memory(shape, dtype)
    return np.empty(shape, dtype) if lent is None else lent


def _native(pixels: npt.NDArray[Any], memory: FrameMemory | None) -> npt.NDArray[Any]:
    if pixels.dtype.isnative:
        return pixels
    turned = _place(memory, pixels.shape, pixels.dtype.newbyteorder("="))
    turned[...] = pixels
    return turned


def _decode_lz4(source: Bytes, pixels: Bytes, _: int) -> None:
    _check_expansion(source.size, pixels.size)
    # The "safe" one: it never writes beyond the room or reads beyond the input.
    written = _lz4().LZ4_decompress_safe(_at(source), _at(pixels), source.size, pixels.size)
    if written != pixels.size:
        raise InputError(
            f"lz4 data of {source.size} bytes are malformed or not of {pixels.size} bytes"
        )


def _decode_lz4_hdf5(source: Bytes, pixels: Bytes, _: int) -> None:
    block = _block_bytes(source, pixels.size)
    _check_expansion(source.size, pixels.size)
    unpack, packed, room = _lz4().LZ4_decompress_safe, _at(source), _at(pixels)
    here, done, size, end = _HEADER.size, 0, pixels.size, source.size
    while done < size:
        want = min(block, size - done)
        got = _size_at(source, here)
        here += _SIZE.size
        if got > end - here:
            raise InputError(f"an lz4 block of {got} bytes ends after the message")
        # What does not become shorter is stored as it is.
        if got == want:
            pixels[done : done + want] = source[here : here + got]
        elif unpack(packed + here, room + done, got, want) != want:
            raise InputError(f"an lz4 block of {got} bytes is malformed or not of {want} bytes")
        here, done = here + got, done + want


def _decode_bslz4(source: Bytes, pixels: Bytes, itemsize: int) -> None:
    _unshuffle(source, pixels, itemsize, _default_block(itemsize))


def _decode_bslz4_hdf5(source: Bytes, pixels: Bytes, itemsize: int) -> None:
    block = _block_bytes(source, pixels.size)
    if block % (_EIGHT * itemsize):
        raise InputError(
            f"bitshuffle blocks of {block} bytes do not hold eightfold elements of {itemsize} bytes"
        )
    _unshuffle(source[_HEADER.size :], pixels, itemsize, block // itemsize)


def _unshuffle(source: Bytes, pixels: Bytes, itemsize: int, block: int) -> None:
    """Decode bitshuffle's lz4 blocks of `block` elements."""
    count = pixels.size // itemsize
    # The library takes it that each block's size is right, and would read past the end.
    _check_blocks(source, count, block, itemsize)
    read = _bitshuffle().bshuf_decompress_lz4(_at(source), _at(pixels), count, itemsize, block)
    if read < 0:
        raise InputError(f"bitshuffle data are malformed (error {read})")


def _check_blocks(source: Bytes, count: int, block: int, itemsize: int) -> None:
    # The last block is shorter, of whole eights; fewer elements than eight stay as they are.
    blocks = count // block + (count % block >= _EIGHT)
    here, end, data, unpack = 0, source.size, source.data, _SIZE.unpack_from
    try:
        for _ in range(blocks):
            here += 4 + unpack(data, here)[0]
    except struct_error:
        here = end + 1
    if here + count % _EIGHT * itemsize > end:
        raise InputError(
            f"bitshuffle data of {end} bytes do not hold the {blocks} blocks of their frame"
        )


def _decode_blosc(source: Bytes, pixels: Bytes, _: int) -> None:
    held = ctypes.c_size_t()
    library = _blosc()
    # The decoder believes the header's sizes: checked against what came and what is expected.
    if library.blosc_cbuffer_validate(_at(source), source.size, ctypes.byref(held)) < 0:
        raise InputError(f"blosc data of {source.size} bytes have a malformed header")
    if held.value != pixels.size:
        raise InputError(f"blosc data hold {held.value} bytes, but their frame has {pixels.size}")
    # The _ctx calls hold no state of the process, so that threads decode side by side.
    written = library.blosc_decompress_ctx(_at(source), _at(pixels), pixels.size, 1)
    if written != pixels.size:
        raise InputError(f"blosc data of {source.size} bytes are malformed")


_DECODERS: dict[str, Callable[[Bytes, Bytes, int], None]] = {
    "lz4": _decode_lz4,
    "lz4-hdf5": _decode_lz4_hdf5,
    "bslz4": _decode_bslz4,
    "bslz4-hdf5": _decode_bslz4_hdf5,
    "blosc": _decode_blosc,
}


def _block_bytes(source: Bytes, size: int) -> int:
    """Check the header of 12 bytes against the size of the frame; return the bytes of a block."""
    if source.size < _HEADER.size:
        raise InputError(f"compressed data of {source.size} bytes have no room for their header")
    held, block = _HEADER.unpack_from(source.data)
    if held != size:
        raise InputError(f"compressed data claim {held} bytes, but their frame has {size}")
    # Some writers state 0 for the block that bitshuffle takes by itself.
    block = block or _BLOCK_BYTES
    if block > max(size, _BLOCK_BYTES):
        raise InputError(f"compressed data claim blocks of {block} bytes in a frame of {size}")
    return int(block)


def _default_block(itemsize: int) -> int:
    """Elements of the block that bitshuffle takes by itself."""
    return max(_BLOCK_BYTES // itemsize // _EIGHT * _EIGHT, 128)


def _size_at(source: Bytes, offset: int) -> int:
    if offset + _SIZE.size > source.size:
        raise InputError(f"compressed data end after {source.size} bytes, before their last block")
    return int(_SIZE.unpack_from(source.data, offset)[0])


def _check_expansion(packed: int, size: int) -> None:
    if size > _MOST_LZ4_BYTES or size > packed * _LZ4_EXPANSION:
        raise InputError(f"lz4 data of {packed} bytes cannot hold a frame of {size} bytes")


def _encode_lz4(frame: Bytes, _: int) -> bytes:
    library = _lz4()
    room = np.empty(library.LZ4_compressBound(frame.size), np.uint8)
    return room[
        : library.LZ4_compress_default(_at(frame), _at(room), frame.size, room.size)
    ].tobytes()


def _encode_lz4_hdf5(frame: Bytes, itemsize: int) -> bytes:
    parts = [_HEADER.pack(frame.size, _BLOCK_BYTES)]
    for start in range(0, frame.size, _BLOCK_BYTES):
        block = frame[start : start + _BLOCK_BYTES]
        packed = _encode_lz4(block, itemsize)
        packed = packed if len(packed) < block.size else block.tobytes()
        parts += [_SIZE.pack(len(packed)), packed]
    return b"".join(parts)


def _encode_bslz4(frame: Bytes, itemsize: int) -> bytes:
    library, count, block = _bitshuffle(), frame.size // itemsize, _default_block(itemsize)
    room = np.empty(library.bshuf_compress_lz4_bound(count, itemsize, block), np.uint8)
    written = library.bshuf_compress_lz4(_at(frame), _at(room), count, itemsize, block)
    return room[:written].tobytes()


def _encode_bslz4_hdf5(frame: Bytes, itemsize: int) -> bytes:
    block = _default_block(itemsize) * itemsize
    return _HEADER.pack(frame.size, block) + _encode_bslz4(frame, itemsize)


def _encode_blosc(frame: Bytes, itemsize: int) -> bytes:
    room = np.empty(frame.size + 16, np.uint8)
    # Level 5, bytes shuffled, lz4 inside: what areaDetector's codec plugin starts with.
    written = _blosc().blosc_compress_ctx(
        5, 1, itemsize, frame.size, _at(frame), _at(room), room.size, b"lz4", 0, 1
    )
    return room[:written].tobytes()


_ENCODERS: dict[str, Callable[[Bytes, int], bytes]] = {
    "lz4": _encode_lz4,
    "lz4-hdf5": _encode_lz4_hdf5,
    "bslz4": _encode_bslz4,
    "bslz4-hdf5": _encode_bslz4_hdf5,
    "blosc": _encode_blosc,
}


def _at(array: Bytes) -> int:
    """Address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address


_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


@cache
def _bitshuffle() -> Any:
    # bitshuffle/src/bitshuffle.h and bitshuffle_core.h
    return _library(
        "libh5bshuf.so",
        bshuf_compress_lz4_bound=(_COUNT, [_COUNT] * 3),
        bshuf_compress_lz4=(ctypes.c_int64, [_POINTER, _POINTER, _COUNT, _COUNT, _COUNT]),
        bshuf_decompress_lz4=(ctypes.c_int64, [_POINTER, _POINTER, _COUNT, _COUNT, _COUNT]),
    )


@cache
def _lz4() -> Any:
    # lz4/lib/lz4.h
    return _library(
        "libh5lz4.so",
        LZ4_compressBound=(_INT, [_INT]),
        LZ4_compress_default=(_INT, [_POINTER, _POINTER, _INT, _INT]),
        LZ4_decompress_safe=(_INT, [_POINTER, _POINTER, _INT, _INT]),
    )


@cache
def _blosc() -> Any:
    # c-blosc/blosc/blosc.h
    return _library(
        "libh5blosc.so",
        blosc_cbuffer_validate=(_INT, [_POINTER, _COUNT, ctypes.POINTER(_COUNT)]),
        blosc_decompress_ctx=(_INT, [_POINTER, _POINTER, _COUNT, _INT]),
        blosc_compress_ctx=(
            _INT,
            [_INT, _INT, _COUNT, _COUNT, _POINTER, _POINTER, _COUNT, ctypes.c_char_p, _COUNT, _INT],
        ),
    )


def _library(name: str, **functions: tuple[Any, list[Any]]) -> Any:
    """Load one of hdf5plugin's libraries and declare what is called in it."""
    # Found without importing it, which would import h5py and register filters.
    found = find_spec("hdf5plugin")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError.of(
            "hdf5plugin", extra="device", purpose="decoding compressed frames"
        )
    place = Path(found.submodule_search_locations[0]) / "plugins" / name
    try:
        # CDLL and not PyDLL: calls run without the interpreter's lock.
        library = ctypes.CDLL(str(place))
        for function, (result, arguments) in functions.items():
            called = getattr(library, function)
            called.restype, called.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(
            f"the codecs of {place} cannot be used ({error}): run pip install '{_LEAST_VERSION}'"
        ) from error
    return library
