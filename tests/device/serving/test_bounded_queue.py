from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.serving.bounded_queue import BoundedQueue


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=60),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_pushing_keeps_the_newest_that_fit_in_order(
    steps: list[tuple[bool, int]], capacity: int, most_bytes: int
) -> None:
    queue: BoundedQueue[int] = BoundedQueue(capacity, most_bytes=most_bytes)
    kept: list[tuple[int, int]] = []
    gone: list[int] = []
    for number, (push, size) in enumerate(steps):
        if push:
            gone += queue.push(number, size)
            kept.append((number, size))
            while len(kept) > 1 and (
                len(kept) > capacity or sum(bytes_ for _, bytes_ in kept) > most_bytes
            ):
                assert kept.pop(0)[0] in gone
        else:
            taken = queue.take_all(0, most=1)
            assert taken == [kept.pop(0)[0] for _ in taken]
        assert len(queue) == len(kept)
    assert queue.take_all(0) == [number for number, _ in kept]


def test_what_is_forced_in_is_never_pushed_out() -> None:
    queue: BoundedQueue[str] = BoundedQueue(2)
    queue.force("begin")
    queue.push("1")
    assert queue.push("2") == ["1"]
    queue.force("end")
    assert queue.take_all(0) == ["begin", "2", "end"]


def test_an_offer_is_refused_when_there_is_no_room() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    assert queue.offer(1)
    assert not queue.offer(2)
    assert queue.take(0) == 1


def test_who_waits_for_room_goes_on_when_there_is_some() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(1)
    threading.Timer(0.02, queue.take, (1,)).start()
    assert queue.put(2, timeout_s=120)


def test_closing_ends_every_wait_and_leaves_what_is_there() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(1)
    threading.Timer(0.02, queue.close).start()
    assert not queue.put(2, timeout_s=120)
    assert not queue.finished
    assert queue.take(120) == 1
    assert queue.finished
    assert queue.take(120) is None
    assert queue.push(3) == [3]


def test_items_of_many_threads_come_out_once_each() -> None:
    queue: BoundedQueue[int] = BoundedQueue(4)
    taken: list[int] = []

    def produce(start: int) -> None:
        for number in range(start, start + 200):
            queue.put(number)

    producers = [threading.Thread(target=produce, args=(start,)) for start in (0, 200, 400)]
    for producer in producers:
        producer.start()
    end = time.monotonic() + 120
    while len(taken) < 600 and time.monotonic() < end:
        taken += queue.take_all(0.1)
    assert sorted(taken) == list(range(600))
