"""Frames from areaDetector over EPICS PV Access, with pvapy."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.device.sources.compression import prepare_codecs
from edgexnas.device.sources.encoded_frames import EncodedFrame, decoded_events
from edgexnas.device.sources.events import (
    SeriesEnd,
    SeriesStart,
    SourceEvent,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
)
from edgexnas.device.sources.pixels import UNITS_M
from edgexnas.device.sources.pva.ntndarray import FrameKind, FrameUpdate, read_positions
from edgexnas.device.sources.pva.unique_ids import UniqueIds
from edgexnas.device.sources.source_url import SourceOptions, SourceUrl
from edgexnas.errors import ConfigurationError, InputError, SourceError

__all__ = ["PvaOptions", "PvaSource"]

_WAIT_S = 0.1
"""How often an idle source looks whether it is closed, or the series has ended."""

_QUEUE_BYTES = 24 * 1024 * 1024
"""Most memory of frames that wait here; one frame may take more."""

_MOST_WAITING_POSITIONS = 65_536
_POSITIONS_QUEUE = 1000

_PURPOSE = "receiving frames over EPICS PV Access"

_IDENTITY = re.compile(r"(?P<series>.+) uniqueId=(?P<first>-?\d+) (?P<kind>.+)")
"""What identifies a series: its name, the id of its first frame, and the kind of its frames."""

_MOST_IDENTITIES = 65_536

_log = logging.getLogger("edgexnas.device.serving")

_USED_CHANNELS: list[Any] = []
"""Channels that nobody reads any more, for the rest of the process.

