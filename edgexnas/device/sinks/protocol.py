"""What a sink is: where results go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesKey,
    ServiceIdentity,
)

__all__ = ["Sink", "SinkPolicy"]

SinkPolicy = Literal["block", "drop-oldest"]
"""What happens to results that a sink does not take in time."""


class Sink(Protocol):
    """Where results go; called from one thread of its own, in the order of frames.

    A class of this shape need not inherit from this one; if it does, what it leaves out does
    nothing. One with the policy "block" may have a `folder`, beside whose results the service keeps
    what it needs to go on after a restart.

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
    gather_s: float = 0.0

    def check(self) -> None:
        """Find out whether it could open, and leave nothing behind.

        Raises
        ------
        EdgexnasError
            If not, and why.
        """
        return

    def committed(self) -> dict[SeriesKey, NumberRanges]:
        """Return the frames that earlier runs have stored here, by series and bundle.

        A service asks once the sink is open, so that nobody else adds to them.
        """
        return {}

    def open(self, identity: ServiceIdentity) -> None:
        """Open it.

        Raises
        ------
        EdgexnasError, OSError
            If it cannot be opened.
        """
        return

    @abstractmethod
    def write(self, results: Sequence[FrameResult]) -> None:
        """Take results of one series; when this returns they are stored.

        Raises
        ------
        Exception
            If they are not stored, none of them.
        """

    def begin(self, series: SeriesBegun) -> None:
        """Begin a series; called before its first result, and again if the sink was reopened.

        One of which every frame was stored by earlier runs begins and ends without a result.
        """
        return

    def end(self, series: SeriesEnded) -> None:
        """End a series; called after its last result, and once more where that failed."""
        return

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Take an object image."""
        return

    def close(self) -> None:
        """Close it; closing again does nothing."""
        return
