"""What `device/check_gpu.py` compares agrees, with the kernels on the CPU."""

from __future__ import annotations

import json
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgexnas.bragg import scale_patches
from edgexnas.device.serving import peak_work

SCRIPTS = Path(__file__).resolve().parents[3] / "device"


@pytest.fixture
def comparisons(monkeypatch, load_module):
    monkeypatch.syspath_prepend(SCRIPTS)
    module = load_module(SCRIPTS / "gpu_comparisons.py")
    yield module
    sys.modules.pop("made_frames", None)


@pytest.fixture
def timings(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    module = import_module("gpu_timings")
    monkeypatch.setattr(module, "SHAPE", (64, 80))
    monkeypatch.setattr(module, "repeated", lambda work, times: [work() or 1e-3 for _ in range(2)])
    monkeypatch.setattr(module, "DECODERS", (2,))
    monkeypatch.setattr(module, "DECODED", 3)
    yield module
    for name in ("made_frames", "label_baseline"):
        sys.modules.pop(name, None)
    for name in ("gpu_timings", "gpu_scans", "bench_gpu_service"):
        sys.modules.pop(name, None)


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
    rows = list(timings.time_pipeline(pipeline, field, decoding=True))
    assert session.host_bytes == before
    pipeline.close()
    assert [row["frame"] for row in rows] == list(load_module(SCRIPTS / "gpu_frames_page.py").WHERE)
    # Up to the latency of each row; before it lies the rate of the row above.
    assert copied[:3] == [0, 0, 2]
    assert all(row["frames/s"] > 0 for row in rows)


def test_a_service_is_timed_on_frames_wherever_they_lie(
    predictor, timings, host_copies, monkeypatch
):
    bench = import_module("bench_gpu_service")
    chosen = {"SHAPE": (64, 80), "SPOTS": (4, 8), "DECODERS": (2,), "FRAMES": 5, "REPEATS": 2}
    for name, value in chosen.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr("edgexnas.device.serving.peak_work.USUAL_DTYPES", ())
    rows, copied = [], {}

    def keep(where, row):
        rows.append((where, row))
        copied[where] = len(host_copies)
        host_copies.clear()

    # The others are decoded when it is known what they are decoded for.
    known = threading.Event()
    calibrated, in_order = peak_work.PeakSeries._calibrated, bench.Frames._in_order

    def tell(series):
        held = calibrated(series)
        known.set()
        return held

    def in_two_parts(source):
        known.clear()
        for event in in_order(source):
            if getattr(event, "number", None) == 1:
                assert known.wait(200)
            yield event

    monkeypatch.setattr(peak_work.PeakSeries, "_calibrated", tell)
    monkeypatch.setattr(bench.Frames, "_in_order", in_two_parts)
    bench.measure(predictor, keep)
    assert [where for where, _ in rows] == ["ring", "there", "elsewhere", "plain", "ring"]
    assert all(row["frames/s"] > 0 for _, row in rows)
    assert len({row["peaks"] for _, row in rows[:-1]}) == 1
    # What was decoded before the background was known lies elsewhere.
    assert copied["ring"] == 0
    assert copied["there"] == 1
    assert copied["elsewhere"] == 10
    assert copied["plain"] == 20


def test_a_scan_is_timed_in_a_service(session, fake_gpu, timings, monkeypatch, load_module):
    bench = import_module("bench_gpu_service")
    monkeypatch.setattr("edgexnas.device.serving.pattern_work.USUAL_DTYPES", ())
    root_engine = load_module(Path(__file__).parent / "root_engine.py").RootEngine
    engine = root_engine(session, fake_gpu)
    with bench.predictor_on(engine) as predictor:
        row = bench.serve_scan(predictor, bench.raster(20, 64))
    engine.close()
    assert row["frames/s"] > 0


def test_kernels_agree_on_small_frames_and_a_difference_is_told(
    session, comparisons, capsys, monkeypatch
):
    chosen = list(comparisons.cases(None, small=True))
    for name, frame, finder in (chosen[0], chosen[-1]):
        assert comparisons.compare_peaks(session, name, frame, finder)
    monkeypatch.setattr(comparisons, "scale_patches", lambda counts: scale_patches(counts) + 1)
    assert not comparisons.compare_peaks(session, *chosen[0])
    assert "FAIL random uint16" in capsys.readouterr().out


def test_patterns_and_stitching_agree_and_a_difference_is_told(
    session, comparisons, capsys, monkeypatch
):
    assert comparisons.compare_patterns(session)
    assert comparisons.compare_stitching(session)
    monkeypatch.setattr(comparisons, "scale_patterns", lambda counts, scale: counts)
    assert not comparisons.compare_patterns(session)
    assert "FAIL binning by 4" in capsys.readouterr().out


def test_a_scan_through_a_predictor_on_the_gpu_agrees(session, monkeypatch, fake_gpu, load_module):
    monkeypatch.syspath_prepend(SCRIPTS)
    scans = load_module(SCRIPTS / "gpu_scans.py")
    root_engine = load_module(Path(__file__).parent / "root_engine.py")
    engine = root_engine.RootEngine(session, fake_gpu)
    assert scans.compare_scan(engine)
    engine.close()
    for name in ("gpu_timings", "label_baseline", "made_frames"):
        sys.modules.pop(name, None)


def test_peaks_are_judged_alike_and_timed_with_and_without(
    session, timings, place_engine, capsys, monkeypatch
):
    checks = import_module("gpu_checks")
    monkeypatch.setattr(checks, "SHAPE", (96, 120))
    for spots in (0, 12):
        assert checks.compare(session, spots, spots)
    field = timings.Field.with_spots(4)
    chosen = {
        "repeated": timings.repeated,
        "ROUNDS": 1,
        "graph_times_us": lambda *_: {"checks": 1.0},
    }
    for name, value in chosen.items():
        monkeypatch.setattr(checks, name, value)
    row = checks.side_by_side(session, place_engine(session), field, (0.1, 0.5, 0.9))
    assert row["frames/s with"] > 0
    assert row["checks, us"] == 1.0
    assert "FAIL" not in capsys.readouterr().out
    sys.modules.pop("gpu_checks")


@pytest.mark.usefixtures("kernels_on_cpu")
def test_refinement_is_compared_and_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    bench = import_module("bench_refine")
    monkeypatch.setattr(bench, "ROUNDS", 1)
    given = ["bench_refine.py", "--simulated", "9", "--sweeps", "3", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    assert bench.main() == 0
    assert "everything agrees" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu-refine.json").read_text())
    (case,) = found["cases"]
    assert [row["sweeps"] for row in case["rows"]] == [0, 1, 3]
    sys.modules.pop("bench_refine")
    assert (tmp_path / "gpu-refine.md").read_text() == bench.page(found)
