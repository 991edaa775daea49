"""Frames that lie in pinned memory reach the GPU without a copy, and decoders write there."""

from __future__ import annotations

import gc
import logging
import threading
import time
from typing import Any

import numpy as np
import pytest

from edgexnas.device import Predictor
from edgexnas.device.bragg.gpu_pipeline import FramePipeline
from edgexnas.device.bragg.predictor import lanes_of
from edgexnas.device.lane import drive
from edgexnas.device.serving.peak_work import PeakWork
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult
from edgexnas.device.sources.compression import compress, decompress
from edgexnas.device.sources.encoded_frames import EncodedFrame, EncodedPixels, decoded_events
from edgexnas.device.sources.events import SeriesEnd, SeriesStart
from edgexnas.errors import EngineError, InputError
from edgexnas.peak_finding import PeakFinder

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture
def frames(spot_frame) -> list[np.ndarray]:
    return [spot_frame(seed=seed) for seed in range(4)]


@pytest.fixture
def open_pipeline(session, place_engine, frames):
    opened = []

    def open_one(**options: Any) -> FramePipeline:
        finder = PeakFinder(shape=frames[0].shape)
        opened.append(
            FramePipeline(place_engine(session), finder, np.uint16, levels=LEVELS, **options)
        )
        return opened[-1]

    yield open_one
    for pipeline in opened:
        pipeline.close()


class EncodedSource:
    """A source whose frames come encoded."""

    url, live = "encoded://", False

    def __init__(self, frames: list[np.ndarray]) -> None:
        self._frames = frames
        self.places: list[int] = []

    def encoded_events(self):
        yield SeriesStart("a", self._frames[0].shape, self._frames[0].dtype)
        for number, pixels in enumerate(self._frames):

            def decode(payload, memory, like=pixels):
                decoded = decompress("bslz4", payload, like.shape, like.dtype, memory)
                self.places.append(decoded.ctypes.data)
                return decoded

            content = compress("bslz4", pixels)
            encoded = EncodedPixels(content, decode, len(content))
            yield EncodedFrame("a", number, encoded, time.monotonic_ns())
        yield SeriesEnd("a", len(self._frames), time.monotonic_ns())

    def events(self):
        return decoded_events(self.encoded_events())

    def close(self) -> None:
        pass

    def status(self) -> dict[str, int]:
        return {}


def test_lent_frames_give_the_peaks_of_copied_ones(open_pipeline, frames, host_copies):
    pipeline = open_pipeline(spare_frames=3)
    expected = [pipeline.process(frame) for frame in frames]
    assert len(host_copies) == len(frames)
    given = []
    for number, frame in enumerate(frames):
        place = pipeline.lend(frame.shape, frame.dtype)
        place[:] = frame
        pipeline.submit(place, number=number)
        del place
        if pipeline.in_flight == 2:
            given.append(pipeline.result())
    given.append(pipeline.result())
    assert len(host_copies) == len(frames)
    for number, (peaks, reference) in enumerate(zip(given, expected, strict=True)):
        assert peaks.frame_number == number
        np.testing.assert_array_equal(peaks.quantiles_px, reference.quantiles_px)


def test_a_pipeline_lends_frames_of_its_own_kind_while_it_has_some(open_pipeline, frames):
    shape, dtype = frames[0].shape, frames[0].dtype
    assert open_pipeline().lend(shape, dtype) is None
    pipeline = open_pipeline(spare_frames=2)
    assert pipeline.lend(shape[::-1], dtype) is None
    assert pipeline.lend(shape, np.dtype(np.uint32)) is None
    first, second = (pipeline.lend(shape, dtype) for _ in range(2))
    assert (second.shape, second.dtype) == (shape, dtype)
    assert pipeline.lend(shape, dtype) is None
    del first
    assert pipeline.lend(shape, dtype) is not None
    pipeline.close()
    assert pipeline.lend(shape, dtype) is None


def test_memory_that_is_lent_outlives_the_pipeline(session, open_pipeline, frames):
    before = session.host_bytes
    pipeline = open_pipeline(spare_frames=2)
    lent = pipeline.lend(frames[0].shape, frames[0].dtype)
    pipeline.close()
    lent[:] = frames[0]
    assert session.host_bytes == before + lent.nbytes
    del lent
    assert session.host_bytes == before


