"""Whatever lanes, orders, delays and failures do, frames end once and results are in order."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgexnas.device.lane import Outcome
from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.ledger import Ledger
from edgexnas.device.serving.pipeline import Pipeline
from edgexnas.device.serving.series_run import FrameTask, SeriesRun, TaskLane
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult, ObjectSnapshot
from edgexnas.device.sources.events import SeriesEnd, SeriesStart, SourceFrame, SourceTrouble
from edgexnas.errors import EngineError, InputError

STAGES = ("wait", "decode", "step", "deliver", "latency", "callback")
GOOD, BAD_FRAME, BAD_COUNTS, BAD_RUN, TROUBLE = range(5)
REASONS = ("", "another shape", "holds NaN", "Fake GPU failed", "damaged on the wire")
PIXELS = np.zeros((2, 2), np.uint16)


@dataclass
class ToldLane:
    """A lane in which each frame does what is told of its number."""

    fates: dict[int, int]
    ahead: int
    most: int
    held_s: float
    group: int = 1
    flying: deque[Sequence[int]] = field(default_factory=deque)
    closed: bool = False

    @property
    def in_flight(self) -> int:
        return len(self.flying)

    def check(self, frame: Any, number: int) -> int:
        assert not self.closed
        assert self.in_flight < self.ahead
        if self.fates[number] == BAD_FRAME:
            raise InputError(f"frame {number}: of another shape")
        return number

    def submit(self, frames: Sequence[int]) -> None:
        assert 0 < len(frames) <= self.most
        assert self.in_flight < self.ahead
        self.flying.append(frames)

    def result(self) -> Outcome[Sequence[int]]:
        time.sleep(self.held_s)
        frames = self.flying.popleft()
        if any(self.fates[number] == BAD_RUN for number in frames):
            raise EngineError("Fake GPU failed")
        faults = {
            index: InputError(f"frame {number}: holds NaN")
            for index, number in enumerate(frames)
            if self.fates[number] == BAD_COUNTS
        }
        return Outcome(frames, faults, {"step": 1})

    def close(self) -> None:
        self.closed = True


class ToldWork:
    """Series whose first frames are held back, then go through one lane a worker."""

    def __init__(self, make: Callable[[], ToldLane], workers: int, hold: int) -> None:
        self.make, self.workers, self.hold = make, workers, hold
        self.times = StageTimes(*STAGES)
        self.lanes: list[ToldLane] = []

    def warm_up(self) -> None:
        """Nothing."""

    def begin(self, run: SeriesRun) -> ToldSeries:
        return ToldSeries(self, run)


class ToldSeries:
    def __init__(self, work: ToldWork, run: SeriesRun) -> None:
        self._work, self._run = work, run
        self._lock = threading.Lock()
        self._held: list[FrameTask] = []
        self._released = False
        self._lanes: dict[int, TaskLane[int, Sequence[int]]] = {}

    def ready(self, task: FrameTask) -> list[FrameTask]:
        with self._lock:
            if self._released:
                return [task]
            self._held.append(task)
            return self._all() if len(self._held) >= self._work.hold else []

    def release(self, *, now_ns: int) -> list[FrameTask]:
        with self._lock:
            over = self._run.over and len(self._held) >= self._run.in_stages
            # At the very end all is to be released.
            return self._all() if self._held and (over or now_ns == sys.maxsize) else []

    def afterwards(self) -> None:
        return None

    def lane(self, worker: int) -> TaskLane[int, Sequence[int]]:
        with self._lock:
            if worker not in self._lanes:
                lane = self._work.make()
                self._work.lanes.append(lane)
                self._lanes[worker] = TaskLane(lane, self._keep, self._work.times)
            return self._lanes[worker]

    def place(self, task: FrameTask) -> None:
        """Nothing."""

    def snapshot(self, *, final: bool) -> ObjectSnapshot | None:
        return None

    def end(self) -> None:
        for lane in self._lanes.values():
            assert lane.in_flight == 0
            lane.close()

    def _all(self) -> list[FrameTask]:
        held, self._held, self._released = self._held, [], True
        return held

    @staticmethod
    def _keep(task: FrameTask, numbers: Sequence[int], index: int) -> None:
        # The result is that of this frame, whatever the group was.
        assert numbers[index] == task.number
        task.result = FrameResult(task.run.series, task.number, task.arrival_ns, task.timestamp_s)


@st.composite
def orders(draw: Any) -> list[int]:
    """Numbers of frames as they come: near their place, with gaps and repetitions."""
    count = draw(st.integers(1, 30))
    kept = draw(st.sets(st.integers(0, count - 1), min_size=1))
    shifts = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    order = sorted(kept, key=lambda number: number + shifts[number])
    again = draw(st.lists(st.sampled_from(order), max_size=3))
    return order + again


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    series=st.lists(orders(), min_size=1, max_size=3),
    fates=st.lists(
        st.sampled_from([GOOD] * 6 + [BAD_FRAME, BAD_COUNTS, BAD_RUN, TROUBLE]),
        min_size=30,
        max_size=30,
    ),
    workers=st.integers(1, 3),
    ahead=st.integers(1, 2),
    most=st.integers(1, 4),
    held_ms=st.sampled_from([0.0, 0.3]),
    hold=st.integers(1, 4),
    policy=st.sampled_from(["block", "drop-oldest"]),
)
def test_every_frame_ends_once_in_order_and_fails_for_its_own_reason(
    series: list[list[int]],
    fates: list[int],
    workers: int,
    ahead: int,
    most: int,
    held_ms: float,
    hold: int,
    policy: Any,
) -> None:
    told = dict(enumerate(fates))
    work = ToldWork(lambda: ToldLane(told, ahead, most, held_ms / 1e3), workers, hold)

    class Source:
        url, live = "told://", policy == "drop-oldest"

        def events(self) -> Iterator[Any]:
            for name, order in enumerate(series):
                yield SeriesStart(f"{name}")
                for number in order:
                    now_ns = time.monotonic_ns()
                    if told[number] == TROUBLE:
                        yield SourceTrouble(f"{name}", number, "damaged on the wire", now_ns)
                    else:
                        yield SourceFrame(f"{name}", number, PIXELS, now_ns)
                yield SeriesEnd(f"{name}", None, time.monotonic_ns())

        def close(self) -> None:
            """Nothing."""

        def status(self) -> dict[str, int]:
            return {}

    items: list[Any] = []
    failures: list[str] = []
    ledger = Ledger()
    pipeline = Pipeline(
        Source(),
        work,
        [CallbackSink(items.append, policy="block")],
        ledger=ledger,
        settings=PipelineSettings(policy=policy, workers=workers, queue_frames=4, max_age_ms=1e6),
        sink_queue=8,
        sink_retry_s=1.0,
        complaints=RateLimitedLog(logging.getLogger("edgexnas.device.serving")),
        times=work.times,
        failed=failures.append,
        sink_failed=lambda name, message: failures.append(message),
    )
    for sink in pipeline.sinks:
        sink.start(None)  # type: ignore[arg-type]
    pipeline.start()
    assert pipeline.join(200)
    assert failures == []

    counts = ledger.counts
    results = [item for item in items if isinstance(item, FrameResult)]
    failed = [result for result in results if result.error is not None]
    assert counts["received"] == sum(len(order) for order in series)
    ended = ("done", "dropped", "failed", "duplicate")
    assert counts["received"] == sum(counts[state] for state in ended)
    assert (counts["pending"], counts["spilled"]) == (0, 0)
    assert (len(results) - len(failed), len(failed)) == (counts["done"], counts["failed"])
    places = [(int(result.series), result.number) for result in results]
    assert places == sorted(set(places))
    for result in results:
        fate, error = told[result.number], result.error or ""
        if error == "Fake GPU failed" and fate in (GOOD, BAD_COUNTS):
            # Only a lane with another group in flight cannot tell whose fault a failed run is.
            assert ahead > 1
            assert most > 1
        elif fate == GOOD:
            assert not error
        else:
            assert REASONS[fate] in error
    assert all(lane.closed and not lane.flying for lane in work.lanes)


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_result_is_not_held_back_for_a_frame_that_does_not_come(ahead: int) -> None:
    first_done = threading.Event()
    work = ToldWork(lambda: ToldLane({0: GOOD, 1: GOOD}, ahead, 4, 0.0), 1, 1)

    class Source:
        url, live = "told://", True

        def events(self) -> Iterator[Any]:
            yield SourceFrame("a", 0, PIXELS, time.monotonic_ns())
            assert first_done.wait(120)
            yield SourceFrame("a", 1, PIXELS, time.monotonic_ns())

        def close(self) -> None:
            """Nothing."""

        def status(self) -> dict[str, int]:
            return {}

    ledger, failures = Ledger(), list[str]()
    pipeline = Pipeline(
        Source(),
        work,
        [CallbackSink(lambda item: first_done.set() if isinstance(item, FrameResult) else None)],
        ledger=ledger,
        settings=PipelineSettings(),
        sink_queue=8,
        sink_retry_s=1.0,
        complaints=RateLimitedLog(logging.getLogger("edgexnas.device.serving")),
        times=work.times,
        failed=failures.append,
        sink_failed=lambda name, message: failures.append(message),
    )
    for sink in pipeline.sinks:
        sink.start(None)  # type: ignore[arg-type]
    pipeline.start()
    assert pipeline.join(200)
    assert failures == []
    assert ledger.counts["done"] == 2
