"""CBOR (RFC 8949), as much as detectors send, read with limits.

Messages come from the network: nesting, the number of items and every length are bounded, and a
byte string is a view of the message, so that a malformed message costs neither memory nor time.
"""

from __future__ import annotations

# Why not cbor2: it copies each byte string, twice if the message is ZMQ's own buffer, so its time
# grows with the frame (16M pixels, cbor2 6.3, one core: 54 µs at 0.5 MB, 6.3 ms at 8 MB, 40 ms
# uncompressed; this reader: 31 µs for each, and views that another thread decodes). It also
# interprets tags (regular expressions, dates) and bounds neither items nor trailing bytes.
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple

from edgexnas.errors import InputError

__all__ = ["SELF_DESCRIBED", "Tagged", "dump_cbor", "load_cbor", "map_head"]

SELF_DESCRIBED = b"\xd9\xd9\xf7"
"""The tag 55799, which a message may begin with."""

MOST_ITEMS = 20_000
MOST_DEPTH = 16
MOST_TEXT_BYTES = 2**20

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE = 31
_BREAK = 0xFF
_SIZES = {24: Struct(">B"), 25: Struct(">H"), 26: Struct(">I"), 27: Struct(">Q")}
_FLOATS = {25: Struct(">e"), 26: Struct(">f"), 27: Struct(">d")}
_CONSTANTS = {20: False, 21: True, 22: None, 23: None}


class Tagged(NamedTuple):
    """A value with a tag, which the reader does not interpret."""

    tag: int
    value: Any


class _Break:
    """Ends an item of indefinite length."""


_END = _Break()


def load_cbor(message: bytes | memoryview) -> Any:
    """Read one item that fills a message.

    Returns
    -------
    int, float, bool, None, str, list, dict, `Tagged`, and memoryview for a byte string.

    Raises
    ------
    InputError
        If the message is malformed, nested deeper than 16 or holds more than 20,000 items.
    """
    data = memoryview(message)
    if data.ndim != 1 or data.itemsize != 1 or not data.contiguous:
        raise InputError("a CBOR message must be a contiguous one-dimensional buffer of bytes")
    reader = _Reader(data.cast("B"))
    # Detectors mark their messages as CBOR (RFC 8949, 3.4.6).
    reader.here = len(SELF_DESCRIBED) if data[: len(SELF_DESCRIBED)] == SELF_DESCRIBED else 0
    value = reader.item(0)
    if reader.here != len(data):
        raise InputError(f"{len(data) - reader.here} bytes follow the end of a CBOR message")
    return value


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.here = 0
        self.items = 0

    def item(self, depth: int, *, may_end: bool = False) -> Any:
        if depth > MOST_DEPTH:
            raise InputError(f"a CBOR message is nested deeper than {MOST_DEPTH}")
        self.items += 1
        if self.items > MOST_ITEMS:
            raise InputError(f"a CBOR message holds more than {MOST_ITEMS} items")
        (initial,) = self._take(1)
        if initial == _BREAK:
            if may_end:
                return _END
            raise InputError(f"a CBOR message has a break out of place, at byte {self.here - 1}")
        kind, detail = initial >> 5, initial & 31
        if kind == _SIMPLE:
            return self._simple(detail)
        if detail == _INDEFINITE:
            return self._indefinite(kind, depth)
        size = self._argument(detail)
        if kind == _UNSIGNED:
            return size
        if kind == _NEGATIVE:
            return -1 - size
        # A view: pixels are never copied here, whatever their size.
        if kind == _BYTES:
            return self._take(size)
        if kind == _TEXT:
            return self._text(size)
        if kind == _ARRAY:
            self._check_count(size)
            return [self.item(depth + 1) for _ in range(size)]
        if kind == _MAP:
            self._check_count(2 * size)
            found: dict[Any, Any] = {}
            for _ in range(size):
                self._entry(found, self.item(depth + 1), depth)
            return found
        return Tagged(size, self.item(depth + 1))

    def _take(self, size: int) -> memoryview:
        end = self.here + size
        if end > len(self.data):
            raise InputError(
                f"a CBOR message of {len(self.data)} bytes ends within an item of {size} bytes"
            )
        taken = self.data[self.here : end]
        self.here = end
        return taken

    def _argument(self, detail: int) -> int:
        if detail < 24:
            return detail
        form = _SIZES.get(detail)
        if form is None:
            raise InputError(f"a CBOR message has the reserved length {detail}")
        value: int = form.unpack(self._take(form.size))[0]
        return value

    def _check_count(self, items: int) -> None:
        # Each item takes a byte at least: what cannot be there is rejected before it is looked for.
        left = len(self.data) - self.here
        if items > left:
            raise InputError(f"a CBOR message claims {items} items in its last {left} bytes")

    def _text(self, size: int) -> str:
        if size > MOST_TEXT_BYTES:
            raise InputError(f"a CBOR message holds a text of {size} bytes")
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError:
            raise InputError("a CBOR message holds a text that is not UTF-8") from None

    def _simple(self, detail: int) -> Any:
        if detail in _FLOATS:
            form = _FLOATS[detail]
            return form.unpack(self._take(form.size))[0]
        if detail in _CONSTANTS:
            return _CONSTANTS[detail]
        raise InputError(f"a CBOR message holds the simple value {detail}, which means nothing")

    def _entry(self, found: dict[Any, Any], key: Any, depth: int) -> None:
        if not isinstance(key, (str, int)):
            raise InputError(f"a CBOR map has a key of type {type(key).__name__}")
        # RFC 8949 calls such maps invalid; readers differ in which one they keep.
        if key in found:
            raise InputError(f"a CBOR map has the key {key!r} twice")
        found[key] = self.item(depth + 1)

    def _indefinite(self, kind: int, depth: int) -> Any:
        if kind == _ARRAY:
            values = []
            while (value := self.item(depth + 1, may_end=True)) is not _END:
                values.append(value)
            return values
        if kind == _MAP:
            found: dict[Any, Any] = {}
            while (key := self.item(depth + 1, may_end=True)) is not _END:
                self._entry(found, key, depth)
            return found
        if kind in (_BYTES, _TEXT):
            wanted = memoryview if kind == _BYTES else str
            parts: list[Any] = []
            while (part := self.item(depth + 1, may_end=True)) is not _END:
                if not isinstance(part, wanted):
                    raise InputError("a CBOR string of indefinite length holds something else")
                parts.append(part)
            return memoryview(b"".join(parts)) if kind == _BYTES else "".join(parts)
        raise InputError("a CBOR message has an indefinite length where there is none")


