"""Send frames as a DECTRIS detector does: Stream V2 over ZMQ PUSH."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edgexnas.device.optional_libraries import zmq_module
from edgexnas.device.publishing.frames import PreparedFrames, send_all
from edgexnas.device.publishing.sending_order import every_nth
from edgexnas.device.sources.simplon.cbor import SELF_DESCRIBED, Tagged, dump_cbor, map_head
from edgexnas.device.sources.simplon.messages import CODECS, COMPRESSED, MULTI_DIMENSIONAL
from edgexnas.errors import SourceError

if TYPE_CHECKING:
    import argparse

    import numpy as np
    import numpy.typing as npt


__all__ = ["send_simplon"]

_TAGS = {"uint8": 64, "uint16": 69, "uint32": 70, "int32": 78, "float32": 85}
_CHANNEL = "threshold_1"
_TICKS_PER_S = 50_000_000
"""Times are fractions of this, as EIGER2 sends them."""

_DATE_TIME = 0


def send_simplon(options: argparse.Namespace, prepared: PreparedFrames) -> None:
    """Bind a PUSH socket and send the frames on it; see `edgexnas.device.publishing`.

    Raises
    ------
    MissingDependencyError
        If pyzmq is not installed.
    SourceError
        If the address cannot be bound.
    """
    zmq = zmq_module("sending frames over DECTRIS Stream V2")
    ends = [_end_of_message(prepared, index) for index in range(len(prepared))]
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.SNDHWM, options.queue)
        # Else frames that wait for a receiver would be dropped when the socket closes.
        socket.setsockopt(zmq.LINGER, round(options.linger * 1000))
        try:
            socket.bind(options.address)
        except zmq.ZMQError as error:
            raise SourceError(
                f"{options.address} cannot be bound ({error}); specify a free tcp:// address"
            ) from error
        sender = _Sender(socket, options, prepared, ends)
        send_all(options, begin=sender.begin, send=sender.send, end=sender.end)


class _Sender:
    def __init__(
        self, socket: Any, options: argparse.Namespace, prepared: PreparedFrames, ends: list[bytes]
    ) -> None:
        self._socket = socket
        self._options = options
        self._prepared = prepared
        self._ends = ends
        self._series: dict[str, Any] = {}
        self._date_s = 0.0

    def begin(self, series: int) -> None:
        self._date_s = time.time()
        self._series = {"series_id": series + 1, "series_unique_id": uuid.uuid4().hex}
        rows, cols = self._prepared.shape
        mask = self._prepared.frames.mask
        masks = {} if mask is None else {_CHANNEL: _array(mask.astype("<u4"))}
        start = {
            "type": "start",
            **self._series,
            "arm_date": _date(self._date_s),
            "channels": [_CHANNEL],
            "detector_description": "edgexnas simulated detector",
            "frame_time": 1 / (self._options.rate or 1000.0),
            "image_dtype": self._prepared.dtype.name,
            "image_size_x": cols,
            "image_size_y": rows,
            "number_of_images": self._options.frames or 0,
            "pixel_mask": masks,
            "pixel_mask_enabled": bool(masks),
        }
        self._socket.send(SELF_DESCRIBED + dump_cbor(start))

    def send(self, number: int, time_s: float) -> None:
        ticks = round((time_s - self._date_s) * _TICKS_PER_S)
        if every_nth(number, self._options.bad_time):
            # A time that no date can hold, which a receiver must survive.
            ticks = 2**62
        fields: dict[str, Any] = {
            "type": "image",
            **self._series,
            "image_id": number,
            "series_date": _date(self._date_s),
            "start_time": [ticks, _TICKS_PER_S],
            "stop_time": [ticks, _TICKS_PER_S],
            "real_time": [0, _TICKS_PER_S],
        }
        position = self._prepared.frames.position(number)
        if position is not None:
            fields["user_data"] = {"row": position[0], "col": position[1]}
        # The image comes last in the map, so that it is encoded once and for all.
        entries = dump_cbor(fields)[len(map_head(len(fields))) :]
        head = SELF_DESCRIBED + map_head(len(fields) + 1) + entries
        message = head + self._ends[number % len(self._ends)]
        if every_nth(number, self._options.garble):
            message = message[: len(message) // 2]
        self._socket.send(message, copy=False)

    def end(self, series: int, frames: int) -> None:
        self._socket.send(SELF_DESCRIBED + dump_cbor({"type": "end", **self._series}))


def _end_of_message(prepared: PreparedFrames, index: int) -> bytes:
    """Encode the entry "data" of an image's map."""
    frame = prepared.frames.stack[index]
    if prepared.codec == "none":
        encoded = _array(frame)
    else:
        algorithm = next(name for name, codec in CODECS.items() if codec == prepared.codec)
        content = Tagged(COMPRESSED, [algorithm, frame.itemsize, prepared.payloads[index]])
        encoded = _multi_dimensional(frame, content)
    return dump_cbor("data") + dump_cbor({_CHANNEL: encoded})


def _array(values: npt.NDArray[np.generic]) -> Tagged:
    return _multi_dimensional(values, values.tobytes())


def _multi_dimensional(values: npt.NDArray[np.generic], content: Any) -> Tagged:
    typed = Tagged(_TAGS[values.dtype.name], content)
    return Tagged(MULTI_DIMENSIONAL, [list(values.shape), typed])


def _date(seconds: float) -> Tagged:
    return Tagged(_DATE_TIME, datetime.fromtimestamp(seconds, timezone.utc).isoformat())
