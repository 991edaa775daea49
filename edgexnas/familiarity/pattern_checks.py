"""Judges diffraction patterns by what a bundle's manifest says of those of the training data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.familiarity.pattern_residual import PatternResidual
from edgexnas.ptycho import PATTERN_SIZE, ComplexArray

if TYPE_CHECKING:
    from edgexnas.bundle import Manifest, TrainingData

__all__ = [
    "NOT_LOOKED_AT",
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
RADII_PX = (4, 8, 16)

NOT_LOOKED_AT = 255
FIRST, EVERY = 8, 256
"""Patterns that are judged: the first few of a scan, and then one in so many, because a scan is
familiar or foreign as a whole, and diffracting a patch takes a millisecond or more."""


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
    residual
        Compares patterns with predicted patches; None where the bundle has no probe.
    """

    def __init__(self, data: TrainingData, residual: PatternResidual | None = None) -> None:
        self._residual = residual
        limits = {quantity.name: quantity for quantity in data.quantities}
        count = len(PATTERN_QUANTITIES)
        self._lowest, self._highest = np.full(count, -np.inf), np.full(count, np.inf)
        for index, name in enumerate(PATTERN_QUANTITIES):
            if name in limits:
                low, high = limits[name].low, limits[name].high
                self._lowest[index] = -np.inf if low is None else low
                self._highest[index] = np.inf if high is None else high
        if not np.isfinite(self._highest[-1]):
            self._residual = None

    @classmethod
    def of(cls, manifest: Manifest, probe: ComplexArray | None) -> PatternChecks | None:
        """Make the checks of a bundle; None if its manifest says nothing of patterns."""
        data = manifest.training_data
        if data is None or not {q.name for q in data.quantities} & set(PATTERN_QUANTITIES):
            return None
        residual = None
        if probe is not None and manifest.probe is not None and PatternResidual.fits(probe):
            residual = PatternResidual(probe, manifest.probe.orientation)
        return cls(data, residual)

    @staticmethod
    def looks_at(number: int) -> bool:
        """Whether the pattern of this number in its scan is judged."""
        return number < FIRST or number % EVERY == 0

    def judge(
        self, patterns: FloatArray, amplitude: FloatArray, phase_rad: FloatArray
    ) -> npt.NDArray[np.uint8]:
        """Judge patterns.

        Parameters
        ----------
        patterns
            (n, 64, 64) counts.
        amplitude, phase_rad
            (n, 64, 64) of the patches that were predicted from them.

        Returns
        -------
        (n,) uint8: 0 for familiar ones, else why not; see `pattern_reason_name`.
        """
        values = measure_patterns(patterns)
        if self._residual is not None:
            residuals = self._residual.of(patterns, amplitude, phase_rad)
            values = np.concatenate([values, residuals[:, None]], axis=1)
        count = values.shape[1]
        # Asked this way round, NaN is not familiar.
        familiar = (values >= self._lowest[:count]) & (values <= self._highest[:count])
        reasons = np.where(familiar.all(axis=1), 0, np.argmin(familiar, axis=1) + 1)
        return reasons.astype(np.uint8)
