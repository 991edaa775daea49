"""Clocks for tests: one that a sampler follows in lock-step, one that passes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class SteppedClock:
    """A clock that stands still until told, and that a sampler's thread follows in lock-step.

    `on_time` is called with each moment at which somebody looks, before they look. The thread that
    made the clock moves it, by `advance_to` or by waiting; any other thread that waits is woken
    when its moment has come, and the clock stands until it waits again.
    """

    def __init__(self, on_time: Callable[[float], None] = lambda t: None) -> None:
        self.on_time = on_time
        self._time = 0.0
        self._owner = threading.current_thread()
        self._changed = threading.Condition()
        self._due: float | None = None
        self._follower = False

    def now(self) -> float:
        return self._time

    def follow(self, meter: Any) -> Any:
        """Make a meter whose first reading tells that its sampler's thread is about to wait."""
        read = meter.read

        def first() -> Any:
            if threading.current_thread() is self._owner:
                self._follower = True
            return read()

        meter.read = first
        return meter

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        if threading.current_thread() is self._owner:
            self.advance_to(until_s)
            return stop.is_set()
        with self._changed:
            self._due = until_s
            self._changed.notify_all()
            while self._due is not None and not stop.is_set():
                self._changed.wait(0.002)
            if stop.is_set():
                self._follower, self._due = False, None
            return stop.is_set()

    def advance_to(self, until_s: float) -> None:
        with self._changed:
            while self._follower:
                while self._due is None and self._follower:
                    self._changed.wait(5.0)
                if self._due is None or self._due > until_s:
                    break
                self._time = max(self._time, self._due)
                self.on_time(self._time)
                self._due = None
                self._changed.notify_all()
            self._time = max(self._time, until_s)
            self.on_time(self._time)


class RushingClock:
    """A clock that only its one waiting thread moves, as fast as it can, until `end_s`."""

    def __init__(self, end_s: float, on_time: Callable[[float], None] = lambda t: None) -> None:
        self.on_time = on_time
        self.finished = threading.Event()
        self._end = end_s
        self._time = 0.0
        self.jumps: list[tuple[float, float]] = []

    def now(self) -> float:
        return self._time

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        if until_s > self._end:
            self.finished.set()
            return stop.wait()
        self._time = max(self._time, until_s)
        if self.jumps and self.jumps[0][0] <= self._time:
            self._time += self.jumps.pop(0)[1]
        self.on_time(self._time)
        return stop.is_set()
