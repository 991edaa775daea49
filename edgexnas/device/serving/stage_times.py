"""Running statistics of a service: durations and rates."""

from __future__ import annotations

import time
from collections import deque

from edgexnas.device.monitoring.status import LatencySummary, Rates

__all__ = ["RateMeter", "StageTimes"]

KEPT = 2048
"""Newest measurements of each kind that percentiles are taken from."""

RATE_WINDOW_S = 5.0
SAMPLE_S = 0.5


class StageTimes:
    """The newest durations of each stage; adding is cheap and needs no lock."""

    def __init__(self, *stages: str) -> None:
        self._times: dict[str, deque[float]] = {stage: deque(maxlen=KEPT) for stage in stages}

    def add(self, stage: str, duration_ns: int) -> None:
        """Add a duration."""
        self._times[stage].append(duration_ns / 1e6)

    def summary(self, stage: str) -> LatencySummary:
        """Summarise the newest durations of one stage."""
        # A copy is taken in one step under the interpreter's lock; iterating would race.
        return LatencySummary.of(self._times[stage].copy())

    def summaries(self, *, leave_out: str = "") -> dict[str, LatencySummary]:
        """Summarise all stages but one that have worked; not every source has frames to decode."""
        return {
            stage: self.summary(stage)
            for stage, times in self._times.items()
            if times and stage != leave_out
        }


class RateMeter:
    """Frames a second over the last seconds, from running totals."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def sample(self, received: int, done: int) -> None:
        """Note the totals of now."""
        now = time.monotonic()
        if self._samples and now - self._samples[-1][0] < SAMPLE_S:
            return
        self._samples.append((now, received, done))
        while now - self._samples[0][0] > RATE_WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    @property
    def rates(self) -> Rates:
        """Rates between the oldest and the newest sample kept."""
        samples = self._samples.copy()
        if len(samples) < 2:
            return Rates()
        (start, received, done), (end, received_by, done_by) = samples[0], samples[-1]
        span = end - start
        return Rates((received_by - received) / span, (done_by - done) / span)
