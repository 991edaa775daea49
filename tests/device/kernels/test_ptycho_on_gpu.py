"""A ptychography predictor whose engine runs on a GPU does all work on patterns there.

All that is tested of streams on the CPU is tested of it again, and what only a GPU has.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device import PtychoPredictor
from edgexnas.device.ptycho.lanes import ScanLane
from edgexnas.device.ptycho.phase_components import HostComponents
from edgexnas.device.ptycho.predictor import lanes_of
from edgexnas.device.serving.service import Service, ServiceError
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult, ObjectSnapshot
from edgexnas.device.sources.events import SeriesStart, SourceFrame
from edgexnas.errors import EngineError, InputError
from edgexnas.familiarity.pattern_checks import NOT_LOOKED_AT
from edgexnas.ptycho import ObjectImage, PatternStore, align_phase
from edgexnas.testing.visible_bundle import write_visible_bundle

HERE = Path(__file__).parent


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"ptycho_on_gpu_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


on_cpu = _load(HERE.parent / "ptycho" / "test_predictor.py")
make_ptycho, bundle, scan = on_cpu.make_ptycho, on_cpu.bundle, on_cpu.scan
unfamiliar = _load(HERE.parent / "ptycho" / "test_unfamiliar_scans.py")
with_probe, diffracted = on_cpu.with_probe, on_cpu.diffracted
pairs, stitched, equal = on_cpu.pairs, on_cpu.stitched, on_cpu.equal


def moved_to_gpu(predictor: PtychoPredictor, session: Any, fake_gpu: Any) -> PtychoPredictor:
    predictor.engine.close()
    predictor._shared.engine = _load(HERE / "root_engine.py").RootEngine(session, fake_gpu)
    return predictor


@pytest.fixture
def predictor(bundle, session, fake_gpu) -> Iterator[PtychoPredictor]:
    with PtychoPredictor(bundle, precision="float32", batch=8, cache=False) as opened:
        yield moved_to_gpu(opened, session, fake_gpu)
    assert session.device_bytes == session.host_bytes == 0


@pytest.fixture
def reference(bundle) -> Iterator[PtychoPredictor]:
    with PtychoPredictor(bundle, precision="float32", batch=8) as opened:
        yield opened


@pytest.fixture
def work_on_the_cpu_fails(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("done on the CPU")

    monkeypatch.setattr("edgexnas.device.ptycho.intake.bin_patterns", fail)
    monkeypatch.setattr("edgexnas.device.ptycho.lanes.scale_patterns", fail)
    monkeypatch.setattr("edgexnas.device.ptycho.phase_components.spread_patch", fail)


class TestStreamOnGpu(on_cpu.TestStream):
    """The rules of streams, with every predictor of the fixture on a GPU."""


@pytest.mark.usefixtures("work_on_the_cpu_fails")
def test_patterns_are_binned_predicted_and_stitched_on_the_gpu(predictor, scan):
    fine = np.kron(scan.patterns, np.full((1, 2, 2), 0.25, np.float32))
    stream = predictor.stream(replace(scan, patterns=fine))
    found = list(stream)
    assert [len(patches) for patches in found] == [8, 8, 8, 8, 3]
    assert predictor.engine.runs[-5:] == [8, 8, 8, 8, 8]
    amplitude = np.concatenate([patches.amplitude for patches in found])
    np.testing.assert_allclose(amplitude, np.sqrt(scan.patterns / 1e4), rtol=1e-5)
    assert (stream.image().coverage > 0).all()


def test_late_missing_and_early_positions_end_as_on_the_cpu(predictor, reference, scan):
    items: list[Any] = pairs(scan)
    for number in (3, 4, 11, 12, 20):
        items[number] = (scan.patterns[number], None)
    items.insert(30, on_cpu.PositionReading(4, tuple(scan.positions_px[4])))
    items.insert(13, on_cpu.PositionReading(11, tuple(scan.positions_px[11])))
    items.insert(2, on_cpu.PositionReading(20, tuple(scan.positions_px[20])))
    streams = [one.stream(items) for one in (predictor, reference)]
    for stream in streams:
        list(stream)
    assert streams[0].counts == streams[1].counts
    assert equal(streams[0].image(), streams[1].image())


def test_masked_pixels_count_as_zero(bundle, session, fake_gpu, scan):
    mask = np.zeros((64, 64), np.bool_)
    mask[5, 6] = mask[63, 0] = True
    patterns = scan.patterns.copy()
    patterns[:, mask] = np.nan
    with PtychoPredictor(bundle, precision="float32", batch=8, mask=mask, cache=False) as opened:
        predictor = moved_to_gpu(opened, session, fake_gpu)
        patches = next(predictor.stream(replace(scan, patterns=patterns)))
    assert (patches.amplitude[:, mask] == 0).all()
    assert (patches.amplitude[:, ~mask] > 0).all()


def collect(stream: Any, numbers: list[int]) -> None:
    for patches in stream:
        numbers += patches.frame_numbers.tolist()


@pytest.mark.parametrize("at", [0, 5, 8, 20, 34])
def test_a_bad_pattern_of_a_scan_ends_it_after_those_before(predictor, reference, scan, at):
    patterns = scan.patterns.copy()
    patterns[at, 7, 9] = -1
    bad = replace(scan, patterns=patterns)
    images, numbers = [], []
    for one in (predictor, reference):
        stream = one.stream(bad)
        seen: list[int] = []
        with pytest.raises(InputError, match=f"pattern {at} holds -1.0 at row 7, col 9"):
            collect(stream, seen)
        assert next(stream, None) is None
        numbers.append(seen)
        images.append(stream.image())
    assert numbers == [list(range(at))] * 2
    assert equal(*images)


def test_a_dtype_without_kernels_is_binned_on_the_cpu_and_said(predictor, reference, scan, caplog):
    with caplog.at_level(logging.WARNING):
        image = stitched(predictor, replace(scan, patterns=scan.patterns.astype(np.int64)))
    assert "binned on the CPU, because there are no CUDA kernels for int64" in caplog.text
    expected = stitched(reference, replace(scan, patterns=scan.patterns.astype(np.int64)))
    assert equal(image, expected)


def test_without_memory_patterns_are_worked_on_by_the_cpu_and_it_is_said(
    predictor, reference, fake_gpu, scan, caplog
):
    fake_gpu.memory_bytes = fake_gpu.used_bytes()
    assert equal(stitched(predictor, scan), stitched(reference, scan))
    for step in ("binned", "stitched"):
        assert f"{step} on the CPU, because Fake GPU has not enough memory" in caplog.text


def test_a_live_source_is_not_read_ahead(predictor, scan):
    taken: list[int] = []

    def live() -> Iterator[Any]:
        for pair in pairs(scan):
            taken.append(len(taken))
            yield pair

    for patches in predictor.stream(live()):
        assert len(taken) == patches.frame_numbers[-1] + 1


def test_a_pattern_may_be_overwritten_once_it_is_given(predictor, reference, scan):
    def reused() -> Iterator[Any]:
        memory = np.empty_like(scan.patterns[0])
        for pattern, position in pairs(scan):
            memory[:] = pattern
            yield memory, position

    assert equal(stitched(predictor, reused()), stitched(reference, scan))


def test_the_object_comes_to_the_host_at_the_end_of_the_scan(predictor, session, scan):
    stream = predictor.stream(scan)
    next(stream)
    assert session.device_bytes > 0
    assert not isinstance(stream._stitcher.components, HostComponents)
    list(stream)
    assert session.device_bytes == session.host_bytes == 0


def test_closing_the_predictor_half_way_leaves_the_image(predictor, reference, scan):
    streams = [one.stream(scan) for one in (predictor, reference)]
    for stream in streams:
        next(stream)
        next(stream)
    predictor.close()
    assert equal(streams[0].image(), streams[1].image())
    with pytest.raises(EngineError, match="this predictor is closed"):
        next(streams[0])


def test_an_object_that_outgrows_the_gpu_ends_the_scan_with_one_sentence(predictor, fake_gpu, scan):
    far = scan.positions_px.copy()
    far[20:] += np.arange(15)[:, None] * 50
    stream = predictor.stream(replace(scan, positions_px=far))
    next(stream)
    next(stream)
    stream.image()
    fake_gpu.memory_bytes = fake_gpu.used_bytes() + 1000
    with pytest.raises(EngineError, match="has not enough memory left"):
        list(stream)
    assert next(stream, None) is None
    fake_gpu.memory_bytes = 1 << 30


def test_a_stream_that_is_dropped_half_way_gives_its_memory_back(predictor, session, scan):
    stream = predictor.stream(scan)
    next(stream)
    del stream
    gc.collect()
    assert session.device_bytes == session.host_bytes == 0


def test_a_gpu_that_disappears_ends_the_scan_with_one_sentence(predictor, fake_gpu, scan):
    stream = predictor.stream(scan)
    next(stream)
    fake_gpu.gone = True
    with pytest.raises(EngineError, match="Fake GPU failed"):
        list(stream)
    with pytest.raises(EngineError, match="Fake GPU failed"):
        stream.image()
    predictor.close()
    with pytest.raises(EngineError, match="was on Fake GPU, which failed"):
        stream.image()


def test_good_patterns_beside_a_bad_one_are_judged(session, fake_gpu, keys, tmp_path, scan):
    path = write_visible_bundle(
        tmp_path / "a.edgex",
        signing_key=keys / "edgexnas.key.pem",
        training_data=unfamiliar.training(scan.patterns * 87),
    )
    patterns = scan.patterns.copy()
    patterns[3, 7, 9] = -1
    with PtychoPredictor(path, trust=keys, precision="float32", batch=8, cache=False) as opened:
        lane = ScanLane(lanes_of(moved_to_gpu(opened, session, fake_gpu)))
        checked = [lane.check(pattern, number) for number, pattern in enumerate(patterns[:8])]
        lane.lane.submit(checked)
        outcome = lane.lane.result()
        lane.close()
    assert list(outcome.faults) == [3]
    judged = outcome.results.reasons != NOT_LOOKED_AT
    assert judged.tolist() == [number != 3 for number in range(8)]
    assert outcome.results.reasons[judged].all()


class TestRefinement:
    """The object is refined on the GPU, or on the CPU with a word why."""

    @pytest.fixture
    def on_gpu(self, with_probe, session, fake_gpu) -> Iterator[PtychoPredictor]:
        with PtychoPredictor(with_probe, precision="float32", batch=8, cache=False) as opened:
            yield moved_to_gpu(opened, session, fake_gpu)
        assert session.device_bytes == session.host_bytes == 0

    def test_it_is_that_of_the_cpu(self, on_gpu, with_probe, session, diffracted):
        found = []
        with PtychoPredictor(with_probe, precision="float32", batch=8) as on_the_cpu:
            for predictor in (on_gpu, on_the_cpu):
                stream = predictor.stream(diffracted, refine=1)
                assert list(stream)
                found.append(stream.refinement)
        assert [refinement.device for refinement in found] == [session.name, "CPU"]
        np.testing.assert_allclose(found[0].residuals, found[1].residuals, rtol=1e-3)
        size = np.abs(found[1].image.values).mean()
        np.testing.assert_allclose(
            found[0].image.values, found[1].image.values, atol=1e-3 * size, rtol=0
        )

    def test_a_service_refines_there_after_the_scan(self, on_gpu, session, diffracted):
        pixel_m = (5e-9, 10e-9)

        def events() -> Iterator[Any]:
            yield SeriesStart("scan")
            places = diffracted.positions_px * pixel_m
            for number, (pattern, place) in enumerate(
                zip(diffracted.patterns, places, strict=True)
            ):
                now = time.monotonic_ns()
                yield SourceFrame("scan", number, pattern, now, position_m=tuple(place))

        items: list[Any] = []
        sinks = [CallbackSink(items.append, policy="block")]
        settings = PipelineSettings(object_pixel_m=pixel_m, refine=1)
        Service(on_gpu, Told(events), sinks, settings=settings).run()
        last = [item for item in items if isinstance(item, ObjectSnapshot)][-1]
        assert last.refinement.device == session.name
        assert last.refinement.residuals[1] < last.refinement.residuals[0]

    def test_patterns_without_kernels_are_refined_on_the_cpu_and_it_is_said_at_once(
        self, on_gpu, diffracted, caplog, monkeypatch
    ):
        monkeypatch.setattr("edgexnas.device.kernels.refine_kernels.MOST_BYTES", 2**12)
        stream = on_gpu.stream(diffracted, refine=1)
        assert "objects are refined on the CPU, because rows of 64 pixels" in caplog.text
        assert list(stream)
        assert stream.refinement.device == "CPU"

    @pytest.mark.parametrize("obstacle", ["not enough memory left", "the predictor is closed"])
    def test_an_object_that_the_gpu_cannot_refine_is_left_to_the_cpu_and_it_is_said(
        self, on_gpu, fake_gpu, diffracted, caplog, obstacle
    ):
        refiner = on_gpu.refiner(1)
        if "closed" in obstacle:
            on_gpu.close()
        else:
            fake_gpu.memory_bytes = fake_gpu.used_bytes()
        store = PatternStore((64, 64))
        store.add(0, diffracted.patterns[0])
        store.place(0, np.zeros(2))
        flat = ObjectImage(np.ones((64, 64), np.complex64), np.ones((64, 64), np.float32), 0)
        assert refiner.refine(flat, store).device == "CPU"
        assert "the object is refined on the CPU, because" in caplog.text
        assert obstacle in caplog.text


class TestService:
    PIXEL_M = (5e-9, 10e-9)

    @pytest.fixture
    def serve(self, predictor, monkeypatch):
        monkeypatch.setattr(
            "edgexnas.device.serving.pattern_work.USUAL_DTYPES", (np.uint16, np.float32)
        )

        def run(patterns: Any, scan: Any) -> tuple[dict[str, int], list[Any]]:
            def events() -> Iterator[Any]:
                yield SeriesStart("scan")
                for number, (pattern, place) in enumerate(
                    zip(patterns, scan.positions_px * self.PIXEL_M, strict=True)
                ):
                    yield SourceFrame(
                        "scan", number, pattern, time.monotonic_ns(), position_m=tuple(place)
                    )

            items: list[Any] = []
            service = Service(
                predictor, Told(events), [CallbackSink(items.append, policy="block")],
                settings=PipelineSettings(object_pixel_m=self.PIXEL_M),
            )  # fmt: skip
            # A GPU that goes may take every pattern with it.
            with suppress(ServiceError):
                service.run()
            return dict(service.status().counts), items

        return run

    @pytest.mark.usefixtures("work_on_the_cpu_fails")
    def test_a_scan_becomes_the_object_and_its_memory_comes_back(
        self, serve, session, visible, scan
    ):
        counts, items = serve(scan.patterns, scan)
        assert counts["done"] == 35
        final = [item for item in items if isinstance(item, ObjectSnapshot)][-1]
        assert final.final
        truth = visible.visible_object()
        np.testing.assert_allclose(align_phase(final.image.values, truth), truth, atol=1e-4)
        assert session.device_bytes == session.host_bytes == 0

    def test_a_bad_pattern_fails_alone(self, serve, scan):
        patterns = scan.patterns.copy()
        patterns[6, 2, 3] = np.nan
        counts, items = serve(patterns, scan)
        assert (counts["done"], counts["failed"]) == (34, 1)
        results = [item for item in items if isinstance(item, FrameResult)]
        assert "pattern 6 holds nan at row 2, col 3" in results[6].error
        final = [item for item in items if isinstance(item, ObjectSnapshot)][-1]
        assert np.isfinite(final.image.values).all()

    def test_a_gpu_that_disappears_fails_patterns_and_ends_the_scan(self, serve, fake_gpu, scan):
        def vanishing() -> Iterator[Any]:
            yield from scan.patterns[:9]
            fake_gpu.gone = True
            yield from scan.patterns[9:]

        counts, items = serve(vanishing(), scan)
        assert counts["done"] + counts["failed"] == 35
        results = [item for item in items if isinstance(item, FrameResult)]
        assert all("Fake GPU" in result.error for result in results[20:])


class Told:
    url, live = "told://", False

    def __init__(self, events: Any) -> None:
        self.events = events

    def close(self) -> None:
        pass

    def status(self) -> dict[str, int]:
        return {}
