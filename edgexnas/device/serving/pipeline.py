"""The stages of a service, each in its thread: receive, work, deliver, and the sinks.

::

    source → waiting → work → results → deliver → one queue a sink
             (frames)         (groups)

A source that can leave frames encoded does: they wait so, and are decoded between waiting and work,
in threads of their own.

Every queue is bounded. A full one holds up the stage before it; in front of the first, the policy
decides what becomes of the frames that come.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from edgexnas.device.monitoring.status import LastResult, PeakSums, QueueLevel
from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.after_series import AfterSeries
from edgexnas.device.serving.bounded_queue import BoundedQueue
from edgexnas.device.serving.data_watch import DataWatch
from edgexnas.device.serving.decoding import DecodingIntake
from edgexnas.device.serving.intake import Intake
from edgexnas.device.serving.ledger import Ledger
from edgexnas.device.serving.series_run import FrameTask, SeriesRun, TaskLane, Work, sentence
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.sink_thread import SinkThread
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.protocol import Sink
from edgexnas.device.sinks.results import ObjectSnapshot, SeriesBegun, SeriesEnded, ServiceIdentity
from edgexnas.device.sources.encoded_frames import leaves_decoding
from edgexnas.device.sources.events import EventSource

__all__ = ["Pipeline"]

BETWEEN_STAGES = 32
"""Most groups of frames between two stages: enough to smooth them, and few, because each adds
latency."""

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
        Where results go; not open yet.
    ledger
        What becomes of frames.
    settings
        How stages work.
    sink_queue, sink_retry_s
        As of `Service`.
    complaints, times
        Where troubles and durations go; `times` has the stages "wait", "decode", those of the
        lanes, "deliver", one for each sink, and "latency".
    failed
        Told when a stage cannot go on.
    sink_failed
        Told the name of a sink that failed, and why.
    """

    def __init__(
        self,
        source: EventSource,
        work: Work,
        sinks: Sequence[Sink],
        *,
        ledger: Ledger,
        settings: PipelineSettings,
        sink_queue: int,
        sink_retry_s: float,
        complaints: RateLimitedLog,
        times: StageTimes,
        failed: Callable[[str], None],
        sink_failed: Callable[[str, str], None],
    ) -> None:
        self.sinks = [
            SinkThread(
                sink,
                settle=self.settle,
                complaints=complaints,
                times=times,
                failed=sink_failed,
                capacity=sink_queue,
                retry_s=sink_retry_s,
            )
            for sink in sinks
        ]
        self._required = sum(sink.required for sink in self.sinks)
        self._complaints = complaints
        self._times = times
        self._failed = failed
        self._deadline_ns = int(settings.deadline_ms * 1e6)
        self._reorder_ns = int(settings.reorder_wait_ms * 1e6)
        self._aborted = threading.Event()
        self._settling = threading.Lock()
        self._working = work.workers
        self._shown_ns = 0
        self._shown: FrameTask | None = None
        self._object: ObjectSnapshot | None = None
        self._runs: list[SeriesRun] = []
        self._after = AfterSeries(self._show_refined, complaints)
        self.sums = PeakSums()
        self.data = DataWatch()
        self.intake = Intake(
            source, work, ledger=ledger, settings=settings, complaints=complaints, runs=self._runs
        )
        self._decoding: DecodingIntake | None = None
        if leaves_decoding(source):
            self._decoding = DecodingIntake(self.intake, times, settings.workers)
        self._frames: Intake | DecodingIntake = self._decoding or self.intake
        self._results: BoundedQueue[list[FrameTask]] = BoundedQueue(BETWEEN_STAGES)
        stages: list[tuple[str, Callable[..., None], tuple[int, ...]]] = [
            ("receive", self.intake.receive, ()),
            *((f"work {index}", self._work, (index,)) for index in range(work.workers)),
            ("deliver", self._deliver, ()),
        ]
        if self._decoding is not None:
            decode = self._decoding.decode
            stages += [(f"decode {index}", decode, ()) for index in range(settings.workers)]
        self._threads = [
            threading.Thread(target=self._guarded, args=(stage, *given), name=name, daemon=True)
            for name, stage, given in stages
        ]
        beating = [name for name, *_ in stages if name.startswith(("work", "deliver"))]
        self.beats_ns = dict.fromkeys(beating, time.monotonic_ns())

    @property
    def started(self) -> bool:
        """Whether the stages were started."""
        return all(thread.ident is not None for thread in self._threads)

    def start(self) -> None:
        """Start the stages."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for all stages and sinks to end; tell whether they have."""
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        stages = not any(thread.is_alive() for thread in self._threads)
        return stages and all(sink.join(max(0.0, end - time.monotonic())) for sink in self.sinks)

    def abort(self) -> None:
        """End the stages soon; what is in them is dropped."""
        self._aborted.set()
        self.intake.abort()
        if self._decoding is not None:
            self._decoding.abort()
        self._results.close()
        self._after.abort()
        for sink in self.sinks:
            sink.abandon()

    @property
    def queues(self) -> dict[str, QueueLevel]:
        """How full each queue is."""
        levels = {"waiting": self.intake.waiting.level}
        if self._decoding is not None:
            levels["decoded"] = self._decoding.level
        levels["results"] = self._results.level
        return levels | {sink.sink.name: sink.queue.level for sink in self.sinks}

    @property
    def last_result(self) -> LastResult | None:
        """The newest frame whose pixels were kept, with its peaks or the object so far."""
        task, shown_object = self._shown, self._object
        if task is None or task.shown is None:
            return None
        peaks = None if task.result is None else task.result.peaks
        return LastResult(
            task.run.series,
            task.number,
            task.shown,
            None if peaks is None else peaks.positions_px,
            None if shown_object is None else shown_object.image,
            task.arrival_ns / 1e9,
            None if shown_object is None else shown_object.refinement,
        )

    def _beat(self, at_ns: int | None = None) -> None:
        """Note that this thread looks for work."""
        now_ns = time.monotonic_ns() if at_ns is None else at_ns
        self.beats_ns[threading.current_thread().name] = now_ns

    def _guarded(self, stage: Callable[..., None], *given: int) -> None:
        try:
            stage(*given)
        except BaseException as error:
            # Whatever ends a thread ends the service: no stage goes missing unnoticed.
            self._failed(f"{threading.current_thread().name}: {sentence(error)}")

    def _work(self, worker: int) -> None:
        """Drive frames through lanes until no more come.

        While a group is in flight another is submitted if one waits already; if none does, the
        result is taken at once.
        """
        lane: TaskLane[Any, Any] | None = None
        try:
            while not self._frames.finished and not self._aborted.is_set():
                self._beat()
                busy = lane is not None and lane.in_flight > 0
                tasks = self._gather(lane, wait=not busy)
                ready = self._ready(tasks)
                # What a replaced work holds back waits for nothing that could come.
                if not tasks or tasks[-1].run.over or len(tasks[-1].run.works) > 1:
                    ready += self._released(time.monotonic_ns())
                if ready:
                    lane = self._submit(ready, lane, worker)
                else:
                    self._drain(lane)
        finally:
            # Before the last one closes what follows.
            self._drain(lane)
            with self._settling:
                self._working -= 1
                last = not self._working
            if last:
                self._drain(self._submit(self._released(sys.maxsize), lane, worker))
                self._results.close()
            self._beat(ENDED_NS)

    def _gather(self, lane: TaskLane[Any, Any] | None, *, wait: bool) -> list[FrameTask]:
        """Take what waits; where others would share a run, the first waits until its deadline."""
        most, group = (1, 1) if lane is None else (lane.most, lane.group)
        tasks = self._frames.take(IDLE_S if wait else 0.0, most)
        while wait and tasks and len(tasks) < group and not tasks[-1].run.over:
            left_ns = tasks[0].arrival_ns + self._deadline_ns - time.monotonic_ns()
            more = self._frames.take(left_ns / 1e9, group - len(tasks)) if left_ns > 0 else []
            if not more:
                break
            tasks += more
        return tasks

    def _ready(self, tasks: list[FrameTask]) -> list[FrameTask]:
        """Pass frames to their series, which may hold them back."""
        ready: list[FrameTask] = []
        now_ns = time.monotonic_ns()
        for task in tasks:
            self._times.add("wait", now_ns - task.arrival_ns)
            if task.pixels is not None and task.arrival_ns - self._shown_ns >= SHOW_NS:
                self._shown_ns = task.arrival_ns
                task.shown = task.pixels
            work = task.run.assign(task) if task.error is None else None
            if work is None:
                ready.append(task)
                continue
            try:
                ready += work.ready(task)
            except Exception as error:
                task.error = sentence(error)
                ready.append(task)
        return ready

    def _released(self, now_ns: int) -> list[FrameTask]:
        """Give what series have held back long enough."""
        released: list[FrameTask] = []
        for run in list(self._runs):
            for work in run.works:
                try:
                    released += work.release(now_ns=now_ns)
                except Exception as error:
                    self._complaints.add("release", f"{run.series}: {sentence(error)}")
        return released

    def _submit(
        self, tasks: list[FrameTask], lane: TaskLane[Any, Any] | None, worker: int
    ) -> TaskLane[Any, Any] | None:
        """Submit frames in groups to the lanes of their works, and give the last lane."""
        self._pass_on([task for task in tasks if task.error is not None])
        good = [task for task in tasks if task.error is None]
        # A group is of one series and of one work: what comes of it has one origin.
        for work, frames in groupby(good, key=lambda task: task.work):
            waiting = list(frames)
            try:
                assert work is not None
                following = work.lane(worker)
            except Exception as error:
                for task in waiting:
                    task.error = sentence(error)
                self._pass_on(waiting)
                continue
            if lane is not following:
                self._drain(lane)
            lane = following
            while waiting:
                group, waiting = waiting[: lane.most], waiting[lane.most :]
                self._pass_on(lane.submit(group))
                while lane.full:
                    self._pass_on(lane.result())
        return lane

    def _drain(self, lane: TaskLane[Any, Any] | None) -> None:
        while lane is not None and lane.in_flight:
            self._pass_on(lane.result())

    def _pass_on(self, tasks: list[FrameTask]) -> None:
        for task in tasks:
            task.pixels = task.encoded = None
        while tasks and not self._results.put(tasks, timeout_s=IDLE_S):
            # Who waits for the next stage has not stalled; the next one may have.
            self._beat()
            if self._results.closed or self._aborted.is_set():
                for task in tasks:
                    task.run.leave(task.number, "dropped")
                return

    def _deliver(self) -> None:
        """Hand results to the sinks in the order of frames, one series after the other."""
        try:
            while not self._results.finished:
                self._beat()
                groups = self._results.take_all(self._patience_s())
                self._deliver_ready([task for group in groups for task in group])
            for run in list(self._runs):
                run.over = True
                self._deliver_ready([])
        finally:
            for run in list(self._runs):
                run.give_up()
            # Sinks close behind it: what is finished afterwards is theirs too.
            while not self._after.join(IDLE_S):
                self._beat()
            for sink in self.sinks:
                sink.finish()
            self._beat(ENDED_NS)

    def _patience_s(self) -> float:
        """How long the first series may wait for a frame that is missing."""
        runs = self._runs[:1]
        until = runs[0].waiting_until_ns(self._reorder_ns) if runs else None
        if until is None:
            return IDLE_S
        return min(IDLE_S, max(0.0, (until - time.monotonic_ns()) / 1e9) + 1e-3)

    def _deliver_ready(self, tasks: list[FrameTask]) -> None:
        for task in tasks:
            task.run.keep(task)
        while self._runs:
            run = self._runs[0]
            for task in run.deliverable(self._reorder_ns):
                self._hand_over(task)
            for work in run.take_idle_works():
                work.end()
            if not run.drained:
                self._show(run, final=False)
                return
            self._finish(run)

    def _finish(self, run: SeriesRun) -> None:
        counts, delivered = dict(run.ledger.counts), run.begun
        if delivered:
            self._show(run, final=True)
        elif run.ended and counts["duplicate"]:
            # An earlier run has stored all frames, and may have died before this end.
            self._tell_begin(run)
        if run.begun:
            for sink in self.sinks:
                sink.tell(SeriesEnded(run.series, counts, run.ended))
        if run.work is not None:
            afterwards = run.work.afterwards() if delivered else None
            if afterwards is not None:
                self._after.add(run.series, afterwards)
            run.work.end()
        self._runs.remove(run)

    def _show(self, run: SeriesRun, *, final: bool) -> None:
        if run.work is None:
            return
        try:
            snapshot = run.work.snapshot(final=final)
        except Exception as error:
            self._complaints.add("snapshot", f"{run.series}: {sentence(error)}")
            return
        if snapshot is None:
            return
        self._object = snapshot
        for sink in self.sinks:
            sink.show(snapshot)

    def _show_refined(self, snapshot: ObjectSnapshot) -> None:
        shown = self._object
        # The page keeps to the scan that it shows: the next one may have begun.
        if shown is not None and shown.series == snapshot.series:
            self._object = snapshot
        for sink in self.sinks:
            sink.show(snapshot)

    def _hand_over(self, task: FrameTask) -> None:
        began = time.monotonic_ns()
        run = task.run
        if not run.begun:
            self._tell_begin(run)
        if task.error is None:
            try:
                assert task.work is not None
                task.work.place(task)
            except Exception as error:
                task.error = sentence(error)
        if task.error is not None:
            self._complaints.add("frame", f"frame {task.number} of {run.series}: {task.error}")
            task.result = task.with_result(error=task.error)
        run.finished_by(task)
        task.owed = self._required
        for sink in self.sinks:
            while not sink.give(task, timeout_s=IDLE_S):
                self._beat()
                name = sink.sink.name
                self._complaints.add(name, f"{name} does not keep up, and the service waits for it")
                if self._aborted.is_set():
                    self.settle([task], "the service was stopped before it was stored")
                    break
        if not self._required:
            self._end(task)
        self._times.add("deliver", time.monotonic_ns() - began)

    def _tell_begin(self, run: SeriesRun) -> None:
        run.begun = True
        for sink in self.sinks:
            sink.tell(SeriesBegun(run.series, run.start.metadata, run.start.identity))

    def replace_work(self, work: Work, made_by: ServiceIdentity) -> None:
        """Let other work have the frames that come; frames that are here stay with theirs.

        Work that grows something over a series takes the next one, all other the next frame.
        """
        self.intake.replace_work(work, made_by)

    def settle(self, tasks: Sequence[FrameTask], reason: str | None) -> None:
        """Take note that a sink that must have them has stored frames, or why it has not."""
        with self._settling:
            for task in tasks:
                task.owed -= 1
                if reason is not None and task.error is None:
                    task.error = reason
                    message = f"frame {task.number} was processed and not stored: {reason}"
                    self._complaints.add("store", message)
                if task.owed == 0:
                    self._end(task)

    def _end(self, task: FrameTask) -> None:
        peaks = None if task.result is None else task.result.peaks
        if task.error is None:
            # Before the ledger: who sees a frame done finds it in the sums.
            frames, number, intensity = self.sums
            if peaks is not None:
                number, intensity = number + len(peaks), intensity + float(peaks.intensities.sum())
            self.sums = PeakSums(frames + 1, number, intensity)
            if task.result is not None:
                self.data.add(task.result)
        task.run.ledger.end(task.number, "failed" if task.error else "done")
        self._times.add("latency", time.monotonic_ns() - task.arrival_ns)
        if task.shown is not None:
            self._shown = task
