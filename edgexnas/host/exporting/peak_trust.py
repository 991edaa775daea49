"""Calibrate a network for Bragg peaks: how wide its intervals are, and what is familiar to it."""

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
from edgexnas.familiarity.quantities import FRAME_NOISE
from edgexnas.host.exporting.conformal import group_factors, group_of, interval_scores
from edgexnas.host.exporting.familiar_peaks import MeasuredPart, familiar_data, widening_of
from edgexnas.host.exporting.peak_kinds import fitted_kinds, simulated_kinds
from edgexnas.host.networks.bragg_models import middle_of

if TYPE_CHECKING:
    from edgexnas.host.data.peak_dataset import PeakDataset, Split

__all__ = ["Run", "calibrate_peaks"]

FloatArray = npt.NDArray[np.float32]

Run = Callable[[Precision, FloatArray], FloatArray]
"""Runs a precision of the network: inputs (n, 1, 11, 11) → outputs (n, 2, q)."""

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")

ENOUGH_TO_CALIBRATE = 500
"""With fewer peaks in the calibration part the validation part calibrates too: of 150 peaks the
coverage is uncertain by 0.025, which is worse than that the validation part chose the network."""
PEAKS_PER_SNR, PEAKS_PER_WIDTH = 250, 750
"""Calibration peaks for each group of signal-to-noise ratio, up to 3, and of width, up to 2."""
FEWEST_IN_GROUP = 100
MOST_TRAINING = 20_000
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
    part = split.calibration
    if len(part) < ENOUGH_TO_CALIBRATE:
        part = np.concatenate([part, split.validation])
    held_out = np.concatenate([split.calibration, split.validation])
    outputs = {precision: run(precision, inputs[held_out]) for precision in PRECISIONS}
    seen = {
        precision: MeasuredPart.of(dataset.counts[held_out], output, middle)
        for precision, output in outputs.items()
    }
    calibration = _factors(
        {precision: output[: len(part)] for precision, output in outputs.items()},
        {precision: _first(measured, len(part)) for precision, measured in seen.items()},
        targets[part],
        levels,
    )
    kinds, truth = _kinds(fits=dataset.against == "fit")
    placed = run("float32", scale_patches(kinds)[:, None])
    measured = MeasuredPart.of(kinds, placed, middle)
    errors = np.abs(placed[:, :, middle] - truth)
    factors = np.array(calibration.factors)[_groups(measured, calibration)]
    wrong = (errors > TWICE * factors[:, None] * measured.half_px).any(axis=1)
    spread = np.linspace(0, len(split.train) - 1, min(len(split.train), MOST_TRAINING))
    train = split.train[spread.astype(np.intp)]
    data = familiar_data(
        MeasuredPart.of(dataset.counts[train], run("float32", inputs[train]), middle),
        list(seen.values()),
        MeasuredPart(measured.values[wrong], measured.own[wrong], measured.half_px[wrong]),
    )
    quantities = (*data.quantities, *_frame_noise(dataset))
    data = data.model_copy(update={"n": len(split.train), "quantities": quantities})
    return calibration.model_copy(update={"widening": widening_of(measured, errors)}), data


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


def _first(measured: MeasuredPart, count: int) -> MeasuredPart:
    return MeasuredPart(measured.values[:count], measured.own[:count], measured.half_px[:count])


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
    snr_edges = _edges(snr, number // PEAKS_PER_SNR, most=3)
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