pvapy destroys a channel and its callbacks without holding the interpreter's lock, and crashes now
and then if the server goes away meanwhile (epics-base/pvaPy issue 96). A channel without a monitor
takes a few kilobytes.
"""


_Readings: TypeAlias = list[tuple[int, tuple[float, float]]]


class _Closing(Enum):
    """What is put into the queue beside updates."""

    CLOSED = "the source is closed"


_Event: TypeAlias = SourceEvent | EncodedFrame
_Message: TypeAlias = tuple[FrameUpdate | _Readings | InputError | _Closing, int]


class PvaOptions(SourceOptions):
    """Parameters of a PVA channel.

    Attributes
    ----------
    queue
        How many updates may wait on their way, at the server and here, where they take at most
        24 MiB. PV Access itself keeps a few only, and loses frames from about 200 a second.
    row, col
        NTNDArray attributes that hold the scan position, such as motor readbacks.
    positions
        A second channel with scan positions: fields number (the uniqueId of the frame), row and
        col, each a number or an array.
    unit
        Unit of the positions.
    idle_s
        A series ends when no frame came for so long; None if only the next series ends it.
    """

    queue: Annotated[int, Field(ge=1, le=10_000)] = 64
    row: str | None = None
    col: str | None = None
    positions: str | None = None
    unit: Literal["m", "mm", "um", "nm"] = "m"
    idle_s: Annotated[float, Field(gt=0)] | None = None


class PvaSource:
    """NTNDArray updates as frames; see `edgexnas.device.sources.EventSource`.

    The channel may appear, vanish and come back at any time; PV Access searches for it at
    intervals that double, from 0.2 s to 29 s, so that one that was away for long is found as
    late. A series begins with the first frame, when uniqueId is set back, and when shape,
    dtype, or offset, binning or reverse of a region of interest change; its numbers count
    uniqueId from that of its first frame. What uniqueId skips is counted as missed: PV Access
    overwrites what is not taken in time and does not reliably tell. A server whose uniqueId
    stands still is numbered as frames arrive.
    """

    live = True

    def __init__(self, url: str, channel: str, options: PvaOptions) -> None:
        self.url = url
        self._channel = channel
        self._options = options
        self._scale = UNITS_M[options.unit]
        named = options.row is not None and options.col is not None
        self._attributes = (str(options.row), str(options.col)) if named else ()
        # Filled by pvapy's threads, which wait for Python's lock alone and never for a full queue.
        self._updates: SimpleQueue[_Message] = SimpleQueue()
        self._closed = False
        self._connected = False
        self._lost = False
        self._fresh = True
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._overruns: Mapping[str, int] = {}
        self._ids = UniqueIds()
        self._series: str | None = None
        self._kind: FrameKind | None = None
        self._resumable: tuple[re.Match[str], int] | None = None
        self._identities: dict[str, None] = {}
        self._said_once: set[str] = set()
        self._waiting_positions: deque[tuple[int, tuple[float, float], int]] = deque(
            maxlen=_MOST_WAITING_POSITIONS
        )

    @classmethod
    def open(cls, url: SourceUrl, given: Mapping[str, Any]) -> PvaSource:
        """Check a URL pva://CHANNEL and that pvapy is installed; nothing is connected yet."""
        options = url.options(PvaOptions, given)
        if (options.row is None) != (options.col is None):
            raise ConfigurationError(f"{url.text} names one of row and col; name both, or neither")
        pvaccess_module(_PURPOSE)
        prepare_codecs()
        return cls(url.text, url.place.strip("/"), options)

    def resume(self, stored: Mapping[str, int]) -> None:
        """Let the first frame go on with the newest series of the channel, if its id fits.

        Parameters
        ----------
        stored
            Highest number that is stored of each series, by its identity, in the order of series.
        """
        self._identities = dict.fromkeys(stored)
        for identity, highest in stored.items():
            found = _IDENTITY.fullmatch(identity)
            if found is not None and found["series"].startswith(f"{self._channel}@"):
                self._resumable = found, highest

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over what the channel brings, until `close`."""
        return decoded_events(self.encoded_events())

    def encoded_events(self) -> Iterator[_Event]:
        """Iterate as `events` does, with compressed frames not decoded."""
        channels = self._open_channels()
        try:
            yield from self._taken(channels[0])
        finally:
            self._closed = True
            for opened in channels:
                opened.stopMonitor()
            _USED_CHANNELS.extend(channels)
            # They keep this source alive, so that its frames must go.
            while not self._updates.empty():
                self._updates.get_nowait()

    def _open_channels(self) -> list[Any]:
        """Subscribe; who does not answer yet is waited for."""
        pva = pvaccess_module(_PURPOSE)
        wanted = [(self._channel, self._on_frame, self._options.queue)]
        if self._options.positions is not None:
            wanted.append((self._options.positions, self._on_positions, _POSITIONS_QUEUE))
        channels: list[Any] = []
        try:
            for name, callback, queue in wanted:
                # No connection callback: pvapy calls it without a lock against `monitor`, and the
                # process dies now and then where the server is there already.
                channels.append(pva.Channel(name))
                # Without queueSize a server keeps a handful of updates, and more are lost.
                channels[-1].monitor(callback, f"record[queueSize={queue}]field()")
        except pva.PvaException as error:
            raise SourceError(
                f"{self.url} cannot be received ({error}); check the names and EPICS_PVA_ADDR_LIST"
            ) from error
        return channels

    def close(self) -> None:
        """Let `events` end soon; from any thread."""
        self._closed = True
        self._updates.put((_Closing.CLOSED, 0))

    def status(self) -> Mapping[str, int | str]:
        """Count frames, ids that were skipped, updates that could not be decoded, reconnects.

        "overruns" are updates that pvapy says were overwritten at the server (not every server
        tells) and those that were overwritten here because nobody took them. "connection" is
        "connected" once an update came, also an empty one. "numbering" is "uniqueId", or
        "arrival" where ids stand still; then nobody knows what was missed.
        """
        return {
            "frames": self._counts["frames"],
            "missed": self._ids.missed,
            "malformed": self._counts["malformed"],
            "reconnects": self._counts["reconnects"],
            "overruns": self._counts["overruns"] + self._overruns.get("nOverruns", 0),
            "connection": "connected" if self._connected else "waiting",
            "numbering": "arrival" if self._ids.by_arrival else "uniqueId",
        }

    def _look_at(self, channel: Any) -> Iterator[SourceTrouble]:
        """Find out whether the channel is there; when all updates of before are taken."""
        if self._connected and not channel.isConnected():
            self._connected, self._lost, self._fresh = False, True, True
            message = f"the channel {self._channel} is disconnected; it is waited for"
            yield SourceTrouble(self._series, None, message, time.monotonic_ns())

    def _on_frame(self, update: Any) -> None:
        # pvapy may still call while the monitor is being stopped.
        if self._closed:
            return
        arrival_ns = time.monotonic_ns()
        try:
            self._put(FrameUpdate.of(update, self._attributes), arrival_ns)
        except InputError as error:
            self._put(error, arrival_ns)

    def _on_positions(self, update: Any) -> None:
        # Positions are small and must not push frames out.
        arrival_ns = time.monotonic_ns()
        try:
            self._updates.put((read_positions(update.toDict()), arrival_ns))
        except InputError as error:
            self._updates.put((error, arrival_ns))

    def _put(self, content: FrameUpdate | InputError, arrival_ns: int) -> None:
        self._connected = True
        size = content.values.nbytes if isinstance(content, FrameUpdate) else 0
        # By bytes too: 64 frames of 16 megapixels (uint16) would take 2 GiB.
        most = min(self._options.queue, max(1, _QUEUE_BYTES // max(1, size)))
        while self._updates.qsize() >= most:
            # The oldest goes, as PV Access itself would do; its number will be missed.
            try:
                self._updates.get_nowait()
                self._count("overruns")
            except Empty:
                break
        self._updates.put((content, arrival_ns))

    def _taken(self, channel: Any) -> Iterator[_Event]:
        last_s = time.monotonic()
        while not self._closed:
            try:
                content, arrival_ns = self._updates.get(timeout=_WAIT_S)
            except Empty:
                # Servers other than pvAccessCPP report none: gaps in uniqueId are what counts.
                self._overruns = channel.getMonitorCounters()
                yield from self._look_at(channel)
                idle_s = self._options.idle_s
                if self._series and idle_s is not None and time.monotonic() - last_s > idle_s:
                    yield from self._ended(time.monotonic_ns())
                    self._ids.restart()
                continue
            if isinstance(content, FrameUpdate):
                last_s = time.monotonic()
                if content.field is not None:
                    yield from self._frame(content, arrival_ns)
            elif isinstance(content, list):
                yield from self._positions(content, arrival_ns)
            elif isinstance(content, InputError):
                yield self._trouble(None, content, arrival_ns)
        yield from self._ended(time.monotonic_ns())

    def _frame(self, about: FrameUpdate, arrival_ns: int) -> Iterator[_Event]:
        fresh, self._fresh = self._fresh, False
        self._count("reconnects", self._lost)
        self._lost = False
        if fresh and self._ids.last == (about.unique_id, about.time_s):
            # A channel that came back gives the frame again that it holds.
            return
        failure: InputError | None = None
        kind = self._kind
        try:
            kind = about.kind()
        except InputError as error:
            failure = error
        # Before its id is looked at: the id of another kind says nothing of this series.
        if None not in (kind, self._kind) and kind != self._kind:
            self._ids.restart()
        resumed = self._resumed(kind)
        place = self._ids.take(about.unique_id, about.time_s)
        self._tell_of_numbering()
        if place.begins:
            yield from self._ended(arrival_ns)
            yield from self._started(about, kind if failure is None else None, arrival_ns)
        elif resumed is not None:
            yield self._continued(*resumed, place.number, kind, arrival_ns)
        if place.begins or resumed is not None:
            while self._waiting_positions:
                yield from self._reading(*self._waiting_positions.popleft())
        self._kind = kind
        if place.number < 0:
            message = f"the frame with uniqueId {about.unique_id} is older than its series"
            yield self._trouble(None, InputError(message), arrival_ns)
            return
        if failure is not None:
            yield self._trouble(place.number, failure, arrival_ns)
            return
        assert self._series is not None
        self._count("frames")
        about_frame = (self._series, place.number)
        more: dict[str, Any] = {
            "timestamp_s": about.time_s,
            "position_m": self._position(about),
            # Negative ones would be unknown ones where results are stored.
            "detector_id": about.unique_id % 2**32,
        }
        if about.codec:
            encoded = about.encoded(partial(self._damaged, place.number))
            yield EncodedFrame(*about_frame, encoded, arrival_ns, **more)
        else:
            yield SourceFrame(*about_frame, about.decode(), arrival_ns, **more)

    def _resumed(self, kind: FrameKind | None) -> tuple[re.Match[str], int] | None:
        """Prepare for the first frame to go on with what was stored, if its kind is the same."""
        resumable, self._resumable = self._resumable, None
        if resumable is None or str(kind) != resumable[0]["kind"]:
            return None
        self._ids.resume(int(resumable[0]["first"]), resumable[1])
        return resumable

    def _tell_of_numbering(self) -> None:
        """Say once what ids and times do not tell."""
        facts = {
            f"uniqueId of {self._channel} stands still; frames are numbered as they arrive, and "
            "nobody knows how many were missed": self._ids.by_arrival,
            f"the time stamp of {self._channel} stands still; acquisitions are told apart by "
            "uniqueId alone": self._ids.time_stands_still,
        }
        for message in [message for message, holds in facts.items() if holds]:
            if message not in self._said_once:
                self._said_once.add(message)
                _log.warning("%s", message)

    def _started(
        self, about: FrameUpdate, kind: FrameKind | None, arrival_ns: int
    ) -> Iterator[SourceEvent]:
        moment = time.time() if about.time_s is None else about.time_s
        text = datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="microseconds")
        begun = f"{self._channel}@{text.replace('+00:00', 'Z')}"
        series, turn = begun, 1
        # Where time stamps stand still, another series would have the name of one before.
        while (identity := f"{series} uniqueId={about.unique_id} {kind}") in self._identities:
            turn += 1
            series = f"{begun}#{turn}"
        self._identities[identity] = None
        if len(self._identities) > _MOST_IDENTITIES:
            del self._identities[next(iter(self._identities))]
        self._series = series
        yield self._start(identity, kind, about.unique_id, 0, arrival_ns)

    def _continued(
        self,
        about: re.Match[str],
        highest: int,
        number: int,
        kind: FrameKind | None,
        arrival_ns: int,
    ) -> SeriesStart:
        self._series = about["series"]
        _log.info(
            "%s goes on with frame %d; %d frames since the last that is stored did not come here",
            self._series,
            number,
            max(0, number - highest - 1),
        )
        return self._start(about.string, kind, int(about["first"]), highest + 1, arrival_ns)

    def _start(
        self, identity: str, kind: FrameKind | None, unique_id: int, first: int, arrival_ns: int
    ) -> SeriesStart:
        assert self._series is not None
        metadata: dict[str, Any] = {"channel": self._channel, "uniqueId": unique_id}
        if kind is not None:
            metadata |= {name: getattr(kind, name) for name in ("offset", "binning", "reverse")}
        return SeriesStart(
            self._series,
            shape=None if kind is None else kind.shape,
            dtype=None if kind is None else kind.dtype,
            identity=identity,
            first=first,
            metadata=metadata,
            arrival_ns=arrival_ns,
        )

    def _ended(self, arrival_ns: int) -> Iterator[SourceEvent]:
        if self._series is not None:
            yield SeriesEnd(self._series, None, arrival_ns)
        self._series = self._kind = None

    def _position(self, about: FrameUpdate) -> tuple[float, float] | None:
        if not self._attributes:
            return None
        row, col = (about.attributes.get(name, math.nan) for name in self._attributes)
        if not (math.isfinite(row) and math.isfinite(col)):
            return None
        return row * self._scale, col * self._scale

    def _positions(self, readings: _Readings, arrival_ns: int) -> Iterator[SourceEvent]:
        for unique_id, position in readings:
            if self._series is None:
                self._waiting_positions.append((unique_id, position, arrival_ns))
            else:
                yield from self._reading(unique_id, position, arrival_ns)

    def _reading(
        self, unique_id: int, position: tuple[float, float], arrival_ns: int
    ) -> Iterator[SourceEvent]:
        number = self._ids.number(unique_id)
        row, col = position[0] * self._scale, position[1] * self._scale
        # A position of an earlier series, or one that is not known.
        if number >= 0 and math.isfinite(row) and math.isfinite(col):
            yield SourcePosition(self._series, number, (row, col), arrival_ns)

    def _trouble(self, number: int | None, error: InputError, arrival_ns: int) -> SourceTrouble:
        self._count("malformed")
        return SourceTrouble(self._series, number, self._said(number, error), arrival_ns)

    def _damaged(self, number: int, error: InputError) -> InputError:
        """Count a frame that came and could not be decoded, in the thread of who decodes it."""
        self._count("malformed")
        # Counted when it came; nobody knew then that it cannot be decoded.
        self._count("frames", -1)
        return InputError(self._said(number, error))

    def _said(self, number: int | None, error: InputError) -> str:
        place = self._channel if number is None else f"frame {number} of {self._channel}"
        return f"{place}: {error}"

    def _count(self, what: str, change: int = 1) -> None:
        with self._counting:
            self._counts[what] += change
