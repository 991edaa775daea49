"""Calibrate a network for Bragg peaks: how wide its intervals are, and what is familiar to it.

A network learns from peaks with a good fit, and predicts whatever a device finds. So what is
familiar follows from all peaks of a part that carry no flag: faint ones, whose fits are too bad for
labels, are no sign of another detector. Where the truth is known intervals are calibrated on these
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import scale_patches
from edgexnas.bundle import (
    Distribution,
    IntervalCalibration,
    Precision,
    PrecisionFactors,
    TrainingData,
)
from edgexnas.familiarity import PeakChecks
from edgexnas.familiarity.quantities import FRAME_NOISE
from edgexnas.host.exporting.conformal import group_factors, group_of, interval_scores
from edgexnas.host.exporting.coverage import judged
from edgexnas.host.exporting.familiar_peaks import (
    MeasuredPart,
    familiar_data,
    frame_share_of,
    widening_of,
)
from edgexnas.host.exporting.peak_kinds import fitted_kinds, simulated_kinds
from edgexnas.host.networks.bragg_models import middle_of

if TYPE_CHECKING:
    from edgexnas.host.data.peak_dataset import PeakDataset, Split

__all__ = ["Run", "calibrate_peaks", "has_position"]

FloatArray = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]

Run = Callable[[Precision, FloatArray], FloatArray]
"""Runs a precision of the network: inputs (n, 1, 11, 11) → outputs (n, 2, q)."""

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")

ENOUGH_TO_CALIBRATE = 500
"""With fewer peaks in the calibration part the validation part calibrates too: of 150 peaks the
coverage is uncertain by 0.025, which is worse than that the validation part chose the network."""
PEAKS_PER_SNR, PEAKS_PER_WIDTH = 100, 750
"""Calibration peaks for each group of signal-to-noise ratio, up to 5, and of width, up to 2."""
FEWEST_IN_GROUP = 100
MOST_TRAINING = 20_000
"""Peaks of the training part, with a label or without, that tell what is familiar."""
MOST_FLAGGED = 0.1
"""Share of flagged peaks from which on these tell what is familiar too."""
KINDS_TRIED, KINDS_SEED = 7000, 20261130
NOISE_RANGE = 3.0
"""Exposures of one detector differ by so much, by a factor; others differ by more."""
TWICE = 2.0
"""A peak is placed wrongly if its error exceeds the calibrated half width so many times."""


def calibrate_peaks(
    dataset: PeakDataset, split: Split, levels: tuple[float, ...], run: Run
) -> tuple[IntervalCalibration | None, TrainingData | None]:
    """Find interval factors of each precision, and what a device needs to find unfamiliar peaks.

    Parameters
    ----------
    dataset, split
        Labelled peaks; the test part is not looked at.
    levels
        The network's quantile levels; without one on both sides of the position there are no
        intervals, and nothing is given.
    run
        Runs the network.
    """
    middle = middle_of(levels)
    if not 0 < middle < len(levels) - 1:
        return None, None
    inputs, targets = dataset.inputs(), dataset.targets_px
    usual = _usual(dataset, split)
    calibrating = np.concatenate([split.calibration, _rest(split, "calibration", usual)])
    validating = np.concatenate([split.validation, _rest(split, "validation", usual)])
    held_out = np.concatenate([calibrating, validating])
    outputs = {precision: run(precision, inputs[held_out]) for precision in PRECISIONS}
    seen = {
        precision: MeasuredPart.of(dataset.counts[held_out], output, middle)
        for precision, output in outputs.items()
    }
    used = (has_position(dataset) & (dataset.flags == 0))[held_out]
    if len(split.calibration) >= ENOUGH_TO_CALIBRATE:
        used[len(calibrating) :] = False
    calibration = _factors(
        {precision: output[used] for precision, output in outputs.items()},
        {precision: measured.select(used) for precision, measured in seen.items()},
        targets[held_out[used]],
        levels,
    )
    kinds, truth = _kinds(fits=dataset.against == "fit")
    placed = run("float32", scale_patches(kinds)[:, None])
    measured = MeasuredPart.of(kinds, placed, middle)
    errors = np.abs(placed[:, :, middle] - truth)
    factors = np.array(calibration.factors)[_groups(measured, calibration)]
    wrong = (errors > TWICE * factors[:, None] * measured.half_px).any(axis=1)
    without_label = float((~dataset.good[held_out]).mean())
    train = _as_found(split.train, _rest(split, "train", usual), without_label)
    data = familiar_data(
        MeasuredPart.of(dataset.counts[train], run("float32", inputs[train]), middle),
        list(seen.values()),
        measured.select(wrong),
    )
    quantities = (*data.quantities, *_frame_noise(dataset))
    data = data.model_copy(update={"n": len(split.train), "quantities": quantities})
    calibration = calibration.model_copy(update={"widening": widening_of(measured, errors)})
    checks = PeakChecks(calibration, data, levels=levels, precision="float32")
    everything = np.concatenate([held_out, _rest(split, "calibration", ~usual),
                                 _rest(split, "validation", ~usual)])  # fmt: skip
    _, reasons = judged(dataset.counts[everything], run("float32", inputs[everything]), checks)
    frame_share = frame_share_of(float((reasons > 0).mean()))
    return calibration, data.model_copy(update={"frame_share": frame_share})


def _usual(dataset: PeakDataset, split: Split) -> npt.NDArray[np.bool_]:
    """(n,) bool, which peaks tell what is familiar: those without a flag; all where many have one.

    Saturated peaks are brighter than all others, and a flag says so; but where every fifth peak
    saturates its own frames would be foreign to the network.
    """
    plain: npt.NDArray[np.bool_] = dataset.flags == 0
    found = np.concatenate([split.calibration, split.validation,
                            _rest(split, "calibration"), _rest(split, "validation")])  # fmt: skip
    return plain if plain[found].mean() >= 1 - MOST_FLAGGED else np.ones_like(plain)


def _rest(split: Split, part: str, chosen: npt.NDArray[np.bool_] | None = None) -> Index:
    """Give the peaks of a part that have no label; those of `chosen` (n,) alone."""
    found: Index = np.empty(0, np.intp) if split.rest is None else getattr(split.rest, part)
    return found if chosen is None else found[chosen[found]]


def has_position(dataset: PeakDataset) -> npt.NDArray[np.bool_]:
    """(n,) bool, which peaks have a position that an interval is to hold.

    The truth, label or not; of fits those alone that are good enough to be labels, because another
    one tells where its profile fails and not where the peak is.
    """
    if dataset.against == "fit":
        return dataset.good
    return np.asarray(np.isfinite(dataset.targets_px).all(axis=1))


def _as_found(labelled: Index, others: Index, without_label: float) -> Index:
    """Give peaks of the training part as a device finds them: with so large a share unlabelled.

    Synthetic peaks, which all have labels, would make it too small; then some are given twice.
    """
    if len(others) == 0:
        return _spread(labelled, MOST_TRAINING)
    # Where few fits are good the others are many times as many.
    most = min(len(labelled) / (1 - without_label), MOST_TRAINING)
    wanted = round(most * without_label)
    times = -(-wanted // len(others))
    train = _spread(labelled, max(1, round(most) - wanted))
    return np.concatenate([train, _spread(np.repeat(others, times), wanted)])


def _spread(indices: Index, most: int) -> Index:
    """Give all of them or, evenly from the first to the last, so many."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), most))
    return indices[places.astype(np.intp)]


