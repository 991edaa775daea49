"""Messages of DECTRIS Stream V2: a series starts, its images, it ends.

Each ZMQ message is a CBOR map with `type` "start", "image" or "end". Arrays are multi-dimensional
(tag 40: [dimensions, typed array]) of typed arrays (RFC 8746, tags 64-87), whose bytes may be
compressed (DECTRIS's tag 56500: [algorithm, element size, bytes]).
https://github.com/dectris/documentation/tree/main/stream_v2
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources.compression import decompress
from edgexnas.device.sources.pixels import as_time_s
from edgexnas.device.sources.simplon.cbor import Tagged, load_cbor
from edgexnas.errors import InputError

__all__ = [
    "EncodedArray",
    "EndMessage",
    "ImageMessage",
    "Message",
    "StartMessage",
    "parse_message",
    "read_array",
]

MULTI_DIMENSIONAL = 40
COMPRESSED = 56500
CODECS = {"bslz4": "bslz4-hdf5", "lz4": "lz4-hdf5"}
"""DECTRIS's names of algorithms; both begin with the header of HDF5's filters."""

# Far below 2^63, so that sums and differences of ids fit an int64.
MOST_IMAGES = 2**48
"""A larger image_id is damaged: no series is so long."""

_FRACTION = re.compile(r"\.(\d+)")

_MOST_METADATA_BYTES = 4096
_CALIBRATIONS = ("flatfield", "pixel_mask", "countrate_correction_lookup_table")


@dataclass(frozen=True, slots=True, eq=False)
class StartMessage:
    """A series starts.

    Attributes
    ----------
    series
        Its unique id.
    shape, dtype
        (rows, columns) and pixel type of its images; None if they are not said.
    images
        How many were requested; None if it is not said.
    channels
        Names of the images in each message, such as "threshold_1".
    masks
        Channel → encoded pixel mask; see `read_array`.
    metadata
        The other fields.
    unique
        Whether `series` is an id that no other series has, and not a number that comes again.
    """

    series: str
    shape: tuple[int, int] | None
    dtype: np.dtype[Any] | None
    images: int | None
    channels: tuple[str, ...]
    masks: Mapping[str, Any]
    metadata: Mapping[str, Any]
    unique: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class ImageMessage:
    """An image of a series.

    Attributes
    ----------
    series
        Its unique id.
    number
        image_id, from 0.
    data
        Channel → encoded image; see `read_array`.
    time_s
        Unix seconds at which the exposure ended; None if it is not said.
    user_data
        What the user attached, if it is a map or JSON of one.
    unique
        As of `StartMessage`.
    """

    series: str
    number: int
    data: Mapping[str, Any]
    time_s: float | None
    user_data: Mapping[str, Any]
    unique: bool = True


@dataclass(frozen=True, slots=True)
class EndMessage:
    """A series ends."""

    series: str


Message: TypeAlias = StartMessage | ImageMessage | EndMessage


def parse_message(message: bytes | memoryview) -> Message:
    """Read a message; arrays stay encoded.

    Raises
    ------
    InputError
        If it is malformed, of another type or lacks what identifies it.
    """
    fields = load_cbor(message)
    if not isinstance(fields, dict):
        raise InputError(f"a message is a CBOR {type(fields).__name__}, not a map")
    kind = fields.get("type")
    if kind == "image":
        return _image(fields)
    if kind == "start":
        return _start(fields)
    if kind == "end":
        return EndMessage(_series(fields))
    raise InputError(f"a message has the type {kind!r}; known are start, image and end")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedArray:
    """An image or a mask, of which nothing is decoded yet.

    Attributes
    ----------
    shape
        (rows, columns), as the message says.
    stored
        dtype of the elements, in the byte order of the message.
    codec
        One of `compression.CODECS`.
    payload
        The bytes, a view of the message.
    """

    shape: tuple[int, ...]
    stored: np.dtype[Any]
    codec: str
    payload: memoryview

    @classmethod
    def of(cls, value: Any) -> EncodedArray:
        """Read what the message says of an array.

        Raises
        ------
        InputError
            If the tags do not fit each other, or the compression is unknown.
        """
        if not isinstance(value, Tagged) or value.tag != MULTI_DIMENSIONAL:
            raise InputError("an image is not a multi-dimensional array (tag 40)")
        if not isinstance(value.value, list) or len(value.value) != 2:
            raise InputError("an image is not a pair of dimensions and values")
        shape, typed = value.value
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise InputError("the dimensions of an image are not whole numbers")
        if not isinstance(typed, Tagged):
            raise InputError("the values of an image have no type")
        stored = _typed(typed.tag)
        codec, payload = _payload(typed.value, stored)
        return cls(tuple(shape), stored, codec, payload)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the decoded elements, in native byte order."""
        return self.stored.newbyteorder("=")


