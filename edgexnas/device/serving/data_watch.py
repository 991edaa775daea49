"""Watches how much of what comes is unlike the data that the network was trained on."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque

import numpy as np

from edgexnas.device.monitoring.health import DataObservation
from edgexnas.device.monitoring.status import FamiliarityStatus
from edgexnas.device.sinks.results import FrameResult
from edgexnas.familiarity import UnfamiliarTally, pattern_reason_name, reason_name

__all__ = ["DataWatch"]

WINDOW = 1000
"""Peaks, or patterns of one scan, that the newest share is taken over."""


class DataWatch:
    """Counts unfamiliar peaks and patterns of all results, and of the last `WINDOW`.

    Results come from the threads that settle frames; anybody may ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[UnfamiliarTally] = deque()
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
            self._stay(result)
            return
        # A frame without peaks tells nothing, and would keep what was said of those before it.
        if reasons is None or not len(reasons):
            return
        with self._lock:
            if result.series != self._series:
                self._series = result.series
                self._tally = UnfamiliarTally(what, name)
                if result.peaks is None:
                    # A scan is familiar or foreign as a whole, and tells nothing of the next one.
                    self._recent.clear()
                    self._recent_total = self._recent_unfamiliar = 0
            self._tally.add(reasons)
            frame = UnfamiliarTally(what, name)
            frame.add(reasons)
            self._reasons += frame.reasons
            self._take(frame, scan=result.peaks is None)

    def _stay(self, result: FrameResult) -> None:
        """Let what was said of a scan hold while its patterns come that are not looked at."""
        if result.amplitude is not None and result.series == self._series:
            with self._lock:
                self._last_s = time.monotonic()

    def _take(self, frame: UnfamiliarTally, *, scan: bool) -> None:
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
        if not (recent.foreign_scan if scan else recent.foreign):
            self._foreign_since_s = None
        elif self._foreign_since_s is None:
            self._foreign_since_s = self._last_s

    def observe(self) -> DataObservation:
        """Say whether the newest data is foreign, and since when."""
        with self._lock:
            share = self._recent_unfamiliar / max(1, self._recent_total)
            # Of a series that has only begun, nothing may be unfamiliar yet.
            most = "".join(f", most by {name}" for name, _ in self._tally.reasons.most_common(1))
            what = f"{share:.0%} of the newest data is unlike the training data{most}"
            return DataObservation(what, self._foreign_since_s, self._last_s)

    def status(self) -> FamiliarityStatus:
        """Give the counts."""
        with self._lock:
            return FamiliarityStatus(self._total, self._unfamiliar, dict(self._reasons))
