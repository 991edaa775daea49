"""Work on a series after its last frame, beside the frames of the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.bounded_queue import BoundedQueue
from edgexnas.device.serving.series_run import sentence
from edgexnas.device.sinks.results import ObjectSnapshot

__all__ = ["AfterSeries", "Afterwards"]

MOST_WAITING = 1
"""Series that wait for the one that is worked on: each keeps all its patterns."""

Afterwards = Callable[[threading.Event], ObjectSnapshot | None]
"""What is left to do for a series; it ends early, with None, once the event is set."""


class _Task(NamedTuple):
    series: str
    work: Afterwards


class AfterSeries:
    """A thread that finishes objects, one series after the other.

    Parameters
    ----------
    show
        Called with each finished object, from this thread.
    complaints
        Told of what fails, and of series for which there is no time.
    """

    def __init__(self, show: Callable[[ObjectSnapshot], None], complaints: RateLimitedLog) -> None:
        self._show, self._complaints = show, complaints
        self._queue: BoundedQueue[_Task] = BoundedQueue(MOST_WAITING)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, series: str, work: Afterwards) -> None:
        """Let a series wait for its turn; if another waits already, say that it is left out."""
        if self._thread is None:
            # Services that do nothing afterwards have no thread for it.
            self._thread = threading.Thread(target=self._run, name="afterwards", daemon=True)
            self._thread.start()
        if not self._queue.offer(_Task(series, work)):
            self._complaints.add(
                "afterwards",
                f"the object of {series} is not refined: series come faster than they are refined; "
                "lower [ptycho] refine",
            )

    def join(self, timeout_s: float) -> bool:
        """Take no more and wait for what is here; tell whether all is done."""
        self._queue.close()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def abort(self) -> None:
        """End soon; what is not done is left, and said to be."""
        self._stop.set()
        self._queue.close()

    def _run(self) -> None:
        while not self._queue.finished:
            # One at a time: what waits behind it shall be seen to wait.
            task = self._queue.take(0.2)
            if task is None:
                continue
            try:
                snapshot = None if self._stop.is_set() else task.work(self._stop)
            except Exception as error:
                self._complaints.add("afterwards", f"{task.series}: {sentence(error)}")
                continue
            if snapshot is not None:
                self._show(snapshot)
            elif self._stop.is_set():
                self._complaints.add(
                    "afterwards",
                    f"the object of {task.series} is not refined: the service was stopped before",
                )
