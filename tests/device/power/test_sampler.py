"""Energy from sampled rails: known profiles come back, and what is missing is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgexnas.device.power import JetsonRailMeter, PowerReading, PowerSampler, PowerTrace
from edgexnas.errors import ConfigurationError, MeasurementError, SourceError

Tree = Callable[..., Any]
Profile = Callable[[Any], Any]

SHARES = {"VDD_GPU_SOC": 0.5, "VDD_CPU_CV": 0.2, "VIN_SYS_5V0": 0.3, "VDDQ_VDD2_1V8AO": 0.1}
"""Of the module's power; the last is inside the one before it."""


def constant(time_s: Any) -> Any:
    return 17.3 + 0 * time_s


def steps(time_s: Any) -> Any:
    return np.array([11.0, 23.7, 15.2, 30.1])[np.int_(time_s / 3.7) % 4]


def bursts(rate_hz: float, duty: float = 0.3) -> Profile:
    def profile(time_s: Any) -> Any:
        return np.where((time_s * rate_hz) % 1 < duty, 24.0, 12.0)

    return profile


PROFILES = {
    "constant": constant,
    "steps": steps,
    # At and near multiples of the sampling rate, where readings at equal distances would all
    # fall into the same part of a burst.
    **{f"bursts at {rate} Hz": bursts(rate) for rate in (9.97, 10.0, 100.0)},
}


def true_energy(profile: Profile, start_s: float, end_s: float) -> float:
    moments = np.linspace(start_s, end_s, 400_001)
    middles = (moments[1:] + moments[:-1]) / 2
    return float(np.mean(profile(middles)) * (end_s - start_s))


def sample(
    clocks: ModuleType, tree: Tree, profile: Profile, seconds: float, **options: Any
) -> PowerTrace:
    """What a sampler sees of a Jetson whose rails follow the profile from 0 s on."""
    device = tree(noise_a=0.012, **options)

    def show(time_s: float) -> None:
        device.set_power({rail: share * profile(time_s) for rail, share in SHARES.items()})

    show(0.0)
    return trace_of(device, clocks.RushingClock(seconds, show))


def trace_of(device: Any, clock: Any) -> PowerTrace:
    sampler = PowerSampler(JetsonRailMeter(device.root, now=clock.now), clock=clock)
    with sampler:
        clock.finished.wait()
    return sampler.trace()


@pytest.mark.parametrize("name", PROFILES)
def test_energy_of_60_seconds_is_right_to_one_percent(
    clocks: ModuleType, tree: Tree, name: str
) -> None:
    trace = sample(clocks, tree, PROFILES[name], 62.0)
    truth = true_energy(PROFILES[name], 1.0, 61.0)
    assert trace.energy_j(1.0, 61.0) == pytest.approx(truth, rel=0.01)
    assert trace.lost(1.0, 61.0) == 0


def test_the_rail_inside_another_adds_no_energy(clocks: ModuleType, tree: Tree) -> None:
    trace = sample(clocks, tree, constant, 12.0)
    parts = [trace.rail_energy_j(rail, 1.0, 11.0) for rail in list(SHARES)[:3]]
    assert trace.energy_j(1.0, 11.0) == pytest.approx(sum(parts))
    assert trace.rail_energy_j("VDDQ_VDD2_1V8AO", 1.0, 11.0) > 10.0


def test_a_rail_that_vanishes_refuses_the_window_and_is_named(
    clocks: ModuleType, tree: Tree
) -> None:
    device = tree()

    def lose(time_s: float) -> None:
        current = device.files("VIN_SYS_5V0")[1]
        if time_s >= 5.0 and current.exists():
            current.unlink()

    trace = trace_of(device, clocks.RushingClock(10.0, lose))
    assert trace.energy_j(0.5, 4.5) > 0
    with pytest.raises(
        MeasurementError, match=r"missing for [45]\.\d\d s.*: power rail VIN_SYS_5V0"
    ):
        trace.energy_j(0.5, 9.9)


def test_a_clock_that_goes_back_refuses_every_window(clocks: ModuleType, tree: Tree) -> None:
    clock = clocks.RushingClock(8.0)
    clock.jumps = [(5.0, -3.0)]
    trace = trace_of(tree(), clock)
    with pytest.raises(MeasurementError, match=r"clock went back by [23]\.\d\d\d s"):
        trace.energy_j(0.5, 1.5)


