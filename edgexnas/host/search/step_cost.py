"""What a training step of a network will take, from its size and from the steps measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

from edgexnas.host.networks.search_space import ModelSize

__all__ = ["StepCost"]

LEAST_MEASURED = 3
"""Below this many measured trainings nothing is foretold."""

MOST_MEASURED = 200


@dataclass
class StepCost:
    """Seconds of a step: an overhead, a part for each parameter (Adam) and one for each product.

    Not negative, and fitted to relative errors, since steps differ a thousandfold.

    Attributes
    ----------
    known
        Coefficients from earlier runs, which count as one measurement each until there are enough.
    """

    known: Sequence[float] | None = None
    _rows: list[tuple[list[float], float]] = field(default_factory=list)
    _fit: tuple[float, ...] | None = None

    def observe(self, size: ModelSize, batch: int, seconds: float) -> None:
        """Learn from a training's mean step."""
        if seconds > 0:
            self._rows = [*self._rows[-MOST_MEASURED:], (_features(size, batch), seconds)]
            self._fit = None

    @property
    def coefficients(self) -> tuple[float, ...] | None:
        """Seconds of overhead, per parameter, and per multiply-accumulate; None if unknown."""
        if len(self._rows) < LEAST_MEASURED:
            return None if self.known is None else tuple(self.known)
        if self._fit is None:
            seconds = np.array([s for _, s in self._rows])
            terms = np.array([f for f, _ in self._rows]) / seconds[:, None]
            # Columns of one scale, or the solver takes the small ones for 0.
            scale = terms.max(axis=0)
            solution, _ = nnls(terms / scale, np.ones(len(seconds)))
            self._fit = tuple(float(value) for value in solution / scale)
        return self._fit

    def predict(self, size: ModelSize, batch: int) -> float | None:
        """Seconds of a step, or None while nothing is known."""
        fit = self.coefficients
        if fit is None:
            return None
        return float(sum(c * f for c, f in zip(fit, _features(size, batch), strict=True)))


def _features(size: ModelSize, batch: int) -> list[float]:
    return [1.0, float(size.parameters), float(size.macs) * batch]
