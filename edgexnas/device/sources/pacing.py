"""Emit frames at a rate, as a detector does that waits for nobody."""

from __future__ import annotations

import threading
import time

__all__ = ["Pacer"]


class Pacer:
    """Waits until a frame is due; a consumer that falls behind loses frames, or is waited for.

    Parameters
    ----------
    rate
        Frames a second; None for as fast as they are taken.
    backlog
        How many due frames may wait; None lets any number wait, so that none is lost.
    ticks
        How many frames there are, after which none is due; None for no end.
    """

    def __init__(
        self, rate: float | None, *, backlog: int | None = None, ticks: int | None = None
    ) -> None:
        self._period_ns = None if rate is None else 1e9 / rate
        self._backlog = backlog
        self._ticks = ticks
        # An event and not a flag, so that `close` also ends a wait of hours.
        self._closed = threading.Event()
        self._start_ns: int | None = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """End a wait that is going on, and every later one; from any thread."""
        self._closed.set()

    def pause(self, seconds: float) -> None:
        """Wait for something else than a frame."""
        self._closed.wait(seconds)

    def wait(self, tick: int) -> int | None:
        """Wait for the frame that is due at `tick` periods after the first.

        Returns
        -------
        `time.monotonic_ns()` at which it was due, which for a consumer that is behind lies in the
        past; None if the frame is lost, because more than `backlog` frames are due.
        """
        if self._period_ns is None:
            return time.monotonic_ns()
        now = time.monotonic_ns()
        if self._start_ns is None:
            self._start_ns = now
        # From the start and not from the last frame: rounding and delays must not add up.
        due = self._start_ns + round(tick * self._period_ns)
        if self._backlog is None:
            self._closed.wait(max(0, due - now) / 1e9)
            return time.monotonic_ns()
        waiting = (now - due) / self._period_ns
        if self._ticks is not None:
            waiting = min(waiting, self._ticks - 1 - tick)
        if waiting > self._backlog:
            return None
        self._closed.wait(max(0, due - now) / 1e9)
        return due
