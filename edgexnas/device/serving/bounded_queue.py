"""A queue between two stages, bounded in number and in bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from edgexnas.device.monitoring.status import QueueLevel

__all__ = ["BoundedQueue"]

Item = TypeVar("Item")


class BoundedQueue(Generic[Item]):
    """First in, first out, from any number of threads to any number of threads.

    Parameters
    ----------
    capacity
        Most items.
    most_bytes
        Most bytes of all items together; one item may be larger. None for no such limit.
    """

    def __init__(self, capacity: int, *, most_bytes: int | None = None) -> None:
        self.capacity = capacity
        self.most_bytes = most_bytes
        self._items: deque[tuple[Item, int, bool]] = deque()
        self._bytes = 0
        self._closed = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def level(self) -> QueueLevel:
        """How full it is."""
        return QueueLevel(len(self._items), self.capacity)

    @property
    def closed(self) -> bool:
        """Whether nothing can be put any more."""
        return self._closed

    @property
    def finished(self) -> bool:
        """Whether nothing can be put any more, and nothing is left."""
        return self._closed and not self._items

    def put(self, item: Item, size: int = 0, *, timeout_s: float | None = None) -> bool:
        """Wait for room and put an item; False if the queue was closed or the time was up."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._filled:
            while not self._closed and not self._has_room(size):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._emptied.wait(left)
            if self._closed:
                return False
            self._append(item, size, droppable=True)
            return True

    def offer(self, item: Item, size: int = 0) -> bool:
        """Put an item if there is room; tell whether there was."""
        with self._filled:
            if self._closed or not self._has_room(size):
                return False
            self._append(item, size, droppable=True)
            return True

    def push(self, item: Item, size: int = 0) -> list[Item]:
        """Put an item, make room by taking out the oldest, and return those."""
        pushed_out: list[Item] = []
        with self._filled:
            if self._closed:
                return [item]
            while not self._has_room(size):
                index = next((i for i, (_, _, drop) in enumerate(self._items) if drop), None)
                if index is None:
                    break
                oldest, bytes_, _ = self._items[index]
                del self._items[index]
                self._bytes -= bytes_
                pushed_out.append(oldest)
            self._append(item, size, droppable=True)
        return pushed_out

    def force(self, item: Item) -> None:
        """Put an item that is never pushed out, room or not."""
        with self._filled:
            self._append(item, 0, droppable=False)

    def take(self, timeout_s: float) -> Item | None:
        """Take the oldest item; None if none came in time, or the queue is finished."""
        taken = self.take_all(timeout_s, most=1)
        return taken[0] if taken else None

    def take_all(self, timeout_s: float, *, most: int | None = None) -> list[Item]:
        """Wait for at least one item and take all that are there, or at most `most`."""
        with self._filled:
            if not self._items and not self._closed and timeout_s > 0:
                # One wait is enough: whoever is woken for nothing comes back by itself.
                self._filled.wait(timeout_s)
            count = len(self._items) if most is None else min(most, len(self._items))
            taken = [self._items.popleft() for _ in range(count)]
            self._bytes -= sum(size for _, size, _ in taken)
            if taken:
                self._emptied.notify_all()
        return [item for item, _, _ in taken]

    def wake(self) -> None:
        """Let those who wait for an item look again."""
        with self._filled:
            self._filled.notify_all()

    def close(self) -> None:
        """Refuse further items; what is there can still be taken."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()
            self._emptied.notify_all()

    def _has_room(self, size: int) -> bool:
        if not self._items:
            return True
        fits = self.most_bytes is None or self._bytes + size <= self.most_bytes
        return fits and len(self._items) < self.capacity

    def _append(self, item: Item, size: int, *, droppable: bool) -> None:
        self._items.append((item, size, droppable))
        self._bytes += size
        self._filled.notify()
