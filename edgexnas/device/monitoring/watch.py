"""Watch a service: snapshots, whether it is healthy, and the last minutes of its rates."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edgexnas.device.monitoring.sensors import SensorReading, Sensors
from edgexnas.device.monitoring.status import ServiceStatus, StatusSource

__all__ = ["HISTORY_S", "Health", "HistoryPoint", "Observation", "ServiceWatch"]

HISTORY_S = 300
"""How many seconds of rates and latencies are kept for the charts."""

_logger = logging.getLogger(__name__)


class Health(NamedTuple):
    """Whether the service does its work.

    Attributes
    ----------
    ok
        False when somebody has to look at it.
    reason
        One sentence that says why.
    """

    ok: bool
    reason: str


class HistoryPoint(NamedTuple):
    """One second of the past; time on the monotonic clock."""

    time_s: float
    received_per_s: float
    done_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known about the service at one moment.

    Attributes
    ----------
    status
        The snapshot.
    health
        Judged from this snapshot and those before.
    history
        One point a second, oldest first.
    sensors
        Power and temperatures of this machine.
    """

    status: ServiceStatus
    health: Health
    history: tuple[HistoryPoint, ...]
    sensors: SensorReading


class ServiceWatch:
    """Takes snapshots of a service for all views together.

    A service is stalled when frames wait in it and none of them has ended for `stall_after_s`
    seconds: a queue that only fills, an engine that hangs, a sink that blocks.

    Parameters
    ----------
    source
        Whose status is watched.
    period_s
        How often a point of history is kept.
    stall_after_s
        How long frames may wait without any of them ending.
    sensors
        Where power and temperatures are read; those of this machine by default.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        source: StatusSource,
        *,
        period_s: float = 1.0,
        stall_after_s: float = 20.0,
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._period_s = period_s
        self._stall_after_s = stall_after_s
        self._sensors = sensors or Sensors()
        self._clock = clock
        self._lock = threading.Lock()
        self._history: deque[HistoryPoint] = deque(maxlen=max(2, round(HISTORY_S / period_s)))
        self._ended = -1
        self._progress_s = clock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to keep history."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="edgexnas-watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop keeping history; snapshots can still be taken."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._sensors.close()

    def observe(self) -> Observation:
        """Take a snapshot and judge it; from any thread."""
        try:
            status = self._source.status()
        except Exception as error:
            # A view must say that the service is broken, not break with it.
            _logger.warning("the service's status cannot be read: %s", error)
            status = ServiceStatus(
                state="failed", last_error=f"the service's status cannot be read: {error}"
            )
        with self._lock:
            health = self._judge(status)
            history = tuple(self._history)
        return Observation(status, health, history, self._sensors.latest())

    def _judge(self, status: ServiceStatus) -> Health:
        counts = status.counts
        pending = counts.get("pending", 0)
        ended = counts.get("received", 0) - pending
        now = self._clock()
        if ended != self._ended or not pending:
            self._ended, self._progress_s = ended, now
        waited_s = now - self._progress_s
        if status.state == "failed":
            return Health(False, status.last_error or "the service has failed")
        if status.state in ("starting", "stopped"):
            return Health(False, f"the service is {status.state}")
        if waited_s >= self._stall_after_s:
            return Health(
                False,
                f"the service is stalled: {pending} frames wait and none has ended "
                f"for {waited_s:.0f} s",
            )
        return Health(True, f"the service is {status.state}")

    def _run(self) -> None:
        complained = False
        while True:
            try:
                self._sensors.read()
            except Exception as error:
                # A broken sensor must not take the history of rates and latencies with it.
                if not complained:
                    _logger.warning("power and temperatures cannot be read: %s", error)
                complained = True
            status = self.observe().status
            point = HistoryPoint(
                self._clock(),
                status.rates.received_per_s,
                status.rates.done_per_s,
                status.latency_ms.p50,
                status.latency_ms.p99,
            )
            with self._lock:
                self._history.append(point)
            if self._closing.wait(self._period_s):
                return
