"""A service in plans of a real RunEngine: its frames come from a detector that plans trigger."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas import testing
from edgexnas.bundle import generate_keys
from edgexnas.control.snapshot import ServiceSnapshot, read_snapshot
from edgexnas.device import Predictor
from edgexnas.device.monitoring import open_views
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sources.events import SourceFrame
from edgexnas.errors import ConfigurationError, ControlError, DroppedFramesError

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")
pytest.importorskip("ophyd_async", reason="ophyd-async is the extra «bluesky»")

from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky.plans import adaptive_scan, count, scan
from bluesky.utils import FailedStatus
from ophyd_async.core import AsyncStatus, Device, init_devices
from ophyd_async.sim import SimMotor

from edgexnas.control import ServiceDevice

SPOTS = testing.SPOTS_PX


class QueueSource:
    """A live event source that gives the frames that a test puts in."""

    url = "queue://"
    live = True

    def __init__(self) -> None:
        self.frames: queue.Queue[SourceFrame | None] = queue.Queue()

    def put(self, number: int, spots: Any = SPOTS) -> None:
        pixels = testing.spot_frame(spots, seed=number)
        self.frames.put(SourceFrame("a", number, pixels, time.monotonic_ns()))

    def events(self) -> Iterator[SourceFrame]:
        while (frame := self.frames.get()) is not None:
            yield frame

    def close(self) -> None:
        self.frames.put(None)

    def status(self) -> Mapping[str, int | str]:
        return {}


class Detector(Device):
    """Sends one frame a trigger; some numbers may be skipped, as a network loses them."""

    def __init__(self, source: QueueSource, motor: Any = None) -> None:
        self._source, self._motor = source, motor
        self.number = 0
        self.skipped: set[int] = set()
        self.places: list[float] = []
        super().__init__("detector")

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        # Before 0.5 on the motor's scale there is one spot, and behind it are three.
        place = 1.0 if self._motor is None else await self._motor.user_readback.get_value()
        self.places.append(place)
        if self.number not in self.skipped:
            self._source.put(self.number, SPOTS if place > 0.5 else SPOTS[:1])
        self.number += 1

    async def read(self) -> dict[str, Any]:
        return {}

    async def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    keys = tmp_path_factory.mktemp("keys")
    generate_keys(keys)
    path = keys.parent / f"{keys.name}.edgex"
    return testing.write_centroid_bundle(path, signing_key=keys / "edgexnas.key.pem"), keys


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread that the machine holds up for seconds look stuck, and no answer be too late."""
    monkeypatch.setattr("edgexnas.device.monitoring.health.STUCK_S", 9999.0)
    monkeypatch.setattr("edgexnas.control.snapshot.ANSWER_S", 120.0)


@pytest.fixture
def source() -> QueueSource:
    return QueueSource()


@pytest.fixture
def start(
    bundle: tuple[Path, Path], source: QueueSource, free_port: Callable[[], int]
) -> Iterator[Callable[..., str]]:
    """`start(port=0, source=source)` runs a service and returns its URL."""
    stops = []

    def run(port: int = 0, source: QueueSource = source) -> str:
        port = port or free_port()
        predictor = Predictor(bundle[0], trust=bundle[1], precision="float32")
        service = Service(
            predictor,
            source,  # type: ignore[arg-type]
            settings=PipelineSettings(background_frames=1, reorder_wait_ms=50, max_age_ms=1e6),
        )
        service.views = open_views(service, http_port=port)
        service.start()
        waiting = threading.Thread(target=service.wait)
        waiting.start()

        def stop() -> None:
            service.stop()
            waiting.join()
            service.close()
            predictor.close()

        stops.append(stop)
        return f"http://127.0.0.1:{port}"

    run.stops = stops  # type: ignore[attr-defined]
    yield run
    for stop in stops:
        stop()


