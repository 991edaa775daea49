"""Follow a service's counters over time: what `monitoring.health.judge` needs beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from edgexnas.device.monitoring.health import (
    IDLE_S,
    STUCK_S,
    FrameObservation,
    SourceObservation,
)
from edgexnas.device.rate_limited_log import LoggedWarning

__all__ = ["HealthProbe"]

_LOSSES = ("dropped", "failed", "lost")


class HealthProbe:
    """Remembers when counters moved; `sample` is to be called several times a second.

    Parameters
    ----------
    url
        Of the source.
    clock
        Monotonic seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._before: Mapping[str, int] = {}
        self._good_before = 0
        self._lost_before = 0
        self._connected = True
        self._connected_since_s = clock()
        self._frame_s: float | None = None
        self._flowing_since_s: float | None = None
        self._error: LoggedWarning | None = None
        self._error_since_s = 0.0
        self._unfinished_since_s: float | None = None
        self._unfinished_s = 0.0
        self._lossy_since_s: float | None = None
        self._lossy_s = 0.0
        self._losses: dict[str, int] = {}
        self._only_drops_since_s: float | None = None

    def sample(
        self,
        counts: Mapping[str, int],
        source: Mapping[str, int | str],
        error: LoggedWarning | None,
    ) -> tuple[SourceObservation, FrameObservation]:
        """Take note of the counters of now; from any thread.

        Parameters
        ----------
        counts
            Of the ledger, over all series.
        source
            Status of the source; "connection" is missing where a source is always there.
        error
            The newest warning about the source.
        """
        with self._lock:
            now_s = self._clock()
            # A frame that came out of order was missing for a moment only.
            lost, self._lost_before = self._lost_before, counts["lost"]
            settled = {**counts, "lost": min(lost, counts["lost"])}
            risen = {name: n - self._before.get(name, 0) for name, n in settled.items()}
            self._before = settled
            self._note_source(now_s, risen, source, error)
            self._note_frames(now_s, risen, settled["pending"] + settled["spilled"])
            return (
                SourceObservation(
                    self._url,
                    self._connected,
                    self._connected_since_s,
                    self._frame_s,
                    self._flowing_since_s,
                    (self._error.message if self._error is not None else "") or None,
                    self._error_since_s,
                    0.0 if self._error is None else self._error.at_s,
                ),
                FrameObservation(
                    settled["pending"] + settled["spilled"],
                    self._unfinished_since_s,
                    self._unfinished_s,
                    self._lossy_since_s,
                    self._lossy_s,
                    ", ".join(f"{n} {name}" for name, n in self._losses.items() if n > 0),
                    self._only_drops_since_s,
                ),
            )

    def _note_source(
        self,
        now_s: float,
        risen: Mapping[str, int],
        source: Mapping[str, int | str],
        error: LoggedWarning | None,
    ) -> None:
        connected = source.get("connection", "connected") == "connected"
        if connected != self._connected:
            self._connected, self._connected_since_s = connected, now_s
        if risen["received"] > 0:
            if self._frame_s is None or now_s - self._frame_s >= IDLE_S:
                self._flowing_since_s = now_s
            self._frame_s = now_s
        good = int(source.get("frames", 0))
        if good > self._good_before:
            # A good frame came: what was wrong before it is over. Its time is kept, so that the
            # same warning is not taken for a new one.
            self._error = None if error is None else LoggedWarning("", error.at_s)
        elif error is not None and (self._error is None or error.at_s > self._error.at_s):
            if self._error is None or not self._error.message:
                self._error_since_s = error.at_s
            self._error = error
        self._good_before = good

    def _note_frames(self, now_s: float, risen: Mapping[str, int], pending: int) -> None:
        bad = {name: max(0, risen[name]) for name in _LOSSES}
        others = bad["dropped"] + bad["failed"]
        if risen["done"] > 0:
            self._unfinished_since_s = now_s if pending else None
            self._unfinished_s = now_s
        elif others or pending:
            if self._unfinished_since_s is None:
                self._unfinished_since_s = now_s
            if others or risen["received"] > 0:
                self._unfinished_s = now_s
        elif risen["duplicate"] > 0:
            self._unfinished_since_s = None
        if any(bad.values()):
            if self._lossy_since_s is None or now_s - self._lossy_s >= STUCK_S:
                self._lossy_since_s, self._losses = now_s, dict.fromkeys(_LOSSES, 0)
            self._lossy_s = now_s
            self._losses = {name: self._losses[name] + bad[name] for name in _LOSSES}
        if risen["done"] > 0 or risen["failed"] > 0:
            self._only_drops_since_s = None
        elif bad["dropped"] and self._only_drops_since_s is None:
            self._only_drops_since_s = now_s
        elif not pending and not bad["dropped"] and now_s - self._lossy_s >= STUCK_S:
            self._only_drops_since_s = None
