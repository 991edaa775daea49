"""A counter that is set back begins an acquisition; a late or repeated frame does not."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("time_s", [None, 5.0])
def test_ids_and_times_that_stand_still_are_numbered_as_they_arrive(time_s: float | None) -> None:
    assert places(*[(0, time_s)] * 4) == [(True, 0), (False, 1), (False, 2), (False, 3)]


def test_ids_that_stand_still_are_numbered_as_they_arrive_once_that_is_certain() -> None:
    ids = UniqueIds()
    numbers = [ids.take(7, float(second)) for second in range(1, 6)]
    assert numbers == [(True, 0), (True, 0), (False, 1), (False, 2), (False, 3)]
    assert ids.by_arrival


def test_ids_that_move_after_all_go_on_from_where_frames_are() -> None:
    ids = UniqueIds()
    assert [ids.take(*f).number for f in ((1, None), (1, None), (2, None), (4, None))] == [
        0,
        1,
        2,
        4,
    ]
    assert not ids.by_arrival
    assert ids.missed == 1


@pytest.mark.parametrize("time_s", [None, 5.0])
def test_where_times_stand_still_an_id_that_came_before_begins_an_acquisition(
    time_s: float | None,
) -> None:
    ids = UniqueIds()
    begun = [number for number in (1, 2, 4, 3, 4, 5, 1, 2) if ids.take(number, time_s).begins]
    # 3 came late, and 4 twice.
    assert begun == [1, 1]


def test_a_clock_that_stands_still_is_noticed_and_a_coarse_one_is_not() -> None:
    ids = UniqueIds()
    for number in range(100):
        ids.take(number, 1.0 + number // 8)
    assert not ids.time_stands_still
    for number in range(100, 120):
        ids.take(number, 99.0)
    assert ids.time_stands_still


@pytest.mark.parametrize(
    ("unique_id", "place"),
    [(17 + 100, (False, 100)), (17 + 99, (False, 99)), (17 + 400, (False, 400)), (1, (True, 0))],
    ids=["the next", "the last again", "after a gap", "set back"],
)
def test_an_acquisition_goes_on_after_a_restart_if_its_ids_do(
    unique_id: int, place: tuple[bool, int]
) -> None:
    ids = UniqueIds()
    ids.resume(17, 99)
    assert ids.take(unique_id, 5.0) == place
    assert ids.missed == max(0, place[1] - 100)
    assert ids.take(unique_id + 1, 5.1) == (False, place[1] + 1)
