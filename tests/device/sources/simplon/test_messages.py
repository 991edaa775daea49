"""Stream V2 messages, real ones and hostile ones."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.device.sources.compression import compress
from edgexnas.device.sources.simplon.cbor import Tagged, dump_cbor, load_cbor
from edgexnas.device.sources.simplon.messages import (
    EndMessage,
    ImageMessage,
    StartMessage,
    parse_message,
    read_array,
)
from edgexnas.errors import InputError

PIXELS = np.random.default_rng(0).poisson(3, (20, 30)).astype(np.uint16)


def array(values: bytes | Tagged, shape: list[Any] | None = None, tag: int = 69) -> Any:
    """An array as the reader gives it."""
    encoded = Tagged(40, [shape or [20, 30], Tagged(tag, values)])
    return load_cbor(dump_cbor(encoded))


def packed(payload: bytes, algorithm: Any = "bslz4", size: Any = 2) -> Tagged:
    return Tagged(56500, [algorithm, size, payload])


def image(**changes: Any) -> bytes:
    fields = {"type": "image", "series_id": 1, "series_unique_id": "abc", "image_id": 5}
    fields["data"] = {"threshold_1": Tagged(40, [[20, 30], Tagged(69, PIXELS.tobytes())])}
    return dump_cbor(fields | changes)


@pytest.mark.real
def test_the_messages_of_a_real_eiger_are_read(real_data: Path) -> None:
    folder = real_data / "wire_captures"
    start, taken, end = (
        parse_message((folder / f"eiger16m_stream2_{name}.cbor").read_bytes())
        for name in ("start", "image", "end")
    )
    assert isinstance(start, StartMessage)
    assert (start.shape, start.images) == ((4362, 4148), 1)
    assert start.metadata["detector_description"] == "Dectris EIGER2 Si 16M"
    assert isinstance(taken, ImageMessage)
    pixels = read_array(taken.data[start.channels[0]])
    assert (pixels.shape, pixels.dtype) == ((4362, 4148), np.uint16)
    # A nearly empty frame, whose gaps have the largest value.
    assert 0.01 < (pixels == 65535).mean() < 0.2
    assert np.median(pixels) == 0
    assert isinstance(end, EndMessage)
    assert start.series == taken.series == end.series


@pytest.mark.real
def test_a_real_message_that_was_cut_anywhere_is_refused(real_data: Path) -> None:
    message = (real_data / "wire_captures" / "eiger16m_stream2_image.cbor").read_bytes()
    for length in np.random.default_rng(0).integers(0, len(message), 50).tolist():
        with pytest.raises(InputError):
            parse_message(message[:length])


@pytest.mark.real
def test_real_messages_of_other_protocols_are_refused(real_data: Path) -> None:
    for name in ("eiger9m_stream1_capture.cbors", "nanomax_contrast_pubsub.cbors"):
        with pytest.raises(InputError):
            parse_message((real_data / "wire_captures" / name).read_bytes())


# RFC 8746, section 2.1.
@pytest.mark.parametrize(
    ("tag", "dtype"),
    [
        (64, "u1"), (65, ">u2"), (66, ">u4"), (67, ">u8"), (68, "u1"), (69, "<u2"), (70, "<u4"),
        (71, "<u8"), (72, "i1"), (73, ">i2"), (74, ">i4"), (75, ">i8"), (77, "<i2"), (78, "<i4"),
        (79, "<i8"), (80, ">f2"), (81, ">f4"), (82, ">f8"), (84, "<f2"), (85, "<f4"), (86, "<f8"),
    ],
)  # fmt: skip
def test_every_typed_array_becomes_its_dtype(tag: int, dtype: str) -> None:
    sent = np.arange(6).reshape(2, 3).astype(dtype)
    received = read_array(array(sent.tobytes(), [2, 3], tag))
    assert received.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(received, sent)


@pytest.mark.parametrize("algorithm", ["bslz4", "lz4"])
def test_dectris_compression_is_decoded(algorithm: str) -> None:
    content = packed(compress(f"{algorithm}-hdf5", PIXELS), algorithm)
    np.testing.assert_array_equal(read_array(array(content)), PIXELS)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"abc", "not a multi-dimensional array"),
        (Tagged(41, [[1], b""]), "not a multi-dimensional array"),
        (Tagged(40, [[1]]), "not a pair of dimensions and values"),
        (Tagged(40, [["a", 2], Tagged(64, b"")]), "are not whole numbers"),
        (Tagged(40, [[True, 2], Tagged(64, b"ab")]), "are not whole numbers"),
        (Tagged(40, [[1, 2], b"ab"]), "have no type"),
        (array(b"ab", [1, 2], 63), "has the tag 63, which is not a type"),
        (array(b"ab" * 16, [1, 2], 87), "has the tag 87, which is not a type"),
        (array(b"abc", [1, 2], 64), "has 2 bytes, not 3"),
        (array(b"", [0, 2], 64), r"shape \(0, 2\) is not an image"),
        (array(b"ab", [-1, 2], 64), "is not an image"),
        (array(b"abcdefgh", [2, 2, 2], 64), "is not an image"),
        (array(b"", [2**40, 2**40], 64), "more than the 1073741824 that are decoded"),
        (array(packed(b"", "gzip")), "compressed with 'gzip'; set the detector's compression to"),
        (array(packed(b"x" * 40, size=4)), "compressed elements of 4 bytes do not fit uint16"),
        (array(Tagged(56500, ["bslz4", 2])), "are not \\[algorithm, element size, bytes\\]"),
        (array(Tagged(56501, [])), "neither bytes nor compressed bytes"),
        (array(packed(struct.pack(">QI", 2**60, 8192))), "claim 1152921504606846976 bytes"),
    ],
)
def test_an_array_that_does_not_fit_itself_is_refused(value: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_array(value)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (dump_cbor([1]), "a message is a CBOR list, not a map"),
        (dump_cbor({"type": "event"}), "has the type 'event'; known are start, image and end"),
        (dump_cbor({"type": "end"}), "a message names no series"),
        (image(image_id=-1), "has the image_id -1; it is not a number from 0"),
        (image(image_id=2**60), "has the image_id 1152921504606846976; it is not a number"),
        (image(image_id="7"), "has the image_id '7'"),
        (image(series_id=None, series_unique_id=[]), "a message names no series"),
    ],
)
def test_a_message_that_says_too_little_is_refused(message: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_message(message)


@pytest.mark.parametrize("fraction", [".5", ".500", ".500000", ".500000000"])
def test_an_image_says_when_its_exposure_ended(fraction: str) -> None:
    date = Tagged(0, f"2023-11-14T22:13:20{fraction}Z")
    message = parse_message(image(series_date=date, stop_time=[150, 100]))
    assert isinstance(message, ImageMessage)
    assert message.time_s == 1_700_000_002.0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"series_date": Tagged(0, "yesterday"), "stop_time": [1, 2]},
        {"series_date": Tagged(0, "2023-11-14T22:13:20Z"), "stop_time": [1, 0]},
        {"series_date": Tagged(0, "2023-11-14T22:13:20Z"), "stop_time": [2**63, 1]},
        {"series_date": 5, "stop_time": "now"},
    ],
)
def test_a_time_that_cannot_be_read_is_not_known(fields: dict[str, Any]) -> None:
    message = parse_message(image(**fields))
    assert isinstance(message, ImageMessage)
    assert message.time_s is None


@pytest.mark.parametrize("data", [{"row": 1.5}, '{"row": 1.5}'])
def test_user_data_is_a_map_or_json_of_one(data: Any) -> None:
    message = parse_message(image(user_data=data))
    assert isinstance(message, ImageMessage)
    assert message.user_data == {"row": 1.5}


@pytest.mark.parametrize("data", [None, 5, "text", "[1]", "[" * 4000])
def test_other_user_data_is_left_alone(data: Any) -> None:
    message = parse_message(image(user_data=data))
    assert isinstance(message, ImageMessage)
    assert message.user_data == {}


COMPRESSED = Tagged(40, [[20, 30], Tagged(69, packed(compress("bslz4-hdf5", PIXELS)))])


@given(st.data(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_message_whose_bytes_changed_is_read_or_refused(
    data: st.DataObject, compressed: bool
) -> None:
    content = {"threshold_1": COMPRESSED}
    message = bytearray(image(data=content) if compressed else image())
    for _ in range(data.draw(st.integers(1, 5))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InputError):
        read = parse_message(bytes(message))
        if isinstance(read, ImageMessage):
            for value in read.data.values():
                read_array(value)