@pytest.fixture
def engine() -> Iterator[tuple[RunEngine, list[dict[str, Any]]]]:
    """A RunEngine and the events that it emits, with their data."""
    run = RunEngine({})
    events: list[dict[str, Any]] = []
    run.subscribe(lambda name, document: events.append(document["data"]), "event")
    yield run, events
    # Its loop would go on in a thread of its own, with the threads that asked services.
    run.loop.call_soon_threadsafe(run.loop.stop)
    run._th.join()
    run.loop.close()


@pytest.fixture
def device(start: Callable[..., str], engine: Any) -> Callable[..., ServiceDevice]:
    """`device(**options)` starts a service and connects to it."""

    def make(**options: Any) -> ServiceDevice:
        url = start()
        with init_devices():
            peaks = ServiceDevice(url, **{"timeout_s": 120.0, **options})
        return peaks

    return make


def until(device: ServiceDevice, happened: Callable[[ServiceSnapshot], bool]) -> Any:
    """Let a plan wait until the service counts something."""
    end_s = time.monotonic() + 120
    while not happened(read_snapshot(device._url)):
        assert time.monotonic() < end_s
        yield from bps.sleep(0.05)


def test_each_point_reads_the_sums_of_its_own_frames(
    engine: Any, device: Callable[..., ServiceDevice], source: QueueSource
) -> None:
    run, events = engine
    peaks = device()
    with init_devices():
        motor = SimMotor(instant=True)
    run(scan([Detector(source, motor), peaks], motor, 0, 1, 6))
    assert [event["peaks-peaks"] for event in events] == [1, 1, 1, 3, 3, 3]
    assert [event["peaks-frames"] for event in events] == [1] * 6
    assert [event["peaks-peaks_per_frame"] for event in events] == [1, 1, 1, 3, 3, 3]
    intensities = np.array([event["peaks-intensity"] for event in events])
    assert intensities[3:].min() > 2.5 * intensities[:3].max()
    assert all(event["peaks-frames_per_s"] > 0 for event in events)
    assert {(event["peaks-series"], event["peaks-missing"]) for event in events} == {("a", 0)}


def test_a_dropped_frame_fails_the_plan_at_its_point(
    engine: Any, device: Callable[..., ServiceDevice], source: QueueSource
) -> None:
    run, events = engine
    peaks = device(frames_per_point=3)
    detector = Detector(source)
    detector.skipped = {4}

    def point(detectors: Any) -> Any:
        for _ in range(3):
            yield from bps.trigger(detector, wait=True)
        yield from bps.trigger_and_read([peaks])

    with pytest.raises(FailedStatus) as caught:
        run(count([peaks], 3, per_shot=point))
    assert isinstance(caught.value.__cause__, DroppedFramesError)
    assert "1 frames are missing since the plan began (1 lost)" in str(caught.value.__cause__)
    # The point before is whole and the one that lacks a frame was not read.
    assert [event["peaks-frames"] for event in events] == [3]


def test_a_plan_may_allow_some_missing_frames_and_reads_how_many(
    engine: Any, device: Callable[..., ServiceDevice], source: QueueSource
) -> None:
    run, events = engine
    peaks = device(frames_per_point=3, most_missing=1)
    detector = Detector(source)
    detector.skipped = {1}

    def point(detectors: Any) -> Any:
        for _ in range(3):
            yield from bps.trigger(detector, wait=True)
        yield from bps.trigger_and_read([peaks])

    run(count([peaks], 1, per_shot=point))
    (event,) = events
    assert (event["peaks-frames"], event["peaks-missing"], event["peaks-peaks"]) == (2, 1, 6)
    assert event["peaks-peaks_per_frame"] == 3


def test_a_frame_that_is_missing_after_the_last_point_fails_the_plan_too(
    engine: Any, device: Callable[..., ServiceDevice], source: QueueSource
) -> None:
    run, _ = engine
    peaks = device()
    detector = Detector(source)

    def plan() -> Any:
        yield from bps.stage(peaks, wait=True)
        yield from bps.trigger(detector)
        yield from bps.trigger(peaks, wait=True)
        source.put(2)
        yield from until(peaks, lambda now: now.lost == 1)
        yield from bps.unstage(peaks, wait=True)

    with pytest.raises(FailedStatus) as caught:
        run(plan())
    assert isinstance(caught.value.__cause__, DroppedFramesError)


