"""Peaks drawn from measured ones: where they go, what they may know, and that they teach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgexnas.bragg import CENTRE
from edgexnas.errors import ConfigurationError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.pseudo_voigt import fit_pseudo_voigt
from edgexnas.host.data.synthetic_peaks import ODD_PX, with_synthetic_peaks
from edgexnas.host.networks.bragg_models import MlpBragg
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

COUNT = 400


@pytest.fixture(scope="module")
def drawn(simulated_peaks: PeakDataset) -> PeakDataset:
    return with_synthetic_peaks(as_measured(simulated_peaks), COUNT, seed=1)


def as_measured(dataset: PeakDataset) -> PeakDataset:
    return replace(dataset, truth_px=None)


def added(dataset: PeakDataset, joined: PeakDataset) -> np.ndarray:
    """Which peaks of the joined dataset are not in the first one."""
    known = {patch.tobytes() for patch in dataset.counts}
    return np.array([patch.tobytes() not in known for patch in joined.counts])


def test_drawn_peaks_join_the_training_part_and_no_other(
    simulated_peaks: PeakDataset, drawn: PeakDataset
) -> None:
    before, after = simulated_peaks.split(), drawn.split()
    assert len(after.train) == len(before.train) + COUNT
    assert added(simulated_peaks, drawn)[after.train].sum() == COUNT
    for part in ("calibration", "validation", "test"):
        old, new = getattr(before, part), getattr(after, part)
        np.testing.assert_array_equal(drawn.counts[new], simulated_peaks.counts[old])
        np.testing.assert_array_equal(drawn.offsets_px[new], simulated_peaks.offsets_px[old])


def test_peaks_stay_in_the_order_of_their_frames(drawn: PeakDataset) -> None:
    keys = np.stack([drawn.frame, drawn.maxima[:, 0], drawn.maxima[:, 1]], axis=1).tolist()
    assert keys == sorted(keys)


def test_what_is_drawn_does_not_depend_on_the_held_out_peaks(
    simulated_peaks: PeakDataset, drawn: PeakDataset
) -> None:
    dataset = as_measured(simulated_peaks)
    split = dataset.split()
    counts = dataset.counts.copy()
    for part in (split.calibration, split.validation, split.test):
        counts[part] = counts[part][:, ::-1]
    other = with_synthetic_peaks(replace(dataset, counts=counts), COUNT, seed=1)
    ours = drawn.counts[added(dataset, drawn)]
    np.testing.assert_array_equal(other.counts[added(replace(dataset, counts=counts), other)], ours)


def test_the_label_of_a_drawn_peak_is_the_fit_of_its_counts(
    simulated_peaks: PeakDataset, drawn: PeakDataset
) -> None:
    new = added(simulated_peaks, drawn)
    fit = fit_pseudo_voigt(drawn.counts[new])
    np.testing.assert_allclose(drawn.offsets_px[new], fit.positions_px - CENTRE, atol=1e-5)
    assert drawn.good[new].all()
    assert (fit.r2 > 0.9).all()


def test_a_drawn_peak_is_brightest_in_the_centre_as_a_found_one_is(
    simulated_peaks: PeakDataset, drawn: PeakDataset
) -> None:
    counts = drawn.counts[added(simulated_peaks, drawn)]
    np.testing.assert_array_equal(counts.max(axis=(1, 2)), counts[:, CENTRE, CENTRE])


def test_where_the_truth_is_known_a_drawn_peak_is_labelled_by_it(
    simulated_peaks: PeakDataset,
) -> None:
    joined = with_synthetic_peaks(simulated_peaks, COUNT, seed=1)
    new = added(simulated_peaks, joined)
    assert joined.against == "truth"
    apart = np.linalg.norm((joined.targets_px - joined.offsets_px)[new], axis=1)
    assert 0.005 < np.median(apart) < 0.1


def test_drawn_peaks_look_like_the_measured_ones(
    simulated_peaks: PeakDataset, drawn: PeakDataset
) -> None:
    new, train_part = added(simulated_peaks, drawn), simulated_peaks.split().train

    def shape(counts: np.ndarray) -> tuple[float, float]:
        highest = counts.max(axis=(1, 2))
        beside = counts[:, CENTRE, [CENTRE - 1, CENTRE + 1]].mean(axis=1)
        return float(np.median(np.log(highest))), float(np.median(beside / highest))

    assert shape(drawn.counts[new]) == pytest.approx(
        shape(simulated_peaks.counts[train_part]), rel=0.1
    )


def test_zero_suppression_of_the_measured_frames_is_that_of_the_drawn_peaks(
    simulated_peaks: PeakDataset,
) -> None:
    counts = simulated_peaks.counts.copy()
    counts[counts < 50] = 0
    dataset = as_measured(replace(simulated_peaks, counts=counts))
    drawn = with_synthetic_peaks(dataset, COUNT)
    new = drawn.counts[added(dataset, drawn)]
    assert new[new > 0].min() >= 50


def test_where_the_detector_saturates_so_do_the_drawn_peaks(simulated_peaks: PeakDataset) -> None:
    full = int(np.quantile(simulated_peaks.counts.max(axis=(1, 2)), 0.8))
    dataset = as_measured(replace(simulated_peaks, counts=np.minimum(simulated_peaks.counts, full)))
    joined = with_synthetic_peaks(dataset, COUNT)
    new = added(dataset, joined)
    assert joined.counts.max() == full

    def saturated(counts: np.ndarray) -> float:
        return float(((counts == full).sum(axis=(1, 2)) > 1).mean())

    measured = saturated(dataset.counts[dataset.split().train])
    assert measured > 0.05
    assert saturated(joined.counts[new]) > 0.5 * measured
    fit = fit_pseudo_voigt(joined.counts[new])
    np.testing.assert_allclose(joined.offsets_px[new], fit.positions_px - CENTRE, atol=1e-5)


def with_odd_peaks(dataset: PeakDataset, odd: np.ndarray) -> PeakDataset:
    """A hot spot beside some peaks becomes their brightest pixel."""
    counts = dataset.counts.copy()
    moved = np.roll(counts[odd], 1, axis=2)
    moved[:, CENTRE, CENTRE] = 1.2 * counts[odd].max(axis=(1, 2))
    counts[odd] = moved
    offsets = dataset.offsets_px.copy()
    fit = fit_pseudo_voigt(counts[odd])
    offsets[odd] = fit.positions_px - CENTRE
    return replace(dataset, counts=counts, offsets_px=offsets)


def test_a_peak_off_its_brightest_pixel_that_is_the_only_one_is_not_drawn_again_and_again(
    simulated_peaks: PeakDataset,
) -> None:
    measured = as_measured(simulated_peaks)
    train = measured.split().train
    fit = fit_pseudo_voigt(measured.counts[train])
    usual = np.abs(fit.positions_px - CENTRE).max(axis=1) <= ODD_PX
    # The training part holds no other, whatever the simulation drew.
    good = measured.good.copy()
    good[train[~usual]] = False
    single = replace(measured, good=good)
    # On one side of its pixel already, so that it then lies far beyond the one beside it.
    (odd,) = train[usual & (fit.positions_px[:, 1] > CENTRE + 0.3)][:1]
    dataset = with_odd_peaks(single, np.array([odd]))
    assert abs(dataset.offsets_px[odd, 1]) > ODD_PX
    joined = with_synthetic_peaks(dataset, COUNT)
    new = added(dataset, joined)
    of_it = (joined.maxima[new] == dataset.maxima[odd]).all(axis=1)
    of_it &= joined.frame[new] == dataset.frame[odd]
    times = of_it.mean() * len(dataset.split().train)
    assert 0 < times < 10


def test_peaks_that_lie_off_their_brightest_pixel_are_drawn_about_as_often_as_measured(
    simulated_peaks: PeakDataset,
) -> None:
    measured_ones = as_measured(simulated_peaks)
    dataset = with_odd_peaks(measured_ones, np.arange(0, len(measured_ones.counts), 10))
    joined = with_synthetic_peaks(dataset, COUNT)

    def far(offsets: np.ndarray) -> float:
        return float((np.abs(offsets).max(axis=1) > 0.6).mean())

    measured = far(dataset.offsets_px[dataset.split().train])
    assert measured > 0.05
    assert far(joined.offsets_px[added(dataset, joined)]) > 0.3 * measured


def test_a_network_learns_more_where_drawn_peaks_join_few_measured_ones(
    simulated_peaks: PeakDataset,
) -> None:
    split = simulated_peaks.split()
    good = simulated_peaks.good.copy()
    good[np.delete(split.train, np.s_[::8])] = False
    few = as_measured(replace(simulated_peaks, good=good))

    def error(data: PeakDataset, steps: int = 1000) -> float:
        parts = TrainingData.from_dataset(data, data.split(), "cpu")
        torch.manual_seed(0)
        epochs = round(steps / (len(parts.train_x) // 64))
        settings = TrainingSettings(epochs=epochs, batch_size=64, learning_rate=3e-3)
        return train(MlpBragg(48, 2), parts, settings).metrics["error"]

    assert error(with_synthetic_peaks(few, 3000, seed=2)) < 0.9 * error(few)


def test_a_count_below_one_is_refused(simulated_peaks: PeakDataset) -> None:
    with pytest.raises(ConfigurationError, match="count is 0; specify 1 synthetic peak or more"):
        with_synthetic_peaks(simulated_peaks, 0)


def test_peaks_of_other_frames_are_not_merged(simulated_peaks: PeakDataset) -> None:
    other = replace(simulated_peaks, frames=simulated_peaks.frames + 1, omega_deg=None)
    with pytest.raises(ConfigurationError, match="specify peaks of the same series"):
        simulated_peaks.merge(other, source="both")


def test_a_time_limit_keeps_what_has_been_drawn(simulated_peaks: PeakDataset) -> None:
    measured = as_measured(simulated_peaks)
    joined = with_synthetic_peaks(measured, 50_000, seed=1, seconds=1e-3)
    # One chunk of draws, of which about half are usable.
    assert len(measured) + 100 < len(joined) < len(measured) + 500
    assert f"{len(joined) - len(measured)} synthetic peaks" in joined.source
