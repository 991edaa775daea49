"""Peaks of any detector: found as on the device, with their truth."""

from __future__ import annotations

import numpy as np
import pytest

from edgexnas.host.data.varied_peaks import VariedPeaks, draw_varied_peaks, varied_dataset


@pytest.fixture(scope="module")
def peaks() -> VariedPeaks:
    return draw_varied_peaks(6, seed=11)


def test_a_frame_is_the_same_whichever_are_drawn_with_it(peaks: VariedPeaks) -> None:
    alone = draw_varied_peaks(1, seed=11, first=4)
    chosen = peaks.frame == 4
    assert np.array_equal(alone.counts, peaks.counts[chosen])
    assert np.array_equal(alone.true_px, peaks.true_px[chosen], equal_nan=True)


def test_the_truth_lies_near_the_brightest_pixel(peaks: VariedPeaks) -> None:
    lone = (peaks.flags == 0) & np.isfinite(peaks.snr) & (peaks.snr > 10)
    assert lone.sum() > 50
    assert np.median(np.abs(peaks.true_px[lone])) < 0.5
    assert (peaks.bounds_px[lone] > 0).all()


def test_good_labels_are_lone_peaks_that_are_true(peaks: VariedPeaks) -> None:
    dataset = varied_dataset(peaks, 6)
    assert dataset.against == "truth"
    assert np.isfinite(dataset.targets_px[dataset.good]).all()
    assert (dataset.flags[dataset.good] == 0).all()
