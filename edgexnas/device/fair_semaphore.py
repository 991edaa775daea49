"""Turns of threads at something that serves a few of them at once, in the order in which they came.

The locks of Python favour who has just let go: a thread that comes again at once may keep another
one waiting for seconds, and its frame all results that come after it.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

__all__ = ["Turns"]


class Turns:
    """A with-block that a few threads may be in at once; the others enter as they came.

    Parameters
    ----------
    count
        How many.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._waiting)

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:
            self._withdraw(gate)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        """Give the place to the thread that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1

    def _withdraw(self, gate: threading.Lock) -> None:
        """Wait no more, and keep no place that was given meanwhile."""
        with self._lock:
            if gate in self._waiting:
                self._waiting.remove(gate)
                return
        self._pass_on()
