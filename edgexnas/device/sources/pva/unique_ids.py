"""areaDetector's uniqueId, as the number of a frame in its acquisition."""

from __future__ import annotations

from typing import NamedTuple

from edgexnas.device.sources.frame_numbers import FrameNumbers

__all__ = ["Place", "UniqueIds"]

_SPAN = 2**32
_HALF = 2**31

_STILL = 16
"""Frames of one time and different ids after which the clock is taken to stand still; a coarse one
gives a few frames the same time."""


class Place(NamedTuple):
    """Where a frame belongs.

    Attributes
    ----------
    begins
        Whether a new acquisition begins with it.
    number
        Its number in the acquisition; negative for one that is older than the first that came.
    """

    begins: bool
    number: int


class UniqueIds:
    """Turns ids into numbers from 0; tells a counter that was set back from frames that are late.

    The id is an int32 that wraps. An id that is not larger than the highest so far is either a
    frame that came late or twice, or the counter began again. It began again if the frame's own
    time is later than any before; if it is earlier than that of the first frame, because then the
    detector's clock was set back meanwhile; or if the id is further back than `late`. Where times
    tell nothing, it began again if a frame of that id had come before.

    Ids that stand still from the beginning say nothing: frames are numbered as they arrive.

    Attributes
    ----------
    last
        The id and the time of the frame that came last; None before the first.
    by_arrival
        Whether the acquisition that runs is numbered as frames arrive.
    """

    def __init__(self, late: int = 64) -> None:
        self.last: tuple[int, float | None] | None = None
        self.by_arrival = False
        self._late = late
        self._first = 0
        self._highest = 0
        self._first_s: float | None = None
        self._newest_s: float | None = None
        self._running = self._resumed = self._repeated = False
        self._same_time = 0
        self._numbers = FrameNumbers()
        self._missed_before = 0

    @property
    def missed(self) -> int:
        """How many numbers of all acquisitions were skipped so far."""
        return self._missed_before + self._numbers.missed

    @property
    def time_stands_still(self) -> bool:
        """Whether many frames in a row have one time, though their ids differ."""
        return self._same_time >= _STILL

    def restart(self) -> None:
        """Let the next frame begin an acquisition."""
        self._running = False

    def resume(self, first: int, highest: int) -> None:
        """Let the next frame go on with an acquisition, unless its id says that it cannot.

        Parameters
        ----------
        first
            The id of the acquisition's first frame.
        highest
            The highest number of it that came before.
        """
        self._first, self._highest = first, highest
        self._first_s = self._newest_s = None
        self._running = self._resumed = True
        self._count_from(highest + 1)

    def take(self, unique_id: int, time_s: float | None) -> Place:
        """Place a frame by its id and the detector's time in seconds, if it has one."""
        before, self.last = self.last, (unique_id, time_s)
        repeats = before is not None and before[0] == unique_id
        moved = repeats or before is None or time_s is None or before[1] != time_s
        self._same_time = 0 if moved else self._same_time + 1
        still = repeats and self._stands_still(self.last == before)
        if self._running and (still or self.by_arrival):
            # Should ids move again, they go on from here.
            self.by_arrival = still
            self._first = unique_id - self._highest - 1
        elif not self._running or self._set_back(unique_id, time_s):
            self._running, self._repeated, self.by_arrival = True, repeats, False
            self._first, self._highest = unique_id, 0
            self._first_s = self._newest_s = None
            self._count_from(0)
            self._note(0, time_s)
            return Place(True, 0)
        number = self._number(unique_id)
        self._note(number, time_s)
        return Place(False, number)

    def number(self, unique_id: int) -> int:
        """Return the number of an id in the acquisition that runs."""
        return self._number(unique_id)

    def _note(self, number: int, time_s: float | None) -> None:
        self._resumed = False
        self._numbers.take(number)
        self._highest = max(self._highest, number)
        if time_s is not None:
            self._first_s = time_s if self._first_s is None else self._first_s
            self._newest_s = max(time_s, self._newest_s or time_s)

    def _count_from(self, number: int) -> None:
        self._missed_before += self._numbers.missed
        self._numbers = FrameNumbers(number)

    def _stands_still(self, same_time: bool) -> bool:
        """Tell whether an id that comes again means that ids do not move.

        With a later time it may also be the first of another acquisition; twice in a row it is not.
        """
        return self.by_arrival or (self._highest == 0 and (same_time or self._repeated))

    def _number(self, unique_id: int) -> int:
        # The id nearest to the highest so far, among those that int32 cannot tell apart.
        step = (unique_id - self._first - self._highest) % _SPAN
        return self._highest + (step if step < _HALF else step - _SPAN)

    def _set_back(self, unique_id: int, time_s: float | None) -> bool:
        number = self._number(unique_id)
        behind = self._highest - number
        if behind < 0:
            return False
        if behind > self._late or (self._resumed and behind):
            return True
        first_s, newest_s = self._first_s, self._newest_s
        # The clock of a short acquisition may stand still before that is certain.
        if time_s is None or first_s is None or newest_s is None or first_s == newest_s == time_s:
            return behind > 0 and self._numbers.came(number)
        return time_s > newest_s or (number >= 0 and time_s < first_s)