def _kinds(*, fits: bool) -> tuple[FloatArray, FloatArray]:
    """Simulate peaks of many kinds with what a network is to say of them.

    Where it learned from fits, each is there twice, with its truth and with its fit: an interval
    for the fit alone leaves out the noise, which both share, and one for the truth alone is too
    wide by how fits of narrow peaks err.
    """
    patches, offsets = simulated_kinds(KINDS_TRIED, seed=KINDS_SEED)
    if not fits:
        return patches, offsets
    same, fitted = fitted_kinds(KINDS_TRIED, seed=KINDS_SEED)
    # About as many of both.
    patches, offsets = patches[: len(same)], offsets[: len(same)]
    return np.concatenate([patches, same]), np.concatenate([offsets, fitted])


def _frame_noise(dataset: PeakDataset) -> tuple[Distribution, ...]:
    """Describe the background noise of the frames, where the labels tell it."""
    if dataset.finder_report is None:
        return ()
    noise = dataset.finder_report.noise_counts
    return (
        Distribution(
            name=FRAME_NOISE, unit="counts", levels=(0.5,), quantiles=(noise,), n=dataset.frames,
            low=noise / NOISE_RANGE, high=noise * NOISE_RANGE,
        ),
    )  # fmt: skip


def _groups(
    measured: MeasuredPart, calibration: IntervalCalibration
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    snr = 1 / np.maximum(measured.values[:, 3], 1e-6)
    return (
        group_of(snr, np.array(calibration.snr_edges)),
        group_of(measured.values[:, 0], np.array(calibration.width_edges_px)),
    )


def _factors(
    outputs: dict[Precision, FloatArray],
    seen: dict[Precision, MeasuredPart],
    targets: FloatArray,
    levels: tuple[float, ...],
) -> IntervalCalibration:
    # Rounded, because 0.95 - 0.05 is a little less than 0.9.
    level, middle = round(levels[-1] - levels[0], 9), middle_of(levels)
    reference = seen["float32"]
    number = len(targets)
    snr = 1 / np.maximum(reference.values[:, 3], 1e-6)
    snr_edges = _edges(snr, number // PEAKS_PER_SNR, most=5)
    width_edges = _edges(reference.values[:, 0], number // PEAKS_PER_WIDTH, most=2)
    shape = (len(snr_edges) + 1, len(width_edges) + 1)
    tables, counts = {}, np.zeros(shape, np.intp)
    for precision, output in outputs.items():
        measured = seen[precision]
        rows = group_of(1 / np.maximum(measured.values[:, 3], 1e-6), np.array(snr_edges))
        cols = group_of(measured.values[:, 0], np.array(width_edges))
        factors, numbers = group_factors(
            interval_scores(output, targets, middle), rows, cols, shape,
            level=level, fewest=FEWEST_IN_GROUP,
        )  # fmt: skip
        tables[precision] = tuple(tuple(row) for row in factors.tolist())
        counts = numbers if precision == "float32" else counts
    return IntervalCalibration(
        level=level,
        snr_edges=snr_edges,
        width_edges_px=width_edges,
        factors=tables["float32"],
        counts=tuple(tuple(row) for row in counts.tolist()),
        by_precision=tuple(
            PrecisionFactors(precision=precision, factors=table)
            for precision, table in tables.items()
        ),
    )


def _edges(values: npt.NDArray[np.floating], groups: int, *, most: int) -> tuple[float, ...]:
    """Cut values into equally many, as far as they differ."""
    count = max(1, min(groups, most))
    edges = np.quantile(values, np.arange(1, count) / count)
    return tuple(float(edge) for edge in np.unique(edges) if edge > 0)
