"""Frames in host memory to positions in host memory, with the kernels on the CPU."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from edgexnas.bragg import decode_offsets, scale_patches
from edgexnas.device.bragg.gpu_pipeline import FramePipeline
from edgexnas.errors import EngineError, InputError
from edgexnas.peak_finding import FinderSettings, PeakFinder

SHAPE = (96, 120)
LEVELS = (0.1, 0.5, 0.9)


def frame_with(count: int, seed: int = 0, dtype: object = np.uint16) -> np.ndarray:
    """A frame of well-separated peaks."""
    random = np.random.default_rng(seed)
    frame = np.zeros(SHAPE, dtype)
    places = [(row, col) for row in range(2, SHAPE[0] - 2, 5) for col in range(2, SHAPE[1] - 2, 5)]
    for index in random.permutation(len(places))[:count]:
        row, col = places[index]
        frame[row - 1 : row + 2, col - 1 : col + 2] = random.integers(50, 90, (3, 3))
        frame[row, col] = 400
    return frame


@pytest.fixture
def finder() -> PeakFinder:
    return PeakFinder(FinderSettings(capacity=500), shape=SHAPE)


@pytest.fixture
def pipeline(session, finder, place_engine):
    with_engine = FramePipeline(place_engine(session), finder, np.uint16, levels=LEVELS)
    yield with_engine
    with_engine.close()


def assert_as_on_the_cpu(finder: PeakFinder, engine, frame: np.ndarray, peaks) -> None:
    found = finder.find(frame)
    offsets = engine.offsets(scale_patches(found.counts))
    placed = decode_offsets(offsets, LEVELS, found.maxima - 5)
    for name in ("maxima", "flags", "intensities", "overflow"):
        np.testing.assert_array_equal(getattr(peaks, name), getattr(found, name))
    for name in ("positions_px", "intervals_px", "quantiles_px"):
        np.testing.assert_array_equal(getattr(peaks, name), getattr(placed, name))


@pytest.mark.parametrize("graph", [True, False])
def test_frames_in_flight_give_what_the_cpu_gives_in_order(session, finder, place_engine, graph):
    engine = place_engine(session)
    pipeline = FramePipeline(engine, finder, np.uint16, levels=LEVELS, graph=graph)
    frames = [frame_with(20 * (seed % 3), seed) for seed in range(5)]
    results = []
    for number, frame in enumerate(frames):
        pipeline.submit(frame, number=number)
        if pipeline.in_flight == 2:
            results.append(pipeline.result())
    results.append(pipeline.result())
    for number, (frame, peaks) in enumerate(zip(frames, results, strict=True)):
        assert peaks.frame_number == number
        assert_as_on_the_cpu(finder, engine, frame, peaks)
    pipeline.close()


def test_the_network_runs_for_as_many_peaks_as_frames_have(session, place_engine, monkeypatch):
    monkeypatch.setattr("edgexnas.device.bragg.gpu_pipeline.LEAST_ROOM", 16)
    finder = PeakFinder(FinderSettings(capacity=400), shape=SHAPE)
    engine = place_engine(session, sizes=(1, 16))
    pipeline = FramePipeline(engine, finder, np.uint16, levels=LEVELS)
    runs = []
    for count in (10, 300, 300, 10, 10):
        engine.runs.clear()
        frame = frame_with(count, count)
        assert_as_on_the_cpu(finder, engine, frame, pipeline.process(frame))
        runs.append(sum(engine.runs))
    # Once too few and then once more for 384; then at once for 384, until few come again.
    assert runs == [16, 16 + 384, 384, 384, 16]
    pipeline.close()


def test_more_peaks_than_the_capacity_show_as_overflow(session, place_engine):
    finder = PeakFinder(FinderSettings(capacity=30), shape=SHAPE)
    engine = place_engine(session)
    pipeline = FramePipeline(engine, finder, np.uint16, levels=LEVELS)
    frame = frame_with(50)
    peaks = pipeline.process(frame)
    assert (len(peaks), peaks.overflow) == (30, 20)
    assert_as_on_the_cpu(finder, engine, frame, peaks)
    pipeline.close()


def test_a_frame_can_be_written_in_place(pipeline, finder):
    pipeline.next_frame()[:] = frame_with(30, 4)
    pipeline.submit()
    np.testing.assert_array_equal(pipeline.result().maxima, finder.find(frame_with(30, 4)).maxima)


def test_results_outlive_the_next_frames(pipeline):
    first = pipeline.process(frame_with(30, 4))
    kept = first.positions_px.copy()
    for seed in range(3):
        pipeline.process(frame_with(60, seed))
    np.testing.assert_array_equal(first.positions_px, kept)


def test_a_frame_too_many_in_flight_is_refused_and_loses_nothing(pipeline):
    for seed in range(pipeline.slots):
        pipeline.submit(frame_with(10, seed), number=seed)
    with pytest.raises(EngineError, match=f"{pipeline.slots} frames are in flight"):
        pipeline.submit(frame_with(10))
    numbers = list(range(pipeline.slots))
    assert [pipeline.result().frame_number for _ in numbers] == numbers
    with pytest.raises(EngineError, match="nothing is in flight"):
        pipeline.result()


def test_a_frame_of_another_shape_or_dtype_is_refused(pipeline):
    for frame in (np.zeros((3, 4), np.uint16), np.zeros(SHAPE, np.int32)):
        with pytest.raises(InputError, match=r"; expected \(96, 120\) and uint16"):
            pipeline.submit(frame)


def test_nan_is_refused_by_name_and_the_next_frame_works(session, finder, place_engine):
    pipeline = FramePipeline(place_engine(session), finder, np.float32, levels=LEVELS)
    good = frame_with(20, dtype=np.float32)
    bad = good.copy()
    bad[4, 5] = np.nan
    with pytest.raises(InputError, match=r"row 4, col 5\) .* NaN"):
        pipeline.process(bad)
    assert len(pipeline.process(good)) == 20
    pipeline.close()


def test_closing_gives_back_all_memory(session, finder, place_engine):
    before = session.device_bytes, session.host_bytes
    pipeline = FramePipeline(place_engine(session), finder, np.uint16, levels=LEVELS)
    assert session.device_bytes > before[0]
    pipeline.submit(frame_with(3))
    pipeline.close()
    pipeline.close()
    assert (session.device_bytes, session.host_bytes) == before
    with pytest.raises(EngineError, match="closed"):
        pipeline.submit(frame_with(3))


def test_closing_frees_the_kernels_in_this_thread(session, finder, place_engine, monkeypatch):
    functions = []
    original = session.module

    def load(image):
        module = original(image)
        get = module.get_function

        def get_function(name):
            functions.append(get(name))
            return functions[-1]

        module.get_function = get_function
        return module

    monkeypatch.setattr(session, "module", load)
    pipeline = FramePipeline(place_engine(session), finder, np.uint16, levels=LEVELS)
    pipeline.process(frame_with(3))
    held = [weakref.ref(function) for function in functions]
    functions.clear()
    assert None not in [function() for function in held]
    pipeline.close()
    # Without the garbage collector, which may run where the GPU is not current.
    assert {function() for function in held} == {None}


def test_a_gpu_that_disappears_is_one_sentence_and_closing_still_works(pipeline, fake_gpu):
    pipeline.submit(frame_with(10))
    fake_gpu.gone = True
    with pytest.raises(EngineError, match=r"Fake GPU failed .*; start the process again"):
        pipeline.result()
    assert pipeline.in_flight == 0
    with pytest.raises(EngineError, match="Fake GPU"):
        pipeline.submit(frame_with(10))
    pipeline.close()


def test_a_gpu_without_memory_for_a_pipeline_is_refused_and_nothing_stays(
    session, finder, place_engine, fake_gpu
):
    before = session.device_bytes
    fake_gpu.memory_bytes = fake_gpu.used_bytes() + 100_000
    with pytest.raises(EngineError, match="not enough memory"):
        FramePipeline(place_engine(session), finder, np.uint16, levels=LEVELS)
    assert session.device_bytes == before


def test_work_is_recorded_once_for_numbers_of_peaks_that_cost_the_engine_the_same(
    session, place_engine
):
    finder = PeakFinder(FinderSettings(capacity=5000), shape=SHAPE)
    rooms = {}
    for sizes in ((1, 32), (1, 32, 2048), (1, 32, 8192)):
        pipeline = FramePipeline(place_engine(session, sizes), finder, np.uint16, levels=LEVELS)
        rooms[sizes[-1]] = pipeline._rooms
        pipeline.close()
    assert rooms[32] == (512, 768, 1024, 1536, 2048, 3072, 4096, 5000)
    assert rooms[2048] == (2048, 4096, 5000)
    assert rooms[8192] == (5000,)
