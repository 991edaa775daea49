"""Where a predictor's diffraction patterns and their positions come from."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from edgexnas.device.ptycho.lanes import NumberedPattern, ScanLane
from edgexnas.device.ptycho.stitching import LONGEST_SIDE, MOST_PIXELS, plausible
from edgexnas.device.sources import EventSource, SourcePosition, open_event_source
from edgexnas.device.sources.opening import is_event_source
from edgexnas.device.sources.series_frames import SeriesFrames
from edgexnas.errors import ConfigurationError, InputError, SourceError
from edgexnas.ptycho import PATTERN_SIZE
from edgexnas.ptycho.patterns import SMALLEST_SPREAD_PX

__all__ = ["PositionReading", "ScanChunk", "ScanLike", "ScanSource", "open_chunks"]

Positions = npt.NDArray[np.float64]
Reading = tuple[int, Positions]

MOST_READINGS = 1024
"""Readings after which a chunk ends even without a pattern."""


class ScanLike(Protocol):
    """What is needed of `edgexnas.scans.Scan`."""

    @property
    def patterns(self) -> npt.NDArray[Any]:
        """(n, H, W) counts."""

    @property
    def positions_px(self) -> Positions:
        """(n, 2), (row, col) of each 64×64 patch's first pixel in object pixels."""

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """(H, W), True where a pixel is unusable."""

    @property
    def source(self) -> str:
        """What it was opened from."""


@dataclass(frozen=True, slots=True)
class PositionReading:
    """The position of a pattern that came, or will come, without one.

    Attributes
    ----------
    frame_number
        Number of the pattern in its scan, from 0.
    position_px
        (row, col) of the first pixel of its patch, in object pixels.
    """

    frame_number: int
    position_px: tuple[float, float]


Item = tuple[npt.ArrayLike, npt.ArrayLike | None] | PositionReading
ScanSource = str | os.PathLike[str] | EventSource | ScanLike | Iterable[Item]
"""A path, a URL, an open source, a scan, or patterns with their positions in the order in which
they were taken."""

