"""What a sink is: where results go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    ServiceIdentity,
)

__all__ = ["Sink", "SinkPolicy"]

SinkPolicy = Literal["block", "drop-oldest"]
"""What happens to results that a sink does not take in time."""


class Sink(Protocol):
    """Where results go; called from one thread of its own, in the order of frames.

    Attributes
    ----------
    name
        For messages and counts.
    policy
        "block": a frame is done once this sink has it, and the service waits for it.
        "drop-oldest": results that it does not take in time are dropped for this sink alone.
    gather_s
        For how long results are gathered before they are written together.
    """

    name: str
    policy: SinkPolicy
    gather_s: float

    def check(self) -> None:
        """Find out whether it could open, and leave nothing behind.

        Raises
        ------
        EdgexnasError
            If not, and why.
        """

    def committed(self) -> dict[str, NumberRanges]:
        """Tell which frames of which series earlier runs have stored here."""

    def open(self, identity: ServiceIdentity) -> None:
        """Open it.

        Raises
        ------
        EdgexnasError, OSError
            If it cannot be.
        """

    def write(self, results: Sequence[FrameResult]) -> None:
        """Take results of one series; when this returns they are stored.

        Raises
        ------
        Exception
            If they are not stored, none of them.
        """

    def begin(self, series: SeriesBegun) -> None:
        """Take note that a series begins."""

    def end(self, series: SeriesEnded) -> None:
        """Take note that a series has ended."""

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Take an object image."""

    def close(self) -> None:
        """Close it; closing again does nothing."""
