from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from edgexnas.device.monitoring.sensors import Sensors
from edgexnas.errors import SourceError


class Meter:
    def __init__(self) -> None:
        self.closed = 0
        self.broken = False

    def read(self) -> SimpleNamespace:
        if self.broken:
            raise SourceError("rail VDD_CPU_CV does not answer")
        rails = {"VDD_GPU_SOC": 6.5, "VDD_CPU_CV": 2.5}
        return SimpleNamespace(time_s=1.0, rails_w=rails, module_w=12.25, source="INA3221")

    def close(self) -> None:
        self.closed += 1


def test_rails_and_module_power_come_from_the_meter(tmp_path: Path) -> None:
    sensors = Sensors(Meter, tmp_path)
    assert sensors.latest().rails_w == {}
    reading = sensors.read()
    assert reading.rails_w == {"VDD_GPU_SOC": 6.5, "VDD_CPU_CV": 2.5}
    assert (reading.module_w, reading.power_source) == (12.25, "INA3221")
    assert sensors.latest() == reading


def test_a_meter_that_fails_gives_no_stale_watts(tmp_path: Path) -> None:
    meter = Meter()
    sensors = Sensors(lambda: meter, tmp_path)
    sensors.read()
    meter.broken = True
    reading = sensors.read()
    assert (reading.rails_w, reading.module_w) == ({}, None)
    assert reading.power_source == "rail VDD_CPU_CV does not answer"


def test_a_machine_without_a_meter_is_asked_once_and_says_why(tmp_path: Path) -> None:
    asked = []

    def no_meter() -> Meter:
        asked.append(1)
        raise SourceError("this machine has no power sensor")

    sensors = Sensors(no_meter, tmp_path)
    sensors.read()
    assert sensors.read().power_source == "this machine has no power sensor"
    assert len(asked) == 1


def test_closing_closes_the_meter_once(tmp_path: Path) -> None:
    meter = Meter()
    sensors = Sensors(lambda: meter, tmp_path)
    sensors.read()
    sensors.close()
    sensors.close()
    assert meter.closed == 1
