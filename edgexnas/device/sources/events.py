"""What a source of frames tells: frames, where series begin and end, positions, and troubles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "EventSource",
    "SeriesEnd",
    "SeriesStart",
    "SourceEvent",
    "SourceFrame",
    "SourcePosition",
    "SourceTrouble",
]


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """A decoded frame.

    Attributes
    ----------
    series
        Name of the acquisition: the unique id of a Stream V2 series, "CHANNEL@start" of a PVA
        channel, the name of a file.
    number
        Number of the frame within its series, from 0. Numbers may be missing, come twice or out
        of order, as the wire has them.
    pixels
        (H, W), C-contiguous, in native byte order; not to be written to.
    arrival_ns
        `time.monotonic_ns()` when the last byte of the frame was in this process.
    timestamp_s
        The detector's own time in Unix seconds; None if it says none.
    position_m
        (row, col) of the scan in metres; None if it does not come with the frame.
    detector_id
        Number that the detector itself gave the frame: uniqueId of an NTNDArray, image_id of
        Stream V2; None if unknown.
    """

    series: str
    number: int
    pixels: npt.NDArray[Any]
    arrival_ns: int
    timestamp_s: float | None = None
    position_m: tuple[float, float] | None = None
    detector_id: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SeriesStart:
    """A series begins; what is not known beforehand is None.

    Attributes
    ----------
    series
        Name of the acquisition.
    shape
        (rows, columns) of every frame.
    dtype
        dtype of every frame, in native byte order.
    frames_expected
        How many frames the detector was requested.
    mask
        (H, W) bool, True where a pixel is unusable.
    saturation
        Counts from which a pixel is saturated.
    identity
        What tells the series from another of the same name: `SeriesIdentity.id` of files, the
        detector's unique id; empty if unknown.
    first
        Number of the first frame that is to be expected; those before it are not lost.
    metadata
        What else the source says, such as energies and distances, by the source's own names.
    arrival_ns
        `time.monotonic_ns()`.
    """

    series: str
    shape: tuple[int, int] | None = None
    dtype: np.dtype[Any] | None = None
    frames_expected: int | None = None
    mask: npt.NDArray[np.bool_] | None = None
    saturation: float | None = None
    identity: str = ""
    first: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    arrival_ns: int = 0


@dataclass(frozen=True, slots=True)
class SeriesEnd:
    """A series ends.

    Attributes
    ----------
    series
        Name of the acquisition.
    frames_sent
        How many frames the detector says that it sent; None if it does not say.
    arrival_ns
        `time.monotonic_ns()`.
    """

    series: str
    frames_sent: int | None
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """A scan position that comes apart from its frame, before or after it.

    Attributes
    ----------
    series
        Name of the acquisition; None for the one that runs.
    number
        Number of the frame that was taken there.
    position_m
        (row, col) in metres.
    arrival_ns
        `time.monotonic_ns()`.
    """

    series: str | None
    number: int
    position_m: tuple[float, float]
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class SourceTrouble:
    """Something came that could not be used, or a connection was lost; the source goes on.

    Attributes
    ----------
    series
        Name of the acquisition, if it is known.
    number
        Number of the frame that came but could not be decoded; None if it was no frame.
    message
        One sentence.
    arrival_ns
        `time.monotonic_ns()`.
    """

    series: str | None
    number: int | None
    message: str
    arrival_ns: int


SourceEvent: TypeAlias = SourceFrame | SeriesStart | SeriesEnd | SourcePosition | SourceTrouble


class EventSource(Protocol):
    """Where frames come from.

    A source may also have `encoded_events`, for who decodes frames elsewhere; see `encoded_frames`.
    One that can tell that a series ran before it was opened has `resume(stored)`; it is called
    before `events` with the highest number that is stored of each series, by its identity.
    A class that a URL scheme names, in `opening`, has a class method `open(url, options)`.

    Attributes
    ----------
    url
        What the source was opened from, for messages and provenance.
    live
        True if frames that are not taken in time are lost; False for a file, which waits.
    """

    @property
    def url(self) -> str:
        """What the source was opened from."""

    @property
    def live(self) -> bool:
        """Whether frames that are not taken in time are lost."""

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over what comes; to be called once.

        Ends at the end of a file; a live source goes on until `close`.

        Raises
        ------
        SourceError
            If the source cannot be read any further.
        """

    def close(self) -> None:
        """Let `events` end soon; from any thread, closing again does nothing."""

    def status(self) -> Mapping[str, int | str]:
        """Count what the source itself sees; cheap, from any thread.

        Every source counts "frames", "missed" (numbers that were skipped), "malformed" (messages
        that could not be decoded), "reconnects" and "overruns"; some say more.
        """
