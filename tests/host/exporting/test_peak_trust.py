"""What an export learns of intervals and of what is familiar, tried on what it did not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from edgexnas.bragg import CENTRE, PeakFlag, centroid, scale_patches
from edgexnas.bundle import IntervalCalibration, TrainingData
from edgexnas.familiarity import PEAK_QUANTITIES, PeakChecks
from edgexnas.familiarity.quantities import WHOLE_FRAME
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import label_frames
from edgexnas.host.exporting import peak_trust
from edgexnas.host.exporting.coverage import coverage_of, coverage_rows, judged
from edgexnas.host.exporting.familiar_peaks import frame_share_of
from edgexnas.host.exporting.peak_kinds import simulated_kinds
from edgexnas.host.exporting.peak_trust import calibrate_peaks, has_position
from edgexnas.simulate import HedmSettings, simulate_hedm

LEVELS = (0.05, 0.5, 0.95)
FEW = {"shape": (512, 512), "frames": 40, "grains": 40}


def network(precision: str, inputs: np.ndarray) -> np.ndarray:
    """A network that takes the centroid of the middle 5×5 and is far too sure of it."""
    inner = inputs[:, 0, 3:8, 3:8] ** 2
    full = np.zeros((len(inputs), 11, 11), np.float32)
    full[:, 3:8, 3:8] = inner
    position = centroid(full) - CENTRE
    # Rounding of a lower precision.
    position += {"float32": 0.0, "float16": 1e-3, "int8": 2e-2}[precision]
    half = np.float32(0.01)
    return np.stack([position - half, position, position + half], axis=2).astype(np.float32)


def labelled(seed: int = 3, **changes) -> PeakDataset:
    return label_frames(simulate_hedm(HedmSettings(**{**FEW, **changes}), seed=seed))


@dataclass(frozen=True)
class Trusted:
    peaks: PeakDataset
    calibration: IntervalCalibration
    data: TrainingData

    def checks(self, precision: str = "float32") -> PeakChecks:
        return PeakChecks(self.calibration, self.data, levels=LEVELS, precision=precision)

    def unfamiliar(self, counts: np.ndarray) -> np.ndarray:
        outputs = network("float32", scale_patches(counts)[:, None])
        return judged(counts, outputs, self.checks())[1] > 0

    def reasons(self, frame: int) -> np.ndarray:
        """Why a device calls what it finds on a frame unfamiliar."""
        counts = self.peaks.counts[self.peaks.frame == frame]
        scaled, heights = scale_patches(counts), np.ascontiguousarray(counts[:, CENTRE, CENTRE])
        outputs = network("float32", scaled[:, None])
        flags = np.zeros(len(counts), np.uint8)
        return self.checks().judge(scaled, heights, outputs, flags).reasons


@pytest.fixture(scope="module")
def trusted() -> Trusted:
    peaks = labelled(frames=200)
    calibration, data = calibrate_peaks(peaks, peaks.split(), LEVELS, network)
    assert calibration is not None
    assert data is not None
    return Trusted(peaks, calibration, data)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_intervals_of_each_precision_hold_on_peaks_that_nobody_saw(trusted, precision):
    peaks, test = trusted.peaks, trusted.peaks.split().test
    rows = coverage_rows(
        peaks.counts[test], network(precision, peaks.inputs()[test]), peaks.targets_px[test],
        calibration=trusted.calibration, data=trusted.data, levels=LEVELS, precision=precision,
    )  # fmt: skip
    everything = rows[0]
    assert (everything.group, everything.n, everything.level) == ("all", len(test), 0.9)
    assert 0.86 < everything.share < 0.95
    assert everything.low < everything.share < everything.high
    assert all(row.n >= 200 for row in rows[1:])


def test_a_precision_that_rounds_has_wider_intervals(trusted):
    factors = [np.array(trusted.calibration.factors_of(p)) for p in ("float32", "int8")]
    assert (factors[0] < factors[1]).all()
    # It was far too sure of itself.
    assert factors[0].min() > 2


def test_few_familiar_peaks_are_called_unfamiliar(trusted):
    test = trusted.peaks.split().test
    # 3 % at most is what is wanted; of fewer than 200 peaks two more are chance.
    assert trusted.unfamiliar(trusted.peaks.counts[test]).mean() < 0.045


def test_all_that_is_found_on_frames_of_the_training_data_is_familiar(trusted):
    split = trusted.peaks.split()
    frames = np.unique(trusted.peaks.frame[split.test])
    found = [trusted.reasons(frame) for frame in frames]
    # Faint peaks, whose fits are no labels, and overlapping and saturated ones among them.
    assert (np.concatenate(found) > 0).mean() < 0.08
    assert not any((reasons == WHOLE_FRAME).any() for reasons in found)
    faint = np.concatenate([split.rest.test, split.rest.validation, split.rest.train])
    faint = faint[trusted.peaks.flags[faint] == 0]
    assert len(faint) > 150
    assert trusted.unfamiliar(trusted.peaks.counts[faint]).mean() < 0.08


def test_intervals_hold_on_peaks_whose_fit_is_no_label(trusted):
    peaks, rest = trusted.peaks, trusted.peaks.split().rest
    faint = np.concatenate([rest.test, rest.validation, rest.train])
    faint = faint[(peaks.flags[faint] == 0) & has_position(peaks)[faint]]
    outputs = network("float32", peaks.inputs()[faint])
    intervals, _ = judged(peaks.counts[faint], outputs, trusted.checks())
    row = coverage_of("faint", intervals, peaks.targets_px[faint], 0.9)
    assert row.share > 0.75


def test_a_frame_may_hold_three_times_what_the_frames_of_the_training_data_hold():
    assert frame_share_of(0.01) == 0.15
    assert frame_share_of(0.1) == pytest.approx(0.3)
    assert frame_share_of(0.9) == 0.6


@pytest.mark.parametrize(("flagged", "share"), [(0.05, 0.5), (0.4, 0.06)])
def test_flagged_peaks_are_familiar_where_many_have_a_flag(
    trusted: Trusted, flagged: float, share: float
) -> None:
    peaks = trusted.peaks
    bright = np.random.default_rng(0).random(len(peaks.counts)) < flagged
    # Brighter than any other.
    counts = np.where(bright[:, None, None], peaks.counts * 1e4, peaks.counts)
    flags = np.where(bright, PeakFlag.SATURATED, 0).astype(np.uint8)
    dataset = replace(peaks, counts=counts, flags=flags, good=peaks.good & ~bright)
    split = dataset.split()
    calibration, data = calibrate_peaks(dataset, split, LEVELS, network)
    assert calibration is not None
    assert data is not None
    found = split.rest.test[bright[split.rest.test]]
    unfamiliar = Trusted(dataset, calibration, data).unfamiliar(counts[found]).mean()
    assert (unfamiliar > share) == (flagged < 0.1)


def test_a_bad_fit_is_no_position_that_an_interval_is_to_hold(trusted):
    peaks = trusted.peaks
    assert (has_position(peaks) & ~peaks.good).any()
    fitted = replace(peaks, truth_px=None)
    np.testing.assert_array_equal(has_position(fitted), peaks.good)


@pytest.mark.parametrize(
    "kind",
    [
        {"fwhm_quantiles_px": (4.0, 6.0)},
        {"elongation_quantiles": (3.0, 5.0)},
        {"sparse_threshold": 100.0},
        {"fwhm_quantiles_px": (0.5, 0.9)},
    ],
    ids=["wide", "long", "thresholded", "narrow"],
)
def test_peaks_of_other_kinds_that_are_placed_wrongly_are_unfamiliar(trusted, kind):
    other = labelled(seed=9, **kind)
    counts, targets = other.counts[other.good], other.targets_px[other.good]
    outputs = network("float32", scale_patches(counts)[:, None])
    unjudged = PeakChecks(trusted.calibration, None, levels=LEVELS, precision="float32")
    half = np.diff(judged(counts, outputs, unjudged)[0][:, :, ::2])[:, :, 0] / 2
    wrong = (np.abs(outputs[:, :, 1] - targets) > 2 * half).any(axis=1)
    assert wrong.sum() > 5
    found = [trusted.unfamiliar(counts[other.frame[other.good] == f])
             for f in np.unique(other.frame[other.good])]  # fmt: skip
    assert np.concatenate(found)[wrong].mean() > 0.9


def test_the_distribution_of_each_quantity_is_described(trusted):
    names = [quantity.name for quantity in trusted.data.quantities]
    assert names == [*PEAK_QUANTITIES, "frame_noise_counts"]
    for quantity in trusted.data.quantities[:-1]:
        assert quantity.low <= quantity.quantiles[0] < quantity.quantiles[-1] <= quantity.high
    assert trusted.data.n == len(trusted.peaks.split().train)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.999])
def test_where_few_fits_are_good_what_is_familiar_is_told_by_so_many_peaks(
    trusted: Trusted, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_trust, "MOST_TRAINING", 200)
    peaks, split = trusted.peaks, trusted.peaks.split()
    found = peak_trust._as_found(split.train, split.rest.train, share)
    assert len(found) == pytest.approx(200, abs=1)
    assert (~peaks.good[found]).mean() == pytest.approx(share, abs=0.01)
    # Of the whole series, those without a label as well.
    others = peaks.frame[found[~peaks.good[found]]]
    assert np.ptp(others) > 0.7 * np.ptp(peaks.frame)


def test_the_test_part_is_left_alone(trusted):
    peaks = trusted.peaks
    split = peaks.split()
    spoiled = np.array(peaks.counts)
    spoiled[split.test] = 0
    spoiled[split.rest.test] = 0
    again = calibrate_peaks(replace(peaks, counts=spoiled), split, LEVELS, network)
    assert again == (trusted.calibration, trusted.data)


def test_a_network_without_an_interval_has_nothing_to_calibrate(trusted):
    run: Callable[..., np.ndarray] = lambda precision, inputs: network(precision, inputs)[:, :, :1]  # noqa: E731
    assert calibrate_peaks(trusted.peaks, trusted.peaks.split(), (0.5,), run) == (None, None)


def test_simulated_kinds_have_a_brightest_middle_and_a_truth_near_it():
    patches, truth = simulated_kinds(400, seed=1)
    assert 200 < len(patches) <= 400
    core = patches[:, CENTRE - 1 : CENTRE + 2, CENTRE - 1 : CENTRE + 2]
    assert (patches[:, CENTRE, CENTRE] >= core.max(axis=(1, 2))).mean() > 0.99
    assert np.abs(truth).max() < 2
    again, _ = simulated_kinds(400, seed=1)
    assert again is patches
    with pytest.raises(ValueError, match="read-only"):
        patches[0] = 0
