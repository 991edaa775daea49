"""Watch a service: snapshots, and the last minutes of its rates."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edgexnas.device.monitoring.health import Health, Reason
from edgexnas.device.monitoring.sensors import SensorReading, Sensors
from edgexnas.device.monitoring.status import ServiceStatus, StatusSource

__all__ = ["HISTORY_S", "HistoryPoint", "Observation", "ServiceWatch"]

HISTORY_S = 300
"""How many seconds of rates and latencies are kept for the charts."""

_logger = logging.getLogger(__name__)


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
    history
        One point a second, oldest first.
    sensors
        Power and temperatures of this machine.
    """

    status: ServiceStatus
    history: tuple[HistoryPoint, ...]
    sensors: SensorReading


class ServiceWatch:
    """Takes snapshots of a service for all views together.

    Parameters
    ----------
    source
        Whose status is watched.
    period_s
        How often a point of history is kept.
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
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._period_s = period_s
        self._sensors = sensors or Sensors()
        self._clock = clock
        self._lock = threading.Lock()
        # Bounded, whatever the service's uptime; a chart needs two points.
        self._history: deque[HistoryPoint] = deque(maxlen=max(2, round(HISTORY_S / period_s)))
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
        # After the thread has ended, which reads them.
        self._sensors.close()

    def observe(self) -> Observation:
        """Take a snapshot; from any thread."""
        try:
            # Outside of the lock: a service that hangs must not block the views of the past.
            status = self._source.status()
        except Exception as error:
            # A view must say that the service is broken, not break with it.
            _logger.warning("the service's status cannot be read: %s", error)
            now_s = time.monotonic()
            reason = Reason(f"the service's status cannot be read ({error})", now_s, True)
            status = ServiceStatus(health=Health("failing", (reason,), now_s, False, False, now_s))
        with self._lock:
            history = tuple(self._history)
        # Sensors are read by the watch's own thread: 40 ms of rails must not delay a page.
        return Observation(status, history, self._sensors.latest())

    def _run(self) -> None:
        warned = False
        while True:
            try:
                self._sensors.read()
            except Exception as error:
                # A broken sensor must not take the history of rates and latencies with it.
                if not warned:
                    _logger.warning("power and temperatures cannot be read: %s", error)
                warned = True
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
