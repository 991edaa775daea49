"""One series on its way through the service: its frames, and the lanes that they go through."""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy.typing as npt

from edgexnas.device.lane import Lane
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results import FrameResult, ObjectSnapshot
from edgexnas.device.sources.events import SeriesStart, SourcePosition
from edgexnas.errors import EdgexnasError

if TYPE_CHECKING:
    from edgexnas.device.serving.ledger import EndState, SeriesLedger
    from edgexnas.device.sinks.results import ServiceIdentity
    from edgexnas.device.sources.compression import FrameMemory
    from edgexnas.device.sources.encoded_frames import EncodedPixels

__all__ = ["FrameTask", "SeriesRun", "SeriesWork", "TaskLane", "Work", "sentence"]

Checked = TypeVar("Checked")
Results = TypeVar("Results")


@dataclass(slots=True, eq=False)
class FrameTask:
    """One frame on its way through the stages, which fill it in.

    Attributes
    ----------
    run
        Its series.
    number, arrival_ns, timestamp_s, position_m, detector_id
        As of `SourceFrame`.
    pixels
        (H, W); None before they are decoded, and once they are not needed any more.
    encoded
        What is to be decoded; None if nothing is.
    result
        What sinks get of it.
    error
        Why it failed, in one sentence.
    owed
        Sinks that must still store it before it is done.
    shown
        (H, W) pixels to show beside the result.
    work, made_by
        Which work has it, and whose result it will be; None before one has.
    """

    run: SeriesRun
    number: int
    arrival_ns: int
    pixels: npt.NDArray[Any] | None
    timestamp_s: float | None = None
    position_m: tuple[float, float] | None = None
    encoded: EncodedPixels | None = None
    result: FrameResult | None = None
    error: str | None = None
    owed: int = 0
    shown: npt.NDArray[Any] | None = None
    detector_id: int | None = None
    work: SeriesWork | None = None
    made_by: ServiceIdentity | None = None

    @property
    def nbytes(self) -> int:
        """Memory that its pixels take, decoded or not."""
        if self.encoded is not None:
            return self.encoded.nbytes
        return 0 if self.pixels is None else self.pixels.nbytes

    def decode(self) -> None:
        """Decode what is to be decoded.

        Raises
        ------
        InputError
            If it is malformed.
        """
        encoded, self.encoded = self.encoded, None
        if encoded is not None:
            self.pixels = encoded.decode(self.run.memory)

    def with_result(self, **fields: Any) -> FrameResult:
        """Return the frame's result with these fields beside those that are known here."""
        return FrameResult(
            self.run.series,
            self.number,
            self.arrival_ns,
            self.timestamp_s,
            detector_id=self.detector_id,
            made_by=self.made_by,
            **fields,
        )

    def __lt__(self, other: FrameTask) -> bool:
        return self.number < other.number