def read_array(value: Any) -> npt.NDArray[Any]:
    """Decode an image, (H, W) in native byte order; without compression a view of the message.

    Raises
    ------
    InputError
        If tags, sizes or compressed bytes do not fit each other.
    """
    encoded = EncodedArray.of(value)
    return decompress(encoded.codec, encoded.payload, encoded.shape, encoded.stored)


def _payload(content: Any, dtype: np.dtype[Any]) -> tuple[str, memoryview]:
    if isinstance(content, memoryview):
        return "none", content
    if not isinstance(content, Tagged) or content.tag != COMPRESSED:
        raise InputError("the values of an image are neither bytes nor compressed bytes")
    parts = content.value
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[2], memoryview):
        raise InputError("compressed bytes are not [algorithm, element size, bytes]")
    algorithm, element_size, payload = parts
    codec = CODECS.get(algorithm) if isinstance(algorithm, str) else None
    if codec is None:
        raise InputError(
            f"an image is compressed with {algorithm!r}; set the detector's compression to "
            f"{' or '.join(CODECS)}"
        )
    # bitshuffle transposes by this size: with a wrong one noise comes out, and no error.
    if element_size != dtype.itemsize:
        raise InputError(f"compressed elements of {element_size} bytes do not fit {dtype}")
    return codec, payload


def _typed(tag: int) -> np.dtype[Any]:
    """Return the dtype of a typed array by its tag (RFC 8746, 2.1).

    The bits of the tag are 0b010, float, signed, little-endian, and two of the length.
    """
    # 76 is reserved, 83 and 87 are 128-bit floats, which numpy has no portable type for.
    if not 64 <= tag <= 87 or tag in (76, 83, 87):
        raise InputError(f"an image has the tag {tag}, which is not a type of real numbers")
    order = "<" if tag & 4 else ">"
    power = tag & 3
    if tag >= 80:
        return np.dtype(f"{order}f{2 << power}")
    return np.dtype(f"{order}{'i' if tag & 8 else 'u'}{1 << power}")


def _series(fields: Mapping[str, Any]) -> str:
    # The unique one first: series_id is a counter of the detector, which may begin again.
    for name in ("series_unique_id", "series_id"):
        if isinstance(fields.get(name), (str, int)):
            return str(fields[name])
    raise InputError("a message names no series; it lacks series_unique_id and series_id")


def _is_unique(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("series_unique_id"), (str, int))


def _start(fields: dict[str, Any]) -> StartMessage:
    rows, cols = fields.get("image_size_y"), fields.get("image_size_x")
    channels = fields.get("channels")
    masks = fields.get("pixel_mask")
    images = fields.get("number_of_images")
    return StartMessage(
        series=_series(fields),
        shape=(rows, cols) if type(rows) is type(cols) is int and min(rows, cols) > 0 else None,
        dtype=_named_dtype(fields.get("image_dtype")),
        images=images if type(images) is int and images > 0 else None,
        channels=tuple(c for c in channels if isinstance(c, str))
        if isinstance(channels, list)
        else (),
        masks=masks if isinstance(masks, dict) else {},
        metadata={
            name: value
            for name, value in fields.items()
            if name not in _CALIBRATIONS and not isinstance(value, (Tagged, memoryview))
        },
        unique=_is_unique(fields),
    )


def _image(fields: dict[str, Any]) -> ImageMessage:
    number, data = fields.get("image_id"), fields.get("data")
    if type(number) is not int or not 0 <= number < MOST_IMAGES:
        raise InputError(f"an image has the image_id {number!r}; it is not a number from 0")
    return ImageMessage(
        series=_series(fields),
        number=number,
        data=data if isinstance(data, dict) else {},
        time_s=_time(fields),
        user_data=_user_data(fields.get("user_data")),
        unique=_is_unique(fields),
    )


def _named_dtype(name: Any) -> np.dtype[Any] | None:
    if not isinstance(name, str):
        return None
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.kind in "uif" else None


def _time(fields: Mapping[str, Any]) -> float | None:
    """Add the end of the exposure, a rational of seconds, to the date of the series."""
    date, stop = fields.get("series_date"), fields.get("stop_time")
    if not isinstance(date, Tagged) or not isinstance(date.value, str):
        return None
    if not isinstance(stop, list) or len(stop) != 2 or not all(type(n) is int for n in stop):
        return None
    try:
        # Python 3.10 reads fractions of three or six digits only.
        text = _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", date.value, count=1)
        start = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
        return as_time_s(start + stop[0] / stop[1])
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _user_data(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str) and len(value) <= _MOST_METADATA_BYTES:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
