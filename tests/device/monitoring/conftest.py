from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device.monitoring.health import Health, HealthState, Reason
from edgexnas.device.monitoring.sensors import Sensors
from edgexnas.device.monitoring.status import (
    EngineStatus,
    LastResult,
    LatencySummary,
    PeakSums,
    QueueLevel,
    Rates,
    ServiceStatus,
    SinkCounts,
)
from edgexnas.device.monitoring.watch import ServiceWatch
from edgexnas.errors import SourceError


class SettableSource:
    """A service of which a test says how it is."""

    def __init__(self, status: ServiceStatus) -> None:
        self.now = status

    def status(self) -> ServiceStatus:
        return self.now

    def change(self, **fields: Any) -> None:
        self.now = replace(self.now, **fields)


def frame_with_peaks() -> LastResult:
    rng = np.random.default_rng(7)
    pixels = rng.poisson(12, (96, 128)).astype(np.uint16)
    pixels[40:43, 60:63] += 900
    positions = np.array([[41, 61], [10.25, 100.5]], np.float32)
    return LastResult("scan_7", 41, pixels, positions)


FAULTS = {"failing": "sink hdf5 has stored nothing", "degraded": "frames are lost: 3 dropped"}


def _health(state: HealthState) -> Health:
    reasons = (Reason(FAULTS[state], 0.0, state == "failing"),) if state in FAULTS else ()
    healthy = state in ("idle", "running", "degraded")
    return Health(state, reasons, 0.0, healthy, True, 90.0)


@pytest.fixture(scope="session")
def health_of() -> Callable[[HealthState], Health]:
    """`health_of("failing")` is the health of a service that has been so for 90 s."""
    return _health


@pytest.fixture
def source() -> SettableSource:
    status = ServiceStatus(
        health=_health("running"),
        model_id="mlpBragg-12k",
        engine=EngineStatus("onnxruntime", "float32", "the fastest that passed its proof"),
        source="sim://hedm",
        series="scan_7",
        uptime_s=93_784,
        counts={
            "received": 1000,
            "done": 950,
            "dropped": 20,
            "failed": 3,
            "duplicate": 7,
            "pending": 20,
            "spilled": 0,
            "lost": 5,
        },
        series_counts={"received": 42, "done": 41, "pending": 1},
        rates=Rates(200.5, 199.25),
        queues={"decode": QueueLevel(3, 64), "sink": QueueLevel(60, 64)},
        source_counts={"frames": 1000, "malformed": 2, "connection": "connected"},
        sinks={"hdf5 results/results": SinkCounts(950, 3, 0)},
        latency_ms=LatencySummary(4.5, 9.25, 21.0, 40.0, 512),
        stage_ms={"find": LatencySummary(2.0, 3.0, 4.0, 5.0, 512)},
        sums=PeakSums(40, 12_345, 6.5e6),
        watermark=40,
        last_result=frame_with_peaks(),
    )
    return SettableSource(status)


def no_power_meter() -> Any:
    raise SourceError("this machine has no power sensor that edgexnas knows")


@pytest.fixture
def watch(source: SettableSource, tmp_path: Path) -> Iterator[ServiceWatch]:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("48250\n")
    watch = ServiceWatch(source, period_s=0.02, sensors=Sensors(no_power_meter, tmp_path))
    yield watch
    watch.close()


@pytest.fixture
def begun_threads() -> Callable[[], set[threading.Thread]]:
    """`begun_threads()` are those that the test has begun and that still run."""
    # Not their number: threads of tests before may end meanwhile.
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for something that another thread or process does."""

    def wait(happened: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not happened():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)

    return wait
