"""Intervals hold the truth as often as they say."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from edgexnas.device.benchmark.intervals import (
    half_width,
    mean_power,
    median_half_width,
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


def autoregressive(correlation: float, rng: Any, series: int = 400, length: int = 375) -> Any:
    """Series with mean and median 0 in which each value is alike the one before."""
    noise = rng.normal(size=(series, length + 500))
    return signal.lfilter([1.0], [1.0, -correlation], noise, axis=1)[:, 500:]


@pytest.mark.parametrize(
    ("correlation", "least"), [(0.0, 0.93), (0.5, 0.93), (0.9, 0.92), (0.98, 0.9)]
)
def test_intervals_of_runs_hold_the_truth_however_alike_neighbouring_runs_are(
    correlation: float, least: float
) -> None:
    series = autoregressive(correlation, np.random.default_rng(2))
    means = [abs(np.mean(runs)) <= series_half_width(runs) for runs in series]
    medians = [abs(np.median(runs)) <= median_half_width(runs[:, None]) for runs in series]
    assert np.mean(means) >= least
    assert np.mean(medians) >= least
    naive = np.mean([abs(np.mean(runs)) <= half_width(runs) for runs in series])
    assert (naive < 0.8) == (correlation > 0)


def test_intervals_of_independent_runs_are_hardly_wider_than_they_must_be() -> None:
    series = autoregressive(0.0, np.random.default_rng(3))
    wider = [series_half_width(runs) / half_width(runs) for runs in series]
    assert np.median(wider) < 1.25


def test_two_measurements_of_one_thing_agree_within_their_intervals() -> None:
    series = autoregressive(0.95, np.random.default_rng(4), series=800)
    agree = [
        abs(np.mean(a) - np.mean(b)) <= np.hypot(series_half_width(a), series_half_width(b))
        for a, b in zip(series[::2], series[1::2], strict=True)
    ]
    assert np.mean(agree) >= 0.93


def test_rare_long_stalls_leave_the_median_and_its_interval_alone() -> None:
    rng = np.random.default_rng(5)
    held, narrower = [], []
    for _ in range(300):
        calls = 1 + 0.05 * rng.normal(size=(375, 10))
        calls += 20.0 * (rng.random(calls.shape) < 0.002)
        width = median_half_width(calls)
        held.append(abs(np.median(calls) - 1) <= width)
        narrower.append(width < series_half_width(calls.mean(axis=1)))
    assert np.mean(held) >= 0.92
    assert np.mean(narrower) == 1.0


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=2, max_size=60),
    st.floats(0.01, 100),
)
def test_intervals_are_never_negative_and_scale_with_what_is_measured(
    values: list[float], factor: float
) -> None:
    width = series_half_width(values)
    assert 0 <= width < float("inf")
    scaled = series_half_width([factor * value for value in values])
    assert scaled == pytest.approx(factor * width, rel=1e-3, abs=1e-6 * max(values) * factor)


def test_one_value_says_nothing_of_its_spread() -> None:
    assert half_width([3.0]) == float("inf")
    assert series_half_width([3.0]) == float("inf")
    assert median_half_width([[3.0, 4.0]]) == float("inf")


@pytest.mark.parametrize("noise_a", [0.0, 0.012])
@pytest.mark.parametrize("name", PROFILES)
def test_mean_power_of_5_seconds_lies_within_its_interval(
    clocks: ModuleType, tree: Callable[..., Any], name: str, noise_a: float
) -> None:
    profile = PROFILES[name]
    device = tree(noise_a=noise_a)

    def show(time_s: float) -> None:
        device.set_power({rail: share * float(profile(time_s)) for rail, share in SHARES.items()})

    show(0.0)
    clock = clocks.RushingClock(33.0, show)
    sampler = PowerSampler(JetsonRailMeter(device.root, now=clock.now), clock=clock)
    with sampler:
        clock.finished.wait()
    held = []
    for start in np.arange(1.0, 27.0, 5.03):
        moments = np.linspace(start, start + 5, 100_000, endpoint=False)
        truth = float(np.mean(profile(moments)))
        power = mean_power(sampler.trace(), start, start + 5)
        held.append(abs(power.watts - truth) <= power.half_width_w)
        assert power.half_width_w < 0.25 * truth
    assert len(held) == 6
    assert sum(held) >= 5
