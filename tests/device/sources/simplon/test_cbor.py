"""CBOR from the network is read as far as it is well formed, and never further."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.device.sources.simplon.cbor import SELF_DESCRIBED, Tagged, dump_cbor, load_cbor
from edgexnas.errors import InputError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=5)
        | st.builds(Tagged, st.integers(0, 2**32), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert load_cbor(dump_cbor(value)) == value


# RFC 8949, appendix A.
@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("1bffffffffffffffff", 2**64 - 1),
        ("3903e7", -1000),
        ("f93c00", 1.0),
        ("fa47c35000", 100000.0),
        ("fb3ff199999999999a", 1.1),
        ("f4", False),
        ("f7", None),
        ("c11a514b67b0", Tagged(1, 1363896240)),
        ("62c3bc", "ü"),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("5f42010243030405ff", b"\x01\x02\x03\x04\x05"),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
    ],
)
def test_the_examples_of_the_standard_are_read(encoded: str, value: object) -> None:
    assert load_cbor(bytes.fromhex(encoded)) == value


def test_a_message_may_be_marked_as_cbor() -> None:
    assert load_cbor(SELF_DESCRIBED + dump_cbor({"a": 1})) == {"a": 1}


def test_a_byte_string_is_a_view_of_the_message() -> None:
    message = bytearray(dump_cbor({"data": b"abc"}))
    view = load_cbor(memoryview(message))["data"]
    message[-1:] = b"z"
    assert view == b"abz"


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_are_read_or_refused(message: bytes) -> None:
    with suppress(InputError):
        load_cbor(message)


@given(VALUES, st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_or_shortened_message_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    message = bytearray(dump_cbor(value))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InputError):
        load_cbor(bytes(message[: data.draw(st.integers(0, len(message)))]))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"", "a CBOR message of 0 bytes ends within an item of 1 bytes"),
        (b"\x81" * 17 + b"\x00", "nested deeper than 16"),
        (b"\xd8\x28" * 17 + b"\x00", "nested deeper than 16"),
        (b"\x9f" * 1000, "nested deeper than 16"),
        (b"\x9b" + b"\x7f" * 8, "claims 9187201950435737471 items in its last 0 bytes"),
        (b"\xbb" + b"\xff" * 8, "items in its last 0 bytes"),
        (b"\x5b" + b"\xff" * 8 + b"abc", "ends within an item of 18446744073709551615 bytes"),
        (b"\x9f" + b"\x00" * 30_000 + b"\xff", "holds more than 20000 items"),
        (b"\x00\x00", "1 bytes follow the end of a CBOR message"),
        (b"\xff", "a break out of place, at byte 0"),
        (b"\x82\x00\xff", "a break out of place, at byte 2"),
        (b"\x1c", "the reserved length 28"),
        (b"\x1f", "an indefinite length where there is none"),
        (b"\xf8\x20", "the simple value 24, which means nothing"),
        (b"\x61\xff", "a text that is not UTF-8"),
        (b"\xa1\x80\x00", "a key of type list"),
        (b"\xa2\x00\x00\x00\x00", "the key 0 twice"),
        (b"\x5f\x61a\xff", "of indefinite length holds something else"),
        (b"\xbf\x00\xff", "a break out of place, at byte 2"),
    ],
)
def test_what_is_malformed_is_refused_by_what_is_wrong(message: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_cbor(message)
