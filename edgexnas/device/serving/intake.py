"""The first stage: what a source tells, entered in the ledger and put in line by the policy."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.bounded_queue import BoundedQueue
from edgexnas.device.serving.ledger import Ledger
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.settings import MEBIBYTE, PipelineSettings, Policy
from edgexnas.device.serving.spill import SpillFolder
from edgexnas.device.sources.encoded_frames import EncodedFrame, encoded_events
from edgexnas.device.sources.events import (
    EventSource,
    SeriesEnd,
    SeriesStart,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
)
from edgexnas.device.sources.pixels import as_time_s
from edgexnas.errors import EdgexnasError

if TYPE_CHECKING:
    from edgexnas.device.serving.series_run import Work
    from edgexnas.device.sinks.results import ServiceIdentity
    from edgexnas.device.sources.events import SourceEvent

__all__ = ["Intake"]


class Intake:
    """Takes what comes from a source, and gives frames to those that process them.

    Parameters
    ----------
    source
        Where frames come from.
    work
        Told of each series before its first frame.
    ledger
        What becomes of frames.
    settings
        Policy and bounds.
    complaints
        Where troubles go.
    runs
        The series that are not finished, in the order in which they began; appended to here.
    """

    def __init__(
        self,
        source: EventSource,
        work: Work,
        *,
        ledger: Ledger,
        settings: PipelineSettings,
        complaints: RateLimitedLog,
        runs: list[SeriesRun],
    ) -> None:
        self._source = source
        self._work = work
        self._made_by: ServiceIdentity | None = None
        self._replacing = threading.Lock()
        self._ledger = ledger
        self._settings = settings
        self._complaints = complaints
        self._runs = runs
        self._run: SeriesRun | None = None
        self._aborted = threading.Event()
        self.policy: Policy = settings.policy or ("drop-oldest" if source.live else "block")
        self.waiting: BoundedQueue[FrameTask] = BoundedQueue(
            settings.queue_frames, most_bytes=int(settings.queue_mib * MEBIBYTE)
        )
        self._largest_bytes = settings.largest_frame_mib * MEBIBYTE
        self._max_age_ns = int(settings.max_age_ms * 1e6)
        self._spill: SpillFolder | None = None
        if self.policy == "spill":
            assert settings.spill_folder is not None
            self._spill = SpillFolder(settings.spill_folder, int(settings.spill_mib * MEBIBYTE))
        self._refilling = threading.Lock()

    @property
    def run(self) -> SeriesRun | None:
        """The newest series; None before the first."""
        return self._run

    @property
    def finished(self) -> bool:
        """Whether no more frames will be given."""
        return self.waiting.finished and not (self._spill is not None and len(self._spill))

    def receive(self) -> None:
        """Take what comes until the source ends; the first stage's thread.

        Raises
        ------
        SourceError
            If the source cannot be read any further.
        """
        try:
            for event in encoded_events(self._source):
                self._take_or_complain(event)
                if self._aborted.is_set():
                    break
        finally:
            if self._run is not None:
                self._run.over = True
            self.waiting.close()

    def take(self, timeout_s: float, most: int = 1) -> list[FrameTask]:
        """Give the oldest frames that are worth processing; none if none came in time."""
        tasks = self.waiting.take_all(timeout_s, most=most)
        if self.policy == "drop-oldest":
            oldest_ns = time.monotonic_ns() - self._max_age_ns
            for task in [task for task in tasks if task.arrival_ns < oldest_ns]:
                tasks.remove(task)
                self._drop(task, "waited for too long")
        if self._spill is not None and len(self._spill):
            if not tasks and (spilled := self._unspilled()) is not None:
                tasks = [spilled]
            self._refill()
        return tasks

    def replace_work(self, work: Work, made_by: ServiceIdentity) -> None:
        """Let other work have the frames that come; see `Pipeline.replace_work`."""
        with self._replacing:
            self._work, self._made_by = work, made_by
            for run in list(self._runs) if work.replaces_within_series else ():
                # A series with an error has no frames to process.
                if run.work is not None and not run.over:
                    run.replace_work(work.begin(run), made_by)

    def abort(self) -> None:
        """End soon, and drop what waits."""
        self._aborted.set()
        self._source.close()
        self.waiting.close()
        for task in self.waiting.take_all(0):
            task.run.leave(task.number, "dropped")
        while self._spill is not None and (spilled := self._unspilled()) is not None:
            spilled.run.leave(spilled.number, "dropped")

    def close(self) -> None:
        """Delete what was on disk."""
        if self._spill is not None:
            self._spill.close()

    def _take_or_complain(self, event: SourceEvent | EncodedFrame) -> None:
        try:
            self._take(event)
        except Exception as error:
            self._complaints.add("event", f"{type(error).__name__}: {error}")
            if isinstance(event, (SourceFrame, EncodedFrame)):
                self._ledger.fail_unnumbered()

    def _take(self, event: SourceEvent | EncodedFrame) -> None:
        if isinstance(event, (SourceFrame, EncodedFrame)):
            self._take_frame(event)
        elif isinstance(event, SeriesStart):
            self._begin(event, first=event.first)
        elif isinstance(event, SeriesEnd):
            self._end_series(event)
        elif isinstance(event, SourcePosition):
            if self._run is not None and event.series in (None, self._run.series):
                self._run.readings.append(event)
        else:
            self._take_trouble(event)

    def _take_frame(self, frame: SourceFrame | EncodedFrame) -> None:
        run = self._run_of(frame.series, frame.number)
        if run is None or not self._is_fresh(run, frame.number):
            return
        run.enter(frame.number)
        pixels = frame.pixels if isinstance(frame, SourceFrame) else None
        encoded = frame.encoded if isinstance(frame, EncodedFrame) else None
        error = run.error
        nbytes = 0 if pixels is None else pixels.nbytes
        if encoded is not None:
            nbytes = encoded.decoded_nbytes
        if nbytes > self._largest_bytes:
            # Before it is decoded: a message of a few bytes may claim any size.
            pixels = encoded = None
            error = (
                f"it takes {nbytes / MEBIBYTE:.0f} MiB, more than largest_frame_mib = "
                f"{self._largest_bytes / MEBIBYTE:.0f}; raise that if the detector has such frames"
            )
        task = FrameTask(
            run,
            frame.number,
            frame.arrival_ns,
            pixels,
            # An iterable may hold any number; sinks store and send only times that are some.
            as_time_s(frame.timestamp_s),
            frame.position_m,
            encoded,
            error=error,
            detector_id=frame.detector_id,
        )
        self._enqueue(task, task.nbytes)

    def _run_of(self, series: str, number: int) -> SeriesRun | None:
        """Return the series that runs, begun now if need be; None, counted, if it has ended."""
        run = self._run
        if run is not None and run.series == series and not run.over:
            return run
        past = self._ledger.known(series)
        if past is not None:
            past.refuse(number)
            self._complaints.add("past series", f"frame {number} of {series} came after its end")
            return None
        self._begin(SeriesStart(series), first=None)
        return self._run

    def _is_fresh(self, run: SeriesRun, number: int) -> bool:
        arrival = run.ledger.receive(number)
        if arrival == "duplicate":
            self._complaints.add("duplicate", f"frame {number} of {run.series} is here already")
        elif arrival == "late":
            self._complaints.add("late", f"frame {number} of {run.series} came after its turn")
        return arrival == "fresh"

    def _begin(self, start: SeriesStart, *, first: int | None) -> None:
        run = self._run
        if run is not None and not run.over:
            if (run.series, run.start.identity) == (start.series, start.identity):
                return
            run.over = run.ended = True
        run = SeriesRun(start, self._ledger.series(start.series, start.identity, first=first))
        with self._replacing:
            try:
                run.work, run.made_by = self._work.begin(run), self._made_by
            except EdgexnasError as error:
                run.error = str(error)
                self._complaints.add("series", f"{run.series}: {error}")
            self._run = run
            self._runs.append(run)

    def _end_series(self, event: SeriesEnd) -> None:
        run = self._run
        if run is None or run.series != event.series:
            return
        if event.frames_sent is not None:
            run.ledger.expect(event.frames_sent)
        run.over = run.ended = True
        self.waiting.wake()

    def _take_trouble(self, trouble: SourceTrouble) -> None:
        self._complaints.add("source", trouble.message)
        if trouble.number is None:
            return
        if trouble.series is None:
            self._ledger.fail_unnumbered()
            return
        run = self._run_of(trouble.series, trouble.number)
        if run is not None and self._is_fresh(run, trouble.number):
            # In line with the others, so that its failure is reported in its turn.
            run.enter(trouble.number)
            task = FrameTask(run, trouble.number, trouble.arrival_ns, None, error=trouble.message)
            self.waiting.force(task)

    def _enqueue(self, task: FrameTask, size: int) -> None:
        if self.policy == "drop-oldest":
            for oldest in self.waiting.push(task, size):
                self._drop(oldest, "made room for newer ones")
        elif self.policy == "block":
            while not self.waiting.put(task, size, timeout_s=0.2):
                if self.waiting.closed:
                    task.run.leave(task.number, "dropped")
                    return
        else:
            self._enqueue_or_spill(task, size)

    def _enqueue_or_spill(self, task: FrameTask, size: int) -> None:
        assert self._spill is not None
        with self._refilling:
            # Frames stay in order: while some are on disk, later ones go there too.
            if not len(self._spill) and self.waiting.offer(task, size):
                return
            try:
                task.run.ledger.spill(task.number)
                if self._spill.put(task):
                    return
                reason = "found the spill folder full"
            except OSError as error:
                reason = f"could not be spilled to disk ({error.strerror})"
            task.run.ledger.unspill(task.number)
        self._drop(task, reason)

    def _refill(self) -> None:
        """Bring frames back from disk while there is room in memory."""
        with self._refilling:
            while len(self.waiting) < self.waiting.capacity // 2:
                task = self._unspilled()
                if task is None:
                    return
                if not self.waiting.offer(task, task.nbytes):
                    # Memory is full, or the source has ended: this one goes in all the same.
                    self.waiting.force(task)
                    return

    def _unspilled(self) -> FrameTask | None:
        assert self._spill is not None
        task = self._spill.take()
        if task is not None:
            task.run.ledger.unspill(task.number)
        return task

    def _drop(self, task: FrameTask, why: str) -> None:
        task.run.leave(task.number, "dropped")
        self._complaints.add("dropped", f"frame {task.number} of {task.run.series} {why}")