def test_an_adaptive_scan_steps_by_the_peaks_of_its_frames(
    engine: Any, device: Callable[..., ServiceDevice], source: QueueSource
) -> None:
    run, _ = engine
    peaks = device()
    with init_devices():
        motor = SimMotor(instant=True)
    detector = Detector(source, motor)
    plan = adaptive_scan(
        [detector, peaks],
        "peaks-peaks_per_frame",
        motor,
        start=0,
        stop=1,
        min_step=0.02,
        max_step=0.4,
        target_delta=0.5,
        backstep=True,
    )
    run(plan)
    places = np.array(detector.places)
    # It went back at the step from one spot to three, and looked there more closely.
    assert (np.diff(places) < 0).any()
    assert np.abs(places - 0.5).min() < 0.1


def test_a_fly_scan_waits_for_the_frames_since_its_kickoff(
    engine: Any, device: Callable[..., ServiceDevice], source: QueueSource
) -> None:
    run, events = engine
    peaks = device()

    def plan() -> Any:
        yield from bps.open_run()
        yield from bps.stage(peaks, wait=True)
        for number in range(2):
            source.put(number)
        yield from until(peaks, lambda now: now.done == 2)
        yield from bps.prepare(peaks, 5, wait=True)
        yield from bps.kickoff(peaks, wait=True)
        for number in range(2, 7):
            source.put(number, SPOTS[:1])
        yield from bps.complete(peaks, wait=True)
        yield from bps.create()
        yield from bps.read(peaks)
        yield from bps.save()
        yield from bps.unstage(peaks, wait=True)
        yield from bps.close_run()

    run(plan())
    (event,) = events
    assert (event["peaks-frames"], event["peaks-peaks"]) == (5, 5)


def test_too_few_frames_fail_the_plan_with_what_the_service_says(
    engine: Any, device: Callable[..., ServiceDevice]
) -> None:
    run, _ = engine
    peaks = device(timeout_s=0.3)
    with pytest.raises(FailedStatus) as caught:
        run(count([peaks]))
    said = str(caught.value.__cause__)
    assert "0 of 1 frames have ended and no more for 0.3 s" in said
    assert "says: idle" in said


def test_a_service_that_was_started_anew_fails_the_plan(
    engine: Any, start: Any, source: QueueSource
) -> None:
    run, _ = engine
    url = start()
    with init_devices():
        peaks = ServiceDevice(url)

    def plan() -> Any:
        yield from bps.stage(peaks, wait=True)
        # Counts of a service that is older than the one that comes.
        yield from bps.sleep(1.0)
        start.stops.pop()()
        again = QueueSource()
        start(int(url.rpartition(":")[2]), again)
        again.put(0)
        yield from bps.trigger(peaks, wait=True)

    with pytest.raises(FailedStatus) as caught:
        run(plan())
    assert "was started anew" in str(caught.value.__cause__)


def test_without_a_service_connecting_says_how_to_get_one(
    engine: Any, free_port: Callable[[], int]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ControlError, match=r"no service answers .* start it with \[monitoring\]"):
        read_snapshot(url)
    with pytest.raises(Exception, match=r"no service answers"), init_devices():
        _peaks = ServiceDevice(url)


@pytest.mark.parametrize(
    "wrong", [{"frames_per_point": 0}, {"timeout_s": 0.0}, {"most_missing": -1}]
)
def test_numbers_out_of_range_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="specify at least 1"):
        ServiceDevice("http://127.0.0.1:1", **wrong)


def test_an_address_of_something_else_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="is no address of a service"):
        read_snapshot("file:///etc")
