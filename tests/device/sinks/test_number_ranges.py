from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.sinks.number_ranges import NumberRanges


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80))
def test_ranges_hold_what_a_set_would(steps: list[tuple[bool, int]]) -> None:
    ranges, model = NumberRanges(), set[int]()
    for add, number in steps:
        changed = ranges.add(number) if add else ranges.remove(number)
        assert changed == ((number not in model) if add else (number in model))
        (model.add if add else model.discard)(number)
    listed = [n for start, stop in ranges for n in range(start, stop)]
    assert listed == sorted(model)
    assert ranges.total == len(model)
    assert ranges.first == min(model, default=None)
    for number in range(32):
        assert (number in ranges) == (number in model)
        missing = next(n for n in range(number, 64) if n not in model)
        assert ranges.missing_from(number) == missing


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=20))
def test_ranges_are_joined_where_they_touch(pairs: list[tuple[int, int]]) -> None:
    ranges = NumberRanges(pairs)
    model = {n for start, stop in pairs for n in range(start, stop)}
    kept = list(ranges)
    assert {n for start, stop in kept for n in range(start, stop)} == model
    assert all(before[1] < after[0] for before, after in pairwise(kept))


def test_the_lowest_gaps_are_filled_first() -> None:
    ranges = NumberRanges([(0, 1), (2, 3), (4, 5), (6, 7)])
    ranges.merge_lowest(2)
    assert list(ranges) == [(0, 5), (6, 7)]
