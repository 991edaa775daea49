"""Latency with a clock that tells known times."""

from __future__ import annotations

import itertools

import pytest

from edgexnas.device.benchmark.latency import WARM_UP_CALLS, measure_latency
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
    times = iter([0, *itertools.accumulate([1, 0] * 90 + [101, 0] * 10)])
    load = Load("one", lambda: None, 1)
    (result,) = measure_latency([load], runs=10, calls=10, now_ns=lambda: next(times) * 1_000_000)
    assert result.p50_ms == 1.0
    assert result.most_ms == 101.0
    assert result.p99_ms == 101.0
    assert result.mean_ms == pytest.approx(11.0)
    assert len(result.runs_ms) == 10
    assert result.half_width_ms == pytest.approx(2.2622 * result.deviation_ms / 10**0.5, rel=1e-4)
