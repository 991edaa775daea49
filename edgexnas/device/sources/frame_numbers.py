"""Which numbers of a series came: gaps, late ones and repetitions."""

from __future__ import annotations

__all__ = ["FrameNumbers"]

REMEMBERED = 4096
"""How many missing numbers are remembered; an older one that comes late stays missed."""


class FrameNumbers:
    """Counts the numbers that a series skipped; what comes late is no longer missed.

    Attributes
    ----------
    missed
        How many numbers below the highest one did not come so far.
    """

    def __init__(self, first: int = 0) -> None:
        self.missed = 0
        self._next = first
        # The newest numbers that are missing, in order: what comes late is one of them.
        self._missing: dict[int, None] = {}

    def came(self, number: int) -> bool:
        """Tell whether a number came before; of those that are not remembered, it did."""
        return number < self._next and number not in self._missing

    def take(self, number: int) -> None:
        """Note a number, also one that comes late or again."""
        if number < self._next:
            if number in self._missing:
                del self._missing[number]
                self.missed -= 1
            return
        self.missed += number - self._next
        # A damaged number may skip billions: all count as missed, the newest alone are kept.
        first = max(self._next, number - REMEMBERED)
        self._missing.update(dict.fromkeys(range(first, number)))
        while len(self._missing) > REMEMBERED:
            del self._missing[next(iter(self._missing))]
        self._next = number + 1
