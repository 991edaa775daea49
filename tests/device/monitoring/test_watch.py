from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from edgexnas.device.monitoring.sensors import SensorReading, Sensors
from edgexnas.device.monitoring.status import ServiceStatus
from edgexnas.device.monitoring.watch import ServiceWatch


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("state", ["running", "draining"])
def test_a_service_that_works_is_healthy(source: Any, watch: ServiceWatch, state: str) -> None:
    source.change(state=state)
    assert watch.observe().health == (True, f"the service is {state}")


@pytest.mark.parametrize("state", ["starting", "stopped"])
def test_a_service_that_does_not_work_yet_or_any_more_is_not_healthy(
    source: Any, watch: ServiceWatch, state: str
) -> None:
    source.change(state=state)
    assert watch.observe().health == (False, f"the service is {state}")


def test_a_failed_service_says_its_last_error(source: Any, watch: ServiceWatch) -> None:
    source.change(state="failed", last_error="the disk is full")
    assert watch.observe().health == (False, "the disk is full")


def test_a_service_is_stalled_when_frames_wait_and_none_ends(source: Any) -> None:
    clock = Clock()
    watch = ServiceWatch(source, stall_after_s=20, clock=clock)
    assert watch.observe().health.ok
    clock.now_s += 19
    assert watch.observe().health.ok
    clock.now_s += 1
    source.change(counts={"received": 1001, "done": 950, "pending": 21, "failed": 30})
    health = watch.observe().health
    assert not health.ok
    assert health.reason == "the service is stalled: 21 frames wait and none has ended for 20 s"


def test_one_frame_that_ends_ends_the_stall(source: Any) -> None:
    clock = Clock()
    watch = ServiceWatch(source, stall_after_s=20, clock=clock)
    watch.observe()
    clock.now_s += 60
    assert not watch.observe().health.ok
    source.change(counts={"received": 1000, "done": 981, "pending": 19})
    assert watch.observe().health.ok


def test_a_service_without_frames_is_not_stalled_however_long_it_waits(source: Any) -> None:
    clock = Clock()
    watch = ServiceWatch(source, stall_after_s=20, clock=clock)
    source.change(counts={"received": 1000, "done": 1000, "pending": 0})
    watch.observe()
    clock.now_s += 86_400
    assert watch.observe().health.ok
    source.change(counts={"received": 1001, "done": 1000, "pending": 1})
    assert watch.observe().health.ok


def test_a_status_that_cannot_be_read_is_a_failure_and_no_exception() -> None:
    class Broken:
        def status(self) -> ServiceStatus:
            raise RuntimeError("no such ledger")

    observation = ServiceWatch(Broken()).observe()
    assert not observation.health.ok
    assert observation.health.reason == "the service's status cannot be read: no such ledger"


def test_history_is_kept_while_the_watch_runs_and_its_thread_ends_with_it(
    watch: ServiceWatch, until: Callable[[Callable[[], bool]], None]
) -> None:
    before = threading.active_count()
    watch.start()
    until(lambda: len(watch.observe().history) >= 3)
    watch.close()
    watch.close()
    assert threading.active_count() == before
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