def test_where_no_memory_can_be_pinned_frames_are_copied_and_it_is_said(
    open_pipeline, frames, fake_gpu, monkeypatch, caplog
):
    original = fake_gpu.driver.pagelocked_zeros

    def scarce(shape, *given: Any, **named: Any) -> Any:
        if shape == (frames[0].nbytes,):
            raise fake_gpu.driver.MemoryError("cuMemHostAlloc failed: out of memory")
        return original(shape, *given, **named)

    monkeypatch.setattr(fake_gpu.driver, "pagelocked_zeros", scarce)
    with caplog.at_level(logging.WARNING):
        pipeline = open_pipeline(spare_frames=2)
    assert "frames are copied before they go to the GPU, because Fake GPU has not" in caplog.text
    assert pipeline.lend(frames[0].shape, frames[0].dtype) is None
    assert len(pipeline.process(frames[0])) == 3


def test_a_ring_of_frame_buffers_is_read_from_where_it_lies(predictor, frames, host_copies):
    expected = [predictor.process(frame) for frame in frames]
    host_copies.clear()
    ring = predictor.frame_buffers(2, frames[0].shape, np.uint16)
    assert (ring.shape, ring.dtype, ring.any()) == ((2, *frames[0].shape), np.uint16, False)
    for number, frame in enumerate(frames):
        ring[number % 2] = frame
        peaks = predictor.process(ring[number % 2])
        np.testing.assert_array_equal(peaks.quantiles_px, expected[number].quantiles_px)
    streamed = list(predictor.stream(ring))
    assert len(streamed) == 2
    assert host_copies == []


def test_frame_buffers_are_the_same_without_a_gpu(bundle_path, keys, frames):
    with Predictor(bundle_path, trust=keys, engine="onnxruntime", cache=False) as predictor:
        ring = predictor.frame_buffers(2, frames[0].shape, np.uint16)
        assert (ring.shape, ring.dtype, ring.any()) == ((2, *frames[0].shape), np.uint16, False)
        ring[1] = frames[0]
        assert len(predictor.process(ring[1])) == 3
        for count, shape, dtype in ((0, (4, 4), "u2"), (1, (0, 4), "u2"), (1, (4, 4), "c8")):
            with pytest.raises(InputError, match="give sizes from 1 and an integer or float"):
                predictor.frame_buffers(count, shape, dtype)
    with pytest.raises(EngineError, match="closed"):
        predictor.frame_buffers(2, frames[0].shape, np.uint16)


def test_frame_buffers_are_ordinary_memory_where_none_can_be_pinned(
    predictor, frames, fake_gpu, monkeypatch, caplog
):
    def scarce(*given: Any, **named: Any) -> Any:
        raise fake_gpu.driver.MemoryError("cuMemHostAlloc failed: out of memory")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(fake_gpu.driver, "pagelocked_zeros", scarce)
        ring = predictor.frame_buffers(2, frames[0].shape, np.uint16)
    assert "frames are copied before they go to the GPU, because Fake GPU has not" in caplog.text
    ring[0] = frames[0]
    assert len(predictor.process(ring[0])) == 3
    fake_gpu.gone = True
    with pytest.raises(EngineError, match="Fake GPU failed"):
        predictor.frame_buffers(2, frames[0].shape, np.uint16)


def test_a_ring_of_ones_own_is_read_from_where_it_lies_while_it_is_pinned(
    predictor, frames, fake_gpu, host_copies, caplog
):
    expected = [predictor.process(frame).quantiles_px for frame in frames[:2]]
    host_copies.clear()
    own = np.zeros((2, *frames[0].shape), np.uint16)
    ring = predictor.pin_frames(own)
    assert np.shares_memory(ring, own)
    assert np.shares_memory(predictor.pin_frames(ring[1]), own[1])
    for number, quantiles_px in enumerate(expected):
        # Whoever fills it need not know of the other array.
        own[number] = frames[number]
        peaks = predictor.process((ring, own)[number][number])
        np.testing.assert_array_equal(peaks.quantiles_px, quantiles_px)
    assert host_copies == []
    del ring
    predictor.process(own[0])
    assert len(host_copies) == 1
    for wrong in (own[:, ::2], own[:0], own.astype(complex)):
        with pytest.raises(InputError, match="give C-contiguous integers or floats"):
            predictor.pin_frames(wrong)

    fake_gpu.bindings.cuMemHostRegister = lambda *given: (801,)
    assert predictor.pin_frames(own) is own
    assert "frames are copied before they go to the GPU, because Fake GPU rejected" in caplog.text


def test_a_ring_of_ones_own_stays_as_it_is_without_a_gpu(bundle_path, keys, frames):
    own = np.stack(frames)
    with Predictor(bundle_path, trust=keys, engine="onnxruntime", cache=False) as predictor:
        assert predictor.pin_frames(own) is own


def test_frame_buffers_stay_usable_after_the_predictor(predictor, frames):
    session = predictor.engine.session
    ring = predictor.frame_buffers(2, frames[0].shape, np.uint16)
    predictor.process(ring[0])
    predictor.close()
    ring[:] = 1
    assert session.host_bytes == ring.nbytes
    part = ring[1, 3:]
    del ring
    assert session.host_bytes > 0
    del part
    assert session.host_bytes == 0


