"""What labelling a series promises, on simulated frames whose answer is known."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgexnas.bragg import PeakFlag
from edgexnas.device.sources import open_event_source
from edgexnas.errors import ConfigurationError, InputError, SourceError
from edgexnas.frames import ArrayFrames, open_frames
from edgexnas.host.data.matching import match_peaks
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import label_frames
from edgexnas.peak_finding import FinderSettings, background_numbers, estimate_background
from edgexnas.simulate import HedmSettings, SimulatedSeries, simulate_hedm


@pytest.fixture(scope="module")
def series() -> SimulatedSeries:
    return simulate_hedm(HedmSettings(shape=(512, 512), frames=12), seed=1)


@pytest.fixture(scope="module")
def labelled(series: SimulatedSeries) -> PeakDataset:
    return label_frames(series)


def test_labels_of_good_peaks_lie_at_the_truth(labelled):
    distance = np.linalg.norm((labelled.offsets_px - labelled.targets_px)[labelled.good], axis=1)
    assert labelled.good.sum() > 50
    assert np.median(distance) < 0.05
    assert np.percentile(distance, 95) < 0.2


def test_nearly_all_visible_single_peaks_are_found_and_nearly_nothing_else(series, labelled):
    truth = series.truth
    wanted = truth.select(truth.visible & ~truth.overlap & ~truth.masked)
    matched = found = 0
    for frame in range(len(series)):
        peaks = labelled.maxima[labelled.frame == frame]
        matched += len(match_peaks(peaks, wanted.of_frame(frame).positions_px, 2))
        found += len(match_peaks(peaks, truth.of_frame(frame).positions_px, 2))
    assert matched / len(wanted) > 0.9
    assert found / len(labelled) > 0.98


def test_good_peaks_carry_no_flag_and_fit_well(labelled):
    assert not labelled.flags[labelled.good].any()
    assert labelled.r2[labelled.good].min() > 0.9
    assert np.linalg.norm(labelled.offsets_px[labelled.good], axis=1).max() < 2


def test_overlapping_peaks_are_kept_but_not_good(labelled):
    overlap = labelled.flags & np.uint8(PeakFlag.OVERLAP) > 0
    assert overlap.any()
    assert not labelled.good[overlap].any()


def test_peaks_are_ordered_by_frame_then_row_then_column(labelled):
    keys = np.column_stack([labelled.frame, labelled.maxima])
    np.testing.assert_array_equal(keys, keys[np.lexsort(keys.T[::-1])])


def test_labelling_twice_gives_one_digest(series, labelled):
    assert label_frames(series).digest == labelled.digest


def test_a_limit_labels_the_first_frames_only(series, labelled):
    calls = []
    few = label_frames(series, limit=3, progress=lambda done, total: calls.append((done, total)))
    assert few.frames == 3
    assert few.omega_deg is not None
    assert few.omega_deg.shape == (3, 2)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_the_finder_settings_are_kept(series):
    settings = FinderSettings(minimum_counts=500.0)
    dataset = label_frames(series, finder=settings, limit=2)
    assert dataset.finder == settings
    assert len(dataset) < len(label_frames(series, limit=2))


def test_measured_series_have_no_truth(series):
    dataset = label_frames(ArrayFrames(np.stack([series[0], series[1]]), source="here"))
    assert dataset.truth_px is None
    assert dataset.against == "fit"
    assert dataset.source == "here"


def test_frames_without_peaks_give_an_empty_dataset():
    dataset = label_frames(ArrayFrames(np.zeros((3, 64, 64), np.uint16)))
    assert (len(dataset), dataset.frames) == (0, 3)


@pytest.mark.parametrize("number", [0, 4])
def test_a_frame_with_a_pixel_that_is_nan_is_named(number):
    frames = np.ones((9, 64, 64), np.float32)
    frames[number, 5, 6] = np.nan
    with pytest.raises(InputError, match=rf"frame {number} of .*row 5, col 6"):
        label_frames(ArrayFrames(frames))


@pytest.mark.parametrize("number", [0, 4])
def test_a_frame_of_nothing_but_nan_is_left_out_and_named(number, caplog):
    frames = np.ones((9, 64, 64), np.float32)
    frames[number] = np.nan
    assert label_frames(ArrayFrames(frames)).frames == 9
    assert f"1 of 9 frames of array are missing and left out ({number})" in caplog.text


def test_a_path_that_is_no_utf8_is_kept_in_escapes(tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9.npy")
    np.save(place, np.ones((2, 64, 64), np.uint16))
    label_frames(open_frames(place)).save(tmp_path / "peaks.h5")
    assert PeakDataset.load(tmp_path / "peaks.h5").source.endswith(r"caf\udce9.npy")


def test_a_limit_below_one_is_refused(series):
    with pytest.raises(ConfigurationError, match="limit is 0"):
        label_frames(series, limit=0)


def test_labels_rest_on_the_background_frames_that_a_device_takes(series, labelled):
    frames = [series[int(n)] for n in background_numbers(len(series), (512, 512), np.uint16)]
    background = estimate_background(frames, mask=series.mask)
    assert label_frames(series, background=background).digest == labelled.digest
    other = estimate_background(frames[:1], mask=series.mask)
    assert label_frames(series, background=other).digest != labelled.digest


@pytest.mark.parametrize("opened", [open_frames, open_event_source])
def test_labelled_peaks_are_not_taken_for_frames(labelled, tmp_path, opened):
    path = labelled.save(tmp_path / "peaks.h5")
    with pytest.raises(SourceError, match=r"peaks\.h5 holds labelled peaks .*, not frames"):
        list(getattr(opened(path), "events", list)())


def test_what_a_user_sets_is_used_and_kept_with_the_labels(series, labelled, tmp_path):
    mask = np.zeros(series.shape, np.bool_)
    mask[:256] = True
    options = {"mask": mask, "saturation": 3000.0, "minimum_counts": 50.0, "threshold": 8.0}
    chosen = label_frames(series, **options, mask_hot=False)
    assert 0 < len(chosen) < len(labelled)
    assert chosen.maxima[:, 0].min() >= 256
    finder = chosen.finder
    assert (finder.saturation, finder.minimum_counts, finder.noise_sigmas) == (3000, 50, 8)
    report = PeakDataset.load(chosen.save(tmp_path / "peaks.h5")).finder_report
    assert report == chosen.finder_report
    assert report.saturation_from.value == "option"
    assert (report.hot_pixels, report.masked_pixels >= mask.sum()) == (0, True)


def test_an_unlimited_saturation_is_kept_with_the_labels(tmp_path):
    frames = np.random.default_rng(1).normal(10, 2, (3, 64, 64)).astype(np.float32)
    frames[:, 30, 30:33] = frames[:, 29:32, 31] = 500
    frames[:, 30, 31] = 501, 503, 507
    dataset = label_frames(ArrayFrames(frames))
    report = PeakDataset.load(dataset.save(tmp_path / "peaks.h5")).finder_report
    assert report == dataset.finder_report
    assert (report.saturation, report.saturation_from.value) == (np.inf, "none")


@pytest.mark.parametrize("mask", [np.zeros((3, 3), np.bool_), np.zeros((512, 512))])
def test_a_mask_that_is_none_of_the_series_is_refused(series, mask):
    with pytest.raises(InputError, match="mask"):
        label_frames(series, mask=mask)
