"""What diffraction patterns are like, and which are unlike the training data."""

from __future__ import annotations

import numpy as np
import pytest

from edgexnas.bundle import Distribution, TrainingData
from edgexnas.familiarity import (
    PATTERN_QUANTITIES,
    PatternChecks,
    measure_patterns,
    pattern_reason_name,
)
from edgexnas.familiarity.pattern_residual import PatternResidual
from edgexnas.ptycho import ORIENTATIONS, bin_patterns, oriented
from edgexnas.simulate import diffract


@pytest.fixture(scope="module")
def probe() -> np.ndarray:
    """One mode of (128, 128): a soft disc."""
    along = np.arange(128) - 64
    radius = np.hypot(along[:, None], along[None, :])
    return (40 * np.exp(-((radius / 14) ** 4)) + 0j).astype(np.complex64)[None]


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """(4, 64, 64) smooth complex objects."""
    rng = np.random.default_rng(1)
    row, col = np.mgrid[:64, :64] / 64
    phases = [np.sin(6 * row * a + 5 * col * b) for a, b in rng.uniform(0.5, 1.5, (4, 2))]
    return np.exp(0.5j * np.array(phases)).astype(np.complex64)


def diffracted(patches: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """(n, 128, 128) expected photons of the patches under the probe."""
    found = []
    for patch in patches:
        sample = np.full((128, 128), patch.mean(), np.complex64)
        sample[32:96, 32:96] = patch
        found.append(diffract(sample, probe, np.zeros((1, 2)))[0])
    return np.array(found)


def limited(**limits: tuple[float | None, float | None]) -> TrainingData:
    return TrainingData(
        n=9,
        quantities=tuple(
            Distribution(
                name=name, unit="1", levels=(0.5,), quantiles=(0.0,), n=9, low=low, high=high
            )
            for name, (low, high) in limits.items()
        ),
    )


def test_brightness_and_centre_are_those_of_the_pattern():
    patterns = np.zeros((2, 64, 64), np.float32)
    patterns[0, 32, 32] = 100
    patterns[1, 40, 20] = 25
    values = dict(zip(PATTERN_QUANTITIES, measure_patterns(patterns).T, strict=False))
    assert values["brightness_counts"].tolist() == [100, 25]
    assert values["centre_row_px"].tolist() == [0, 8]
    assert values["centre_col_px"].tolist() == [0, -12]
    assert values["within_4_px"].tolist() == [1, 0]
    assert values["within_16_px"].tolist() == [1, 1]


def test_a_pattern_87_times_as_bright_is_named_by_its_brightness(patches, probe):
    patterns = bin_patterns(diffracted(patches, probe), 2)
    brightness = patterns.sum(axis=(1, 2))
    checks = PatternChecks(limited(brightness_counts=(brightness.min(), brightness.max() * 1.1)))
    amplitude, phase = np.abs(patches), np.angle(patches)
    assert not checks.judge(patterns, amplitude, phase).any()
    reasons = checks.judge(87 * patterns, amplitude, phase)
    assert {pattern_reason_name(code) for code in reasons} == {"brightness_counts"}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_residual_of_the_true_patch_is_nothing_in_any_orientation(patches, probe, orientation):
    seen = oriented(diffracted(patches, probe), orientation, inverse=True)
    patterns = bin_patterns(np.ascontiguousarray(seen), 2)
    residual = PatternResidual(probe, orientation)
    right = residual.of(patterns, np.abs(patches), np.angle(patches))
    wrong = residual.of(patterns, np.abs(patches), np.angle(patches[::-1]))
    assert right.max() < 1e-4
    assert wrong.min() > 10 * right.max()
    # How bright a pattern is, is another question.
    again = residual.of(5 * patterns, np.abs(patches), np.angle(patches))
    np.testing.assert_allclose(again, right, atol=1e-5)


def test_a_patch_that_does_not_explain_its_pattern_is_named(patches, probe):
    patterns = bin_patterns(diffracted(patches, probe), 2)
    checks = PatternChecks(limited(residual=(None, 0.001)), PatternResidual(probe))
    assert not checks.judge(patterns, np.abs(patches), np.angle(patches)).any()
    reasons = checks.judge(patterns, np.abs(patches), np.angle(patches[::-1]))
    assert {pattern_reason_name(code) for code in reasons} == {"residual"}


def test_the_first_patterns_are_looked_at_and_then_some():
    looked = [number for number in range(600) if PatternChecks.looks_at(number)]
    assert looked == [*range(8), 256, 512]


def test_a_probe_that_is_not_binned_to_64_has_no_residual():
    assert not PatternResidual.fits(None)
    assert not PatternResidual.fits(np.ones((1, 100, 100), np.complex64))
    assert PatternResidual.fits(np.ones((2, 128, 128), np.complex64))
