"""The service from a source's events to the sinks."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bundle import Bundle, open_bundle
from edgexnas.device import PeakPredictor, PtychoPredictor
from edgexnas.device.bragg.predictor import lanes_of
from edgexnas.device.serving.peak_work import PeakWork
from edgexnas.device.serving.service import Service, ServiceError
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import ObjectSnapshot, SeriesBegun, SeriesEnded
from edgexnas.device.sinks.results_file import read_results
from edgexnas.device.sources.events import (
    SeriesEnd,
    SeriesStart,
    SourcePosition,
    SourceTrouble,
)
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.simulate import PtychographySettings, simulate_scan

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

Make = Callable[..., Any]


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that happens soon, and give up after 2 min: what follows then fails."""
    end = time.monotonic() + 120
    while not true() and time.monotonic() < end:
        time.sleep(0.001)


class TestOrder:
    @pytest.mark.parametrize("workers", [1, 3])
    def test_results_come_in_order_and_are_those_of_the_predictor(
        self,
        serve: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        bundle: Bundle,
        workers: int,
    ) -> None:
        counts = serve(
            (frame_of(n, pixels) for n, pixels in enumerate(small_frames)),
            workers=workers,
            background_frames=1,
        )
        assert counts["done"] == 8
        assert seen.numbers == list(range(8))
        with PeakPredictor(bundle) as predictor:
            for result in seen.results:
                alone = predictor.process(small_frames[result.number])
                np.testing.assert_array_equal(result.peaks.maxima, alone.maxima)
                np.testing.assert_allclose(result.peaks.positions_px, alone.positions_px, atol=1e-4)

    def test_frames_out_of_order_are_put_in_order(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        order = [0, 2, 1, 3, 6, 5, 4, 7]
        counts = serve(
            (frame_of(n, small_frames[n]) for n in order), reorder_wait_ms=1e6, background_frames=8
        )
        assert seen.numbers == list(range(8))
        assert (counts["done"], counts["lost"]) == (8, 0)

    def test_a_gap_is_waited_for_and_then_lost(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        def events() -> Iterator[Any]:
            for number in (0, 1, 3):
                yield frame_of(number, small_frames[number])
            wait_until(lambda: len(seen.numbers) == 3)
            yield frame_of(2, small_frames[2])
            yield frame_of(4, small_frames[4])

        counts = serve(events(), reorder_wait_ms=20, background_frames=1)
        assert seen.numbers == [0, 1, 3, 4]
        assert (counts["done"], counts["dropped"], counts["lost"]) == (4, 1, 0)

    def test_a_duplicate_is_not_processed_again(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        counts = serve(frame_of(n, small_frames[n]) for n in (0, 1, 1, 2, 0))
        assert seen.numbers == [0, 1, 2]
        assert (counts["received"], counts["duplicate"]) == (5, 2)

    def test_a_series_change_drains_the_old_series_first(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        def events() -> Iterator[Any]:
            for number in range(5):
                yield frame_of(number, small_frames[number], series="a")
            for number in range(3):
                yield frame_of(number, small_frames[number][:64, :64].copy(), series="b")
            yield frame_of(5, small_frames[5], series="a")

        counts = serve(events(), workers=2)
        told = [
            (type(item).__name__, item.series, getattr(item, "number", None)) for item in seen.items
        ]
        assert told == [
            ("SeriesBegun", "a", None),
            *[("FrameResult", "a", number) for number in range(5)],
            ("SeriesEnded", "a", None),
            ("SeriesBegun", "b", None),
            *[("FrameResult", "b", number) for number in range(3)],
            ("SeriesEnded", "b", None),
        ]
        assert (counts["done"], counts["dropped"]) == (8, 1)

    def test_frames_that_the_detector_sent_and_that_never_came_are_lost(
        self, serve: Make, small_frames: list[Any], frame_of: Make
    ) -> None:
        events = [
            SeriesStart("a"),
            frame_of(1, small_frames[1]),
            frame_of(3, small_frames[3]),
            SeriesEnd("a", frames_sent=6, arrival_ns=0),
        ]
        assert serve(events)["lost"] == 4


class TestFailures:
    def test_a_frame_of_another_shape_or_dtype_fails_and_others_go_on(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        odd = [small_frames[0][:50], small_frames[0].astype(np.int32), np.zeros(3, np.uint16)]
        frames = [small_frames[0], odd[0], small_frames[1], odd[1], odd[2], small_frames[2]]
        counts = serve(frame_of(n, pixels) for n, pixels in enumerate(frames))
        assert (counts["done"], counts["failed"]) == (3, 3)
        assert seen.numbers == list(range(6))
        errors = [result.error for result in seen.results]
        assert [error is None for error in errors] == [True, False, True, False, False, True]
        assert "shape (50, 128)" in errors[1]

    def test_a_first_frame_of_nans_fails_and_shows_no_background(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        frames = [pixels.astype(np.float32) for pixels in small_frames]
        frames[0] = np.full_like(frames[0], np.nan)
        counts = serve(frame_of(n, pixels) for n, pixels in enumerate(frames))
        assert (counts["done"], counts["failed"]) == (7, 1)
        assert "NaN" in seen.results[0].error
        assert all(len(result.peaks) == 3 for result in seen.results[1:])

    def test_a_series_whose_mask_does_not_fit_fails_and_the_next_goes_on(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make, bundle: Bundle
    ) -> None:
        events = [
            SeriesStart("a", mask=np.zeros((3, 4), np.bool_)),
            *(frame_of(n, small_frames[n]) for n in range(3)),
            SeriesStart("b"),
            *(frame_of(n, small_frames[n], series="b") for n in range(2)),
        ]
        counts = serve(events)
        assert (counts["done"], counts["failed"]) == (2, 3)
        assert "shape" in seen.results[0].error

    def test_an_engine_that_fails_on_one_frame_fails_that_frame_alone(
        self,
        serve: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        peak_predictor: PeakPredictor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        lanes = lanes_of(peak_predictor)
        locate = lanes.locate

        def faulty(found: Any, numbers: Any, *checks: Any) -> Any:
            if 3 in numbers:
                raise RuntimeError("the card is hot")
            return locate(found, numbers, *checks)

        monkeypatch.setattr(lanes, "locate", faulty)
        counts = serve(frame_of(n, pixels) for n, pixels in enumerate(small_frames))
        assert (counts["done"], counts["failed"]) == (7, 1)
        assert seen.results[3].error == "RuntimeError: the card is hot"

    def test_a_frame_that_could_not_be_decoded_is_failed_in_its_turn(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        def events() -> Iterator[Any]:
            yield frame_of(0, small_frames[0])
            yield SourceTrouble("a", 1, "frame 1 is no bslz4", time.monotonic_ns())
            yield SourceTrouble(None, None, "the connection was lost", time.monotonic_ns())
            yield frame_of(2, small_frames[2])

        counts = serve(events())
        assert seen.numbers == [0, 1, 2]
        assert seen.results[1].error == "frame 1 is no bslz4"
        assert (counts["done"], counts["failed"], counts["received"]) == (2, 1, 3)

    def test_an_exception_in_a_callback_harms_neither_the_frame_nor_the_service(
        self, peak_predictor: PeakPredictor, told_source: Make, small_frames: Any, frame_of: Make
    ) -> None:
        calls = []

        def faulty(item: object) -> None:
            calls.append(item)
            raise ZeroDivisionError("mine")

        sink = CallbackSink(faulty, policy="block")
        events = [frame_of(n, pixels) for n, pixels in enumerate(small_frames)]
        counts = Service(peak_predictor, told_source(events), [sink]).run().counts
        assert counts["done"] == 8
        assert sink.exceptions == len(calls) == 10

    def test_a_source_that_breaks_fails_the_service_after_what_came_is_done(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: Any,
        frame_of: Make,
    ) -> None:
        def events() -> Iterator[Any]:
            yield frame_of(0, small_frames[0])
            raise SourceError("the cable was cut")

        service = Service(peak_predictor, told_source(events()), [CallbackSink(seen)])
        with pytest.raises(ServiceError, match="the cable was cut"):
            service.run()
        assert service.status().health.state == "stopped"
        assert seen.numbers == [0]

    def test_a_clock_that_is_set_changes_nothing(
        self,
        serve: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def events() -> Iterator[Any]:
            for number, pixels in enumerate(small_frames):
                monkeypatch.setattr(time, "time", lambda step=number: (-1) ** step * 1e9)
                monkeypatch.setattr(time, "time_ns", lambda step=number: (-1) ** step * 10**18)
                yield frame_of(number, pixels)

        assert serve(events(), live=True)["done"] == 8
        assert seen.numbers == list(range(8))


class TestSourceRestart:
    def test_a_source_that_comes_back_under_another_name_begins_anew(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        def events() -> Iterator[Any]:
            for number in range(100, 104):
                yield frame_of(number, small_frames[number % 8], series="pva@1")
            yield SourceTrouble(None, None, "the server went away", time.monotonic_ns())
            yield SeriesStart("pva@2")
            for number in range(1, 4):
                yield frame_of(number, small_frames[number % 8], series="pva@2")

        counts = serve(events())
        assert [(r.series, r.number) for r in seen.results] == [
            *(("pva@1", number) for number in range(100, 104)),
            *(("pva@2", number) for number in range(1, 4)),
        ]
        assert (counts["done"], counts["lost"], counts["failed"]) == (7, 1, 0)


class TestFullDisk:
    def test_results_fail_while_the_disk_is_full_and_are_stored_again_afterwards(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        adds_up: Make,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        free = [usage.free]
        monkeypatch.setattr("shutil.disk_usage", lambda place: usage._replace(free=free[0]))
        services: list[Service] = []

        def until(count: int) -> None:
            counts = services[0].status
            wait_until(lambda: counts().counts["done"] + counts().counts["failed"] >= count)

        def is_open() -> bool:
            sink, _ = services[0]._pipeline.sinks[0].observe(time.monotonic())
            return sink.opened

        def events() -> Iterator[Any]:
            for number in range(60):
                if number in (20, 40):
                    until(number)
                    free[0] = 0 if number == 20 else usage.free
                if number == 40:
                    wait_until(is_open)
                yield frame_of(number, small_frames[number % 8])

        sinks = [Hdf5Sink(tmp_path), CallbackSink(seen)]
        settings = PipelineSettings(background_frames=1)
        service = Service(
            peak_predictor, told_source(events()), sinks, settings=settings, sink_retry_s=0.01
        )
        services.append(service)
        counts = service.run().counts
        assert adds_up(counts)
        assert (counts["done"], counts["failed"]) == (40, 20)
        assert [f.number for f in read_results(tmp_path)] == [*range(20), *range(40, 60)]
        assert seen.numbers == list(range(60))
        assert "has 0 MiB free" in caplog.text
        assert "recovered" in caplog.text


class TestOverload:
    def test_at_twice_the_rate_old_frames_are_dropped_and_the_newest_are_done(
        self,
        serve: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        peak_predictor: PeakPredictor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The engine does one frame while two come."""
        lanes = lanes_of(peak_predictor)
        locate = lanes.locate
        sent, done, lags = [0], [0], list[int]()

        def slow(found: Any, numbers: Any, *checks: Any) -> Any:
            done[0] += len(found)
            wait_until(lambda: sent[0] >= min(399, 2 * done[0]))
            lags.extend(sent[0] - number for number in numbers)
            return locate(found, numbers, *checks)

        def events() -> Iterator[Any]:
            yield SeriesStart("a")
            for number in range(400):
                # No faster either, or what is measured would be the source's speed.
                wait_until(lambda due=number: due <= 2 * done[0] + 8)
                sent[0] = number
                yield frame_of(number, small_frames[number % 8])

        monkeypatch.setattr(PeakWork, "warm_up", lambda self: None)
        monkeypatch.setattr(lanes, "locate", slow)
        counts = serve(events(), live=True, queue_frames=16, background_frames=1, max_age_ms=1e6)
        assert counts["received"] == 400
        assert counts["dropped"] > 40
        assert counts["done"] + counts["dropped"] == 400
        assert seen.numbers == sorted(set(seen.numbers))
        assert seen.numbers[-1] == 399
        # What may lie between a frame and the newest one: those that wait, those between finder
        # and engine, one in each stage, at the two frames that come while the engine does one.
        assert max(lags) <= 2 * (16 + 32 + 3) + 40

    def test_frames_older_than_the_limit_are_dropped(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
    ) -> None:
        def events() -> Iterator[Any]:
            yield replace(frame_of(0, small_frames[0]), arrival_ns=time.monotonic_ns() - 10**11)
            yield frame_of(1, small_frames[1])

        counts = serve(events(), live=True, max_age_ms=50_000)
        assert seen.numbers == [1]
        assert counts["dropped"] == 1

    def test_a_replay_waits_and_drops_nothing(
        self, serve: Make, small_frames: list[Any], frame_of: Make
    ) -> None:
        counts = serve((frame_of(n, small_frames[n % 8]) for n in range(200)), queue_frames=2)
        assert counts["done"] == 200

    def test_frames_wait_on_disk_and_come_back_in_order(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make, tmp_path: Path
    ) -> None:
        counts = serve(
            (frame_of(n, small_frames[n % 8]) for n in range(200)),
            live=True,
            policy="spill",
            queue_frames=4,
            spill_folder=tmp_path,
        )
        assert counts["done"] == 200
        assert seen.numbers == list(range(200))
        assert list(tmp_path.iterdir()) == []

    def test_a_full_spill_folder_drops_and_says_so(
        self, serve: Make, seen: Any, small_frames: list[Any], frame_of: Make, tmp_path: Path
    ) -> None:
        counts = serve(
            (frame_of(n, small_frames[n % 8]) for n in range(300)),
            live=True,
            policy="spill",
            queue_frames=2,
            spill_folder=tmp_path,
            spill_mib=0.1,
        )
        assert counts["dropped"] > 0
        assert counts["done"] + counts["dropped"] == 300
        assert seen.numbers == sorted(set(seen.numbers))

    def test_a_stalled_sink_does_not_stall_the_others(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
    ) -> None:
        released = threading.Event()

        def stall(item: object) -> None:
            released.wait(120)

        events = (frame_of(n, small_frames[n % 8]) for n in range(100))
        stalled = CallbackSink(stall, name="stalled", policy="drop-oldest")
        good = CallbackSink(seen, name="good", policy="block")
        service = Service(peak_predictor, told_source(events), [stalled, good], sink_queue=8)
        service.start()
        wait_until(lambda: len(seen.results) == 100)
        released.set()
        service.wait()
        service.close()
        assert seen.numbers == list(range(100))
        assert service.status().counts["done"] == 100
        assert service.sink_counts()["stalled"].dropped > 50

    def test_a_sink_that_must_have_results_holds_up_a_live_service_which_drops_and_says_so(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        adds_up: Make,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        released = threading.Event()

        def stall(item: object) -> None:
            released.wait(120)
            seen(item)

        def events() -> Iterator[Any]:
            yield SeriesStart("a")
            for number in range(400):
                yield frame_of(number, small_frames[number % 8])
            # Until the service has said that it waits, nothing more happens.
            wait_until(lambda: "waits for it" in caplog.text)
            released.set()

        service = Service(
            peak_predictor,
            told_source(events(), live=True),
            [CallbackSink(stall, policy="block")],
            settings=PipelineSettings(background_frames=1, queue_frames=16, max_age_ms=1e6),
            sink_queue=8,
        )
        counts = service.run().counts
        assert adds_up(counts)
        assert "callback does not keep up, and the service waits for it" in caplog.text
        assert counts["dropped"] > 200
        assert counts["done"] == len(seen.results) == 400 - counts["dropped"]
        assert seen.numbers[-1] == 399


class TestHealth:
    def test_stages_that_wait_for_a_sink_have_not_stalled(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        small_frames: list[Any],
        frame_of: Make,
    ) -> None:
        released = threading.Event()
        events = (frame_of(n, small_frames[n % 8]) for n in range(300))
        sink = CallbackSink(lambda item: released.wait(120), policy="block")
        service = Service(peak_predictor, told_source(events), [sink], sink_queue=1)
        beats_ns = service._pipeline.beats_ns
        try:
            service.start()
            wait_until(lambda: service.status().queues["results"].length == 32)
            # Time for each stage to take one more and to wait with it.
            time.sleep(0.3)
            stuck_since = time.monotonic_ns()
            wait_until(lambda: min(beats_ns.values()) > stuck_since)
            assert min(beats_ns.values()) > stuck_since
        finally:
            released.set()
            service.wait()
            service.close()

    def test_what_has_ended_does_not_stall_while_another_sink_still_writes(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        released = threading.Event()
        events = [frame_of(n, pixels) for n, pixels in enumerate(small_frames)]
        sinks = [CallbackSink(seen, policy="block"), SlowToClose(released)]
        service = Service(peak_predictor, told_source(events), sinks)
        monkeypatch.setattr("edgexnas.device.monitoring.health.STUCK_S", 0.5)
        try:
            service.start()
            # The slow one need not be waited for, so what is left has ended.
            wait_until(lambda: min(service._pipeline.beats_ns.values()) == sys.maxsize)
            assert service._pipeline.sinks[0].join(120)
            time.sleep(0.6)
            assert service.health.healthy
            assert service.health.watchdog
            assert not service._pipeline.join(0.0)
        finally:
            released.set()
            service.wait()
            service.close()


class SlowToClose(CallbackSink):
    """A sink that nobody must wait for and that closes when it is told to."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__(lambda item: None, name="slow")
        self._released = released

    def close(self) -> None:
        self._released.wait(120)


class TestStopping:
    def test_a_service_that_is_stopped_before_it_starts_takes_nothing_and_ends(
        self, peak_predictor: PeakPredictor, told_source: Make, seen: Any, frame_of: Make
    ) -> None:
        events = (frame_of(n, np.zeros((96, 128), np.uint16)) for n in range(100_000))
        service = Service(peak_predictor, told_source(events), [CallbackSink(seen)])
        service.stop()
        assert service.run().health.state == "stopped"
        assert service.complete
        assert not seen.results

    def test_a_service_that_is_stopped_and_cannot_start_says_why(
        self, peak_predictor: PeakPredictor, told_source: Make, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        service = Service(peak_predictor, told_source([]), [Hdf5Sink(tmp_path / "file" / "in")])
        service.stop()
        with pytest.raises(ServiceError, match="cannot be opened"):
            service.run()

    def test_a_service_that_is_stopped_finishes_what_it_has(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
    ) -> None:
        def events() -> Iterator[Any]:
            for number in range(100_000):
                time.sleep(0.001)
                yield frame_of(number, small_frames[number % 8])

        def note(item: Any) -> None:
            seen(item)
            if len(seen.numbers) == 20:
                service.stop()

        service = Service(
            peak_predictor,
            told_source(events()),
            [CallbackSink(note, policy="block")],
            settings=PipelineSettings(drain_s=120),
        )
        status = service.run()
        assert status.state == "stopped"
        assert service.complete
        assert status.counts["done"] == status.counts["received"] == len(seen.results)
        assert isinstance(seen.items[-1], SeriesEnded)

    def test_an_abort_drops_what_is_not_stored_and_the_counts_add_up(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        small_frames: list[Any],
        frame_of: Make,
        adds_up: Make,
    ) -> None:
        released = threading.Event()
        events = (frame_of(n, small_frames[n % 8]) for n in range(5000))
        sink = CallbackSink(lambda item: released.wait(120), policy="block")
        service = Service(peak_predictor, told_source(events), [sink], sink_queue=4)
        service.start()
        wait_until(lambda: service.status().counts["received"] > 20)
        service.abort()
        released.set()
        service.wait()
        service.close()
        counts = service.status().counts
        assert not service.complete
        assert adds_up(counts)
        assert counts["dropped"] + counts["failed"] > 0

    def test_a_status_says_what_runs(
        self,
        peak_predictor: PeakPredictor,
        told_source: Make,
        seen: Any,
        small_frames: list[Any],
        frame_of: Make,
    ) -> None:
        events = [frame_of(n, pixels) for n, pixels in enumerate(small_frames)]
        service = Service(peak_predictor, told_source(events), [CallbackSink(seen)])
        assert service.status().state == "starting"
        status = service.run()
        assert status.model_id == "centroid"
        assert status.engine is not None
        assert status.engine.name == "onnxruntime"
        assert str(status.detection).startswith("threshold ")
        assert (status.series, status.watermark, status.peaks_total) == ("a", 7, 24)
        assert status.latency_ms.count == 8
        assert status.last_result is not None
        assert status.last_result.pixels is not None
        assert len(status.last_result.positions_px) == 3
        assert set(status.queues) == {"waiting", "results", "callback"}

    def test_two_sinks_of_one_name_are_refused(
        self, peak_predictor: PeakPredictor, told_source: Make, seen: Any
    ) -> None:
        with pytest.raises(ConfigurationError, match="a name of its own"):
            Service(peak_predictor, told_source([]), [CallbackSink(seen), CallbackSink(seen)])


class TestPtychography:
    PIXEL_M = (5e-9, 10e-9)

    @pytest.fixture
    def predictor(
        self, visible: ModuleType, keys: Path, tmp_path: Path
    ) -> Iterator[PtychoPredictor]:
        path = visible.write_visible_bundle(
            tmp_path / "v.edgex", signing_key=keys / "edgexnas.key.pem"
        )
        with PtychoPredictor(open_bundle(path, trust=keys), precision="float32") as opened:
            yield opened

    @pytest.mark.parametrize("apart", [False, True])
    def test_patterns_and_positions_become_the_object(
        self,
        predictor: PtychoPredictor,
        visible: ModuleType,
        told_source: Make,
        frame_of: Make,
        seen: Any,
        apart: bool,
    ) -> None:
        scan = visible.visible_scan()
        places = [
            tuple(p * s for p, s in zip(xy, self.PIXEL_M, strict=True))
            for xy in scan.positions_px.tolist()
        ]

        def events() -> Iterator[Any]:
            yield SeriesStart("scan")
            for number, (pattern, place) in enumerate(zip(scan.patterns, places, strict=True)):
                if apart:
                    yield SourcePosition(None, number, place, time.monotonic_ns())
                yield frame_of(number, pattern, series="scan", position_m=None if apart else place)

        settings = PipelineSettings(object_pixel_m=self.PIXEL_M)
        service = Service(
            predictor,
            told_source(events()),
            [CallbackSink(seen, policy="block")],
            settings=settings,
        )
        status = service.run()
        assert status.counts["done"] == 35
        final = [item for item in seen.items if isinstance(item, ObjectSnapshot)][-1]
        assert final.final
        truth = visible.visible_object()
        np.testing.assert_allclose(final.image.amplitude, np.abs(truth), atol=0.02)
        assert status.last_result is not None
        assert status.last_result.object_image is final.image

    def test_a_scan_is_refined_after_its_end_and_shown_with_the_networks_object(
        self, visible: ModuleType, keys: Path, tmp_path: Path, told_source: Make, frame_of: Make,
        seen: Any,
    ) -> None:  # fmt: skip
        scan = simulate_scan(PtychographySettings(scan_shape_px=(36, 36), step_px=9), seed=3)
        path = visible.write_visible_bundle(
            tmp_path / "v.edgex", signing_key=keys / "edgexnas.key.pem", probe=scan.probe
        )

        def events() -> Iterator[Any]:
            yield SeriesStart("scan")
            for number, pattern in enumerate(scan.patterns):
                place = tuple(scan.positions_px[number] * self.PIXEL_M)
                yield frame_of(number, pattern, series="scan", position_m=place)

        sinks = [CallbackSink(seen, policy="block"), Hdf5Sink(tmp_path)]
        with PtychoPredictor(open_bundle(path, trust=keys), precision="float32") as opened:
            service = Service(
                opened, told_source(events()), sinks,
                settings=PipelineSettings(object_pixel_m=self.PIXEL_M, refine=8),
            )  # fmt: skip
            status = service.run()
        shown = [item for item in seen.items if isinstance(item, ObjectSnapshot)]
        network, refined = shown[-2], shown[-1]
        assert network.final
        assert network.refinement is None
        assert refined.refinement is not None
        assert refined.image is network.image
        residuals = refined.refinement.residuals
        assert residuals[-1] < 0.1 * residuals[0]
        assert status.last_result is not None
        assert status.last_result.refinement is refined.refinement
        (stored,) = tmp_path.glob("object_scan_*.h5")
        with h5py.File(stored) as file:
            np.testing.assert_allclose(file["entry/refinement/residual"][()], residuals)
            assert "network" in file["entry"]

    def test_refinement_needs_a_probe_before_the_service_starts(
        self, predictor: PtychoPredictor, told_source: Make
    ) -> None:
        settings = PipelineSettings(object_pixel_m=self.PIXEL_M, refine=8)
        with pytest.raises(ConfigurationError, match="holds no probe, which refine=8 needs"):
            Service(predictor, told_source([]), settings=settings)

    def test_patterns_that_cannot_be_refined_are_stitched_all_the_same(
        self, visible: ModuleType, keys: Path, tmp_path: Path, told_source: Make, frame_of: Make,
        seen: Any,
    ) -> None:  # fmt: skip
        path = visible.write_visible_bundle(
            tmp_path / "v.edgex", signing_key=keys / "edgexnas.key.pem",
            probe=np.ones((1, 128, 128), np.complex64),
        )  # fmt: skip
        scan = visible.visible_scan()
        frames = [
            frame_of(k, scan.patterns[k], series="scan", position_m=(k * 1e-7, k * 1e-7))
            for k in range(4)
        ]
        with PtychoPredictor(open_bundle(path, trust=keys), precision="float32") as opened:
            settings = PipelineSettings(object_pixel_m=self.PIXEL_M, refine=2)
            service = Service(
                opened, told_source([SeriesStart("scan"), *frames]),
                [CallbackSink(seen, policy="block")], settings=settings,
            )  # fmt: skip
            status = service.run()
        assert status.counts["done"] == 4
        assert status.last_error is not None
        assert "have shape (64, 64) and the probe of the bundle (128, 128)" in (
            status.last_error.message
        )

    def test_positions_in_metres_need_the_size_of_a_pixel(
        self, predictor: PtychoPredictor, told_source: Make
    ) -> None:
        with pytest.raises(ConfigurationError, match="object_pixel_m"):
            Service(predictor, told_source([]))


def test_results_name_the_detectors_frame_and_the_bundle(
    tmp_path: Path,
    peak_predictor: PeakPredictor,
    told_source: Make,
    small_frames: list[Any],
    frame_of: Make,
) -> None:
    frames = [frame_of(number, small_frames[0], detector_id=700 + number) for number in range(2)]
    Service(peak_predictor, told_source(frames), [Hdf5Sink(tmp_path)]).run()
    stored = list(read_results(tmp_path))
    assert [frame.detector_id for frame in stored] == [700, 701]
    assert {frame.bundle_digest for frame in stored} == {peak_predictor.bundle_digest}
    assert len(peak_predictor.bundle_digest) == 64


def test_series_metadata_reaches_the_sinks(
    serve: Make, seen: Any, small_frames: list[Any], frame_of: Make
) -> None:
    serve([SeriesStart("a", metadata={"energy_kev": 12.4}), frame_of(0, small_frames[0])])
    begun = seen.items[0]
    assert isinstance(begun, SeriesBegun)
    assert begun.metadata == {"energy_kev": 12.4}
