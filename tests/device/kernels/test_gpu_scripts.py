"""What `device/check_gpu.py` compares agrees, with the kernels on the CPU."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgexnas.bragg import scale_patches
from edgexnas.device.engines.device_engine import least_size
from edgexnas.ptycho import ObjectCanvas, bin_patterns, scale_patterns, to_complex

SCRIPTS = Path(__file__).resolve().parents[3] / "device"


@pytest.fixture
def comparisons(monkeypatch, load_module):
    monkeypatch.syspath_prepend(SCRIPTS)
    module = load_module(SCRIPTS / "gpu_comparisons.py")
    yield module
    for name in ("made_frames", "pattern_pipeline"):
        sys.modules.pop(name, None)


@pytest.fixture
def timings(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    module = import_module("gpu_timings")
    monkeypatch.setattr(module, "SHAPE", (64, 80))
    monkeypatch.setattr(module, "repeated", lambda work, times: [work() or 1e-3 for _ in range(2)])
    monkeypatch.setattr(module, "DECODERS", (2,))
    monkeypatch.setattr(module, "DECODED", 3)
    yield module
    for name in ("made_frames", "pattern_pipeline", "label_baseline", "torch_stand_in"):
        sys.modules.pop(name, None)
    del sys.modules["gpu_timings"]


def test_frames_are_timed_wherever_they_lie_and_their_rows_are_told(
    session, timings, place_engine, host_copies, load_module
):
    field = timings.Field.with_spots(4)
    engine = place_engine(session)
    pipeline = timings.FramePipeline(engine, field.finder, np.uint16, levels=(0.1, 0.5, 0.9))
    before = session.host_bytes
    copied: list[int] = []
    original = timings.summary

    def counting(seconds):
        copied.append(len(host_copies))
        host_copies.clear()
        return original(seconds)

    timings.summary = counting
    rows = timings.time_pipeline(pipeline, "place", field)
    assert session.host_bytes == before
    pipeline.close()
    assert [row["frame"] for row in rows] == list(load_module(SCRIPTS / "gpu_frames_page.py").WHERE)
    # Up to the latency of each row; before it lies the rate of the row above.
    assert copied[:2] == [0, 0]
    assert copied[2] == 2
    assert [row["peaks"] for row in rows] == [field.peaks] * 5


class RootEngine:
    """Amplitude and phase are the scaled pattern and its half."""

    name, batch, sizes, output_shape = "root", 4, (4,), (2, 64, 64)

    def __init__(self, session) -> None:
        self.session = session

    def size_of(self, count: int) -> int:
        return least_size(self.sizes, count)

    @staticmethod
    def answer(scaled: np.ndarray) -> np.ndarray:
        return np.stack([scaled, scaled / 2], axis=1)

    def enqueue(self, inputs: int, outputs: int, count: int, stream) -> None:
        def run() -> None:
            fake = sys.modules["pycuda.driver"].fake
            given = fake.memory(inputs, 4 * count * 4096).view(np.float32).reshape(-1, 64, 64)
            fake.memory(outputs, 8 * count * 4096).view(np.float32)[:] = self.answer(given).ravel()

        stream.queue.append(run)


def test_kernels_agree_on_small_frames_and_a_difference_is_told(
    session, comparisons, capsys, monkeypatch
):
    chosen = list(comparisons.cases(None, small=True))
    for name, frame, finder in (chosen[0], chosen[-1]):
        assert comparisons.compare_peaks(session, name, frame, finder)
    monkeypatch.setattr(comparisons, "scale_patches", lambda counts: scale_patches(counts) + 1)
    assert not comparisons.compare_peaks(session, *chosen[0])
    assert "FAIL random uint16" in capsys.readouterr().out


def test_a_scan_gives_the_patches_and_the_object_of_the_cpu(
    session, comparisons, fake_gpu, monkeypatch
):
    monkeypatch.setattr(fake_gpu.driver, "fake", fake_gpu, raising=False)
    random = np.random.default_rng(0)
    engine = RootEngine(session)
    pipeline = comparisons.PatternPipeline(
        engine, pattern_shape=(130, 128), dtype=np.uint16, factor=2, intensity_scale=90.0,
        canvas=(100, 110), number=4,
    )  # fmt: skip
    canvas = ObjectCanvas((100, 110))
    expected, given = [], []
    for _ in range(3):
        patterns = random.poisson(20, (4, 130, 128)).astype(np.uint16)
        positions = random.uniform(0, 35, (4, 2))
        pipeline.submit(patterns, positions)
        expected.append(engine.answer(scale_patterns(bin_patterns(patterns, 2), 90.0)))
        canvas.add(to_complex(expected[-1][:, 0], expected[-1][:, 1]), positions)
        if pipeline.buffer.in_flight == 2:
            given.append(pipeline.result().copy())
    given.append(pipeline.result().copy())
    np.testing.assert_array_equal(given, expected)
    np.testing.assert_allclose(pipeline.image().values, canvas.image().values, atol=1e-6)
    pipeline.close()
    assert session.device_bytes == session.host_bytes == 0