def dump_cbor(value: Any) -> bytes:
    """Write a value as one item.

    Parameters
    ----------
    value
        int (below 2⁶⁴), float, bool, None, str, bytes, `Tagged`, or sequences and mappings of
        these.
    """
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def map_head(entries: int) -> bytes:
    """Write the beginning of a map, which is followed by its entries."""
    return _head(_MAP, entries)


def _write(value: Any, parts: list[bytes]) -> None:
    if value is None or isinstance(value, bool):
        parts.append(bytes([_SIMPLE << 5 | {False: 20, True: 21, None: 22}[value]]))
    elif isinstance(value, int):
        parts.append(_head(_NEGATIVE, -1 - value) if value < 0 else _head(_UNSIGNED, value))
    elif isinstance(value, float):
        parts.append(bytes([_SIMPLE << 5 | 27]) + _FLOATS[27].pack(value))
    elif isinstance(value, str):
        text = value.encode()
        parts += [_head(_TEXT, len(text)), text]
    elif isinstance(value, (bytes, memoryview)):
        parts += [_head(_BYTES, len(value)), bytes(value)]
    elif isinstance(value, Tagged):
        parts.append(_head(_TAG, value.tag))
        _write(value.value, parts)
    elif isinstance(value, Mapping):
        parts.append(map_head(len(value)))
        for key, entry in value.items():
            _write(key, parts)
            _write(entry, parts)
    elif isinstance(value, Sequence):
        parts.append(_head(_ARRAY, len(value)))
        for entry in value:
            _write(entry, parts)
    else:
        raise InputError(f"a value of type {type(value).__name__} cannot be written as CBOR")


def _head(kind: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([kind << 5 | argument])
    for detail, form in _SIZES.items():
        if argument < 1 << (8 * form.size):
            return bytes([kind << 5 | detail]) + form.pack(argument)
    raise InputError(f"the number {argument} is too large for CBOR's lengths")
