"""Threads take turns in the order in which they came."""

from __future__ import annotations

import threading
import time

import pytest

from edgexnas.device.fair_semaphore import Turns


def wait_until(turns: Turns, waiting: int) -> None:
    end = time.monotonic() + 20
    while turns.waiting != waiting:
        assert time.monotonic() < end
        time.sleep(1e-3)


def test_who_came_first_enters_first_also_before_who_has_just_been_in() -> None:
    turns = Turns(2)
    order: list[int] = []
    leave = threading.Semaphore(0)

    def come(name: int) -> None:
        with turns:
            order.append(name)
            leave.acquire(timeout=20)

    threads = [threading.Thread(target=come, args=(name,)) for name in range(5)]
    for name, thread in enumerate(threads):
        thread.start()
        if name < 2:
            while len(order) <= name:
                time.sleep(1e-3)
        else:
            wait_until(turns, name - 1)
    assert order == [0, 1]
    again = threading.Thread(target=come, args=(9,))
    again.start()
    wait_until(turns, 4)
    for count in range(3, 7):
        leave.release()
        while len(order) < min(count, 6):
            time.sleep(1e-3)
    for _ in range(2):
        leave.release()
    for thread in (*threads, again):
        thread.join(20)
    assert order == [0, 1, 2, 3, 4, 9]
    with turns, turns:
        assert turns.waiting == 0


def test_a_place_is_free_again_after_an_error() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="once"), turns:
            raise ValueError("once")
    with turns:
        pass


def test_who_gives_up_waiting_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(1)

    class Interrupted:
        """A lock whose second acquisition is interrupted."""

        def __init__(self) -> None:
            self.calls = 0

        def acquire(self) -> None:
            self.calls += 1
            if self.calls == 2:
                if given_meanwhile:
                    turns._pass_on()
                raise KeyboardInterrupt

        def release(self) -> None:
            pass

    for given_meanwhile in (False, True):
        with turns:
            monkeypatch.setattr("edgexnas.device.fair_semaphore.threading.Lock", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                turns.__enter__()
            monkeypatch.undo()
            assert turns.waiting == 0
            if given_meanwhile:
                # The one that was in has left already, in its stead.
                turns._free -= 1
        assert turns._free == 1
