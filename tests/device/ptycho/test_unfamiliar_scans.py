"""A scan unlike the training data is told before its first patch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.bundle import Distribution, TrainingData
from edgexnas.device import PtychoPredictor
from edgexnas.familiarity import measure_patterns
from edgexnas.scans import Scan
from edgexnas.testing.visible_bundle import visible_scan, write_visible_bundle


def training(patterns: np.ndarray) -> TrainingData:
    """What a bundle knows that was trained on these patterns."""
    brightness = measure_patterns(patterns.astype(np.float32))[:, 0]
    return TrainingData(
        n=len(patterns),
        quantities=(
            Distribution(
                name="brightness_counts", unit="counts", levels=(0.5,),
                quantiles=(float(np.median(brightness)),), n=len(patterns),
                low=float(brightness.min()) * 0.9, high=float(brightness.max()) * 1.1,
            ),
        ),
    )  # fmt: skip


@pytest.fixture
def scan() -> Scan:
    return visible_scan()


@pytest.fixture
def predictor(scan: Scan, keys: Path, tmp_path: Path) -> Any:
    path = write_visible_bundle(
        tmp_path / "a.edgex",
        signing_key=keys / "edgexnas.key.pem",
        training_data=training(scan.patterns),
    )
    with PtychoPredictor(path, trust=keys, precision="float32", batch=8) as opened:
        yield opened


def test_a_scan_like_the_training_data_is_not_announced(predictor, scan, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        stream = predictor.stream(scan)
        placed = list(stream)
    assert "unlike" not in caplog.text
    assert stream.familiarity.total >= 8
    assert stream.familiarity.unfamiliar == 0
    assert not np.concatenate([part.reasons for part in placed])[:8].any()


def test_a_scan_of_another_brightness_is_announced_before_its_first_patch(
    predictor, scan, caplog
) -> None:
    stream = predictor.stream(replace(scan, patterns=scan.patterns * 87))
    with caplog.at_level(logging.WARNING):
        next(stream)
    assert "8 of 8 patterns (100%) are unlike the training data (by brightness_counts 8)" in (
        caplog.text
    )
    list(stream)
    assert caplog.text.count("are unlike the training data") == 1


def test_object_pixels_of_another_size_are_announced(predictor, scan, caplog) -> None:
    predictor._lanes._pixel_m = (10e-9, 10e-9)
    with caplog.at_level(logging.WARNING):
        predictor.stream(replace(scan, object_pixel_m=(-10.2e-9, 10e-9)))
        assert not caplog.text
        predictor.stream(replace(scan, object_pixel_m=(20e-9, 20e-9)))
    assert "object pixels are 20 × 20 nm and were 10 × 10 nm" in caplog.text
