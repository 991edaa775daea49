"""Frames that a program hands over one by one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np

from edgexnas.device.sources.events import (
    SeriesEnd,
    SeriesStart,
    SourceEvent,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
)
from edgexnas.device.sources.pixels import as_pixels, as_position
from edgexnas.device.sources.source_url import SourceOptions, checked_options
from edgexnas.errors import EdgexnasError, InputError, SourceError
from edgexnas.frames.identity import SeriesIdentity

__all__ = ["IterableOptions", "IterableSource"]

_EVENTS = (SourceFrame, SeriesStart, SeriesEnd, SourcePosition, SourceTrouble)


class IterableOptions(SourceOptions):
    """Parameters of an iterable.

    Attributes
    ----------
    series
        Name of the series.
    """

    series: str = "iterable"


class IterableSource:
    """Frames from an iterable; see `edgexnas.device.sources.EventSource`.

    Items are (H, W) arrays, pairs of an array and its (row, col) position in metres (None where
    it is unknown), or events, which are passed on as they are. Where items are arrays, the source
    says itself where the series begins and ends; a source of events says so with events. An item
    that is none of these is a `SourceTrouble` that takes its number.

    Parameters
    ----------
    frames
        Taken one at a time, not before the previous one was consumed.
    """

    live = False

    def __init__(self, frames: Iterable[Any], options: IterableOptions) -> None:
        self.url = f"iterable:{options.series}"
        self._frames = frames
        self._series = options.series
        self._closed = False
        self._counts: Counter[str] = Counter()

    @classmethod
    def open(cls, frames: Iterable[Any], given: Mapping[str, Any]) -> IterableSource:
        """Wrap an iterable; `given` are fields of `IterableOptions`."""
        return cls(frames, checked_options("an iterable of frames", IterableOptions, {}, given))

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over what comes; ends with the iterable or after `close`."""
        number, started = 0, False
        try:
            for item in self._frames:
                if self._closed:
                    break
                if isinstance(item, _EVENTS):
                    self._counts["frames"] += isinstance(item, SourceFrame)
                    yield item
                    continue
                event = self._event(item, number)
                if not started:
                    started = True
                    yield self._start(event)
                yield event
                number += 1
        # What names its cause already is not wrapped once more.
        except EdgexnasError:
            raise
        except Exception as error:
            raise SourceError(
                f"the iterable failed after frame {number - 1} ({type(error).__name__}: {error}); "
                "repair it, or let it end"
            ) from error
        if started:
            yield SeriesEnd(self._series, number, time.monotonic_ns())

    def close(self) -> None:
        """Let `events` end before its next item."""
        self._closed = True

    def status(self) -> Mapping[str, int | str]:
        """Count frames and items that were none."""
        names = ("frames", "missed", "malformed", "reconnects", "overruns")
        return {name: self._counts[name] for name in names}

    def _start(self, first: SourceFrame | SourceTrouble) -> SeriesStart:
        pixels = first.pixels if isinstance(first, SourceFrame) else None
        return SeriesStart(
            self._series,
            shape=None if pixels is None else (pixels.shape[0], pixels.shape[1]),
            dtype=None if pixels is None else pixels.dtype,
            frames_expected=len(self._frames) if isinstance(self._frames, Sized) else None,
            mask=_mask(self._frames),
            identity=_identity(self._frames),
            arrival_ns=first.arrival_ns,
        )

    def _event(self, item: Any, number: int) -> SourceFrame | SourceTrouble:
        arrival_ns = time.monotonic_ns()
        try:
            pixels, position = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            frame = SourceFrame(
                self._series,
                number,
                as_pixels(pixels),
                arrival_ns,
                position_m=None if position is None else as_position(position),
            )
        except InputError as error:
            self._counts["malformed"] += 1
            message = f"item {number} of the iterable: {error}"
            return SourceTrouble(self._series, number, message, arrival_ns)
        self._counts["frames"] += 1
        return frame


def _identity(frames: object) -> str:
    """Return the identity of a `FrameSeries` of files."""
    identity = getattr(frames, "identity", None)
    return identity.id if isinstance(identity, SeriesIdentity) else ""


def _mask(frames: object) -> Any:
    """Return the mask of a `FrameSeries`."""
    mask = getattr(frames, "mask", None)
    return mask if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ else None
