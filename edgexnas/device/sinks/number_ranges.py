"""Sets of whole numbers that are mostly consecutive, kept as ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["NumberRanges"]


class NumberRanges:
    """Whole numbers as disjoint half-open ranges in increasing order.

    A hundred million consecutive frame numbers take two integers.

    Parameters
    ----------
    pairs
        (start, stop) of ranges to begin with, in any order.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in pairs:
            self.add_range(start, stop)

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._stops[index]

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over (start, stop)."""
        # A copy, so that a loop may add and remove.
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._starts)

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return sum(self._stops) - sum(self._starts)

    @property
    def first(self) -> int | None:
        """The smallest number; None if there is none."""
        return self._starts[0] if self._starts else None

    @property
    def last(self) -> int | None:
        """The largest number; None if there is none."""
        return self._stops[-1] - 1 if self._stops else None

    def add(self, number: int) -> bool:
        """Add a number; tell whether it was not there before."""
        # The common case: one more than the largest.
        if self._stops and self._stops[-1] == number:
            self._stops[-1] = number + 1
            return True
        if number in self:
            return False
        self.add_range(number, number + 1)
        return True

    def add_range(self, start: int, stop: int) -> None:
        """Add the numbers from `start` to `stop` - 1."""
        if start >= stop:
            return
        # A range that ends where this one begins is joined too, or ranges would only ever grow.
        low = bisect_right(self._starts, start)
        if low and self._stops[low - 1] >= start:
            low -= 1
        high = bisect_right(self._starts, stop)
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def remove(self, number: int) -> bool:
        """Remove a number; tell whether it was there."""
        index = bisect_right(self._starts, number) - 1
        if index < 0 or number >= self._stops[index]:
            return False
        start, stop = self._starts[index], self._stops[index]
        parts = [pair for pair in ((start, number), (number + 1, stop)) if pair[0] < pair[1]]
        # Of a range at most two are left: before the number and behind it.
        self._starts[index : index + 1] = [pair[0] for pair in parts]
        self._stops[index : index + 1] = [pair[1] for pair in parts]
        return True

    def intersection(self, other: NumberRanges) -> NumberRanges:
        """Return the numbers that both have."""
        pairs = ((max(start, low), min(stop, high)) for start, stop in self for low, high in other)
        return NumberRanges(pair for pair in pairs if pair[0] < pair[1])

    def missing_from(self, number: int) -> int:
        """Return the smallest number from `number` on that is not there."""
        index = bisect_right(self._starts, number) - 1
        if index < 0 or number >= self._stops[index]:
            return number
        return self._stops[index]

    def merge_lowest(self, most: int) -> None:
        """Fill the lowest gaps until at most `most` ranges are left."""
        surplus = len(self._starts) - most
        if surplus > 0:
            # The lowest, because what is old comes no more; numbers in the gaps count as there.
            del self._starts[1 : surplus + 1]
            del self._stops[:surplus]
