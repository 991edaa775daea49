"""In which order a publisher sends the frames of a series, with the faults one requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Faults", "every_nth", "sending_order"]


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of a transport, each at every n-th frame; 0 for never.

    Attributes
    ----------
    gap
        The frame is left out.
    duplicate
        It is sent twice.
    reorder
        It is sent after its successor.
    """

    gap: int = 0
    duplicate: int = 0
    reorder: int = 0


def sending_order(frames: int | None, faults: Faults) -> Iterator[int]:
    """Return the numbers of the frames in the order in which they are sent.

    Parameters
    ----------
    frames
        How many a series has; None for no end.
    """
    late: int | None = None
    number = 0
    while frames is None or number < frames:
        if every_nth(number, faults.gap):
            number += 1
            continue
        # One at a time: a frame that waits is sent before another one may.
        if late is None and every_nth(number, faults.reorder):
            late, number = number, number + 1
            continue
        yield number
        if every_nth(number, faults.duplicate):
            yield number
        if late is not None:
            yield late
            late = None
        number += 1
    if late is not None:
        yield late


def every_nth(number: int, period: int) -> bool:
    """Return whether a fault hits a frame."""
    return period > 0 and number % period == period - 1
