"""NTNDArray, areaDetector's image on EPICS PV Access, as a frame.

https://docs.epics-controls.org/en/latest/pv-access/Normative-Types-Specification.html: `value` is
a union of arrays, `dimension` lists the fastest axis first, and where `codec.name` is set, `value`
holds bytes and `codec.parameters` the type of the pixels. The update is read by its field names
alone, so that pvapy's objects and plain dictionaries serve alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources.compression import FrameMemory, decompress
from edgexnas.device.sources.encoded_frames import EncodedPixels, Payload
from edgexnas.device.sources.pixels import as_pixels, as_time_s, frame_bytes
from edgexnas.errors import InputError

__all__ = ["FrameKind", "FrameUpdate", "read_positions"]

_FIELD_DTYPES = {
    "byteValue": "int8",
    "ubyteValue": "uint8",
    "shortValue": "int16",
    "ushortValue": "uint16",
    "intValue": "int32",
    "uintValue": "uint32",
    "longValue": "int64",
    "ulongValue": "uint64",
    "floatValue": "float32",
    "doubleValue": "float64",
}

# epics::pvData::ScalarType, what ADCore's NDPluginPva sends.
_SCALAR_TYPES = {
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "uint8",
    6: "uint16",
    7: "uint32",
    8: "uint64",
    9: "float32",
    10: "float64",
}
# Type codes of PV Access, which NDPluginPvxs sent until 2026 (ADCore issue 555); bit 3 is "array".
_TYPE_CODES = {
    **{0x20 + number: f"int{8 << number}" for number in range(4)},
    **{0x24 + number: f"uint{8 << number}" for number in range(4)},
    0x42: "float32",
    0x43: "float64",
}
_ARRAY_BIT = 0x08

_CODECS = {"": "none", "lz4": "lz4", "bslz4": "bslz4", "blosc": "blosc", "lz4hdf5": "lz4-hdf5"}
"""areaDetector's names of codecs."""

_COLUMNS = ("number", "row", "col")


class _Axis(NamedTuple):
    """One of the dimensions, with what a region of interest says of it."""

    size: int
    offset: int
    binning: int
    reverse: bool


