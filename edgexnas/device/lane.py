"""The one way for a frame through a network: check, submit, result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy.typing as npt

from edgexnas.errors import EdgexnasError

__all__ = ["Lane", "Outcome", "drive"]

Checked = TypeVar("Checked")
Results = TypeVar("Results")
ResultsOut = TypeVar("ResultsOut", covariant=True)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ResultsOut]):
    """What became of a group of frames.

    Attributes
    ----------
    results
        Those of the frames, told apart by their index in the group; that of a frame with a fault
        is missing or means nothing.
    faults
        Index in the group → what is wrong with this frame.
    stages_ns
        Name of each step → how long it took for all of them, in ns.
    """

    results: ResultsOut
    faults: Mapping[int, EdgexnasError] = field(default_factory=dict)
    stages_ns: Mapping[str, int] = field(default_factory=dict)


class Lane(Protocol[Checked, ResultsOut]):
    """Frames of one detector on their way through finder or binning, and network.

    Used by one thread: it checks frames, submits them in groups, and takes the outcomes in the
    same order. On a GPU the next group is copied there while the one before is worked on.
    """

    @property
    def ahead(self) -> int:
        """Most groups in flight; more than one where something is won by submitting ahead."""

    @property
    def group(self) -> int:
        """How many frames fill a run of the network, up to `most`: it may be worth the wait."""

    @property
    def most(self) -> int:
        """Most frames of a group; those that wait already are submitted together."""

    @property
    def in_flight(self) -> int:
        """How many groups were submitted whose outcome was not taken."""

    def check(self, frame: npt.ArrayLike, number: int) -> Checked:
        """Check a frame against those before it, for the group that is submitted next.

        Not to be called while `ahead` groups are in flight.

        Parameters
        ----------
        frame
            (H, W) counts.
        number
            Of the frame in its series.

        Raises
        ------
        InputError
            If it cannot be used; the message names the frame. Those before it are unharmed.
        EngineError
            If the engine is closed.
        """

    def submit(self, frames: Sequence[Checked]) -> None:
        """Start work on the frames checked since the last call; their pixels stay as they are.

        Raises
        ------
        EngineError
            If the engine is closed or the GPU fails; the frames are not in flight then.
        """

    def result(self) -> Outcome[ResultsOut]:
        """Wait for the oldest group submitted; if it fails, it is no longer in flight.

        Raises
        ------
        EngineError
            If the engine is closed or fails; a message of a GPU names it.
        """

    def close(self) -> None:
        """Give back what was taken of the GPU; closing again does nothing."""


def drive(
    lane: Lane[Checked, Results], groups: Iterator[Sequence[Checked]], *, read_ahead: bool
) -> Iterator[Outcome[Results]]:
    """Submit groups and give their outcomes in order.

    Parameters
    ----------
    groups
        Checked frames; what is raised here comes after the outcomes of those before it.
    read_ahead
        Whether the next group is asked for before the outcome of the one before is given: right
        where all frames are there already, and wrong where the next one may come late.
    """
    failure: EdgexnasError | None = None
    most = lane.ahead if read_ahead else 1
    while failure is None:
        try:
            group = next(groups, None)
        except EdgexnasError as error:
            failure = error
            break
        if group is None:
            break
        lane.submit(group)
        while lane.in_flight >= most:
            yield lane.result()
    while lane.in_flight:
        yield lane.result()
    if failure is not None:
        raise failure
