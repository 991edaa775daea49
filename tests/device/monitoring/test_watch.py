from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from edgexnas.device.monitoring.sensors import SensorReading, Sensors
from edgexnas.device.monitoring.status import ServiceStatus
from edgexnas.device.monitoring.watch import ServiceWatch


def test_a_status_that_cannot_be_read_is_a_failure_and_no_exception() -> None:
    class Broken:
        def status(self) -> ServiceStatus:
            raise RuntimeError("no such ledger")

    observation = ServiceWatch(Broken()).observe()
    health = observation.status.health
    assert not health.healthy
    assert "the service's status cannot be read (no such ledger)" in health.sentence


def test_history_is_kept_while_the_watch_runs_and_its_thread_ends_with_it(
    watch: ServiceWatch,
    until: Callable[[Callable[[], bool]], None],
    begun_threads: Callable[[], set[threading.Thread]],
) -> None:
    watch.start()
    until(lambda: len(watch.observe().history) >= 3)
    watch.close()
    watch.close()
    assert not begun_threads()
    history = watch.observe().history
    assert [point.time_s for point in history] == sorted(point.time_s for point in history)
    assert (history[0].done_per_s, history[0].latency_p99_ms) == (199.25, 21.0)


def test_a_broken_sensor_does_not_take_the_history_with_it(
    source: Any, until: Callable[[Callable[[], bool]], None], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Sensors):
        def read(self) -> SensorReading:
            raise ZeroDivisionError("the sensor says 0 V")

    watch = ServiceWatch(source, period_s=0.02, sensors=Broken())
    watch.start()
    until(lambda: len(watch.observe().history) >= 3)
    watch.close()
    assert caplog.messages == ["power and temperatures cannot be read: the sensor says 0 V"]
