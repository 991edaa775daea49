"""The stages of a service, each in its thread: receive, find, predict, deliver, and the sinks.

::

    source → waiting → find → found → predict → predicted → deliver → one queue a sink
             (frames)         (patches)         (results)

A source that can leave frames encoded does: they wait so, and are decoded between waiting and find,
in a thread of its own for each that finds.

Every queue is bounded. A full one holds up the stage before it; in front of the first, the policy
decides what becomes of the frames that come.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from edgexnas.device.monitoring.status import LastResult, QueueLevel
from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.bounded_queue import BoundedQueue
from edgexnas.device.serving.decoding import DecodingIntake
from edgexnas.device.serving.intake import Intake
from edgexnas.device.serving.ledger import Ledger
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.sink_thread import SinkThread
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.serving.work import Work
from edgexnas.device.sinks.results import FrameResult, SeriesBegun, SeriesEnded
from edgexnas.device.sources.encoded_frames import leaves_decoding
from edgexnas.device.sources.events import EventSource

__all__ = ["Pipeline"]

BETWEEN_STAGES = 32
"""Most frames between two stages: enough to smooth them, and few, because each adds latency."""

IDLE_S = 0.05
"""How long a stage waits before it looks whether something else is to be done."""

ENDED_NS = sys.maxsize
"""When a stage or a sink that has ended will next be overdue: never."""

SHOW_NS = 200_000_000
"""Pixels are kept for showing at most this often."""


class Pipeline:
    """The stages of a service.

    Parameters
    ----------
    source
        Where frames come from.
    work
        What is done with them.
    sinks
        Where results go; opened already.
    ledger
        What becomes of frames.
    settings
        How stages work.
    engine_batch
        Items that make a run of the engine worth it before the deadline.
    complaints, times
        Where troubles and durations go; `times` has the stages "wait", "decode", "find",
        "batch", "predict", "deliver", one for each sink, and "latency".
    failed
        Told when a stage cannot go on.
    """

    def __init__(
        self,
        source: EventSource,
        work: Work,
        sinks: Sequence[SinkThread],
        *,
        ledger: Ledger,
        settings: PipelineSettings,
        engine_batch: int,
        complaints: RateLimitedLog,
        times: StageTimes,
        failed: Callable[[str], None],
    ) -> None:
        self._work = work
        self._sinks = sinks
        self._required = sum(sink.required for sink in sinks)
        self._settings = settings
        self._engine_batch = engine_batch
        self._complaints = complaints
        self._times = times
        self._failed = failed
        self._aborted = threading.Event()
        self._settling = threading.Lock()
        self._finding = settings.workers
        self._shown_ns = 0
        self._runs: list[SeriesRun] = []
        self.peaks_total = 0
        self.last_result: LastResult | None = None
        self.intake = Intake(
            source, work, ledger=ledger, settings=settings, complaints=complaints, runs=self._runs
        )
        self._decoding: DecodingIntake | None = None
        if leaves_decoding(source):
            self._decoding = DecodingIntake(self.intake, times, settings.workers)
        self._frames: Intake | DecodingIntake = self._decoding or self.intake
        self._found: BoundedQueue[FrameTask] = BoundedQueue(BETWEEN_STAGES)
        self._predicted: BoundedQueue[FrameTask] = BoundedQueue(BETWEEN_STAGES)
        self._finders = [
            threading.Thread(target=self._guarded, args=(self._find,), name=f"find {index}")
            for index in range(settings.workers)
        ]
        self._others = [
            threading.Thread(target=self._guarded, args=(stage,), name=name)
            for stage, name in (
                (self.intake.receive, "receive"),
                (self._predict, "predict"),
                (self._deliver, "deliver"),
            )
        ]
        if self._decoding is not None:
            self._others += [
                threading.Thread(
                    target=self._guarded, args=(self._decoding.decode,), name=f"decode {index}"
                )
                for index in range(settings.workers)
            ]
        self.beats_ns = dict.fromkeys(("find", "predict", "deliver"), time.monotonic_ns())

    @property
    def started(self) -> bool:
        """Whether the stages were started."""
        return all(thread.ident is not None for thread in (*self._finders, *self._others))

    def start(self) -> None:
        """Start the stages."""
        for thread in (*self._finders, *self._others):
            thread.daemon = True
            thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for all stages and sinks to end; tell whether they have."""
        end = time.monotonic() + timeout_s
        for thread in (*self._finders, *self._others):
            thread.join(max(0.0, end - time.monotonic()))
        stages = not any(thread.is_alive() for thread in (*self._finders, *self._others))
        return stages and all(sink.join(max(0.0, end - time.monotonic())) for sink in self._sinks)

    def abort(self) -> None:
        """End the stages soon; what is in them is dropped."""
        self._aborted.set()
        self.intake.abort()
        if self._decoding is not None:
            self._decoding.abort()
        for queue in (self._found, self._predicted):
            queue.close()
        for sink in self._sinks:
            sink.abandon()

    @property
    def queues(self) -> dict[str, QueueLevel]:
        """How full each queue is."""
        levels = {"waiting": self.intake.waiting.level}
        if self._decoding is not None:
            levels["decoded"] = self._decoding.level
        levels |= {"found": self._found.level, "predicted": self._predicted.level}
        return levels | {sink.sink.name: sink.queue.level for sink in self._sinks}

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Exception as error:
            self._failed(f"{threading.current_thread().name}: {type(error).__name__}: {error}")

    def _find(self) -> None:
        """Prepare frames until no more come; the last of the finders closes what follows."""
        try:
            while not self._frames.finished and not self._aborted.is_set():
                self.beats_ns["find"] = time.monotonic_ns()
                task = self._frames.take(IDLE_S)
                if task is not None:
                    self._pass_found(self._prepared(task))
                if task is None or task.run.over:
                    self._release(time.monotonic_ns())
        finally:
            with self._settling:
                self._finding -= 1
                last = not self._finding
            if last:
                self._release(sys.maxsize)
                self._found.close()
                self.beats_ns["find"] = ENDED_NS

    def _prepared(self, task: FrameTask) -> list[FrameTask]:
        began = time.monotonic_ns()
        self._times.add("wait", began - task.arrival_ns)
        if task.pixels is not None and task.arrival_ns - self._shown_ns >= SHOW_NS:
            self._shown_ns = task.arrival_ns
            task.shown = task.pixels
        try:
            ready = self._work.prepare(task) if task.error is None else [task]
        except Exception as error:
            task.error = f"{type(error).__name__}: {error}"
            ready = [task]
        self._times.add("find", time.monotonic_ns() - began)
        return ready

    def _release(self, now_ns: int) -> None:
        """Pass on what was held back long enough."""
        for run in [run for run in self._runs if run.error is None]:
            try:
                ready = self._work.release(run, now_ns=now_ns)
            except Exception as error:
                self._complaints.add("release", f"{run.series}: {type(error).__name__}: {error}")
                continue
            self._pass_found(ready)

    def _pass_found(self, tasks: list[FrameTask]) -> None:
        for task in tasks:
            task.pixels = task.encoded = None
            if not self._put(self._found, task, "find"):
                task.run.leave(task.number, "dropped")

    def _put(self, queue: BoundedQueue[FrameTask], task: FrameTask, stage: str) -> bool:
        while not queue.put(task, timeout_s=IDLE_S):
            # Who waits for the next stage has not stalled; the next one may have.
            self.beats_ns[stage] = time.monotonic_ns()
            if queue.closed or self._aborted.is_set():
                return False
        return True

    def _predict(self) -> None:
        """Gather frames until the engine's batch is full or the first cannot wait any longer."""
        deadline_ns = int(self._settings.deadline_ms * 1e6)
        batch: list[FrameTask] = []
        items, oldest_ns = 0, 0
        try:
            while not (self._found.finished and not batch):
                now = self.beats_ns["predict"] = time.monotonic_ns()
                left_ns = oldest_ns + deadline_ns - now if batch else int(IDLE_S * 1e9)
                for task in self._found.take_all(max(0, left_ns) / 1e9):
                    oldest_ns = min(oldest_ns, task.arrival_ns) if batch else task.arrival_ns
                    batch.append(task)
                    items += 0 if task.error else self._work.size(task)
                    # A full batch goes at once: what waits behind it need not hold it up.
                    if items >= self._engine_batch:
                        self._run_engine(batch)
                        batch, items = [], 0
                due = time.monotonic_ns() >= oldest_ns + deadline_ns
                if batch and (due or self._found.closed):
                    self._run_engine(batch)
                    batch, items = [], 0
        finally:
            self._predicted.close()
            self.beats_ns["predict"] = ENDED_NS

    def _run_engine(self, batch: list[FrameTask]) -> None:
        began = time.monotonic_ns()
        for task in batch:
            self._times.add("batch", began - task.arrival_ns)
        good = [task for task in batch if task.error is None]
        if good:
            try:
                self._work.predict(good)
            except Exception:
                self._predict_singly(good)
            self._times.add("predict", time.monotonic_ns() - began)
        for task in batch:
            if not self._put(self._predicted, task, "predict"):
                task.run.leave(task.number, "dropped")

    def _predict_singly(self, tasks: list[FrameTask]) -> None:
        """Find out which frames make the engine fail."""
        for task in tasks:
            try:
                self._work.predict([task])
            except Exception as error:
                task.error = f"{type(error).__name__}: {error}"

    def _deliver(self) -> None:
        """Hand results to the sinks in the order of frames, one series after the other."""
        try:
            while not self._predicted.finished:
                self.beats_ns["deliver"] = time.monotonic_ns()
                tasks = self._predicted.take_all(self._patience_s())
                self._deliver_ready(tasks)
            for run in list(self._runs):
                run.over = True
                self._deliver_ready([])
        finally:
            for run in list(self._runs):
                run.give_up()
            for sink in self._sinks:
                sink.finish()
            self.beats_ns["deliver"] = ENDED_NS

    def _patience_s(self) -> float:
        """How long the first series may wait for a frame that is missing."""
        runs = self._runs[:1]
        until = runs[0].waiting_until_ns(self._reorder_ns) if runs else None
        if until is None:
            return IDLE_S
        return min(IDLE_S, max(0.0, (until - time.monotonic_ns()) / 1e9) + 1e-3)

    @property
    def _reorder_ns(self) -> int:
        return int(self._settings.reorder_wait_ms * 1e6)

    def _deliver_ready(self, tasks: list[FrameTask]) -> None:
        for task in tasks:
            task.run.keep(task)
        while self._runs:
            run = self._runs[0]
            for task in run.deliverable(self._reorder_ns):
                self._hand_over(task)
            if not run.drained:
                self._show(run, final=False)
                return
            self._finish(run)

    def _finish(self, run: SeriesRun) -> None:
        if run.begun:
            self._show(run, final=True)
            for sink in self._sinks:
                sink.tell(SeriesEnded(run.series, dict(run.ledger.counts)))
        self._work.end(run)
        self._runs.remove(run)

    def _show(self, run: SeriesRun, *, final: bool) -> None:
        if run.error is not None:
            return
        try:
            snapshot = self._work.snapshot(run, final=final)
        except Exception as error:
            self._complaints.add("snapshot", f"{run.series}: {type(error).__name__}: {error}")
            return
        if snapshot is None:
            return
        last = self.last_result
        if last is not None:
            self.last_result = LastResult(
                last.series, last.number, last.pixels, object_image=snapshot.image
            )
        for sink in self._sinks:
            sink.show(snapshot)

    def _hand_over(self, task: FrameTask) -> None:
        began = time.monotonic_ns()
        run = task.run
        if not run.begun:
            run.begun = True
            for sink in self._sinks:
                sink.tell(SeriesBegun(run.series, run.start.metadata))
        if task.error is None:
            try:
                self._work.place(task)
            except Exception as error:
                task.error = f"{type(error).__name__}: {error}"
        if task.error is not None:
            self._complaints.add("frame", f"frame {task.number} of {run.series}: {task.error}")
            task.result = task.with_result(error=task.error)
        task.owed = self._required
        for sink in self._sinks:
            while not sink.give(task, timeout_s=IDLE_S):
                self.beats_ns["deliver"] = time.monotonic_ns()
                name = sink.sink.name
                self._complaints.add(name, f"{name} does not keep up, and the service waits for it")
                if self._aborted.is_set():
                    self.settle([task], "the service was stopped before it was stored")
                    break
        if not self._required:
            self._end(task)
        self._times.add("deliver", time.monotonic_ns() - began)

    def settle(self, tasks: Sequence[FrameTask], reason: str | None) -> None:
        """Take note that a sink that must have them has stored frames, or why it has not."""
        with self._settling:
            for task in tasks:
                task.owed -= 1
                if reason is not None and task.error is None:
                    task.error = reason
                    self._complaints.add("store", f"frame {task.number}: {reason}")
                if task.owed == 0:
                    self._end(task)

    def _end(self, task: FrameTask) -> None:
        task.run.ledger.end(task.number, "failed" if task.error else "done")
        self._times.add("latency", time.monotonic_ns() - task.arrival_ns)
        result: FrameResult = task.result
        peaks = result.peaks
        if peaks is not None and task.error is None:
            self.peaks_total += len(peaks)
        if task.shown is not None:
            image = None if self.last_result is None else self.last_result.object_image
            self.last_result = LastResult(
                result.series,
                result.number,
                task.shown,
                None if peaks is None else peaks.positions_px,
                image,
            )
