"""Frames as they came from the wire, which are decoded where their pixels are needed.

Decoding takes about as long as finding peaks. A thread that decoded what it receives would leave
the socket full meanwhile, and a sender that finds no room holds its frames back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources.compression import FrameMemory
from edgexnas.device.sources.events import EventSource, SourceEvent, SourceFrame, SourceTrouble
from edgexnas.errors import InputError

__all__ = [
    "Decoder",
    "EncodedFrame",
    "EncodedPixels",
    "Payload",
    "decoded_events",
    "encoded_events",
    "leaves_decoding",
]

Payload: TypeAlias = bytes | memoryview | npt.NDArray[np.uint8]
Decoder: TypeAlias = Callable[[Payload, FrameMemory | None], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPixels:
    """Pixels that are not decoded yet.

    Attributes
    ----------
    payload
        Their bytes.
    decoder
        Makes (H, W) pixels of such bytes, from any thread, in the memory given with them if that
        has a place. It raises `InputError`, which names the frame, if the bytes are malformed.
    nbytes
        The memory that is held for them: all of the message that they came in.
    decoded_nbytes
        The memory that they take once they are decoded; 0 if that is not known.
    """

    payload: Payload
    decoder: Decoder
    nbytes: int
    decoded_nbytes: int = 0

    def decode(self, memory: FrameMemory | None = None) -> npt.NDArray[Any]:
        """Decode them, into this memory if it has a place.

        Raises
        ------
        InputError
            If they are malformed; the message names the frame.
        """
        return self.decoder(self.payload, memory)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFrame:
    """A frame of which all but the pixels is known; else as `SourceFrame`.

    Attributes
    ----------
    series, number, arrival_ns, timestamp_s, position_m, detector_id
        As of `SourceFrame`.
    encoded
        Its pixels. What is said of their shape and dtype fits the series already.
    """

    series: str
    number: int
    encoded: EncodedPixels
    arrival_ns: int
    timestamp_s: float | None = None
    position_m: tuple[float, float] | None = None
    detector_id: int | None = None

    def decoded(self, memory: FrameMemory | None = None) -> SourceFrame | SourceTrouble:
        """Decode the pixels; return a trouble that names the frame if they are malformed."""
        try:
            pixels = self.encoded.decode(memory)
        except InputError as error:
            return SourceTrouble(self.series, self.number, str(error), self.arrival_ns)
        return SourceFrame(
            self.series,
            self.number,
            pixels,
            self.arrival_ns,
            timestamp_s=self.timestamp_s,
            position_m=self.position_m,
            detector_id=self.detector_id,
        )


class _EncodedSource(EventSource, Protocol):
    """A source that supports deferred decoding."""

    def encoded_events(self) -> Iterator[SourceEvent | EncodedFrame]:
        """Iterate as `events` does, over frames of which most are not decoded."""


def leaves_decoding(source: EventSource) -> TypeGuard[_EncodedSource]:
    """Return whether a source supports deferred decoding."""
    # By the method alone: sources of other packages need not inherit, and may set it to None.
    return callable(getattr(source, "encoded_events", None))


def encoded_events(source: EventSource) -> Iterator[SourceEvent | EncodedFrame]:
    """Iterate over a source's events, with frames not decoded if the source can leave that.

    Raises
    ------
    SourceError
        If the source cannot be read any further.
    """
    return source.encoded_events() if leaves_decoding(source) else source.events()


def decoded_events(events: Iterable[SourceEvent | EncodedFrame]) -> Iterator[SourceEvent]:
    """Decode each frame when it is its turn."""
    for event in events:
        yield event.decoded() if isinstance(event, EncodedFrame) else event
