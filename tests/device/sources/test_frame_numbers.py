"""What a series skipped is counted until it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.sources.frame_numbers import REMEMBERED, FrameNumbers


def missed(numbers: list[int], first: int = 0) -> int:
    counter = FrameNumbers(first)
    for number in numbers:
        counter.take(number)
    return counter.missed


def test_a_gap_is_missed_until_its_frames_come_late() -> None:
    assert missed([0, 4]) == 3
    assert missed([0, 4, 2, 2, 0]) == 2
    assert missed([12, 13], first=10) == 2


def test_a_gap_of_any_size_takes_no_more_memory_than_is_remembered() -> None:
    assert missed([0, 10**15]) == 10**15 - 1
    assert missed([REMEMBERED * 2, 0]) == REMEMBERED * 2


@given(st.lists(st.integers(0, 60)))
def test_missed_are_exactly_the_numbers_below_the_highest_that_did_not_come(
    numbers: list[int],
) -> None:
    assert missed(numbers) == max(numbers, default=-1) + 1 - len(set(numbers))
