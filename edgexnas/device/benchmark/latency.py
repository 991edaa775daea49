"""Latency of one inference, by the paper's protocol: 375 runs of 10 inferences each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgexnas.device.benchmark.intervals import half_width, median_half_width, series_half_width
from edgexnas.device.benchmark.load import Load

__all__ = ["LatencyResult", "measure_latency", "time_runs"]

RUNS, CALLS = 375, 10
"""The paper's: 375 runs, each the mean of 10 inferences."""

WARM_UP_CALLS = 20


@dataclass(frozen=True)
class LatencyResult:
    """Latency of one inference of `items` items.

    Attributes
    ----------
    mean_ms, half_width_ms
        Mean over the runs, and half-width of its 95 % interval; see `series_half_width`.
    deviation_ms
        Standard deviation of the runs.
    p50_ms, p90_ms, p99_ms, least_ms, most_ms
        Over single inferences.
    p50_half_width_ms
        Half-width of the median's 95 % interval; see `median_half_width`. Compare by it what rare
        stalls of the host disturb.
    items_per_s
        Throughput while inferences follow each other without a pause.
    runs_ms
        Mean of each run, in the order in which they were made.
    """

    name: str
    items: int
    runs: int
    calls: int
    mean_ms: float
    half_width_ms: float
    deviation_ms: float
    p50_ms: float
    p50_half_width_ms: float
    p90_ms: float
    p99_ms: float
    least_ms: float
    most_ms: float
    items_per_s: float
    runs_ms: tuple[float, ...]

    @classmethod
    def of(cls, load: Load, times_ms: Sequence[Sequence[float]]) -> LatencyResult:
        """Summarise (runs, calls) times of single inferences in ms."""
        times = np.asarray(times_ms, np.float64)
        runs = times.mean(axis=1)
        # Over single inferences: means of ten would hide what happens to one in a hundred.
        p50, p90, p99 = np.percentile(times, (50, 90, 99)).tolist()
        return cls(
            name=load.name,
            items=load.items,
            runs=times.shape[0],
            calls=times.shape[1],
            mean_ms=float(runs.mean()),
            half_width_ms=series_half_width(runs.tolist()),
            deviation_ms=float(runs.std(ddof=1)) if len(runs) > 1 else 0.0,
            p50_ms=p50,
            p50_half_width_ms=median_half_width(times.tolist()),
            p90_ms=p90,
            p99_ms=p99,
            least_ms=float(times.min()),
            most_ms=float(times.max()),
            items_per_s=load.items * 1e3 / float(times.mean()),
            runs_ms=tuple(runs.tolist()),
        )

    @classmethod
    def of_sessions(
        cls, load: Load, sessions: Sequence[Sequence[Sequence[float]]]
    ) -> LatencyResult:
        """Summarise sessions that other work or idleness lies between.

        A device may stay faster or slower for many seconds and another session find it changed,
        which no interval from within one session can know. So intervals come from the spread of
        the sessions' means and medians, by Student's factor.

        Parameters
        ----------
        sessions
            For each, (runs, calls) times of single inferences in ms, as `time_runs` gives them.
        """
        whole = cls.of(load, [run for session in sessions for run in session])
        return dataclasses.replace(
            whole,
            half_width_ms=half_width([float(np.mean(times)) for times in sessions]),
            p50_half_width_ms=half_width([float(np.median(times)) for times in sessions]),
        )


def measure_latency(
    loads: Sequence[Load],
    *,
    runs: int = RUNS,
    calls: int = CALLS,
    spread_s: float = 0.0,
    now_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[LatencyResult]:
    """Time single inferences of each load in one session and summarise them.

    Parameters
    ----------
    loads
        What to time.
    runs, calls, spread_s, now_ns
        As of `time_runs`.
    """
    times = time_runs(loads, runs=runs, calls=calls, spread_s=spread_s, now_ns=now_ns)
    return [LatencyResult.of(load, record) for load, record in zip(loads, times, strict=True)]


def time_runs(
    loads: Sequence[Load],
    *,
    runs: int = RUNS,
    calls: int = CALLS,
    spread_s: float = 0.0,
    now_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[list[list[float]]]:
    """Time single inferences of each load.

    Runs of the loads take turns (A, B, A, B, ...), so that whatever else the device does falls on
    all of them alike.

    Parameters
    ----------
    loads
        What to time.
    runs, calls
        Runs of each load, and inferences a run.
    spread_s
        Spread the runs evenly over this time at least; in between the loads go on untimed, so that
        caches and clocks stay as they are. 375 runs of 10 inferences of 0.1 ms are over within a
        second, and intervals know nothing of what changes more slowly than the runs last.
    now_ns
        Clock in nanoseconds; tests replace it.

    Returns
    -------
    For each load its runs, and for each of these its inferences in ms.
    """
    for load in loads:
        for _ in range(WARM_UP_CALLS):
            load.run()
    times: list[list[list[float]]] = [[] for _ in loads]
    start = now_ns()
    for number in range(1, runs + 1):
        for load, record in zip(loads, times, strict=True):
            # The other load's data are in the caches now; the first call brings ours back.
            load.run()
            record.append([])
            for _ in range(calls):
                # Each call by itself, so that percentiles are of single inferences as a user meets
                # them.
                began = now_ns()
                load.run()
                record[-1].append((now_ns() - began) / 1e6)
        while now_ns() - start < 1e9 * spread_s * number / runs:
            for load in loads:
                load.run()
    return times
