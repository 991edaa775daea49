"""Energy of an inference on a simulated Jetson whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from edgexnas.device.benchmark.energy import EnergyReport, measure_energy
from edgexnas.device.benchmark.energy_protocol import EnergyProtocol
from edgexnas.device.benchmark.load import Load
from edgexnas.device.power import JetsonRailMeter
from edgexnas.errors import ConfigurationError, MeasurementError, SourceError
from edgexnas.testing import JetsonTree

Tree = Callable[..., Any]

IDLE_W = {"VDD_GPU_SOC": 4.1, "VDD_CPU_CV": 1.7, "VIN_SYS_5V0": 3.3, "VDDQ_VDD2_1V8AO": 0.6}
LOADED_W = {
    "slow": {"VDD_GPU_SOC": 9.3, "VDD_CPU_CV": 3.1, "VIN_SYS_5V0": 4.6, "VDDQ_VDD2_1V8AO": 1.2},
    "fast": {"VDD_GPU_SOC": 6.2, "VDD_CPU_CV": 2.4, "VIN_SYS_5V0": 3.9, "VDDQ_VDD2_1V8AO": 0.9},
}
SECONDS = {"slow": 0.05, "fast": 0.02}
SHORT = EnergyProtocol(idle_s=5, load_s=5, blocks=3, warm_up_s=0.2, lead_s=0.5, settle_s=0.5)


class Bench:
    """A Jetson that draws LOADED_W while a load runs and IDLE_W else."""

    def __init__(self, clocks: ModuleType, device: Any) -> None:
        self.device, self.running = device, ""
        self.clock = clocks.SteppedClock(self.show)
        self.show(0.0)
        self.meter = self.clock.follow(JetsonRailMeter(device.root, now=self.clock.now))

    def show(self, time_s: float) -> None:
        self.device.set_power(LOADED_W.get(self.running, IDLE_W))

    def load(self, name: str) -> Load:
        def run() -> None:
            self.running = name
            self.clock.advance_to(self.clock.now() + SECONDS[name])
            self.running = ""

        return Load(name, run, 32)

    def measure(self, *names: str, protocol: EnergyProtocol = SHORT) -> EnergyReport:
        return measure_energy(
            [self.load(name) for name in names], self.meter, protocol, clock=self.clock,
            after_block=lambda: None,
        )  # fmt: skip


def module_w(rails: dict[str, float]) -> float:
    return sum(watts for rail, watts in rails.items() if rail != "VDDQ_VDD2_1V8AO")


@pytest.fixture(scope="module")
def report(clocks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> EnergyReport:
    device = JetsonTree(tmp_path_factory.mktemp("orin"), noise_a=0.012)
    bench = Bench(clocks, device)
    return bench.measure("slow", "fast")


@pytest.mark.parametrize("name", LOADED_W)
def test_total_and_marginal_energy_lie_within_their_intervals(
    report: EnergyReport, name: str
) -> None:
    result = next(r for r in report.results if r.name == name)
    total = 1e3 * module_w(LOADED_W[name]) * SECONDS[name]
    marginal = total - 1e3 * module_w(IDLE_W) * SECONDS[name]
    assert abs(result.total_mj - total) <= result.total_half_width_mj
    assert abs(result.marginal_mj - marginal) <= result.marginal_half_width_mj
    assert result.total_half_width_mj < 0.05 * total
    assert result.period_ms == pytest.approx(1e3 * SECONDS[name], rel=1e-6)
    assert result.total_mj_per_item == pytest.approx(result.total_mj / 32)


def test_loads_take_turns_between_idle_windows(report: EnergyReport) -> None:
    assert [block.name for block in report.blocks] == [
        "slow", "fast", "fast", "slow", "slow", "fast",
    ]  # fmt: skip
    assert len(report.idle) == 7
    held = [abs(power.watts - module_w(IDLE_W)) <= power.half_width_w for power in report.idle]
    # Of seven 95 % intervals one may miss.
    assert sum(held) >= 6


def test_rails_are_listed_and_the_contained_one_is_in_no_total(report: EnergyReport) -> None:
    result = report.results[0]
    assert set(result.rails_mj) == set(IDLE_W)
    parts = sum(mj for rail, mj in result.rails_mj.items() if rail != "VDDQ_VDD2_1V8AO")
    assert result.total_mj == pytest.approx(parts, rel=1e-6)


def test_offsets_of_the_sensors_cancel_in_the_marginal_energy(report: EnergyReport) -> None:
    result = report.results[0]
    assert result.total_systematic_mj is not None
    assert result.marginal_systematic_mj is not None
    assert result.total_systematic_mj > 10 * result.marginal_systematic_mj
    assert result.marginal_systematic_mj == pytest.approx(0.0035 * result.marginal_mj, rel=0.02)


def test_a_sound_run_has_no_faults_and_says_that_its_windows_are_short(
    report: EnergyReport,
) -> None:
    assert report.faults == ()
    assert "Load windows last 5 s; the protocol requires 60 s." in report.notes
    assert all(block.lost == 0 for block in report.blocks)


def test_what_changes_from_window_to_window_is_in_the_intervals(
    clocks: ModuleType, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(clocks, tree())
    windows = iter([0.055, 0.045, 0.05])
    report = measure_energy(
        [bench.load("slow")], bench.meter, SHORT, clock=bench.clock,
        after_block=lambda: monkeypatch.setitem(SECONDS, "slow", next(windows)),
    )  # fmt: skip
    (result,) = report.results
    # 50, 55 and 45 ms: mean 50, deviation 5, Student's factor 4.3027 for two degrees of freedom.
    assert result.period_ms == pytest.approx(50, rel=0.01)
    assert result.period_half_width_ms == pytest.approx(4.3027 * 5 / 3**0.5, rel=0.02)


def test_one_window_of_load_is_noted(clocks: ModuleType, tree: Tree) -> None:
    bench = Bench(clocks, tree())
    report = bench.measure(
        "slow", protocol=EnergyProtocol(idle_s=2, load_s=2, blocks=1, warm_up_s=0)
    )
    assert any("Each load has one window" in note for note in report.notes)


def test_lost_readings_are_a_fault(clocks: ModuleType, tree: Tree) -> None:
    bench = Bench(clocks, tree())
    reads = 0
    read = bench.meter.read

    def sometimes() -> Any:
        nonlocal reads
        reads += 1
        if reads > 1 and reads % 5 == 0:
            raise SourceError("the bus was busy")
        return read()

    bench.meter.read = sometimes
    report = bench.measure(
        "slow", protocol=EnergyProtocol(idle_s=2, load_s=2, blocks=1, warm_up_s=0)
    )
    assert len(report.faults) == 1
    assert "power readings were lost while slow ran" in report.faults[0]


def test_a_rail_that_vanishes_ends_the_measurement(clocks: ModuleType, tree: Tree) -> None:
    bench = Bench(clocks, tree())
    show = bench.clock.on_time

    def lose(time_s: float) -> None:
        show(time_s)
        if time_s > 4:
            bench.device.files("VIN_SYS_5V0")[1].unlink()
            bench.clock.on_time = lambda t: None

    bench.clock.on_time = lose
    with pytest.raises(MeasurementError, match="rail VIN_SYS_5V0"):
        bench.measure("slow", protocol=EnergyProtocol(idle_s=2, load_s=2, blocks=1, warm_up_s=0))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"load_s": 0}, "load_s is 0; specify a number of seconds above 0"),
        ({"load_s": 0.5}, "specify windows of ten readings at least"),
        ({"blocks": 0}, "blocks is 0; specify a whole number from 1"),
    ],
)
def test_a_protocol_that_measures_nothing_is_refused(
    change: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        EnergyProtocol(**change)  # type: ignore[arg-type]