Check = Callable[[npt.ArrayLike, int], NumberedPattern]
"""Checks a pattern, given its number, and keeps what is needed of it: `Lane.check`."""


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A pattern with the number that its scan gives it."""

    number: int
    pattern: npt.ArrayLike
    position: npt.ArrayLike | None


@dataclass(frozen=True, slots=True)
class ScanChunk:
    """Patterns that were taken one after the other, and the readings that came between them.

    Attributes
    ----------
    patterns
        n checked ones, with their numbers in the scan.
    positions_px
        (n, 2) float64; NaN where unknown.
    readings
        Pairs of the number of patterns of this chunk that came before a reading, and the
        reading: number of a pattern in its scan, and its position.
    """

    patterns: Sequence[NumberedPattern]
    positions_px: Positions
    readings: tuple[tuple[int, Reading], ...]


def open_chunks(
    source: ScanSource,
    lane: ScanLane,
    size: int,
    object_pixel_m: tuple[float, float] | None = None,
) -> tuple[Iterator[ScanChunk], bool]:
    """Open a path or a URL, check a scan, or start to iterate.

    Parameters
    ----------
    source
        As of `PtychoPredictor.stream`.
    lane
        Told of the scan's mask; it checks each pattern before its chunk comes.
    size
        Most patterns of a chunk.
    object_pixel_m
        As of `PtychoPredictor.stream`.

    Returns
    -------
    The chunks, and whether all patterns are there already, so that it costs nothing to read ahead.

    Raises
    ------
    ConfigurationError
        If it is none of these, a URL is wrong, or the size of an object pixel is missing for
        positions in metres, or given for positions in object pixels.
    SourceError
        If a path cannot be opened, or a scan is empty or its positions cannot be used.
    MissingDependencyError
        If the library for a URL is not installed.
    InputError
        If the masks of scan and predictor differ in shape.
    """
    if object_pixel_m is not None:
        check_object_pixel(object_pixel_m)
    if isinstance(source, (str, os.PathLike)):
        source = _opened(os.fspath(source), object_pixel_m)
    # Before scans and iterables: a source is known by its methods alone.
    if is_event_source(source):
        pixel_m = _needed_pixel(source.url, object_pixel_m)
        lane.compare_pixel(object_pixel_m, source.url)
        frames = SeriesFrames(source)
        return _chunks(_from_frames(frames, pixel_m, lane), lane.check, size), False
    if object_pixel_m is not None:
        raise ConfigurationError(
            f"object_pixel_m is {object_pixel_m!r} and would be ignored: a file, a scan or an "
            "iterable gives positions in object pixels, and only a URL in metres; leave it out"
        )
    if _is_scan(source):
        check_positions(source)
        items = zip(source.patterns, source.positions_px, strict=True)
        # After the checks, so that a scan which is rejected leaves nothing behind.
        lane.use_mask(source.mask)
        # A scan of the caller's own may say nothing of it.
        lane.compare_pixel(getattr(source, "object_pixel_m", None), str(source.source))
        return _chunks(_numbered(items), lane.check, size), True
    if not isinstance(source, Iterable):
        raise ConfigurationError(
            f"source is {type(source).__name__}; specify a path, a URL, a Scan or an iterable of "
            "(pattern, position)"
        )
    return _chunks(_numbered(iter(source)), lane.check, size), False


def check_object_pixel(size_m: tuple[float, float]) -> None:
    """Reject an impossible size of object pixels, in metres.

    Raises
    ------
    ConfigurationError
        If it is not a pair of numbers other than 0, or a millimetre or more.
    """
    array = np.asarray(size_m)
    if (
        array.shape != (2,)
        or array.dtype.kind not in "uif"
        or not ((array != 0) & (np.abs(array) < 1e-3)).all()
    ):
        raise ConfigurationError(
            f"object_pixel_m is {size_m!r}; specify the (row, col) size of an object pixel in "
            "metres, λ·z / (H·p), negative along an axis that positions run the other way"
        )


def check_positions(scan: ScanLike) -> None:
    """Reject a scan whose positions cannot place its patterns, before any work.

    Raises
    ------
    SourceError
        If there are no patterns or not one position for each, a position is infinite, all are
        NaN, or they spread further than any object.
    """
    count, positions = len(scan.patterns), np.asarray(scan.positions_px)
    if not count:
        raise SourceError(f"{scan.source} has no patterns; specify a scan with at least one")
    if positions.shape != (count, 2):
        raise SourceError(
            f"{scan.source} has {count} patterns and positions of shape {positions.shape}; specify "
            f"({count}, 2), NaN where a position is unknown"
        )
    # NaN says unknown so far; infinity is a fault of who made the file.
    known = np.flatnonzero(~np.isnan(positions).any(axis=1))
    if not len(known):
        raise SourceError(f"{scan.source} has no position that is a number; specify some")
    infinite = known[np.isinf(positions[known]).any(axis=1)]
    if len(infinite):
        raise SourceError(
            f"{scan.source} has pattern {infinite[0]} at an infinite position; "
            "specify NaN where it is unknown"
        )
    _check_spread(scan.source, positions[known], known)


def _check_spread(source: str, positions: Positions, numbers: npt.NDArray[np.intp]) -> None:
    # Through the median, so that of an outlier and the rest the outlier is named.
    deviations = np.abs(positions - np.median(positions, axis=0)).max(axis=1)
    worst = int(np.argmax(deviations))
    spread = np.ptp(positions, axis=0)
    if not plausible(*(spread + PATTERN_SIZE).tolist()):
        row, col = positions[worst].tolist()
        raise SourceError(
            f"{source} has positions that spread over {spread[0]:.6g} × {spread[1]:.6g} px, with "
            f"pattern {numbers[worst]} at ({row:.6g}, {col:.6g}), and objects have at most "
            f"{LONGEST_SIDE} px a side and {MOST_PIXELS} px in all; specify positions in object "
            "pixels"
        )
    if 0 < spread.max() < SMALLEST_SPREAD_PX:
        raise SourceError(
            f"{source} has positions that spread over {spread.max():.3g} px, which looks like "
            "metres or millimetres; specify positions in object pixels"
        )


def _opened(path: str, pixel_m: tuple[float, float] | None) -> ScanLike | EventSource:
    if "://" in path:
        # Before anything is connected.
        _needed_pixel(path, pixel_m)
        return open_event_source(path)
    # Imported late: reading scans loads h5py.
    from edgexnas.scans import open_scan

    return open_scan(Path(path))


def _needed_pixel(url: str, pixel_m: tuple[float, float] | None) -> Positions:
    if pixel_m is None:
        raise ConfigurationError(
            f"source {url} gives positions in metres, and object_pixel_m is not given; specify the "
            "(row, col) size of an object pixel, λ·z / (H·p)"
        )
    return np.array(pixel_m, np.float64)


def _is_scan(source: object) -> TypeGuard[ScanLike]:
    return hasattr(source, "patterns") and hasattr(source, "positions_px")


def _from_frames(
    frames: SeriesFrames, pixel_m: Positions, lane: ScanLane
) -> Iterator[_Numbered | PositionReading]:
    """Return the frames and readings of a series, positions in object pixels."""
    masked = False
    for event in frames.placed():
        given = event.position_m
        position = None if given is None else np.array(given) / pixel_m
        if isinstance(event, SourcePosition):
            assert position is not None
            yield PositionReading(event.number, (float(position[0]), float(position[1])))
        else:
            # The source knows its mask with the first frame.
            if not masked:
                lane.use_mask(frames.mask)
                masked = True
            yield _Numbered(event.number, event.pixels, position)


def _numbered(items: Iterator[object]) -> Iterator[_Numbered | PositionReading]:
    """Check and number what an iterable gives."""
    number = 0
    for item in items:
        if isinstance(item, PositionReading):
            yield item
            continue
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(
                f"item {number} of the iterable is not a pair; specify (pattern, position), "
                "with None for a position that is not known yet"
            )
        yield _Numbered(number, *item)
        number += 1


def _chunks(
    items: Iterator[_Numbered | PositionReading], check: Check, size: int
) -> Iterator[ScanChunk]:
    gathered = _Gathered(check)
    failure: Exception | None = None
    empty = True
    try:
        for item in items:
            gathered.take(item)
            empty = empty and not gathered.patterns
            if len(gathered.patterns) == size or len(gathered.readings) >= MOST_READINGS:
                yield gathered.chunk()
                gathered = _Gathered(check)
    except Exception as error:
        # What came before the fault is delivered first, whatever the size of a chunk.
        failure = error
    if gathered.patterns or gathered.readings:
        yield gathered.chunk()
    if failure is not None:
        raise failure
    if empty:
        raise SourceError("the source gave no patterns; specify at least one")


@dataclass(slots=True)
class _Gathered:
    """A chunk in the making."""

    check: Check
    patterns: list[NumberedPattern] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)
    readings: list[tuple[int, Reading]] = field(default_factory=list)

    def take(self, item: _Numbered | PositionReading) -> None:
        if isinstance(item, PositionReading):
            # Takes numpy's integers and rejects 3.0.
            number = operator.index(item.frame_number)
            reading = number, _position(item.position_px, number)
            self.readings.append((len(self.patterns), reading))
            return
        placed = _position(item.position, item.number)
        self.patterns.append(self.check(item.pattern, item.number))
        self.positions.append(placed)

    def chunk(self) -> ScanChunk:
        positions = np.array(self.positions, np.float64).reshape(-1, 2)
        return ScanChunk(self.patterns, positions, tuple(self.readings))


def _position(position: npt.ArrayLike | None, number: int) -> Positions:
    if position is None:
        return np.full(2, np.nan)
    array = np.asarray(position)
    if array.shape != (2,) or array.dtype.kind not in "uif":
        raise InputError(
            f"the position of pattern {number} has shape {array.shape} and dtype {array.dtype}; "
            "specify (row, col) in object pixels, or None where it is not known yet"
        )
    return array.astype(np.float64)
