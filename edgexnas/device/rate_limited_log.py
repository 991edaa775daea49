"""Warnings that may come with every frame, without flooding the log."""

from __future__ import annotations

import logging
import threading
import time
from typing import NamedTuple

__all__ = ["LoggedWarning", "RateLimitedLog"]

INTERVAL_S = 10.0


class LoggedWarning(NamedTuple):
    """A warning and when it came, on the monotonic clock."""

    message: str
    at_s: float


class RateLimitedLog:
    """Logs the first warning of each kind at once, and repeats at most every 10 s, counted.

    Parameters
    ----------
    logger
        Where warnings are logged.

    Attributes
    ----------
    newest
        The newest warning, logged or not; None before the first.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}
        self._last: dict[str, LoggedWarning] = {}
        self.newest: LoggedWarning | None = None

    def last(self, kind: str) -> LoggedWarning | None:
        """Return the newest warning of a kind; None if there was none."""
        return self._last.get(kind)

    def add(self, kind: str, message: str) -> None:
        """Log a warning, unless one of its kind was logged less than 10 s ago; thread-safe."""
        now = time.monotonic()
        with self._lock:
            self.newest = self._last[kind] = LoggedWarning(message, now)
            logged, silent = self._kinds.get(kind, (-INTERVAL_S, 0))
            if now - logged < INTERVAL_S:
                self._kinds[kind] = (logged, silent + 1)
                return
            self._kinds[kind] = (now, 0)
        more = f" (and {silent} more like it since)" if silent else ""
        self._logger.warning("%s%s", message, more)
