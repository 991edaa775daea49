"""What a service does with frames: the steps of an application around its lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from edgexnas.device.lane import Lane
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.results import ObjectSnapshot
from edgexnas.errors import EdgexnasError

__all__ = ["SeriesWork", "TaskLane", "Work", "sentence"]

Checked = TypeVar("Checked")
Results = TypeVar("Results")


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
