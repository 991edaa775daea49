"""Latency with a clock that tells known times."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgexnas.device.benchmark.intervals import median_half_width, series_half_width
from edgexnas.device.benchmark.latency import WARM_UP_CALLS, LatencyResult, measure_latency
from edgexnas.device.benchmark.load import Load


def test_runs_of_two_loads_take_turns_and_keep_their_times() -> None:
    order: list[str] = []
    now = [0]

    def load(name: str, milliseconds: int, items: int) -> Load:
        def run() -> None:
            order.append(name)
            now[0] += milliseconds * 1_000_000

        return Load(name, run, items)

    slow, fast = measure_latency(
        [load("slow", 4, 32), load("fast", 1, 8)], runs=3, calls=2, now_ns=lambda: now[0]
    )
    assert (slow.mean_ms, fast.mean_ms) == (4.0, 1.0)
    assert (slow.items_per_s, fast.items_per_s) == (8000.0, 8000.0)
    measured = order[2 * WARM_UP_CALLS :]
    # One call that is not timed brings back the load's own data before each run.
    assert [(k, len(list(g))) for k, g in itertools.groupby(measured)] == [
        ("slow", 3), ("fast", 3),
    ] * 3  # fmt: skip


def test_percentiles_are_of_single_calls_and_the_interval_is_of_runs() -> None:
    calls = itertools.count()
    now = [0]

    def run() -> None:
        run_number = (next(calls) - WARM_UP_CALLS) // 11
        now[0] += (101 if run_number == 9 else 1) * 1_000_000

    (result,) = measure_latency([Load("one", run, 1)], runs=10, calls=10, now_ns=lambda: now[0])
    assert result.p50_ms == 1.0
    assert result.most_ms == 101.0
    assert result.p99_ms == 101.0
    assert result.mean_ms == pytest.approx(11.0)
    assert len(result.runs_ms) == 10
    assert result.half_width_ms == series_half_width(result.runs_ms)
    assert result.half_width_ms > result.deviation_ms / 10**0.5
    assert result.p50_half_width_ms == median_half_width([[run] for run in result.runs_ms])


def test_intervals_of_sessions_hold_what_changes_between_them() -> None:
    """A device that is in one of two states in each session, as a GPU's host may be."""
    rng = np.random.default_rng(0)
    held, held_within = [], []
    for _ in range(300):
        states = rng.choice([0.034, 0.037], size=8)
        sessions = [state + 0.0002 * rng.normal(size=(40, 10)) for state in states]
        result = LatencyResult.of_sessions(Load("one", lambda: None, 32), sessions)
        held.append(abs(result.mean_ms - 0.0355) <= result.half_width_ms)
        within = series_half_width(result.runs_ms[:40])
        held_within.append(abs(np.mean(result.runs_ms[:40]) - 0.0355) <= within)
    assert np.mean(held) >= 0.9
    assert np.mean(held_within) < 0.1
    assert result.runs == 320
    assert result.p50_half_width_ms > 0


@pytest.mark.parametrize("milliseconds", [1, 30])
def test_runs_are_spread_over_the_time_that_is_asked_for(milliseconds: int) -> None:
    now = [0]
    starts: list[int] = []

    def run() -> None:
        starts.append(now[0])
        now[0] += milliseconds * 1_000_000

    (result,) = measure_latency(
        [Load("one", run, 1)], runs=10, calls=2, spread_s=0.6, now_ns=lambda: now[0]
    )
    assert result.runs == 10
    assert len(result.runs_ms) == 10
    assert result.mean_ms == pytest.approx(milliseconds)
    lasted_s = (now[0] - starts[WARM_UP_CALLS]) / 1e9
    # Ten runs of 3 calls of 30 ms last longer of themselves.
    assert lasted_s == pytest.approx(max(0.6, 0.03 * milliseconds), abs=0.002)
    # The load never rests.
    assert len(starts) == WARM_UP_CALLS + lasted_s * 1e3 / milliseconds
