"""Frames from a DECTRIS detector: Stream V2 over ZMQ."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgexnas.device.optional_libraries import zmq_module
from edgexnas.device.sources.compression import FrameMemory, decompress, prepare_codecs
from edgexnas.device.sources.encoded_frames import (
    EncodedFrame,
    EncodedPixels,
    Payload,
    decoded_events,
)
from edgexnas.device.sources.events import (
    SeriesEnd,
    SeriesStart,
    SourceEvent,
    SourceFrame,
    SourceTrouble,
)
from edgexnas.device.sources.frame_numbers import FrameNumbers
from edgexnas.device.sources.pixels import MAXIMUM_FRAME_BYTES, UNITS_M
from edgexnas.device.sources.simplon.messages import (
    EncodedArray,
    ImageMessage,
    StartMessage,
    parse_message,
    read_array,
)
from edgexnas.device.sources.source_url import SourceOptions, SourceUrl
from edgexnas.errors import ConfigurationError, InputError, SourceError

__all__ = ["SimplonOptions", "SimplonSource"]

_Event: TypeAlias = SourceEvent | EncodedFrame

DEFAULT_PORT = 31001

_POLL_MS = 100
# The largest frame uncompressed, and 16 MiB for what comes beside it.
_MOST_BYTES = MAXIMUM_FRAME_BYTES + 2**24
# A second receiver takes every other frame, and lossless streams lose none: a quarter tells both
# apart.
_ENOUGH_FRAMES = 64
_SUSPICIOUS_SHARE = 0.25

_PURPOSE = "receiving frames over DECTRIS Stream V2"

_log = logging.getLogger("edgexnas.device.serving")

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.%a-z]+\]")
"""A host name, an IPv4 address, or an IPv6 address in brackets."""


class SimplonOptions(SourceOptions):
    """Parameters of a Stream V2 source.

    Attributes
    ----------
    exclusive
        This is the only receiver of the port. ZMQ PUSH deals messages out in turn: beside another
        receiver, such as a file writer, each loses every second frame. Without it nothing is
        opened.
    queue
        How many messages may wait here, before the queue of who takes frames. A detector that
        finds no room keeps its frames back and drops them at last, so that a large queue adds
        latency and memory, and no safety.
    channel
        Which image of a message to take, such as "threshold_1"; None for the first that the start
        message lists, or else the first of the first image.
    row, col
        Keys of the image's user_data (a map, or JSON text of one) that hold the scan position.
    unit
        Unit of the positions.
    """

    exclusive: bool = False
    queue: Annotated[int, Field(ge=1, le=10_000)] = 4
    channel: str | None = None
    row: str | None = None
    col: str | None = None
    unit: Literal["m", "mm", "um", "nm"] = "m"


class SimplonSource:
    """Stream V2 messages as frames; see `edgexnas.device.sources.EventSource`.

    The detector may appear, vanish and come back at any time. Pixels that the detector could not
    measure have the largest value of their dtype; the pixel mask of the start message, where there
    is one, comes with `SeriesStart`.
    """

    live = True

    def __init__(self, url: str, endpoint: str, options: SimplonOptions) -> None:
        self.url = url
        self._endpoint = endpoint
        self._options = options
        self._scale = UNITS_M[options.unit]
        self._closed = False
        self._connected = False
        self._ever_connected = False
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._missed_before = 0
        self._numbers = FrameNumbers()
        self._taken = 0
        self._series: str | None = None
        self._channel: str | None = None
        self._shape: tuple[int, ...] | None = None
        self._dtype: np.dtype[Any] | None = None
        self._suspected = False

    @classmethod
    def open(cls, url: SourceUrl, given: Mapping[str, Any]) -> SimplonSource:
        """Check a URL simplon://HOST:PORT; nothing is connected yet."""
        options = url.options(SimplonOptions, given)
        host, _, port = url.place.strip("/").rpartition(":")
        if not host:
            host, port = port, str(DEFAULT_PORT)
        if not _HOST.fullmatch(host):
            raise ConfigurationError(
                f"{url.text} names the host {host!r}, which is not a valid host; "
                "specify a name or an address"
            )
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"{url.text} has the port {port!r}; specify 1 to 65535")
        if not options.exclusive:
            raise ConfigurationError(
                f"{url.text} is not opened: a DECTRIS stream deals its frames out among all that "
                "connect, so a second receiver takes every other frame from the first; connect to "
                "a copy of the stream, or make sure that nothing else receives it, and then add "
                "exclusive=1"
            )
        if (options.row is None) != (options.col is None):
            raise ConfigurationError(f"{url.text} names one of row and col; name both, or neither")
        zmq_module(_PURPOSE)
        prepare_codecs()
        return cls(url.text, f"tcp://{host}:{port}", options)

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over what the detector sends, until `close`."""
        return decoded_events(self.encoded_events())

    def encoded_events(self) -> Iterator[_Event]:
        """Iterate over what the detector sends, with frames not decoded, until `close`.

        Frames of a series whose shape or dtype its start does not say are decoded up to the first
        that is sound, which says both.
        """
        zmq = zmq_module(_PURPOSE)
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            # ZMQ's own 1,000 would hide 4 GB of 2 MB frames in both ends' queues, and seconds of
            # latency.
            socket.setsockopt(zmq.RCVHWM, self._options.queue)
            # ZMQ drops the connection at a longer message, before memory is taken for it.
            socket.setsockopt(zmq.MAXMSGSIZE, _MOST_BYTES)
            socket.setsockopt(zmq.LINGER, 0)
            # A detector that was switched off says nothing; the kernel finds out.
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
            socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
            watch = socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            )
            try:
                try:
                    socket.connect(self._endpoint)
                except zmq.ZMQError as error:
                    raise SourceError(
                        f"{self.url} cannot be connected ({error}); check host and port"
                    ) from error
                poller = zmq.Poller()
                poller.register(socket, zmq.POLLIN)
                poller.register(watch, zmq.POLLIN)
                while not self._closed:
                    ready = dict(poller.poll(_POLL_MS))
                    if watch in ready:
                        # Before messages, so that a reconnect is told before the frames after it.
                        yield from self._connection(zmq, watch)
                    if socket in ready:
                        # Not copied: pixels stay views of ZMQ's message, which lives as long as
                        # they do.
                        frame = socket.recv(copy=False)
                        yield from self._received(socket, frame, time.monotonic_ns())
                yield from self._ended(time.monotonic_ns())
            finally:
                socket.disable_monitor()
                watch.close(0)

    def close(self) -> None:
        """Let `events` end soon; from any thread."""
        self._closed = True

    def status(self) -> Mapping[str, int | str]:
        """Count frames, image ids that were skipped, malformed messages, and reconnects.

        A frame whose pixels turn out to be malformed counts as a frame and as malformed.
        "overruns" stays 0: a detector that finds no room says so itself. "connection" is
        "connected" or "waiting".
        """
        return {
            "frames": self._counts["frames"],
            "missed": self._missed_before + self._numbers.missed,
            "malformed": self._counts["malformed"],
            "reconnects": self._counts["reconnects"],
            "overruns": 0,
            "connection": "connected" if self._connected else "waiting",
        }

    def _connection(self, zmq: Any, watch: Any) -> Iterator[_Event]:
        from zmq.utils.monitor import recv_monitor_message

        event = recv_monitor_message(watch)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._counts["reconnects"] += self._ever_connected
            self._connected = self._ever_connected = True
        elif self._connected:
            self._connected = False
            message = f"{self._endpoint} is disconnected; it is waited for"
            yield SourceTrouble(self._series, None, message, time.monotonic_ns())

    def _received(self, socket: Any, frame: Any, arrival_ns: int) -> Iterator[_Event]:
        parts = [frame]
        if frame.more:
            parts += socket.recv_multipart(copy=False)
            arrival_ns = time.monotonic_ns()
            # Stream V1 begins with a JSON header; a CBOR map, as of V2, never begins so.
            if bytes(frame.buffer[:1]) == b"{":
                error = InputError(
                    f"a message has {len(parts)} parts that begin with JSON, as in Stream V1; set "
                    "the detector's stream format to cbor"
                )
                yield self._trouble(None, error, arrival_ns)
                return
        # One message is one part; a sender that was busy may join several, and none is to be lost.
        for part in parts:
            yield from self._message(part.buffer, arrival_ns)

    def _message(self, content: memoryview, arrival_ns: int) -> Iterator[_Event]:
        try:
            message = parse_message(content)
        except InputError as error:
            yield self._trouble(None, error, arrival_ns)
            return
        if isinstance(message, ImageMessage):
            yield from self._image(message, len(content), arrival_ns)
        elif isinstance(message, StartMessage):
            yield from self._ended(arrival_ns)
            yield from self._started(message, arrival_ns)
        # The end of another series, such as one that ended before this connected, ends nothing.
        elif message.series == self._series:
            yield from self._ended(arrival_ns)

    def _started(
        self, start: StartMessage, arrival_ns: int, first: int = 0
    ) -> Iterator[SourceEvent]:
        self._series, self._shape, self._dtype = start.series, start.shape, start.dtype
        self._missed_before += self._numbers.missed
        # Who joins late has not missed what was sent before.
        self._numbers, self._taken, self._suspected = FrameNumbers(first), 0, False
        failures: list[InputError] = []
        # One for the whole series: messages may list their images in any order.
        self._channel = self._options.channel or next(iter(start.channels), None)
        metadata = dict(start.metadata)
        if self._channel is not None:
            metadata["channel"] = self._channel
        if start.channels and self._channel not in start.channels:
            failures.append(self._no_channel(start.channels))
        elif len(start.channels) > 1:
            _log.info(
                "series %s has the channels %s; %s is taken",
                start.series,
                ", ".join(start.channels),
                self._channel,
            )
        mask, failure = self._mask(start)
        if failure is not None:
            failures.append(failure)
        yield SeriesStart(
            start.series,
            shape=start.shape,
            dtype=start.dtype,
            frames_expected=start.images,
            mask=mask,
            saturation=_saturation(start.metadata),
            identity=self._identity(start),
            metadata=metadata,
            arrival_ns=arrival_ns,
        )
        for failure in failures:
            yield self._trouble(None, failure, arrival_ns)

    def _identity(self, start: StartMessage) -> str:
        """Name the series as no other is: by its unique id, and the channel that is taken."""
        channel = f" {self._channel}" if self._options.channel else ""
        if start.unique:
            return f"{start.series}{channel}"
        # Such numbers begin again with the detector: none is known from an earlier run.
        return f"{self._endpoint} series {start.series} received {time.time_ns()}{channel}"

    def _no_channel(self, held: Iterable[Any]) -> InputError:
        return InputError(
            f"the image has no channel {self._channel!r}, only {', '.join(map(str, held))}"
        )

    def _ended(self, arrival_ns: int) -> Iterator[_Event]:
        if self._series is not None:
            yield SeriesEnd(self._series, None, arrival_ns)
        self._series = None

    def _mask(self, start: StartMessage) -> tuple[npt.NDArray[np.bool_] | None, InputError | None]:
        channel = self._channel or next(iter(start.masks), "")
        if channel not in start.masks:
            return None, None
        try:
            mask = read_array(start.masks[channel]) != 0
        except InputError as error:
            return None, InputError(f"the pixel mask cannot be used: {error}")
        if start.shape is not None and mask.shape != start.shape:
            return None, InputError(
                f"the pixel mask cannot be used: it has shape {mask.shape}, images {start.shape}"
            )
        return mask, None

    def _image(self, image: ImageMessage, size: int, arrival_ns: int) -> Iterator[_Event]:
        if image.series != self._series:
            # Connected in the midst of a series: what its start said is not known.
            yield from self._ended(arrival_ns)
            joined = StartMessage(
                image.series, None, None, None, (), {}, {"joined": image.number}, image.unique
            )
            yield from self._started(joined, arrival_ns, image.number)
        self._numbers.take(image.number)
        self._taken += 1
        try:
            encoded = self._encoded(image, size)
        except InputError as error:
            yield self._trouble(image.number, error, arrival_ns)
        else:
            self._counts["frames"] += 1
            frame = EncodedFrame(
                image.series,
                image.number,
                encoded,
                arrival_ns,
                image.time_s,
                self._position(image),
                detector_id=image.number,
            )
            known = self._shape is not None and self._dtype is not None
            yield frame if known else self._first(frame)
        yield from self._suspicion(arrival_ns)

    def _first(self, frame: EncodedFrame) -> SourceFrame | SourceTrouble:
        """Decode a frame; what the start message did not say, the first sound one does."""
        first = frame.decoded()
        if isinstance(first, SourceFrame):
            self._shape, self._dtype = first.pixels.shape, first.pixels.dtype
        return first

    def _encoded(self, image: ImageMessage, size: int) -> EncodedPixels:
        """Check what a message of `size` bytes says of its image; decode nothing."""
        if not image.data:
            raise InputError("the image has no data")
        if self._channel is None:
            self._channel = next(iter(image.data))
        if self._channel not in image.data:
            raise self._no_channel(image.data)
        array = EncodedArray.of(image.data[self._channel])
        # Checked against the series here: a lane is opened for one shape and dtype.
        if self._shape is not None and array.shape != self._shape:
            raise InputError(f"the image has shape {array.shape}, its series {self._shape}")
        if self._dtype is not None and array.dtype != self._dtype:
            raise InputError(f"the image has dtype {array.dtype}, its series {self._dtype}")
        decoder = partial(self._decode, image.number, array.codec, array.shape, array.stored)
        decoded = math.prod(array.shape) * array.stored.itemsize
        return EncodedPixels(array.payload, decoder, size, decoded)

    def _decode(
        self,
        number: int,
        codec: str,
        shape: tuple[int, ...],
        stored: np.dtype[Any],
        payload: Payload,
        memory: FrameMemory | None,
    ) -> npt.NDArray[Any]:
        """Decode the pixels of a frame, in the thread of who needs them."""
        try:
            return decompress(codec, payload, shape, stored, memory)
        except InputError as error:
            raise InputError(self._malformed(number, error)) from error

    def _position(self, image: ImageMessage) -> tuple[float, float] | None:
        if self._options.row is None or self._options.col is None:
            return None
        try:
            row, col = (
                float(image.user_data[name]) for name in (self._options.row, self._options.col)
            )
        except (KeyError, TypeError, ValueError):
            return None
        if not (math.isfinite(row) and math.isfinite(col)):
            return None
        return row * self._scale, col * self._scale

    def _suspicion(self, arrival_ns: int) -> Iterator[SourceEvent]:
        """Say once a series that another receiver seems to take frames."""
        missed = self._numbers.missed
        if self._suspected or self._taken < _ENOUGH_FRAMES:
            return
        if missed > _SUSPICIOUS_SHARE * (missed + self._taken):
            self._suspected = True
            message = (
                f"{missed} of {missed + self._taken} frames of {self._endpoint} did not come here; "
                "another receiver is probably connected and takes them"
            )
            yield SourceTrouble(self._series, None, message, arrival_ns)

    def _trouble(self, number: int | None, error: InputError, arrival_ns: int) -> SourceTrouble:
        return SourceTrouble(self._series, number, self._malformed(number, error), arrival_ns)

    def _malformed(self, number: int | None, error: InputError) -> str:
        """Count what is malformed, and say where it is."""
        with self._counting:
            self._counts["malformed"] += 1
        place = self._endpoint if number is None else f"frame {number} of {self._endpoint}"
        return f"{place}: {error}"


def _saturation(said: Mapping[str, Any]) -> float | None:
    """Give the counts from which the detector says that a pixel is saturated."""
    value = said.get("saturation_value")
    # bool is an int, too; 0 is what a detector says that does not know.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 < value < float("inf") else None
