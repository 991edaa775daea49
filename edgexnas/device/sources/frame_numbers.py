"""Which numbers of a series came: gaps, late ones and repetitions."""

from __future__ import annotations

__all__ = ["FrameNumbers"]


class FrameNumbers:
    """Counts the numbers that a series skipped; what comes late is no longer missed.

    Attributes
    ----------
    seen
        How many numbers came.
    missed
        How many below the highest one did not come so far. A repetition counts as late: what is
        a duplicate only the receiver can tell, which knows every number.
    """

    def __init__(self, first: int = 0) -> None:
        self.seen = 0
        self.missed = 0
        self._next = first

    def take(self, number: int) -> int:
        """Note a number; return how many were skipped just before it."""
        self.seen += 1
        skipped = number - self._next
        if skipped < 0:
            self.missed = max(0, self.missed - 1)
            return 0
        self._next = number + 1
        self.missed += skipped
        return skipped