class FrameKind(NamedTuple):
    """What the frames of a series have in common.

    Attributes
    ----------
    shape
        (rows, columns).
    dtype
        Of the pixels, in native byte order.
    offset
        (row, col) of the region's first pixel on the detector, in pixels of the detector.
    binning
        Pixels of the detector to one of the image, along (row, col).
    reverse
        Whether the image is mirrored along (row, col).
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: tuple[int, int] = (0, 0)
    binning: tuple[int, int] = (1, 1)
    reverse: tuple[bool, bool] = (False, False)

    def __str__(self) -> str:
        """Return a text that is equal for equal kinds alone."""
        shape, offset, binning, reverse = (
            "{}x{}".format(*map(int, pair))
            for pair in (self.shape, self.offset, self.binning, self.reverse)
        )
        return f"{shape} {self.dtype} offset={offset} binning={binning} reverse={reverse}"


@dataclass(frozen=True, slots=True, eq=False)
class FrameUpdate:
    """An update, taken out of pvapy's object.

    pvapy gives its object the memory of a place in the monitor's queue, which the next updates
    overwrite once the callback has returned; an array that was taken out stays as it is.

    Attributes
    ----------
    unique_id
        The driver's counter, int32.
    time_s
        Unix seconds of the data, or else of the record; None if neither is set and credible.
    field
        Name of the union's field; None for an update without an image, as a server gives before
        the first frame.
    values
        Pixels or encoded bytes, 1-D.
    axes
        The dimensions, the fastest first.
    codec, type_code
        Name of the codec, "" for none, and the type of the pixels that it states.
    stated_bytes
        Bytes of the pixels, as the sender says.
    attributes
        Numbers among the NTNDArray attributes that were requested.
    """

    unique_id: int
    time_s: float | None
    field: str | None
    values: npt.NDArray[Any]
    axes: tuple[_Axis, ...]
    codec: str
    type_code: int | None
    stated_bytes: int
    attributes: Mapping[str, float]

    @classmethod
    def of(cls, update: Any, attributes: tuple[str, ...] = ()) -> FrameUpdate:
        """Take an update out; it is read by the names of its fields alone.

        Parameters
        ----------
        attributes
            Names of attributes to read.

        Raises
        ------
        InputError
            If it is not an NTNDArray.
        """
        try:
            # A union is a tuple in pvapy, and empty before a server's first frame.
            selected = update["value"][0]
            ((field, values),) = selected.items() if selected else ((None, ()),)
            codec = update["codec"]
            name = str(codec["name"])
            return cls(
                unique_id=int(update["uniqueId"]),
                time_s=_seconds(update, "dataTimeStamp") or _seconds(update, "timeStamp"),
                field=field,
                values=np.asarray(values),
                axes=tuple(map(_axis, update["dimension"])),
                codec=name,
                type_code=_type_code(codec["parameters"]) if name else None,
                stated_bytes=int(update["uncompressedSize"]),
                attributes=_attributes(update, attributes) if attributes else {},
            )
        # pvapy has exceptions of its own for fields that are not there.
        except Exception as error:
            raise InputError(
                f"an update is not an NTNDArray ({type(error).__name__}: {error}); name the PV of "
                "an areaDetector plugin such as NDPluginPva"
            ) from error

    def kind(self) -> FrameKind:
        """Return what its series has in common, once that fits all else that is said of it.

        Raises
        ------
        InputError
            If the image is not (H, W), its codec is unknown, or its sizes and type do not fit each
            other.
        """
        if self.field not in _FIELD_DTYPES:
            raise InputError(f"the image is a {self.field}; frames are real numbers")
        rows, cols = _image_axes(self.axes)
        shape, data = (rows.size, cols.size), self.values
        offset = (rows.offset, cols.offset)
        binning = (rows.binning, cols.binning)
        reverse = (rows.reverse, cols.reverse)
        if not self.codec:
            size = frame_bytes(shape, data.dtype)
            if data.nbytes != size:
                raise InputError(
                    f"an image of {shape[0]}×{shape[1]} {data.dtype} came with {data.nbytes} "
                    f"bytes, not {size}"
                )
            return FrameKind(shape, data.dtype.newbyteorder("="), offset, binning, reverse)
        if self.codec not in _CODECS:
            raise InputError(
                f"the image is compressed with {self.codec!r}; set the codec plugin to "
                f"{', '.join(codec for codec in _CODECS if codec)} or none"
            )
        if data.dtype.itemsize != 1:
            raise InputError(
                f"an image compressed with {self.codec} came as {data.dtype}, not as bytes"
            )
        return FrameKind(shape, self._dtype(shape), offset, binning, reverse)

    def decode(self) -> npt.NDArray[Any]:
        """Decode the image.

        Returns
        -------
        (H, W) in native byte order; a view of `values` if they are not compressed.

        Raises
        ------
        InputError
            As `kind` does, or if compressed data are malformed.
        """
        shape, dtype, *_ = self.kind()
        if not self.codec:
            return as_pixels(self.values.reshape(shape))
        return decompress(_CODECS[self.codec], self.values.view(np.uint8), shape, dtype)

    def encoded(self, wrong: Callable[[InputError], InputError]) -> EncodedPixels:
        """Return the compressed image for others to decode.

        Parameters
        ----------
        wrong
            Makes the error to raise, in whatever thread decodes, of one that says what is malformed
            in the data.

        Raises
        ------
        InputError
            As `kind` does.
        """
        shape, dtype, *_ = self.kind()
        codec = _CODECS[self.codec]

        def decode(payload: Payload, memory: FrameMemory | None) -> npt.NDArray[Any]:
            try:
                return decompress(codec, payload, shape, dtype, memory)
            except InputError as error:
                raise wrong(error) from error

        size = shape[0] * shape[1] * dtype.itemsize
        return EncodedPixels(self.values.view(np.uint8), decode, self.values.nbytes, size)

    def _dtype(self, shape: tuple[int, int]) -> np.dtype[Any]:
        """Return the type of compressed pixels from what the sender says; check it by the sizes."""
        code = self.type_code
        if code is None:
            raise InputError("a compressed image does not say its type in codec.parameters")
        named = _SCALAR_TYPES.get(code) or _TYPE_CODES.get(code & ~_ARRAY_BIT)
        if named is None:
            raise InputError(
                f"codec.parameters of a compressed image is {code}, which is not a type"
            )
        dtype = np.dtype(named)
        size = frame_bytes(shape, dtype)
        # Type codes were wrong in some releases of ADCore: the sender's size is a second witness.
        if self.stated_bytes != size:
            raise InputError(
                f"a compressed image claims {self.stated_bytes} bytes, but {shape[0]}×{shape[1]} "
                f"{dtype} takes {size}"
            )
        return dtype


def read_positions(update: Mapping[str, Any]) -> list[tuple[int, tuple[float, float]]]:
    """Read an update of a position channel: ids of frames and their (row, col).

    Parameters
    ----------
    update
        Fields number, row and col, each a number or an array of equal length, at the top or in
        `value` as an NTTable has them.

    Raises
    ------
    InputError
        If a field is missing or the lengths differ.
    """
    inner = update.get("value")
    fields = inner if isinstance(inner, Mapping) else update
    missing = [name for name in _COLUMNS if name not in fields]
    if missing:
        raise InputError(
            f"an update of the position channel has no field {missing[0]!r}; "
            "expected number, row, col"
        )
    columns = [np.atleast_1d(np.asarray(fields[name])) for name in _COLUMNS]
    if any(
        c.ndim != 1 or c.shape != columns[0].shape or c.dtype.kind not in "uif" for c in columns
    ):
        raise InputError(
            "number, row and col of the position channel are not numbers of equal length; they are "
            f"{', '.join(f'{column.shape} {column.dtype}' for column in columns)}"
        )
    number, row, col = (column.tolist() for column in columns)
    return [(int(n), (float(r), float(c))) for n, r, c in zip(number, row, col, strict=True)]


def _axis(said: Any) -> _Axis:
    """Read a dimension; who sends no regions may leave all but its size out, or at 0."""
    named = ("offset", "binning", "reverse")
    # Not `get`: pvapy gives dictionaries, and other libraries things that are alike.
    offset, binning, reverse = (int(said[name]) if name in said else 0 for name in named)
    return _Axis(int(said["size"]), offset, max(1, binning), bool(reverse))


def _image_axes(given: tuple[_Axis, ...]) -> tuple[_Axis, _Axis]:
    """(rows, columns) from areaDetector's dimensions, the fastest first."""
    axes = list(given[::-1])
    while len(axes) > 2 and (single := next((a for a in axes if a.size == 1), None)):
        axes.remove(single)
    if len(axes) != 2:
        sizes = tuple(axis.size for axis in given)
        raise InputError(
            f"an image has dimensions {sizes}; frames have two (set ColorMode to Mono)"
        )
    return axes[0], axes[1]


def _type_code(parameters: Any) -> int | None:
    with suppress(Exception):
        return int(parameters[0]["value"])
    return None


def _attributes(update: Any, names: tuple[str, ...]) -> dict[str, float]:
    """Return the numbers among the attributes that have one of the names."""
    found: dict[str, float] = {}
    for attribute in update["attribute"]:
        if attribute["name"] in names:
            with suppress(KeyError, IndexError, TypeError, ValueError):
                found[attribute["name"]] = float(attribute["value"][0]["value"])
    return found


def _seconds(update: Any, name: str) -> float | None:
    # A frame is worth more than its time: one that is missing or no number costs nothing else.
    with suppress(Exception):
        stamp = update[name]
        return as_time_s(int(stamp["secondsPastEpoch"]) + int(stamp["nanoseconds"]) * 1e-9)
    return None
