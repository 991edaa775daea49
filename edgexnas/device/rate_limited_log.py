"""Warnings that may come with every frame, without flooding the log."""

from __future__ import annotations

import logging
import threading
import time

__all__ = ["RateLimitedLog"]

INTERVAL_S = 10.0


class RateLimitedLog:
    """Logs the first warning of each kind at once, and repeats at most every 10 s, counted.

    Parameters
    ----------
    logger
        Where warnings are logged.

    Attributes
    ----------
    newest
        The newest message, logged or not; None before the first.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}
        self.newest: str | None = None

    def add(self, kind: str, message: str) -> None:
        """Log a warning, unless one of its kind was logged less than 10 s ago; thread-safe."""
        now = time.monotonic()
        with self._lock:
            self.newest = message
            logged, silent = self._kinds.get(kind, (-INTERVAL_S, 0))
            if now - logged < INTERVAL_S:
                self._kinds[kind] = (logged, silent + 1)
                return
            self._kinds[kind] = (now, 0)
        more = f" (and {silent} more like it since)" if silent else ""
        self._logger.warning("%s%s", message, more)
