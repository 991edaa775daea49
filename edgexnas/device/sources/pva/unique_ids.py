"""areaDetector's uniqueId, as the number of a frame in its acquisition."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Place", "UniqueIds"]

_SPAN = 2**32
_HALF = 2**31


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
    detector's clock was set back meanwhile; or if the id is further back than `late`.

    Attributes
    ----------
    last
        The id and the time of the frame that came last; None before the first.
    """

    def __init__(self, late: int = 64) -> None:
        self.last: tuple[int, float | None] | None = None
        self._late = late
        self._first = 0
        self._highest = 0
        self._first_s: float | None = None
        self._newest_s: float | None = None
        self._running = False

    def restart(self) -> None:
        """Let the next frame begin an acquisition."""
        self._running = False

    def take(self, unique_id: int, time_s: float | None) -> Place:
        """Place a frame by its id and the detector's time in seconds, if it has one."""
        self.last = unique_id, time_s
        if not self._running or self._set_back(unique_id, time_s):
            self._running = True
            self._first, self._highest = unique_id, 0
            self._first_s = self._newest_s = time_s
            return Place(True, 0)
        number = self._number(unique_id)
        if number > self._highest:
            self._highest = number
        if time_s is not None:
            self._newest_s = max(time_s, self._newest_s or time_s)
        return Place(False, number)

    def number(self, unique_id: int) -> int:
        """Return the number of an id in the acquisition that runs."""
        return self._number(unique_id)

    def _number(self, unique_id: int) -> int:
        # The id nearest to the highest so far, among those that int32 cannot tell apart.
        step = (unique_id - self._first - self._highest) % _SPAN
        return self._highest + (step if step < _HALF else step - _SPAN)

    def _set_back(self, unique_id: int, time_s: float | None) -> bool:
        number = self._number(unique_id)
        behind = self._highest - number
        if behind < 0:
            return False
        # Further back than frames are ever late: the counter was set back, with or without a time.
        if behind > self._late:
            return True
        if time_s is None or self._newest_s is None or self._first_s is None:
            return False
        # A late frame was taken between the first and the newest; outside of that it is a new one.
        return time_s > self._newest_s or (number >= 0 and time_s < self._first_s)
