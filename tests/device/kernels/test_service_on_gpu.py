"""A service whose engine runs on a GPU does everything to frames there, with the same peaks."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import pytest

from edgexnas.device.serving.service import Service, ServiceError
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult
from edgexnas.device.sources.events import SourceFrame
from edgexnas.peak_finding import PeakFinder


class Told:
    url, live = "told://", False

    def __init__(self, frames, series: str = "a") -> None:
        self._frames = frames
        self._series = series

    def events(self):
        for number, pixels in enumerate(self._frames):
            yield SourceFrame(self._series, number, pixels, time.monotonic_ns())

    def close(self) -> None:
        pass

    def status(self) -> dict[str, int]:
        return {}


@pytest.fixture
def serve(predictor, monkeypatch):
    monkeypatch.setattr("edgexnas.device.serving.peak_work.USUAL_DTYPES", (np.uint16,))

    def run(frames, **settings):
        items = []
        service = Service(
            predictor,
            Told(frames),
            [CallbackSink(items.append, policy="block")],
            # Whatever holds the machine up, all of its frames show the background.
            settings=PipelineSettings(background_wait_ms=1e6, **settings),
        )
        # A GPU that goes may take every frame with it.
        with suppress(ServiceError):
            service.run()
        counts = dict(service.status().counts)
        return counts, [item for item in items if isinstance(item, FrameResult)]

    return run


@pytest.fixture
def frames(spot_frame):
    return [spot_frame(seed=seed) for seed in range(8)]


@pytest.fixture
def finding_on_the_cpu_fails(monkeypatch):
    def fail(self, frame):
        raise AssertionError("peaks are found on the CPU")

    monkeypatch.setattr(PeakFinder, "find", fail)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.usefixtures("finding_on_the_cpu_fails")
def test_frames_go_through_the_pipeline_in_order_and_its_memory_comes_back(
    serve, predictor, frames, workers
):
    before = predictor.engine.session.device_bytes
    counts, results = serve(frames, workers=workers, background_frames=8)
    assert counts["done"] == len(frames)
    assert predictor.engine.session.device_bytes == before
    predictor.calibrate_background(frames)
    for number, (frame, result) in enumerate(zip(frames, results, strict=True)):
        assert result.number == result.peaks.frame_number == number
        expected = predictor.process(frame).positions_px
        np.testing.assert_array_equal(result.peaks.positions_px, expected)


@pytest.mark.usefixtures("finding_on_the_cpu_fails")
def test_a_frame_with_a_nan_fails_alone(serve, predictor, frames, monkeypatch):
    monkeypatch.setattr("edgexnas.device.serving.peak_work.USUAL_DTYPES", (np.float32,))
    stack = np.stack(frames).astype(np.float32)
    stack[5, 2, 3] = np.nan
    counts, results = serve(stack, background_frames=2)
    assert (counts["done"], counts["failed"]) == (7, 1)
    assert "row 2, col 3" in results[5].error


def test_frames_of_a_dtype_without_kernels_are_found_on_the_cpu(serve, frames, caplog):
    counts, results = serve(np.stack(frames).astype(np.int64), background_frames=2)
    assert counts["done"] == len(frames)
    assert all(len(result.peaks) == 3 for result in results)
    assert "found on the CPU, because there are no CUDA kernels for int64" in caplog.text


def test_a_gpu_that_disappears_fails_frames_and_ends_the_series(serve, fake_gpu, frames):
    def vanishing():
        yield from frames[:4]
        fake_gpu.gone = True
        yield from frames[4:]

    counts, results = serve(vanishing(), background_frames=2)
    assert counts["done"] + counts["failed"] == len(frames)
    assert counts["failed"] >= 4
    assert all("Fake GPU" in result.error for result in results[4:])
