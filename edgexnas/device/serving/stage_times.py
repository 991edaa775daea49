"""Running statistics of a service: times, rates, and complaints that do not flood the log."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from edgexnas.device.monitoring.status import LatencySummary, Rates

__all__ = ["Complaints", "RateMeter", "StageTimes"]

KEPT = 2048
"""Newest measurements of each kind that percentiles are taken from."""

RATE_WINDOW_S = 5.0
SAMPLE_S = 0.5
COMPLAIN_EVERY_S = 10.0

_log = logging.getLogger("edgexnas.device.serving")


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


class Complaints:
    """Logs the first trouble of each kind at once, and further ones counted, every 10 s."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}
        self.newest: str | None = None

    def add(self, kind: str, message: str) -> None:
        """Log a trouble, unless one of its kind was logged just before."""
        now = time.monotonic()
        with self._lock:
            self.newest = message
            logged, silent = self._kinds.get(kind, (-COMPLAIN_EVERY_S, 0))
            if now - logged < COMPLAIN_EVERY_S:
                self._kinds[kind] = (logged, silent + 1)
                return
            self._kinds[kind] = (now, 0)
        more = f" (and {silent} more like it since)" if silent else ""
        _log.warning("%s%s", message, more)
