"""A publisher makes the faults that it is asked for, and no others."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.publishing.sending_order import Faults, sending_order


def test_without_faults_frames_come_in_order() -> None:
    assert list(sending_order(5, Faults())) == [0, 1, 2, 3, 4]


def test_each_fault_hits_every_nth_frame() -> None:
    assert list(sending_order(7, Faults(gap=3))) == [0, 1, 3, 4, 6]
    assert list(sending_order(5, Faults(duplicate=2))) == [0, 1, 1, 2, 3, 3, 4]
    assert list(sending_order(6, Faults(reorder=3))) == [0, 1, 3, 2, 4, 5]


def test_a_series_may_have_no_end() -> None:
    assert list(islice(sending_order(None, Faults(gap=2)), 3)) == [0, 2, 4]


@given(st.integers(0, 60), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7))
def test_every_frame_is_sent_unless_it_is_a_gap(
    frames: int, gap: int, duplicate: int, reorder: int
) -> None:
    sent = list(sending_order(frames, Faults(gap, duplicate, reorder)))
    gaps = {number for number in range(frames) if gap and number % gap == gap - 1}
    assert set(sent) == set(range(frames)) - gaps