def lane_of(predictor: Any, frames: Any) -> Any:
    detection = lanes_of(predictor).detection()
    detection.calibrate(frames)
    return lanes_of(predictor).open(detection, frames[:1])


def test_a_lane_keeps_frames_in_flight_and_gives_their_peaks_in_order(predictor, frames):
    predictor.calibrate_background(frames)
    expected = [predictor.process(frame).quantiles_px for frame in frames]
    lane, flying = lane_of(predictor, frames), list[int]()
    groups = ([lane.check(frame, number)] for number, frame in enumerate(frames))
    for number, outcome in enumerate(drive(lane, groups, read_ahead=True)):
        flying.append(lane.in_flight)
        assert outcome.results[0].frame_number == number
        assert set(outcome.stages_ns) == {"gpu"}
        np.testing.assert_array_equal(outcome.results[0].quantiles_px, expected[number])
    # Besides the one whose result was taken.
    ahead = lane.ahead - 1
    assert flying == [ahead] * (len(frames) - ahead) + list(reversed(range(ahead)))
    assert lane.in_flight == 0
    lane.close()


def test_a_frame_that_fails_makes_room_for_others_and_a_lost_gpu_is_named(
    predictor, fake_gpu, frames
):
    lane = lane_of(predictor, frames)
    for _ in range(3):
        with pytest.raises(InputError, match="frame 7: the frame has dtype int16"):
            lane.check(frames[0].astype(np.int16), 7)
    lane.submit([lane.check(frames[0], 0)])
    assert len(lane.result().results[0]) == 3
    lane.submit([lane.check(frames[0], 1)])
    fake_gpu.gone = True
    with pytest.raises(EngineError, match="Fake GPU"):
        lane.result()
    assert lane.in_flight == 0
    for _ in range(3):
        with pytest.raises(EngineError, match="Fake GPU"):
            lane.submit([lane.check(frames[0], 2)])
        assert lane.in_flight == 0


def test_a_stream_decodes_all_but_the_first_frame_where_the_gpu_reads_it(
    predictor, frames, host_copies
):
    expected = [peaks.quantiles_px for peaks in predictor.stream(iter(frames))]
    host_copies.clear()
    source = EncodedSource(frames)
    for number, peaks in enumerate(predictor.stream(source)):
        assert peaks.frame_number == number
        np.testing.assert_array_equal(peaks.quantiles_px, expected[number])
    assert len(host_copies) == 1
    assert len(set(source.places[1:])) < len(frames) - 1, "memory is lent again"
    del peaks
    predictor.close()
    assert predictor.engine.session.host_bytes == 0


@pytest.mark.parametrize(
    ("workers", "side", "frames"), [(1, 2048, 7), (4, 2048, 16), (20, 2048, 32), (4, 8192, 4)]
)
def test_a_service_pins_no_more_than_it_needs_nor_256_mib(predictor, workers, side, frames):
    work = PeakWork(lanes_of(predictor), PipelineSettings(workers=workers), StageTimes())
    assert work.spare_frames(2 * side**2) == frames


@pytest.mark.parametrize("workers", [1, 3])
def test_a_service_decodes_where_the_gpu_reads_once_the_background_is_known(
    predictor, frames, host_copies, monkeypatch, workers
):
    monkeypatch.setattr("edgexnas.device.serving.peak_work.USUAL_DTYPES", (np.uint16,))
    predictor.calibrate_background(frames[:1])
    expected = [predictor.process(frame).quantiles_px for frame in frames]
    session, source = predictor.engine.session, EncodedSource(frames[:1] * 2 + frames)
    before = session.host_bytes
    first_done = threading.Event()
    results: list[FrameResult] = []

    def take(item: Any) -> None:
        if isinstance(item, FrameResult):
            results.append(item)
            if len(results) == 2:
                first_done.set()

    def in_two_parts():
        for event in EncodedSource.encoded_events(source):
            if isinstance(event, EncodedFrame) and event.number == 2:
                assert first_done.wait(120)
                host_copies.clear()
            yield event

    source.encoded_events = in_two_parts
    service = Service(
        predictor,
        source,
        [CallbackSink(take, policy="block")],
        settings=PipelineSettings(workers=workers, background_frames=2),
    )
    counts = dict(service.run().counts)
    assert counts["done"] == 2 + len(frames)
    for result, reference in zip(results[2:], expected, strict=True):
        np.testing.assert_array_equal(result.peaks.quantiles_px, reference)
    assert host_copies == []
    del service
    gc.collect()
    assert session.host_bytes == before
