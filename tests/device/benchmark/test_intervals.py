"""Intervals hold the truth as often as they say."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgexnas.device.benchmark.intervals import (
    half_width,
    mean_power,
    series_half_width,
    student_t_975,
)
from edgexnas.device.power import JetsonRailMeter, PowerSampler

PROFILES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda t: 17.3 + 0 * t,
    "steps": lambda t: np.array([11.0, 23.7, 15.2])[np.int_(t / 0.7) % 3],
    "bursts at 10 Hz": lambda t: np.where((t * 10) % 1 < 0.3, 24.0, 12.0),
    "bursts at 100 Hz": lambda t: np.where((t * 100) % 1 < 0.3, 24.0, 12.0),
}
SHARES = {"VDD_GPU_SOC": 0.5, "VDD_CPU_CV": 0.2, "VIN_SYS_5V0": 0.3}


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 10, 11, 19, 30, 374])
def test_student_s_factor_is_scipy_s(freedom: int) -> None:
    assert student_t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)


def test_the_interval_of_gaussian_means_holds_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    held = [abs(np.mean(v)) <= half_width(v) for v in rng.normal(size=(2000, 8))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_the_interval_of_a_series_holds_the_truth_though_neighbours_are_alike() -> None:
    rng = np.random.default_rng(1)
    held, naive = [], []
    for noise in rng.normal(size=(300, 400)):
        series = np.convolve(noise, np.full(8, 1 / 8), mode="valid")
        held.append(abs(series.mean()) <= series_half_width(series.tolist()))
        naive.append(abs(series.mean()) <= half_width(series.tolist()))
    assert np.mean(held) == pytest.approx(0.95, abs=0.04)
    assert np.mean(naive) < 0.65


def test_one_value_says_nothing_of_its_spread() -> None:
    assert half_width([3.0]) == float("inf")


@pytest.mark.parametrize("noise_a", [0.0, 0.012])
@pytest.mark.parametrize("name", PROFILES)
def test_mean_power_of_5_seconds_lies_within_its_interval(
    jetson: ModuleType, tree: Callable[..., Any], name: str, noise_a: float
) -> None:
    profile = PROFILES[name]
    device = tree(noise_a=noise_a)

    def show(time_s: float) -> None:
        device.set_power({rail: share * float(profile(time_s)) for rail, share in SHARES.items()})

    show(0.0)
    clock = jetson.RushingClock(33.0, show)
    sampler = PowerSampler(JetsonRailMeter(device.root, now=clock.now), clock=clock)
    with sampler:
        assert clock.finished.wait(60)
    held = []
    for start in np.arange(1.0, 27.0, 5.03):
        moments = np.linspace(start, start + 5, 100_000, endpoint=False)
        truth = float(np.mean(profile(moments)))
        power = mean_power(sampler.trace(), start, start + 5)
        held.append(abs(power.watts - truth) <= power.half_width_w)
        assert power.half_width_w < 0.25 * truth
    assert len(held) == 6
    assert sum(held) >= 5
