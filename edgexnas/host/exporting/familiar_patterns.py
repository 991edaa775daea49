"""What a device must know to tell diffraction patterns unlike the training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bundle import Distribution, TrainingData
from edgexnas.familiarity import measure_patterns
from edgexnas.familiarity.pattern_checks import PATTERN_UNITS
from edgexnas.familiarity.pattern_residual import PatternResidual

if TYPE_CHECKING:
    from edgexnas.bundle import Precision
    from edgexnas.host.data.ptycho_dataset import PtychoDataset
    from edgexnas.host.data.splitting import Split

__all__ = ["familiar_patterns"]

FloatArray = npt.NDArray[np.float32]

LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)
TAIL = 0.0015
"""Share of familiar patterns beyond each limit: seven quantities have fourteen, 2 % in all."""
PADDING = 0.5
"""Limits lie half as far again from the median: patterns of one scan are few, those of another part
of the object differ from them, and those of another set-up by far more (brightness by factors)."""
MOST_DIFFRACTED = 100


def familiar_patterns(
    dataset: PtychoDataset, split: Split, run: Callable[[Precision, FloatArray], FloatArray]
) -> TrainingData:
    """Describe the patterns of the training, calibration and validation parts.

    Parameters
    ----------
    run
        Runs a precision of the network: inputs (n, 1, 64, 64) → patches (n, 2, 64, 64).
    """
    known = np.concatenate([split.train, split.calibration, split.validation])
    values = measure_patterns(dataset.patterns[known])
    columns = dict(zip(PATTERN_UNITS, values.T, strict=False))
    # Of held-out patterns: the network knows those that it was trained on too well.
    held_out = np.concatenate([split.calibration, split.validation])
    spread = np.linspace(0, len(held_out) - 1, min(len(held_out), MOST_DIFFRACTED))
    held_out = held_out[np.unique(spread.astype(np.intp))]
    if dataset.probe is not None and PatternResidual.fits(dataset.probe):
        patches = run("float32", dataset.inputs()[held_out])
        residual = PatternResidual(dataset.probe, dataset.orientation)
        columns["residual"] = residual.of(dataset.patterns[held_out], patches[:, 0], patches[:, 1])
    quantities = tuple(_distribution(name, column) for name, column in columns.items())
    return TrainingData(n=len(split.train), quantities=quantities)


def _distribution(name: str, values: npt.NDArray[np.float64]) -> Distribution:
    lowest, middle, highest = np.quantile(values, [TAIL, 0.5, 1 - TAIL])
    return Distribution(
        name=name,
        unit=PATTERN_UNITS[name],
        levels=LEVELS,
        quantiles=tuple(np.quantile(values, LEVELS).tolist()),
        n=len(values),
        # A pattern that is explained better than those of the training data is no stranger.
        low=None if name == "residual" else float(lowest - PADDING * (middle - lowest)),
        high=float(highest + PADDING * (highest - middle)),
    )
