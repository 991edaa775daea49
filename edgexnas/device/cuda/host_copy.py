"""Copies from one host array to another by several threads, because one core cannot fill a bus."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HostCopy"]

PART_BYTES = 2 << 20
"""Copied in one piece, so that four threads copy one each of a frame of 4 megapixels: with smaller
ones they wait longer for each other than is won by sending the first one earlier."""

MOST_THREADS = 4
"""More are faster on an idle machine only: they wait for memory and for each other."""

Array = npt.NDArray[Any]


class HostCopy:
    """Copy arrays in parts, given as soon as they are there.

    Parameters
    ----------
    threads
        Threads that copy, the caller's among them; None for one a core, up to 4. They start with
        the first array of more than one part.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = min(MOST_THREADS, _cores()) if threads is None else threads
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []

    def parts(self, source: Array, target: Array) -> Generator[slice, None, None]:
        """Copy `source` to `target`, of the same shape and dtype, along the first axis.

        Yields
        ------
        Slices of the first axis in order, each of one part or several that are copied. Ending
        early waits for the parts that other threads have begun.
        """
        job = _Job(source, target, _slices(source))
        helpers = min(self.threads, len(job.slices)) - 1
        while len(self._workers) < helpers:
            worker = threading.Thread(
                # The queue and not `self`, so that a thread does not keep this object alive.
                target=_work,
                args=(self._jobs,),
                name="edgexnas-copy",
                daemon=True,
            )
            self._workers.append(worker)
            worker.start()
        for _ in range(helpers):
            self._jobs.put(job)
        ready: set[int] = set()
        given = finished = 0
        try:
            while given < len(job.slices):
                # Between two parts of its own, this thread passes on what others have copied.
                wait = not job.copy_one()
                while wait or not job.copied.empty():
                    ready.add(job.copied.get())
                    finished += 1
                    wait = False
                if job.error is not None:
                    raise job.error
                end = given
                while end in ready:
                    end += 1
                if end > given:
                    yield slice(job.slices[given].start, job.slices[end - 1].stop)
                    given = end
        finally:
            for _ in range(job.abandon() - finished):
                job.copied.get()

    def close(self) -> None:
        """End the threads; closing again does nothing."""
        for _ in self._workers:
            self._jobs.put(None)
        while self._workers:
            self._workers.pop().join()


@dataclass(slots=True, eq=False)
class _Job:
    """One array to copy; every thread takes the next part that nobody has taken."""

    source: Array
    target: Array
    slices: list[slice]
    copied: SimpleQueue[int] = field(default_factory=SimpleQueue)
    error: BaseException | None = None
    _next: Iterator[int] = field(default_factory=itertools.count)
    _abandoned: bool = False

    def copy_one(self) -> bool:
        """Take a part and copy it; False if none is left."""
        # `next` of a count is atomic under the interpreter's lock, so that no part is copied twice.
        number = next(self._next)
        if number >= len(self.slices):
            return False
        try:
            if not self._abandoned:
                part = self.slices[number]
                np.copyto(self.target[part], self.source[part])
        except BaseException as error:
            self.error = error
        # Also after a failure: who waits counts parts, and a missing one would wait for ever.
        self.copied.put(number)
        return True

    def abandon(self) -> int:
        """Copy no more parts; return how many were taken, each of which shows in `copied`."""
        self._abandoned = True
        # Drawing one more number tells how many were drawn; who draws later copies nothing.
        return min(next(self._next), len(self.slices))


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        while job.copy_one():
            pass
        # An idle thread must not keep a frame's memory.
        del job


def _slices(array: Array) -> list[slice]:
    """Cut the first axis into parts of about `PART_BYTES`, of equal length but for the last."""
    if not len(array):
        return []
    number = max(1, min(len(array), round(array.nbytes / PART_BYTES)))
    length = -(-len(array) // number)
    return [slice(at, at + length) for at in range(0, len(array), length)]


def _cores() -> int:
    """How many cores this process may use."""
    try:
        # Not `cpu_count`: containers and systemd units often leave fewer cores than there are.
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
