"""Frames that come encoded, decoded in threads of their own ahead of those that work."""

from __future__ import annotations

import threading
import time

from edgexnas.device.monitoring.status import QueueLevel
from edgexnas.device.serving.bounded_queue import BoundedQueue
from edgexnas.device.serving.intake import Intake
from edgexnas.device.serving.series_run import FrameTask
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.errors import InputError

__all__ = ["DecodingIntake"]

WAIT_S = 0.05


class DecodingIntake:
    """Gives what an intake gives, decoded.

    One decoded frame waits for each thread that decodes: all others wait in the intake as they
    came, where they take less memory and make room for newer ones without having been decoded.

    Parameters
    ----------
    intake
        Where frames come from.
    times
        Where the durations go, as "decode".
    threads
        How many threads decode.
    """

    def __init__(self, intake: Intake, times: StageTimes, threads: int) -> None:
        self._intake = intake
        self._times = times
        self._decoded: BoundedQueue[FrameTask] = BoundedQueue(2 * threads)
        # Taken before a frame is: none that is decoded waits for a place behind later ones.
        self._places = threading.Semaphore(2 * threads)
        self._ending = threading.Lock()
        self._running = threads

    @property
    def finished(self) -> bool:
        """Whether no more frames will be given."""
        return self._decoded.finished

    @property
    def level(self) -> QueueLevel:
        """How many decoded frames wait."""
        return self._decoded.level

    def take(self, timeout_s: float, most: int = 1) -> list[FrameTask]:
        """Give the oldest frames, decoded, or with the reason why they could not be."""
        tasks = self._decoded.take_all(timeout_s, most=most)
        if tasks:
            self._places.release(len(tasks))
        return tasks

    def decode(self) -> None:
        """Decode frames until no more come; to be run by as many threads as were announced."""
        try:
            while not self._intake.finished and not self._decoded.closed:
                if not self._places.acquire(timeout=WAIT_S):
                    continue
                tasks = self._intake.take(WAIT_S)
                if not tasks:
                    self._places.release()
                for task in tasks:
                    self._decode(task)
                    if not self._decoded.put(task):
                        task.run.leave(task.number, "dropped")
        finally:
            with self._ending:
                self._running -= 1
                last = not self._running
            if last:
                self._decoded.close()

    def abort(self) -> None:
        """End soon, and drop what waits."""
        self._decoded.close()
        for task in self._decoded.take_all(0):
            task.run.leave(task.number, "dropped")

    def _decode(self, task: FrameTask) -> None:
        if task.encoded is None or task.error is not None:
            return
        began = time.monotonic_ns()
        try:
            task.decode()
        except InputError as error:
            task.error = str(error)
        except Exception as error:
            task.error = f"{type(error).__name__}: {error}"
        self._times.add("decode", time.monotonic_ns() - began)
