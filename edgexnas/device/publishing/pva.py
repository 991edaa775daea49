"""Send frames as areaDetector's NDPluginPva does: NTNDArray over EPICS PV Access, with pvapy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.device.publishing.frames import PreparedFrames, send_all
from edgexnas.device.publishing.sending_order import every_nth
from edgexnas.device.pva_records import require_search_port

if TYPE_CHECKING:
    import argparse


__all__ = ["send_pva"]

_FIELDS = {
    "int8": ("byteValue", "BYTE"),
    "uint8": ("ubyteValue", "UBYTE"),
    "int16": ("shortValue", "SHORT"),
    "uint16": ("ushortValue", "USHORT"),
    "int32": ("intValue", "INT"),
    "uint32": ("uintValue", "UINT"),
    "float32": ("floatValue", "FLOAT"),
    "float64": ("doubleValue", "DOUBLE"),
}
"""dtype → field of the union, pvapy's name of the type."""

_FIRST_ID = 1
"""areaDetector counts from 1."""

_CHECK_S = 0.2

_NO_TIME_S = 2**62
"""Seconds that no calendar has."""


def send_pva(options: argparse.Namespace, prepared: PreparedFrames) -> None:
    """Serve a channel and send the frames on it; see `edgexnas.device.publishing`.

    Raises
    ------
    ConfigurationError
        If no client could find the channel.
    MissingDependencyError
        If pvapy is not installed.
    """
    purpose = "sending frames over EPICS PV Access"
    pva = pvaccess_module(purpose)
    require_search_port(purpose)
    server = pva.PvaServer()
    server.addRecord(options.channel, pva.NtNdArray(), None)
    if options.positions is not None:
        fields = {"number": pva.INT, "row": pva.DOUBLE, "col": pva.DOUBLE}
        empty = {"number": -1, "row": np.nan, "col": np.nan}
        server.addRecord(options.positions, pva.PvObject(fields, empty), None)
    rows, cols = prepared.shape
    images = [_image(pva, prepared, index) for index in range(len(prepared))]
    time.sleep(_CHECK_S)

    def send(number: int, time_s: float) -> None:
        image = images[number % len(images)]
        bad_time = every_nth(number, options.bad_time)
        stamp = pva.PvTimeStamp(_NO_TIME_S, 0) if bad_time else pva.PvTimeStamp(time_s)
        # A garbled frame says that it has one row less than came.
        sizes = (cols, rows - every_nth(number, options.garble))
        image["dimension"] = [pva.PvDimension(size, 0, size, 1, False) for size in sizes]
        image["uniqueId"] = number + _FIRST_ID
        image["dataTimeStamp"] = stamp
        image["timeStamp"] = stamp
        server.update(options.channel, image)
        position = prepared.frames.position(number)
        if options.positions is not None and position is not None:
            row, col = position
            reading = {"number": number + _FIRST_ID, "row": row, "col": col}
            server.update(options.positions, reading)

    send_all(options, begin=lambda _: None, send=send, end=lambda *_: None)
    server.stop()


def _image(pva: Any, prepared: PreparedFrames, index: int) -> Any:
    """Make the NTNDArray of a frame, in which id and time are set before it is sent."""
    rows, cols = prepared.shape
    data = prepared.data(index)
    image = pva.NtNdArray()
    field, kind = _FIELDS[data.dtype.name]
    image["value"] = {field: np.ascontiguousarray(data).ravel()}
    # areaDetector lists the fastest axis first.
    image["dimension"] = [pva.PvDimension(size, 0, size, 1, False) for size in (cols, rows)]
    image["uncompressedSize"] = rows * cols * prepared.dtype.itemsize
    image["compressedSize"] = data.nbytes
    if prepared.codec != "none":
        kind = _FIELDS[prepared.dtype.name][1]
        image["codec"] = pva.PvCodec(prepared.codec, pva.PvInt(int(getattr(pva, kind))))
    attributes = [pva.NtAttribute("ColorMode", pva.PvInt(0))]
    position = prepared.frames.position(index)
    if position is not None:
        attributes += [
            pva.NtAttribute(name, pva.PvDouble(value))
            for name, value in zip(("PositionRow", "PositionCol"), position, strict=True)
        ]
    image["attribute"] = attributes
    return image
