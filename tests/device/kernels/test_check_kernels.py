"""Peaks are judged on a GPU as on the CPU, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgexnas.bundle import (
    Distribution,
    Familiarity,
    IntervalCalibration,
    TrainingData,
    Widening,
)
from edgexnas.device.bragg.gpu_pipeline import FramePipeline
from edgexnas.device.bragg.lanes import PeakLanes
from edgexnas.familiarity import PEAK_QUANTITIES, PeakChecks
from edgexnas.peak_finding import FinderSettings, PeakFinder

SHAPE = (96, 120)
LEVELS = (0.1, 0.5, 0.9)


def spotty_frame(count: int, seed: int = 0) -> np.ndarray:
    """A frame of noisy round spots of several widths."""
    rng = np.random.default_rng(seed)
    expected = np.full(SHAPE, 3.0)
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for row, col in rng.uniform(6, np.array(SHAPE) - 6, (count, 2)):
        distance = (rows - row) ** 2 + (cols - col) ** 2
        expected += rng.uniform(50, 900) * np.exp(-distance / (2 * rng.uniform(0.6, 2.5) ** 2))
    return rng.poisson(expected).astype(np.uint16)


def checks(*, share: float | None = 0.9, score: bool = True, limit: float = 20.0) -> PeakChecks:
    """Checks by which some peaks are familiar, and some not for various reasons."""
    rng = np.random.default_rng(3)
    count = len(PEAK_QUANTITIES)
    limits = {"width_px": (2.0, 4.0), "noise": (None, 0.2), "height_counts": (80.0, None)}
    quantities = tuple(
        Distribution(
            name=name, unit="1", levels=(0.5,), quantiles=(0.0,), n=9,
            low=limits.get(name, (None, None))[0], high=limits.get(name, (None, None))[1],
        )
        for name in PEAK_QUANTITIES
    )  # fmt: skip
    familiarity = Familiarity(
        quantities=PEAK_QUANTITIES,
        centre=tuple(rng.normal(0, 0.3, count).tolist()),
        scale=tuple(rng.uniform(0.2, 2, count).tolist()),
        score=tuple(rng.normal(0, 0.5, (count + 1) * (count + 2) // 2).tolist()),
        limit=limit,
    )
    calibration = IntervalCalibration(
        level=0.8, snr_edges=(15.0, 40.0), width_edges_px=(1.9,),
        factors=((1.5, 1.2), (1.1, 0.9), (0.7, 2.0)), counts=((9, 9), (9, 9), (9, 9)),
        widening=Widening(
            interval=0.5, disagreement=4.0, narrow_disagreement=2.0, noise=3.0, narrowness=2.0,
            floor_px=0.01,
        ),
    )  # fmt: skip
    data = TrainingData(
        n=9, quantities=quantities, familiarity=(familiarity,) if score else (), frame_share=share
    )
    return PeakChecks(calibration, data, levels=LEVELS, precision="float32")


def on_cpu(finder: PeakFinder, engine, frame: np.ndarray, judge: PeakChecks):
    lanes = PeakLanes(None, finder=finder.settings, levels=LEVELS)  # type: ignore[arg-type]
    lanes.offsets = lambda patches: engine.offsets(patches)  # type: ignore[method-assign]
    return lanes.locate([finder.find(frame, scaled=True)], [0], judge.copy())[0]


@pytest.mark.parametrize(
    "given",
    [{}, {"share": 0.05}, {"share": None, "score": False}, {"limit": -1e9}],
    ids=["alone", "the whole frame", "without a score", "all together"],
)
def test_peaks_are_judged_on_a_gpu_as_on_the_cpu(session, place_engine, given):
    judge = checks(**given)
    finder = PeakFinder(FinderSettings(capacity=200), shape=SHAPE)
    engine = place_engine(session)
    pipeline = FramePipeline(engine, finder, np.uint16, levels=LEVELS, checks=judge)
    reasons = set()
    for seed in range(4):
        frame = spotty_frame(12 + 9 * seed, seed)
        here, there = on_cpu(finder, engine, frame, judge), pipeline.process(frame)
        for name in ("reasons", "flags", "positions_px", "intervals_px", "quantiles_px"):
            np.testing.assert_array_equal(getattr(there, name), getattr(here, name), name)
        reasons |= set(here.reasons.tolist())
    assert len(reasons) > 1 or given.get("limit")
    pipeline.close()


def test_a_frame_without_peaks_has_none_to_judge(session, place_engine):
    finder = PeakFinder(FinderSettings(capacity=50), shape=SHAPE)
    pipeline = FramePipeline(
        place_engine(session), finder, np.uint16, levels=LEVELS, checks=checks()
    )
    empty = pipeline.process(np.zeros(SHAPE, np.uint16))
    assert len(empty) == 0
    assert len(empty.reasons) == 0
    pipeline.close()


def test_without_checks_nothing_is_judged(session, place_engine):
    finder = PeakFinder(FinderSettings(capacity=50), shape=SHAPE)
    pipeline = FramePipeline(place_engine(session), finder, np.uint16, levels=LEVELS)
    assert pipeline.process(spotty_frame(5)).reasons is None
    assert replace(pipeline.process(spotty_frame(5)), reasons=None).unfamiliar.sum() == 0
    pipeline.close()
