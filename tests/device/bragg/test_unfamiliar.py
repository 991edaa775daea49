"""A predictor and its streams tell peaks unlike the training data."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgexnas.bragg import PeakFlag
from edgexnas.bundle import Distribution, IntervalCalibration, TrainingData, Widening
from edgexnas.device import PeakPredictor
from edgexnas.familiarity import reason_name
from edgexnas.testing import gaussian_patches, spot_frame, write_centroid_bundle


def calibration(factor: float = 2.0) -> IntervalCalibration:
    return IntervalCalibration(
        level=0.8, snr_edges=(), width_edges_px=(), factors=((factor,),), counts=((9,),),
        widening=Widening(
            interval=1, disagreement=4, narrow_disagreement=4, noise=4, narrowness=1, floor_px=0.5
        ),
    )  # fmt: skip


def training(low: float | None, high: float | None, name: str = "height_counts") -> TrainingData:
    return TrainingData(
        n=9,
        quantities=(
            Distribution(
                name=name, unit="counts", levels=(0.5,), quantiles=(500.0,), n=9, low=low, high=high
            ),
        ),
        frame_share=0.5,
    )


@pytest.fixture
def predictor(tmp_path: Path, keys: Path):
    """`predictor(calibration, data)` opens a centroid bundle that knows them."""
    opened = []

    def open_one(calibrated: IntervalCalibration | None, data: TrainingData | None):
        known = {"interval_calibration": calibrated, "training_data": data}
        path = write_centroid_bundle(
            tmp_path / f"{len(opened)}.edgex",
            signing_key=keys / "edgexnas.key.pem",
            precisions=("float32",),
            **known,
        )
        opened.append(PeakPredictor(path, trust=keys, engine="onnxruntime", precision="float32"))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_intervals_of_familiar_peaks_are_calibrated(predictor) -> None:
    plain, calibrated = predictor(None, None), predictor(calibration(), None)
    frame = spot_frame()
    before, after = plain.process(frame), calibrated.process(frame)
    np.testing.assert_array_equal(after.positions_px, before.positions_px)
    np.testing.assert_allclose(after.intervals_px, 2 * before.intervals_px, rtol=1e-3)
    # Factors alone do not tell what is familiar, nor does a distribution without limits.
    assert after.reasons is None
    assert (
        predictor(calibration(), training(None, None)).predict(gaussian_patches(3)).reasons is None
    )
    np.testing.assert_allclose(
        after.quantiles_px[:, :, -1] - after.quantiles_px[:, :, 0], after.intervals_px, atol=1e-4
    )


def test_bundles_from_before_work_as_they_did_and_say_that_nothing_is_calibrated(
    predictor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        old = predictor(None, None)
    assert "has no calibration" in caplog.text
    peaks = old.process(spot_frame())
    assert peaks.reasons is None
    assert not peaks.unfamiliar.any()
    assert old.predict(gaussian_patches(3)).reasons is None


def test_unfamiliar_peaks_are_flagged_and_wider_on_frames_and_on_patches(predictor) -> None:
    one = predictor(calibration(), training(1e6, None))
    peaks = one.process(spot_frame())
    assert len(peaks) == 3
    assert (peaks.flags & PeakFlag.UNFAMILIAR).all()
    assert {reason_name(code) for code in peaks.reasons} == {"height_counts"}
    assert (peaks.intervals_px >= 0.99).all()
    patches = gaussian_patches(5)
    assert one.predict(patches).unfamiliar.all()
    # Scaled patches tell nothing of counts.
    assert not one.predict(patches / patches.max(axis=(1, 2), keepdims=True)).unfamiliar.any()
    assert len(one.predict(patches[:0])) == 0


def test_foreign_frames_are_announced_before_the_first_result(
    predictor, caplog: pytest.LogCaptureFixture
) -> None:
    one = predictor(calibration(), training(1e6, None))
    stream = one.stream(np.stack([spot_frame(seed=seed) for seed in range(8)]))
    with caplog.at_level(logging.WARNING):
        next(stream)
    assert "are unlike the training data (by height_counts" in caplog.text
    list(stream)
    assert caplog.text.count("are unlike the training data") == 1


def test_announcing_leaves_the_scratch_of_other_threads_alone(
    predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = predictor(calibration(), training(1e6, None))
    # `predict` uses these, maybe at the same time: compiled loops run without the lock.
    monkeypatch.setattr(one.checks, "judge", None)
    assert len(list(one.stream(np.stack([spot_frame(seed=seed) for seed in range(3)])))) == 3


def test_familiar_frames_are_not_announced(predictor, caplog: pytest.LogCaptureFixture) -> None:
    one = predictor(calibration(), training(1, None))
    with caplog.at_level(logging.WARNING):
        list(one.stream(np.stack([spot_frame(seed=seed) for seed in range(8)])))
    assert "unlike" not in caplog.text


def test_another_background_noise_is_announced(predictor, caplog) -> None:
    noisy = training(50, 90, "frame_noise_counts")
    with caplog.at_level(logging.WARNING):
        predictor(calibration(), noisy).process(spot_frame())
    assert "the background noise is" in caplog.text
