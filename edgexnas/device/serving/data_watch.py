"""Watches how much of what comes is unlike the data that the network was trained on."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import NamedTuple

import numpy as np

from edgexnas.device.monitoring.health import DataObservation
from edgexnas.device.monitoring.status import FamiliarityStatus
from edgexnas.device.sinks.results import FrameResult
from edgexnas.familiarity import UnfamiliarTally, pattern_reason_name, reason_name

__all__ = ["DataWatch"]

WINDOW = 1000
"""Peaks, or patterns, that the newest share is taken over."""


class _Frame(NamedTuple):
    total: int
    unfamiliar: int


class DataWatch:
    """Counts unfamiliar peaks and patterns of all results, and of the last `WINDOW`.

    Results come from the threads that settle frames; anybody may ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[_Frame] = deque()
        self._total = self._unfamiliar = 0
        self._recent_total = self._recent_unfamiliar = 0
        self._reasons: Counter[str] = Counter()
        self._series: str | None = None
        self._tally = UnfamiliarTally()
        self._foreign_since_s: float | None = None
        self._last_s = 0.0

    def add(self, result: FrameResult) -> None:
        """Count a result that sinks have stored."""
        if result.peaks is not None:
            reasons, what, name = result.peaks.reasons, "peaks", reason_name
        elif result.reason is not None:
            reasons = np.array([result.reason], np.uint8)
            what, name = "patterns", pattern_reason_name
        else:
            return
        if reasons is None:
            return
        with self._lock:
            if result.series != self._series:
                self._series = result.series
                self._tally = UnfamiliarTally(what, name)
            before = self._tally.reasons.copy()
            unfamiliar = self._tally.unfamiliar
            self._tally.add(reasons)
            frame = _Frame(len(reasons), self._tally.unfamiliar - unfamiliar)
            self._reasons += self._tally.reasons - before
            self._take(frame)

    def _take(self, frame: _Frame) -> None:
        self._total += frame.total
        self._unfamiliar += frame.unfamiliar
        self._recent.append(frame)
        self._recent_total += frame.total
        self._recent_unfamiliar += frame.unfamiliar
        while self._recent_total - self._recent[0].total >= WINDOW:
            oldest = self._recent.popleft()
            self._recent_total -= oldest.total
            self._recent_unfamiliar -= oldest.unfamiliar
        self._last_s = time.monotonic()
        recent = UnfamiliarTally()
        recent.total, recent.unfamiliar = self._recent_total, self._recent_unfamiliar
        if not recent.foreign:
            self._foreign_since_s = None
        elif self._foreign_since_s is None:
            self._foreign_since_s = self._last_s

    def observe(self) -> DataObservation:
        """Say whether the newest data is foreign, and since when."""
        with self._lock:
            share = self._recent_unfamiliar / max(1, self._recent_total)
            most = next(iter(self._tally.reasons.most_common(1)), ("", 0))[0]
            what = f"{share:.0%} of the newest data is unlike the training data, most by {most}"
            return DataObservation(what, self._foreign_since_s, self._last_s)

    def status(self) -> FamiliarityStatus:
        """Give the counts."""
        with self._lock:
            return FamiliarityStatus(self._total, self._unfamiliar, dict(self._reasons))
