"""Compressed frames are decoded, and whatever is malformed is refused before it does harm."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.device.sources.compression import CODECS, compress, decompress
from edgexnas.errors import InputError

COMPRESSED = [codec for codec in CODECS if codec != "none"]
FILTERS = {
    "bslz4-hdf5": hdf5plugin.Bitshuffle(cname="lz4"),
    "lz4-hdf5": hdf5plugin.LZ4(nbytes=8192),
    "blosc": hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=1),
}


def frame(shape: tuple[int, int] = (61, 67), dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(3, shape)
    counts[shape[0] // 2, shape[1] // 2] = 100
    return counts.astype(dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint64", "float32", "float64"])
def test_every_codec_gives_back_the_frame(codec: str, dtype: str) -> None:
    sent = frame(dtype=dtype)
    np.testing.assert_array_equal(
        decompress(codec, compress(codec, sent), sent.shape, sent.dtype), sent
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (64, 64), (64, 65), (91, 91)])
def test_any_number_of_pixels_is_decoded_also_what_no_block_holds(
    codec: str, shape: tuple[int, int]
) -> None:
    sent = frame(shape)
    np.testing.assert_array_equal(decompress(codec, compress(codec, sent), shape, "uint16"), sent)


@pytest.mark.parametrize("codec", FILTERS)
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_chunks_that_hdf5_filters_wrote_are_decoded(codec: str, dtype: str) -> None:
    sent = frame((300, 200), dtype)
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("d", data=sent, chunks=sent.shape, compression=FILTERS[codec])
        _, chunk = data.id.read_direct_chunk((0, 0))
    np.testing.assert_array_equal(decompress(codec, chunk, sent.shape, dtype), sent)


@pytest.mark.parametrize("codec", FILTERS)
def test_hdf5_filters_read_what_is_encoded_here(codec: str) -> None:
    sent = frame((300, 200))
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset(
            "d", sent.shape, sent.dtype, chunks=sent.shape, compression=FILTERS[codec]
        )
        data.id.write_direct_chunk((0, 0), compress(codec, sent))
        np.testing.assert_array_equal(data[()], sent)


@pytest.mark.real
def test_a_frame_of_a_real_eiger_is_decoded(real_data: Path) -> None:
    payload = (real_data / "wire_captures" / "eiger16m_frame_bs16lz4.bin").read_bytes()
    pixels = decompress("bslz4-hdf5", payload, (4362, 4148), "uint16")
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset(
            "d", pixels.shape, "u2", chunks=pixels.shape, compression=hdf5plugin.Bitshuffle()
        )
        data.id.write_direct_chunk((0, 0), payload)
        np.testing.assert_array_equal(pixels, data[()])
    # The gaps between modules read the largest value.
    assert 0.01 < (pixels == 65535).mean() < 0.2


def test_big_endian_pixels_become_native() -> None:
    sent = frame().astype(">u2")
    for codec in ("none", "bslz4"):
        received = decompress(codec, compress(codec, sent), sent.shape, ">u2")
        assert received.dtype.isnative
        np.testing.assert_array_equal(received, sent)


def test_an_uncompressed_frame_is_not_copied() -> None:
    sent = frame()
    assert np.shares_memory(sent, decompress("none", sent.view(np.uint8), sent.shape, sent.dtype))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_is_decoded_in_the_memory_that_is_lent(codec: str, dtype: str) -> None:
    sent = np.arange(130 * 140).reshape(130, 140).astype(dtype)
    place, asked = np.full(sent.shape, 9, np.uint16), []

    def lend(shape: tuple[int, ...], kind: np.dtype[Any]) -> Any:
        asked.append((shape, kind))
        return place

    received = decompress(codec, compress(codec, sent), sent.shape, dtype, lend)
    np.testing.assert_array_equal(received, sent)
    if (codec, dtype) == ("none", "<u2"):
        # As it lies in the message it is not copied at all.
        assert asked == []
    else:
        assert received is place
        assert asked == [(sent.shape, np.dtype(np.uint16))]


@pytest.mark.parametrize("codec", CODECS)
def test_where_no_memory_is_lent_a_frame_gets_its_own(codec: str) -> None:
    sent = np.arange(130 * 140, dtype=np.uint16).reshape(130, 140)
    packed = compress(codec, sent)
    received = decompress(codec, packed, sent.shape, sent.dtype, lambda shape, dtype: None)
    np.testing.assert_array_equal(received, sent)


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_of_another_frame_is_refused(codec: str) -> None:
    payload = compress(codec, frame())
    for shape in ((61, 66), (61, 68), (122, 67)):
        with pytest.raises(InputError):
            decompress(codec, payload, shape, "uint16")


@pytest.mark.parametrize("codec", CODECS)
def test_every_truncation_is_refused(codec: str) -> None:
    sent = frame((200, 210))
    payload = compress(codec, sent)
    for length in {0, 1, 3, 4, 11, 12, 13, 16, 20, len(payload) // 2, len(payload) - 1}:
        with pytest.raises(InputError):
            decompress(codec, payload[:length], sent.shape, sent.dtype)


@given(st.binary(max_size=400), st.sampled_from(COMPRESSED))
@settings(max_examples=400, deadline=None)
def test_arbitrary_bytes_are_refused_or_decoded_but_never_crash(data: bytes, codec: str) -> None:
    with suppress(InputError):
        assert decompress(codec, data, (8, 9), "uint16").shape == (8, 9)


@given(st.data(), st.sampled_from(COMPRESSED))
@settings(max_examples=400, deadline=None)
def test_bytes_changed_on_the_way_are_refused_or_decoded_but_never_crash(
    data: st.DataObject, codec: str
) -> None:
    payload = bytearray(compress(codec, frame((130, 140))))
    edges = st.integers(0, min(40, len(payload) - 1)) | st.integers(0, len(payload) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(edges)] = data.draw(st.integers(0, 255))
    with suppress(InputError):
        assert decompress(codec, bytes(payload), (130, 140), "uint16").shape == (130, 140)


GUARDED = """
import ctypes, sys
import numpy as np
from edgexnas.device.sources import compression
from edgexnas.errors import InputError

