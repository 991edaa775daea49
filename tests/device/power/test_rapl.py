"""CPU energy counters: packages and memory count once, and counters start over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgexnas.device.power import open_power_meter
from edgexnas.device.power.rapl import RaplMeter
from edgexnas.errors import SourceError

RANGE_UJ = 262_143_328_850


class Counters:
    """A powercap tree with one package: its cores, its memory, and the platform."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "psys"}
        for number, name in self.names.items():
            folder = root / "sys/class/powercap" / f"intel-rapl:{number}"
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        self.set(RANGE_UJ - 1_000_000)

    def file(self, number: str) -> Path:
        return self.root / "sys/class/powercap" / f"intel-rapl:{number}" / "energy_uj"

    def set(self, value_uj: int, **others: int) -> None:
        for number in self.names:
            self.file(number).write_text(f"{value_uj}\n")


def test_package_and_memory_add_up_and_nothing_counts_twice(tmp_path: Path) -> None:
    now = [0.0]
    counters = Counters(tmp_path)
    meter = RaplMeter(tmp_path, now=lambda: now[0])
    now[0], start = 2.0, RANGE_UJ - 1_000_000
    counters.set(start + 500_000)
    reading = meter.read()
    assert set(reading.rails_w) == {"package-0", "core-0", "dram-0", "psys"}
    assert reading.module_w == pytest.approx(2 * 0.25)
    assert reading.energy_j == pytest.approx(2 * 0.5)


def test_a_counter_that_starts_over_loses_nothing(tmp_path: Path) -> None:
    now = [0.0]
    counters = Counters(tmp_path)
    meter = RaplMeter(tmp_path, now=lambda: now[0])
    now[0] = 1.0
    counters.set(2_000_000)
    # 1 J to the end of the range, one count to 0, 2 J from there.
    assert meter.read().energy_j == pytest.approx(2 * 3.000001)


def test_readings_too_close_repeat_the_last_power(tmp_path: Path) -> None:
    now = [0.0]
    counters = Counters(tmp_path)
    meter = RaplMeter(tmp_path, now=lambda: now[0])
    now[0] = 1.0
    counters.set(RANGE_UJ)
    first = meter.read()
    now[0] += 1e-5
    assert meter.read().rails_w == first.rails_w


def test_a_machine_without_counters_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no CPU energy counters"):
        open_power_meter("rapl", root=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_counters_that_only_root_may_read_are_said_so(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    counters.file("0").chmod(0o400)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(SourceError, match="may be read by root only"):
            RaplMeter(tmp_path)
    finally:
        os.seteuid(0)


def test_a_machine_without_any_meter_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no power meter \(jetson: .*; rapl: "):
        open_power_meter(root=tmp_path)
