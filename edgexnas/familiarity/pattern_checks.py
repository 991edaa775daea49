"""Judges diffraction patterns by what a bundle's manifest says of those of the training data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.ptycho import PATTERN_SIZE

if TYPE_CHECKING:
    from edgexnas.bundle import Manifest, TrainingData

__all__ = [
    "PATTERN_QUANTITIES",
    "PatternChecks",
    "measure_patterns",
    "pattern_reason_name",
]

FloatArray = npt.NDArray[np.float32]

PATTERN_UNITS: dict[str, str] = {
    "brightness_counts": "counts",
    "centre_row_px": "px",
    "centre_col_px": "px",
    "within_4_px": "1",
    "within_8_px": "1",
    "within_16_px": "1",
    "residual": "1",
}
"""Quantities of a pattern and their units: all its counts; the centroid of the square roots of
counts, from (32, 32); the shares of these within so many pixels of (32, 32); and, where the bundle
carries a probe, what the predicted patch under it does not explain of the light."""

PATTERN_QUANTITIES = tuple(PATTERN_UNITS)
MEASURED = len(PATTERN_QUANTITIES) - 1
"""All but the residual follow from the pattern alone."""

RADII_PX = (4, 8, 16)


def pattern_reason_name(code: int) -> str:
    """Name why a pattern is unfamiliar: the quantity that lies outside its limits."""
    return PATTERN_QUANTITIES[code - 1]


def _weights() -> FloatArray:
    """(4096, 6): what a pattern's square roots are multiplied by to be measured."""
    along = np.arange(PATTERN_SIZE, dtype=np.float32) - PATTERN_SIZE // 2
    row, col = np.meshgrid(along, along, indexing="ij")
    radius = np.hypot(row, col)
    columns = [np.ones_like(row), row, col, *(radius <= limit for limit in RADII_PX)]
    return np.stack(columns, axis=-1).reshape(-1, len(columns)).astype(np.float32)


_WEIGHTS = _weights()


def measure_patterns(patterns: FloatArray) -> npt.NDArray[np.float64]:
    """Measure patterns (n, 64, 64) of counts: (n, 6), `PATTERN_QUANTITIES` but the residual.

    The square roots stand for the counts, because a few bright pixels make most of these.
    """
    flat = patterns.reshape(len(patterns), -1)
    sums = (np.sqrt(flat) @ _WEIGHTS).astype(np.float64)
    total = np.maximum(sums[:, :1], 1e-6)
    brightness = flat.sum(axis=1, dtype=np.float64)[:, None]
    return np.concatenate([brightness, sums[:, 1:] / total], axis=1)


class PatternChecks:
    """Finds patterns unlike those of the training data.

    Parameters
    ----------
    data
        Limits of what is familiar.
    """

    def __init__(self, data: TrainingData) -> None:
        limits = {quantity.name: quantity for quantity in data.quantities}
        count = len(PATTERN_QUANTITIES)
        self._lowest, self._highest = np.full(count, -np.inf), np.full(count, np.inf)
        for index, name in enumerate(PATTERN_QUANTITIES):
            if name in limits:
                low, high = limits[name].low, limits[name].high
                self._lowest[index] = -np.inf if low is None else low
                self._highest[index] = np.inf if high is None else high
        self.knows_residual = bool(np.isfinite(self._highest[-1]))

    @classmethod
    def of(cls, manifest: Manifest) -> PatternChecks | None:
        """Make the checks of a bundle; None if its manifest says nothing of patterns."""
        data = manifest.training_data
        if data is None or not {q.name for q in data.quantities} & set(PATTERN_QUANTITIES):
            return None
        return cls(data)

    def judge(
        self, patterns: FloatArray, residuals: npt.NDArray[np.floating] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Judge patterns (n, 64, 64) of counts.

        Parameters
        ----------
        residuals
            (n,), what the predicted patches leave unexplained of the light; None if not known.

        Returns
        -------
        (n,) uint8: 0 for familiar ones, else why not; see `pattern_reason_name`.
        """
        values = measure_patterns(patterns)
        if residuals is not None:
            values = np.concatenate([values, np.asarray(residuals)[:, None]], axis=1)
        count = values.shape[1]
        # Asked this way round, NaN is not familiar.
        familiar = (values >= self._lowest[:count]) & (values <= self._highest[:count])
        reasons = np.where(familiar.all(axis=1), 0, np.argmin(familiar, axis=1) + 1)
        return reasons.astype(np.uint8)