@dataclass(slots=True, eq=False)
class SeriesRun:
    """A series, and which of its frames are where.

    Attributes
    ----------
    start
        What the source said at its start.
    ledger
        What became of its frames.
    work, made_by
        What an application does with its frames, and whose results they are; None if it has an
        error. See `replace_work`.
    memory
        Where its frames are best decoded, once the work knows; None for anywhere.
    error
        Why none of its frames can be processed; None if they can.
    detection
        By which limits its peaks are found, in words; None before that is known.
    over
        Whether no more frames will come.
    ended
        Whether the source has said so, or has begun another series.
    begun
        Whether sinks were told of it.
    readings
        Positions that came apart from their frames and were not used so far.
    """

    start: SeriesStart
    ledger: SeriesLedger
    work: SeriesWork | None = None
    made_by: ServiceIdentity | None = None
    memory: FrameMemory | None = None
    error: str | None = None
    detection: str | None = None
    over: bool = False
    ended: bool = False
    begun: bool = False
    readings: deque[SourcePosition] = field(default_factory=lambda: deque(maxlen=65_536))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _in_flight: NumberRanges = field(default_factory=NumberRanges)
    _waiting: list[FrameTask] = field(default_factory=list)
    _next: int | None = None
    _past: list[SeriesWork] = field(default_factory=list)
    _at_work: Counter[SeriesWork] = field(default_factory=Counter)

    @property
    def series(self) -> str:
        """Name of the series."""
        return self.start.series

    @property
    def works(self) -> list[SeriesWork]:
        """Those that may have frames of the series, the newest last."""
        with self._lock:
            return self._past + ([] if self.work is None else [self.work])

    def assign(self, task: FrameTask) -> SeriesWork | None:
        """Let the newest work have a frame, which it keeps; None if there is none."""
        with self._lock:
            task.work, task.made_by = self.work, self.made_by
            if self.work is not None:
                self._at_work[self.work] += 1
            return self.work

    def replace_work(self, work: SeriesWork, made_by: ServiceIdentity) -> None:
        """Let another work have the frames that come; the one before keeps those it has."""
        with self._lock:
            if self.work is not None:
                self._past.append(self.work)
            # Frames that are decoded from now on do not lie in the memory of the one before.
            self.work, self.made_by, self.memory = work, made_by, None

    def finished_by(self, task: FrameTask) -> None:
        """Note that a work is done with a frame."""
        with self._lock:
            if task.work is not None and task.work in self._at_work:
                self._at_work[task.work] -= 1
            task.work = None

    def take_idle_works(self) -> list[SeriesWork]:
        """Take out works that were replaced and have no frames any more, to be ended."""
        with self._lock:
            idle = [work for work in self._past if self.over or not self._at_work[work]]
            self._past = [work for work in self._past if work not in idle]
            for work in idle:
                # Nothing may hold a work any longer, so that its predictor can be closed.
                self._at_work.pop(work, None)
            return idle

    def enter(self, number: int) -> None:
        """Note that a frame is in the stages."""
        with self._lock:
            self._in_flight.add(number)

    def leave(self, number: int, state: EndState) -> None:
        """End a frame before it is delivered."""
        with self._lock:
            self._in_flight.remove(number)
        self.ledger.end(number, state)

    @property
    def in_stages(self) -> int:
        """How many of its frames are in the stages."""
        with self._lock:
            return self._in_flight.total

    @property
    def drained(self) -> bool:
        """Whether no more frames will come and none is in the stages."""
        return self.over and not self._in_flight

    def deliverable(self, wait_ns: int) -> list[FrameTask]:
        """Take out what can be delivered, in order.

        A frame waits for those before it that are in the stages, and for missing ones until
        `wait_ns` after its own arrival; those are given up then.
        """
        ready: list[FrameTask] = []
        with self._lock:
            while self._waiting and self._is_next(self._waiting[0], wait_ns):
                task = heapq.heappop(self._waiting)
                self._in_flight.remove(task.number)
                self._next = task.number + 1
                ready.append(task)
        if ready:
            self.ledger.close_gaps(ready[-1].number)
        return ready

    def keep(self, task: FrameTask) -> None:
        """Take in a frame whose result is there."""
        heapq.heappush(self._waiting, task)

    def give_up(self) -> None:
        """Drop what waits to be delivered."""
        for task in self._waiting:
            self.leave(task.number, "dropped")
        self._waiting.clear()

    def waiting_until_ns(self, wait_ns: int) -> int | None:
        """When the first waiting frame gives up those missing before it."""
        return self._waiting[0].arrival_ns + wait_ns if self._waiting else None

    def _is_next(self, task: FrameTask, wait_ns: int) -> bool:
        if self._in_flight.first != task.number:
            return False
        if self._next is None or task.number == self._next or self.over:
            return True
        if self.ledger.missing_from(self._next) >= task.number:
            return True
        return time.monotonic_ns() >= task.arrival_ns + wait_ns


class Work(Protocol):
    """An application.

    Attributes
    ----------
    workers
        Threads that drive lanes, one for each on a CPU; one is enough for a GPU.
    replaces_within_series
        Whether it may replace other work in the midst of a series: nothing grows over one.
    """

    workers: int
    replaces_within_series: bool

    def warm_up(self) -> None:
        """Compile and load what the first frame would wait for; called before any is taken."""

    def begin(self, run: SeriesRun) -> SeriesWork:
        """Prepare for a series; called before its first frame, in the receiving thread.

        Raises
        ------
        EdgexnasError
            If none of its frames can be processed.
        """


