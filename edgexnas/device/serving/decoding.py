"""Frames that come encoded, decoded in threads of their own ahead of those that find."""

from __future__ import annotations

import threading
import time

from edgexnas.device.fair_semaphore import Turns
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

    One decoded frame waits for each thread that takes them: all others wait in the intake as they
    came, where they take less memory and make room for newer ones without having been decoded.

    Parameters
    ----------
    intake
        Where frames come from.
    times
        Where the durations go, as "decode".
    takers
        How many threads take frames; as many decode.
    """

    def __init__(self, intake: Intake, times: StageTimes, takers: int) -> None:
        self._intake = intake
        self._times = times
        self._decoded: BoundedQueue[FrameTask] = BoundedQueue(takers)
        self._putting = Turns(1)
        self._settling = threading.Lock()
        self._running = takers

    @property
    def finished(self) -> bool:
        """Whether no more frames will be given."""
        return self._decoded.finished

    @property
    def level(self) -> QueueLevel:
        """How many decoded frames wait."""
        return self._decoded.level

    def take(self, timeout_s: float) -> FrameTask | None:
        """Give the oldest frame, decoded, or with the reason why it could not be."""
        return self._decoded.take(timeout_s)

    def decode(self) -> None:
        """Decode frames until no more come; to be run by `takers` threads."""
        try:
            while not self._intake.finished and not self._decoded.closed:
                task = self._intake.take(WAIT_S)
                if task is None:
                    continue
                self._decode(task)
                # In turn, or a frame could wait for room until many later ones have found some.
                with self._putting:
                    put = self._decoded.put(task)
                if not put:
                    task.run.leave(task.number, "dropped")
        finally:
            with self._settling:
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
