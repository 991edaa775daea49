"""A running service is never green when something is wrong, and green again when it is not.

Times are shortened: what has not moved for half a second is stuck here.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from edgexnas.device import PeakPredictor
from edgexnas.device.serving.series_run import TaskLane
from edgexnas.device.serving.service import Service, ServiceError
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sources.events import SourceEvent, SourceFrame, SourceTrouble

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")


class Detector:
    """A live source that a test switches off, leaves silent, or lets send damaged frames."""

    url = "test://detector"
    live = True

    def __init__(self, frames: list[Any]) -> None:
        self.connected, self.sends, self.damaged = True, True, False
        self._frames = frames
        self._sent = 0
        self._closed = threading.Event()

    def events(self) -> Iterator[SourceEvent]:
        number = -1
        while not self._closed.wait(0.01):
            if not (self.connected and self.sends):
                continue
            number += 1
            if self.damaged:
                yield SourceTrouble("a", number, "it was damaged", time.monotonic_ns())
            else:
                self._sent += 1
                pixels = self._frames[number % len(self._frames)]
                yield SourceFrame("a", number, pixels, time.monotonic_ns())

    def close(self) -> None:
        self._closed.set()

    def status(self) -> Mapping[str, int | str]:
        connection = "connected" if self.connected else "waiting"
        return {"frames": self._sent, "connection": connection}


class FaultySink(CallbackSink):
    """A sink that a test lets fail or hang."""

    def __init__(self, policy: Any = "block") -> None:
        super().__init__(lambda item: None, name="disk", policy=policy)
        self.full = False
        self.free = threading.Event()
        self.free.set()

    def open(self, identity: Any) -> None:
        self._refuse()

    def write(self, results: Any) -> None:
        self.free.wait(120)
        self._refuse()

    def _refuse(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left")


Start = Callable[..., Any]


@pytest.fixture
def detector(small_frames: list[Any]) -> Detector:
    return Detector(small_frames)


@pytest.fixture
def serving(
    peak_predictor: PeakPredictor, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> Start:
    """`with serving(sink) as service` runs a service of the detector."""
    for name in ("monitoring.health", "serving.health_probe", "serving.sink_thread"):
        monkeypatch.setattr(f"edgexnas.device.{name}.STUCK_S", 0.5)

    @contextmanager
    def start(*sinks: Any, drain_s: float = 120, **options: Any) -> Iterator[Service]:
        settings = PipelineSettings(background_frames=1, drain_s=drain_s, max_age_ms=1e6)
        options = {"sink_retry_s": 0.1, "source_timeout_s": 0.3, **options}
        service = Service(peak_predictor, detector, sinks, settings=settings, **options)
        service.start()
        waiting = threading.Thread(target=service.wait)
        waiting.start()
        try:
            yield service
        finally:
            for sink in sinks:
                sink.free.set()
            service.stop()
            waiting.join()
            service.close()

    return start


def until(service: Service, state: str, *, says: str = "", **verdicts: bool) -> None:
    """Wait until the health is so: a machine that stands still for half a second stalls threads."""
    wanted = {"state": state, **verdicts}

    def seen() -> bool:
        health = service.health
        return says in health.sentence and wanted == {
            name: getattr(health, name) for name in wanted
        }

    wait_until(seen, lambda: service.health)


def wait_until(happened: Callable[[], bool], shown: Callable[[], object] = lambda: None) -> None:
    end_s = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end_s, shown()
        time.sleep(0.01)


def test_a_full_disk_is_failing_until_results_are_stored_again(serving: Start) -> None:
    sink = FaultySink()
    with serving(sink) as service:
        until(service, "running")
        sink.full = True
        until(service, "failing", healthy=False, watchdog=True, says="no space left")
        assert not service.status().last_error.gone
        sink.full = False
        until(service, "running")
        wait_until(lambda: service.status().last_error.gone)
        # What was said last: of a frame, or of the sink, if none came for a moment.
        said = service.status().last_error.message
        assert "was processed and not stored" in said or "disk is still down" in said


def test_a_sink_that_recovers_while_no_frame_comes_is_seen_to(
    serving: Start, detector: Detector
) -> None:
    sink = FaultySink()
    with serving(sink) as service:
        until(service, "running")
        sink.full = True
        until(service, "failing")
        detector.sends = False
        sink.full = False
        until(service, "idle", healthy=True)


def test_a_required_sink_that_hangs_is_failing_and_no_reason_to_restart(serving: Start) -> None:
    sink = FaultySink()
    with serving(sink) as service:
        until(service, "running")
        sink.free.clear()
        until(service, "failing", watchdog=True, says="waits for disk")
        sink.free.set()
        until(service, "running")


def test_an_optional_sink_that_hangs_degrades(serving: Start) -> None:
    sink = FaultySink("drop-oldest")
    with serving(sink, sink_queue=4) as service:
        until(service, "running")
        sink.free.clear()
        until(service, "degraded", healthy=True, watchdog=True)
        sink.free.set()
        until(service, "running")


def test_a_source_that_is_away_is_waited_for_and_then_not_healthy(
    serving: Start, detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    detector.connected = False
    with serving() as service:
        until(service, "waiting", healthy=False, says="test://detector is not connected")
        wait_until(lambda: "waiting: test://detector is not connected" in caplog.text)
        detector.connected = True
        until(service, "running", healthy=True)
        detector.sends = False
        until(service, "idle", healthy=True)


def test_frames_that_all_fail_are_failing_and_end_with_an_error(
    serving: Start, detector: Detector
) -> None:
    detector.damaged = True
    sink = FaultySink()
    with serving(sink) as service:
        until(service, "failing", healthy=False, says="none is done")
    with pytest.raises(
        ServiceError, match=r"none of \d+ frames was stored; the last error: .*it was"
    ):
        service.raise_failure()
    assert service.health.state == "stopped"


def test_frames_that_fail_for_a_while_clear(serving: Start, detector: Detector) -> None:
    with serving(FaultySink()) as service:
        until(service, "running")
        detector.damaged = True
        until(service, "failing", says="none is done")
        detector.damaged = False
        until(service, "running")


def test_a_stage_that_hangs_withholds_the_watchdog(
    serving: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(FaultySink()) as service:
        until(service, "running")
        free = threading.Event()
        result = TaskLane.result

        def hang(lane: TaskLane[Any, Any]) -> Any:
            free.wait(120)
            return result(lane)

        monkeypatch.setattr(TaskLane, "result", hang)
        until(service, "failing", healthy=False, watchdog=False, says="thread work 0 is stuck")
        free.set()
        until(service, "running", watchdog=True)


def test_a_sink_thread_that_dies_is_never_healthy_again(
    serving: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FaultySink()
    with serving(sink, drain_s=1) as service:
        until(service, "running")
        monkeypatch.setattr(service._pipeline.sinks[0], "_feed", lambda items: [][1])
        until(service, "failing", watchdog=False, says="thread sink disk has died")
        time.sleep(1)
        assert service.health.state == "failing"