class SeriesWork(Protocol):
    """What an application does with the frames of one series."""

    def ready(self, task: FrameTask) -> list[FrameTask]:
        """Take in a frame and return those that can be worked on, or have failed.

        Called by all workers. Frames may be held back, and come with a later call.
        """

    def release(self, *, now_ns: int) -> list[FrameTask]:
        """Return frames that were held back long enough, or whose series is over."""

    def lane(self, worker: int) -> TaskLane[Any, Any]:
        """Give a worker's lane, opened when it first asks with a frame that is ready.

        Raises
        ------
        EdgexnasError
            If it cannot be opened.
        """

    def place(self, task: FrameTask) -> None:
        """Complete a result, in the order of frame numbers."""

    def snapshot(self, *, final: bool) -> ObjectSnapshot | None:
        """Show what grows over a series, if it is time to; None otherwise."""

    def afterwards(self) -> Callable[[threading.Event], ObjectSnapshot | None] | None:
        """Give what is to be done after the last snapshot, in a thread of its own; None: nothing.

        It uses nothing of the engine, and ends early, with None, once the event is set.
        """

    def end(self) -> None:
        """Give back what was taken for the series; called after its last frame was delivered."""


class TaskLane(Generic[Checked, Results]):
    """A lane for frames of a service: what becomes of them is written into their tasks.

    Parameters
    ----------
    lane
        Where they go.
    keep
        Sets a task's result, given the results of its group and its index there.
    times
        Where the durations of the lane's steps go.
    """

    def __init__(
        self,
        lane: Lane[Checked, Results],
        keep: Callable[[FrameTask, Results, int], None],
        times: StageTimes,
    ) -> None:
        self._lane = lane
        self._keep = keep
        self._times = times
        self._submitted: deque[list[FrameTask]] = deque()

    @property
    def group(self) -> int:
        """See `Lane.group`."""
        return self._lane.group

    @property
    def most(self) -> int:
        """See `Lane.most`."""
        return self._lane.most

    @property
    def in_flight(self) -> int:
        """How many groups were submitted and not given back."""
        return len(self._submitted)

    @property
    def full(self) -> bool:
        """Whether a result is to be taken before the next group is submitted."""
        return len(self._submitted) >= self._lane.ahead

    def submit(self, tasks: Sequence[FrameTask]) -> list[FrameTask]:
        """Start work on up to `most` frames, and return those that have failed already."""
        good: list[FrameTask] = []
        checked: list[Checked] = []
        for task in tasks:
            assert task.pixels is not None
            try:
                checked.append(self._lane.check(task.pixels, task.number))
                good.append(task)
            except Exception as error:
                task.error = sentence(error)
        if good:
            try:
                self._lane.submit(checked)
            except Exception as error:
                _fail(good, error)
            else:
                self._submitted.append(good)
        return [task for task in tasks if task.error is not None]

    def result(self) -> list[FrameTask]:
        """Wait for the oldest group and return its frames, each with its result or its error."""
        tasks = self._submitted.popleft()
        try:
            outcome = self._lane.result()
        except Exception as error:
            if len(tasks) == 1 or self._submitted:
                _fail(tasks, error)
            else:
                self._find_fault(tasks)
            return tasks
        for index, task in enumerate(tasks):
            fault = outcome.faults.get(index)
            if fault is None:
                self._keep(task, outcome.results, index)
            else:
                task.error = str(fault)
        for stage, duration_ns in outcome.stages_ns.items():
            self._times.add(stage, duration_ns // len(tasks))
        return tasks

    def close(self) -> None:
        """Close the lane; closing again does nothing."""
        self._lane.close()

    def _find_fault(self, tasks: list[FrameTask]) -> None:
        """Process frames one by one, so that only those that make the engine fail do."""
        for task in tasks:
            if not self.submit([task]):
                self.result()


def sentence(error: BaseException) -> str:
    """Say why a frame failed: the package's own errors speak for themselves."""
    return str(error) if isinstance(error, EdgexnasError) else f"{type(error).__name__}: {error}"


def _fail(tasks: Sequence[FrameTask], error: Exception) -> None:
    for task in tasks:
        task.error = sentence(error)
