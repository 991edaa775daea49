"""Results to a Python function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.sinks.protocol import Sink, SinkPolicy
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SinkItem,
)

__all__ = ["CallbackSink"]

_log = logging.getLogger("edgexnas.device.serving")


class CallbackSink(Sink):
    """Calls a function with each result, in the order of frames, from a thread of its own.

    An exception in the function is logged and counted; it harms neither the frame nor the service.

    Parameters
    ----------
    function
        Called with each `FrameResult`, `SeriesBegun`, `SeriesEnded` and `ObjectSnapshot`.
    name
        For messages and counts.
    policy
        "drop-oldest": results that come faster than the function returns are dropped.
        "block": the service waits for it.

    Attributes
    ----------
    exceptions
        How many calls have raised.
    """

    def __init__(
        self,
        function: Callable[[SinkItem], object],
        *,
        name: str = "callback",
        policy: SinkPolicy = "drop-oldest",
    ) -> None:
        self.name = name
        self.policy: SinkPolicy = policy
        self.exceptions = 0
        self._function = function
        self._warnings = RateLimitedLog(_log)

    def write(self, results: Sequence[FrameResult]) -> None:
        """Call the function with each result."""
        for result in results:
            self._call(result)

    def begin(self, series: SeriesBegun) -> None:
        """Call the function."""
        self._call(series)

    def end(self, series: SeriesEnded) -> None:
        """Call the function."""
        self._call(series)

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Call the function."""
        self._call(snapshot)

    def _call(self, item: SinkItem) -> None:
        try:
            self._function(item)
        except Exception as error:
            # Not raised: the frame is stored elsewhere, and a faulty callback must not make it
            # fail.
            self.exceptions += 1
            message = f"{self.name} raised {type(error).__name__}: {error}"
            self._warnings.add("callback", message)
            _log.debug("%s", message, exc_info=True)
