"""A counter that is set back begins an acquisition; a late or repeated frame does not."""

from __future__ import annotations

from edgexnas.device.sources.pva.unique_ids import UniqueIds


def places(*frames: tuple[int, float | None]) -> list[tuple[bool, int]]:
    ids = UniqueIds()
    return [tuple(ids.take(*frame)) for frame in frames]  # type: ignore[misc]


def test_numbers_count_from_the_first_id_that_came() -> None:
    assert places((7, 1.0), (8, 1.1), (10, 1.3)) == [(True, 0), (False, 1), (False, 3)]


def test_a_late_frame_and_a_repetition_belong_to_the_acquisition() -> None:
    assert places((1, 1.0), (3, 1.2), (2, 1.1), (3, 1.2)) == [
        (True, 0),
        (False, 2),
        (False, 1),
        (False, 2),
    ]


def test_an_id_that_is_set_back_with_a_later_time_begins_an_acquisition() -> None:
    assert places((1, 1.0), (2, 1.1), (1, 5.0), (2, 5.1))[2:] == [(True, 0), (False, 1)]


def test_the_same_id_with_a_later_time_begins_an_acquisition() -> None:
    assert places((1, 1.0), (1, 5.0)) == [(True, 0), (True, 0)]


def test_an_id_that_is_set_back_begins_an_acquisition_though_the_clock_was_set_back_too() -> None:
    assert places((1, 100.0), (2, 100.1), (1, 50.0), (2, 50.1))[2:] == [(True, 0), (False, 1)]
    long = [(number, 100.0 + number) for number in range(1, 200)]
    assert places(*long, (1, 150.0))[-1] == (True, 0)


def test_a_clock_that_is_set_back_alone_does_not_end_an_acquisition() -> None:
    assert places((1, 100.0), (2, 50.1), (3, 50.2))[1:] == [(False, 1), (False, 2)]


def test_without_times_only_an_id_far_back_begins_an_acquisition() -> None:
    assert places((100, None), (200, None), (150, None), (1, None)) == [
        (True, 0),
        (False, 100),
        (False, 50),
        (True, 0),
    ]


def test_an_id_wraps_as_int32_does() -> None:
    last = 2**31 - 1
    assert places((last - 1, 1.0), (last, 1.1), (-(2**31), 1.2), (-(2**31) + 1, 1.3)) == [
        (True, 0),
        (False, 1),
        (False, 2),
        (False, 3),
    ]


def test_a_frame_older_than_the_first_has_a_negative_number() -> None:
    assert places((5, 1.4), (4, 1.3)) == [(True, 0), (False, -1)]


def test_a_restart_lets_the_next_frame_begin() -> None:
    ids = UniqueIds()
    ids.take(5, 1.0)
    ids.restart()
    assert ids.take(6, 1.1) == (True, 0)
    assert ids.last == (6, 1.1)
