"""How often intervals hold, of all peaks and by groups, with what that is uncertain by."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import scale_patches
from edgexnas.bundle import Coverage, IntervalCalibration, Precision, TrainingData
from edgexnas.familiarity import PeakChecks, measure_peaks
from edgexnas.host.exporting.conformal import group_of, wilson

__all__ = ["FEWEST_IN_GROUP", "coverage_of", "coverage_rows", "judged"]

FloatArray = npt.NDArray[np.float32]

FEWEST_IN_GROUP = 200
"""Of fewer peaks the share is uncertain by more than 0.05, and no group of them is shown."""

COORDINATES = 2


def judged(
    counts: FloatArray, outputs: FloatArray, checks: PeakChecks
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Judge peaks as a device does, each by itself.

    Parameters
    ----------
    counts
        (n, 11, 11) float32, patches in counts.
    outputs
        (n, 2, q) float32 of the network, left as they are.

    Returns
    -------
    Calibrated and widened quantiles (n, 2, q), and reasons (n,).
    """
    offsets = outputs.copy()
    flags = np.zeros(len(counts), np.uint8)
    heights = np.ascontiguousarray(counts[:, counts.shape[1] // 2, counts.shape[2] // 2])
    judgement = checks.alone_each().judge(scale_patches(counts), heights, offsets, flags)
    return offsets, judgement.reasons


def coverage_rows(
    counts: FloatArray,
    outputs: FloatArray,
    targets: FloatArray,
    *,
    calibration: IntervalCalibration,
    data: TrainingData | None,
    levels: tuple[float, ...],
    precision: Precision,
) -> tuple[Coverage, ...]:
    """Tell how often calibrated intervals hold.

    Parameters
    ----------
    counts
        (n, 11, 11) float32, patches in counts.
    outputs
        (n, 2, q) float32 of the network in this precision.
    targets
        (n, 2) offsets to score against.
    calibration, data
        Of the manifest.

    Returns
    -------
    All peaks, then each group of at least `FEWEST_IN_GROUP`; the uncertainty is that of so many
    peaks, as if the coordinates of a peak always erred together.
    """
    checks = PeakChecks(calibration, data, levels=levels, precision=precision)
    intervals, _ = judged(counts, outputs, checks)
    return tuple(
        coverage_of(name, intervals[group], targets[group], calibration.level)
        for name, group in _groups(counts, outputs, calibration, checks.middle)
    )


def coverage_of(
    group: str,
    quantiles: npt.NDArray[np.floating],
    targets: npt.NDArray[np.floating],
    level: float,
) -> Coverage:
    """Tell how often intervals hold.

    Parameters
    ----------
    group
        Which peaks these are.
    quantiles
        (n, 2, q), of which the outer ones are the interval.
    targets
        (n, 2) what they are to hold.
    level
        How often.
    """
    low_end, high_end = quantiles[:, :, 0], quantiles[:, :, -1]
    share = float(((low_end <= targets) & (targets <= high_end)).mean())
    low, high = wilson(share, len(targets))
    return Coverage(
        group=group,
        n=len(targets),
        level=level,
        share=share,
        low=low,
        high=high,
        median_width_px=float(np.median(high_end - low_end)),
    )


def _groups(
    counts: FloatArray, outputs: FloatArray, calibration: IntervalCalibration, middle: int
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Give all peaks, and those of each group of signal-to-noise ratio and width."""
    yield "all", np.ones(len(counts), np.bool_)
    found, _ = measure_peaks(
        scale_patches(counts), np.zeros(len(counts), np.float32), outputs, middle
    )
    snr = group_of(1 / np.maximum(found[:, 3], 1e-6), np.array(calibration.snr_edges))
    width = group_of(found[:, 0], np.array(calibration.width_edges_px))
    for row, snr_range in enumerate(_ranges(calibration.snr_edges)):
        for col, width_range in enumerate(_ranges(calibration.width_edges_px)):
            group = (snr == row) & (width == col)
            if group.sum() >= FEWEST_IN_GROUP:
                yield f"snr {snr_range}, width {width_range} px", group


def _ranges(edges: tuple[float, ...]) -> list[str]:
    ends = [f"{edge:.3g}" for edge in edges]
    if not ends:
        return ["any"]
    between = [f"{low} to {high}" for low, high in pairwise(ends)]
    return [f"below {ends[0]}", *between, f"from {ends[-1]}"]