PAGE, ROOM = 4096, 1 << 18
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def before_a_page_that_may_not_be_touched():
    start = libc.mmap(None, ROOM + PAGE, 3, 0x22, -1, 0)
    assert libc.mprotect(start + ROOM, PAGE, 0) == 0
    end = start + ROOM
    return lambda size: np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(end - size))

received, decoded = (before_a_page_that_may_not_be_touched() for _ in range(2))

class GuardedNumpy:
    def __getattr__(self, name):
        return getattr(np, name)
    def empty(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return decoded(size).view(dtype).reshape(shape)

frame = np.random.default_rng(0).poisson(3, (130, 141)).astype("u2")
payloads = {codec: compression.compress(codec, frame) for codec in sys.argv[1:]}
compression.np = GuardedNumpy()
rng, refused = np.random.default_rng(1), 0
for number in range(3000):
    codec = sys.argv[1 + number % len(payloads)]
    payload = bytearray(payloads[codec])
    for _ in range(rng.integers(0, 5)):
        end = len(payload) if rng.integers(2) else 40
        payload[rng.integers(end)] = rng.choice([0, 127, 128, 255, rng.integers(256)])
    if number % 3 == 0:
        del payload[rng.integers(1, len(payload)):]
    place = received(len(payload))
    place[:] = payload
    try:
        compression.decompress(codec, place, frame.shape, "u2")
    except InputError:
        refused += 1
print(refused)
"""


def test_no_decoder_reads_or_writes_a_byte_beyond_its_memory() -> None:
    # A process of its own: it would be killed by the touch.
    command = [sys.executable, "-c", GUARDED, *COMPRESSED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1000 < int(done.stdout) < 2900


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (
            (2**63, 8192),
            "compressed data claim 9223372036854775808 bytes, but their frame has 8174",
        ),
        ((8173, 8192), "compressed data claim 8173 bytes, but their frame has 8174"),
        ((8174, 2**31), "compressed data claim blocks of 2147483648 bytes in a frame of 8174"),
        ((8174, 8190), "bitshuffle blocks of 8190 bytes do not hold eightfold elements of 2 bytes"),
    ],
)
def test_a_wrong_header_is_refused_by_its_value(header: tuple[int, int], sentence: str) -> None:
    payload = struct.pack(">QI", *header) + compress("bslz4", frame())
    with pytest.raises(InputError, match=sentence):
        decompress("bslz4-hdf5", payload, (61, 67), "uint16")


def test_a_block_that_claims_more_than_came_is_refused() -> None:
    payload = bytearray(compress("bslz4", frame((200, 200))))
    payload[:4] = (2**31 - 1).to_bytes(4, "big")
    with pytest.raises(InputError, match="do not hold the 10 blocks of their frame"):
        decompress("bslz4", bytes(payload), (200, 200), "uint16")


def test_a_decompression_bomb_is_refused_before_it_takes_memory() -> None:
    # A kilobyte that claims a gigabyte, in each place that can claim it.
    with pytest.raises(InputError, match="cannot hold a frame of 536870912 bytes"):
        decompress("lz4", b"\x1f" + b"\xff" * 1000, (16384, 16384), "uint16")
    with pytest.raises(InputError, match="more than the 1073741824 that are decoded"):
        decompress("bslz4", b"\0" * 1000, (2**20, 2**20), "uint16")
    bomb = compress("blosc", np.zeros((512, 512), np.uint16))
    with pytest.raises(InputError, match="blosc data hold"):
        decompress("blosc", bomb, (4, 4), "uint16")


def test_another_codec_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match="compressed with 'jpeg'; known are none, lz4, bslz4"):
        decompress("jpeg", zlib.compress(b"x"), (1, 1), "uint8")


def test_a_frame_without_pixels_or_with_a_third_axis_is_refused() -> None:
    for shape in ((0, 5), (5,), (5, 5, 3)):
        with pytest.raises(InputError, match="is not an image"):
            decompress("none", b"", shape, "uint8")