def test_a_clock_that_jumps_ahead_leaves_a_gap(clocks: ModuleType, tree: Tree) -> None:
    clock = clocks.RushingClock(12.0)
    clock.jumps = [(5.0, 4.0)]
    trace = trace_of(tree(), clock)
    assert trace.lost(1.0, 11.0) == pytest.approx(40, abs=2)
    with pytest.raises(MeasurementError, match=r"readings are missing for 4\.\d\d s from [34]\.\d"):
        trace.energy_j(1.0, 11.0)


def test_the_date_may_be_changed_meanwhile(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    meter = JetsonRailMeter(tree().root)
    watts = meter.read().module_w
    with PowerSampler(meter, period_s=0.01) as sampler:
        for day in range(1, 100):
            began = sampler.clock.now()
            monkeypatch.setattr(time, "time", lambda day=day: real() + day * 86_400)
            time.sleep(0.15)
            ended = sampler.clock.now()
            # Where the machine was held up meanwhile, once more.
            if not sampler.trace().gaps(began, ended):
                break
    trace = sampler.trace()
    assert trace.steps_back == ()
    assert trace.energy_j(began, ended) == pytest.approx(watts * (ended - began), rel=1e-6)


def test_windows_beyond_the_readings_are_refused(clocks: ModuleType, tree: Tree) -> None:
    trace = sample(clocks, tree, constant, 5.0)
    with pytest.raises(MeasurementError, match="readings are missing"):
        trace.energy_j(1.0, 7.0)
    with pytest.raises(MeasurementError, match=r"ends 1\.000 s before it starts"):
        trace.energy_j(3.0, 2.0)


def test_a_module_without_a_total_has_no_energy(clocks: ModuleType, tree: Tree) -> None:
    trace = trace_of(tree(missing=("VDD_CPU_CV",)), clocks.RushingClock(3.0))
    with pytest.raises(MeasurementError, match="only rails VDD_GPU_SOC"):
        trace.energy_j(1.0, 2.0)


def test_a_meter_that_fails_at_once_is_reported_by_start(tree: Tree) -> None:
    device = tree()
    meter = JetsonRailMeter(device.root)
    device.files("VDD_CPU_CV")[0].unlink()
    with pytest.raises(SourceError, match="VDD_CPU_CV"):
        PowerSampler(meter).start()


def test_a_period_that_is_none_is_refused(tree: Tree) -> None:
    with pytest.raises(ConfigurationError, match="period_s is 0"):
        PowerSampler(JetsonRailMeter(tree().root), period_s=0)


@pytest.mark.parametrize("watts", [10.0, 10.13, 10.2, 10.33])
def test_a_power_between_two_steps_of_the_sensor_lies_within_the_resolution(
    clocks: ModuleType, tree: Tree, watts: float
) -> None:
    device = tree(module="p3767-0000")
    device.set_power({"VDD_IN": watts})
    trace = trace_of(device, clocks.RushingClock(6.0))
    assert abs(trace.energy_j(0.5, 5.5) / 5 - watts) <= trace.resolution_w(0.5, 5.5) + 0.01 * watts
    assert trace.resolution_w(0.5, 5.5) == pytest.approx(0.05, rel=0.01)


def test_noise_averages_the_steps_of_the_sensor_out(clocks: ModuleType, tree: Tree) -> None:
    assert sample(clocks, tree, constant, 6.0).resolution_w(0.5, 5.5) < 0.1


def test_a_counter_tells_the_energy_between_its_readings() -> None:
    readings = [
        PowerReading(t, {"board": 5.0}, 5.0, "nvml", energy_j=7.0 * t) for t in np.arange(0, 3, 0.1)
    ]
    trace = PowerTrace.of([r.time_s for r in readings], readings, period_s=0.1)
    assert trace.counted_energy_j(0.55, 2.05) == pytest.approx(7.0 * 1.5)
    assert trace.energy_j(0.55, 2.05) == pytest.approx(5.0 * 1.5)
    assert trace.best_energy_j(0.55, 2.05) == pytest.approx(7.0 * 1.5)
