"""A sink in its own thread, so that no sink holds up another beyond its policy."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from edgexnas.device.monitoring.health import STUCK_S, SinkObservation, ThreadObservation
from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.bounded_queue import BoundedQueue
from edgexnas.device.serving.series_run import FrameTask
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.protocol import Sink
from edgexnas.device.sinks.results import (
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    ServiceIdentity,
)

__all__ = ["SinkThread"]

Item: TypeAlias = FrameTask | SeriesBegun | SeriesEnded | ObjectSnapshot
Settle = Callable[[Sequence[FrameTask], str | None], None]
"""Told of frames that a sink has stored, or has not and why."""

MOST_UNTOLD = 1024
"""Ends of series that are kept for a sink that is down; older ones it is never told."""

_log = logging.getLogger("edgexnas.device.serving")


class SinkThread:
    """Feeds one sink.

    A sink that raises is closed and opened again every `retry_s`; meanwhile its results are
    refused, and those of a sink that must have them fail.

    Parameters
    ----------
    sink
        Where results go.
    settle
        Told what became of frames, if the sink must have them.
    complaints, times
        Where troubles and durations go.
    capacity
        Most results that wait for the sink.
    retry_s
        How long after a failure it is opened again.
    failed
        Told its name, and why it failed.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        settle: Settle,
        complaints: RateLimitedLog,
        times: StageTimes,
        failed: Callable[[str, str], None],
        capacity: int,
        retry_s: float,
    ) -> None:
        self.sink = sink
        self.required = sink.policy == "block"
        self.stored = self.refused = self.dropped = 0
        self._down = False
        self._died = False
        self._waiting = False
        self._beat_s = time.monotonic()
        self._last_stored_s: float | None = None
        self._last_given_s: float | None = None
        self._unstored_since_s: float | None = None
        self._failing_since_s: float | None = None
        self._error: str | None = None
        self._dropping_since_s = self._dropped_s = -math.inf
        self._settle = settle
        self._complaints = complaints
        self._times = times
        self._failed = failed
        self._retry_s = retry_s
        self._retry_at = 0.0
        self._identity: ServiceIdentity | None = None
        self._begun: SeriesBegun | None = None
        # Series whose end it was not told, or failed to store.
        self._ended: deque[tuple[SeriesBegun, SeriesEnded]] = deque(maxlen=MOST_UNTOLD)
        self.queue: BoundedQueue[Item] = BoundedQueue(capacity)
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    def start(self, identity: ServiceIdentity) -> None:
        """Open the sink and begin to feed it.

        Raises
        ------
        EdgexnasError, OSError
            If it cannot be opened.
        """
        self._identity = identity
        self.sink.open(identity)
        self._thread.start()

    def observe(self, now_s: float) -> tuple[SinkObservation, ThreadObservation]:
        """Tell how the sink and its thread are; cheap, from any thread."""
        dropping = now_s - self._dropped_s < STUCK_S
        sink = SinkObservation(
            self.sink.name,
            self.required,
            not self._down,
            self.stored,
            self._last_stored_s,
            self._unstored_since_s,
            self._last_given_s,
            len(self.queue),
            self._failing_since_s,
            self._error,
            self._dropping_since_s if dropping else None,
        )
        thread = ThreadObservation(
            f"sink {self.sink.name}",
            # One that has ended in order does not stall while others still write.
            now_s if self.queue.finished and not self._thread.is_alive() else self._beat_s,
            not self._died,
            self.sink.name if self._waiting else None,
            self.required,
        )
        return sink, thread

    def give(self, task: FrameTask, *, timeout_s: float) -> bool:
        """Hand over a result; False if the sink must have it and had no room in time."""
        self._last_given_s = time.monotonic()
        if self._unstored_since_s is None:
            self._unstored_since_s = self._last_given_s
        if self.required:
            return self.queue.put(task, timeout_s=timeout_s)
        self._count_dropped(len(self.queue.push(task)))
        return True

    def tell(self, item: SeriesBegun | SeriesEnded) -> None:
        """Hand over where a series begins or ends, which is never dropped."""
        self.queue.force(item)

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Hand over an object image; the last of a series is never dropped."""
        if snapshot.final:
            self.queue.force(snapshot)
        else:
            self.queue.offer(snapshot)

    def finish(self) -> None:
        """Let the sink close once all is written."""
        self.queue.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the sink to close; tell whether it has."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Drop what was not written, and close."""
        self.queue.close()
        dropped = [item for item in self.queue.take_all(0) if isinstance(item, FrameTask)]
        if self.required and dropped:
            self._settle(dropped, f"the service was stopped before {self.sink.name} had stored it")

    def _run(self) -> None:
        try:
            self._feed_until_finished()
        except BaseException as error:
            # Nothing that a sink raises comes here; a bug does, and must not look like an end.
            self._died = True
            self._error = _sentence(error)
            _log.exception("the thread of %s has died", self.sink.name)

    def _feed_until_finished(self) -> None:
        next_s = 0.0
        while not self.queue.finished:
            self._beat_s = time.monotonic()
            gather_s = next_s - time.monotonic()
            if gather_s > 0 and not self.queue.closed:
                time.sleep(gather_s)
            items = self.queue.take_all(0.2)
            if items:
                self._feed(items)
                next_s = time.monotonic() + self.sink.gather_s
            elif self._down:
                # Without a result too, so that one knows before the next comes.
                self._up()
        try:
            with self._outside():
                self.sink.close()
        except Exception as error:
            self._fail(error)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """Mark that what runs is the sink: a disk or a peer may hold it up."""
        self._beat_s = time.monotonic()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            self._beat_s = time.monotonic()

    def _feed(self, items: Sequence[Item]) -> None:
        batch: list[FrameTask] = []
        for item in items:
            if batch and (not isinstance(item, FrameTask) or item.run is not batch[0].run):
                self._write(batch)
                batch = []
            if isinstance(item, FrameTask):
                batch.append(item)
            else:
                self._pass_on(item)
        if batch:
            self._write(batch)

    def _write(self, batch: list[FrameTask]) -> None:
        began = time.monotonic_ns()
        reason: str | None = None
        if not self._up():
            reason = f"{self.sink.name} is not available"
        else:
            try:
                with self._outside():
                    self.sink.write([task.result for task in batch if task.result is not None])
            except Exception as error:
                self._fail(error)
                reason = f"{self.sink.name} did not store it: {_sentence(error)}"
        if reason is None:
            self.stored += len(batch)
            self._last_stored_s = now_s = time.monotonic()
            self._unstored_since_s = now_s if len(self.queue) else None
            self._failing_since_s = self._error = None
        else:
            self.refused += len(batch)
        self._times.add(self.sink.name, time.monotonic_ns() - began)
        if self.required:
            self._settle(batch, reason)

    def _pass_on(self, item: SeriesBegun | SeriesEnded | ObjectSnapshot) -> None:
        if isinstance(item, SeriesBegun):
            self._begun = item
        # A sink that opens only now is told of the series that runs as it does.
        told = self._down and item is self._begun
        if self._up() and not told:
            self._tell(item)
        if isinstance(item, SeriesEnded):
            if self._down and self._begun is not None:
                self._ended.append((self._begun, item))
            self._begun = None

    def _tell(self, item: SeriesBegun | SeriesEnded | ObjectSnapshot) -> None:
        try:
            with self._outside():
                if isinstance(item, SeriesBegun):
                    self.sink.begin(item)
                elif isinstance(item, SeriesEnded):
                    self.sink.end(item)
                else:
                    self.sink.show(item)
        except Exception as error:
            self._fail(error)

    def _up(self) -> bool:
        """Open the sink again if it is down and it is time to; tell whether it is open."""
        if not self._down:
            return True
        if time.monotonic() < self._retry_at:
            return False
        assert self._identity is not None
        try:
            with self._outside():
                self.sink.open(self._identity)
        except Exception as error:
            self._error = _sentence(error)
            self._retry_at = time.monotonic() + self._retry_s
            self._complaints.add(
                f"{self.sink.name} is down", f"{self.sink.name} is still down: {_sentence(error)}"
            )
            return False
        self._down = False
        _log.warning("sink %s recovered", self.sink.name)
        while self._ended and not self._down:
            # What was open of a series, such as spots, is stored at its end. Once again only: each
            # opening begins a file.
            for item in self._ended.popleft():
                if not self._down:
                    self._tell(item)
        if self._begun is not None and not self._down:
            self._tell(self._begun)
        return not self._down

    def _fail(self, error: Exception) -> None:
        """Close the sink after a failure, and open it again later."""
        message = f"{self.sink.name} failed: {_sentence(error)}"
        self._complaints.add(f"{self.sink.name} failed", message)
        self._error = _sentence(error)
        if self._failing_since_s is None:
            self._failing_since_s = time.monotonic()
        self._down = True
        self._retry_at = time.monotonic() + self._retry_s
        try:
            with self._outside():
                self.sink.close()
        except Exception as second:
            _log.debug("closing %s after its failure: %s", self.sink.name, second)
        self._failed(self.sink.name, message)

    def _count_dropped(self, count: int) -> None:
        if count:
            self.dropped += count
            now_s = time.monotonic()
            if now_s - self._dropped_s >= STUCK_S:
                self._dropping_since_s = now_s
            self._dropped_s = now_s
            self._complaints.add(
                f"{self.sink.name} is slow",
                f"{self.sink.name} does not keep up; its oldest results are dropped",
            )


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
