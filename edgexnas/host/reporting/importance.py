"""Which hyperparameters decide an objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgexnas.host.measuring.objectives import Objective
from edgexnas.host.search.result import Candidate

__all__ = ["LEAST_CANDIDATES", "hyperparameter_importance"]

LEAST_CANDIDATES = 12
"""Below this a ranking would be noise."""


def hyperparameter_importance(
    candidates: Sequence[Candidate], objective: Objective
) -> dict[str, float]:
    """Share of an objective's variation that hangs on each hyperparameter.

    Permutation importance (Breiman, Machine Learning 45, 5 (2001)) of extra trees fitted to the
    objective's logarithm, by the increase in mean squared error, scaled to a sum of 1. It tells
    what mattered among these candidates, which a search does not choose at random.

    Parameters
    ----------
    candidates
        Of one space.

    Returns
    -------
    Hyperparameter → importance, largest first; empty below 12 candidates or where nothing varies.
    """
    from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]
    from sklearn.inspection import permutation_importance  # type: ignore[import-untyped]

    names = _varying(candidates)
    if len(candidates) < LEAST_CANDIDATES or not names:
        return {}
    x = np.array([_column(candidates, name) for name in names]).T
    # On the logarithmic scale, on which a factor counts the same everywhere.
    y = np.array([objective.position(c.metrics[objective.name]) for c in candidates])
    if np.ptp(y) == 0:
        return {}
    trees = ExtraTreesRegressor(n_estimators=100, min_samples_leaf=2, random_state=0).fit(x, y)
    result = permutation_importance(
        trees, x, y, n_repeats=10, random_state=0, scoring="neg_mean_squared_error"
    )
    # What decides nothing may by chance seem to help when it is shuffled.
    gains = np.maximum(result.importances_mean, 0)
    total = float(gains.sum()) or 1.0
    shares = {name: float(gain) / total for name, gain in zip(names, gains, strict=True)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _varying(candidates: Sequence[Candidate]) -> list[str]:
    if not candidates:
        return []
    return [
        name
        for name in candidates[0].configuration
        if len({candidate.configuration[name] for candidate in candidates}) > 1
    ]


def _column(candidates: Sequence[Candidate], name: str) -> npt.NDArray[np.float64]:
    """Numbers as they are, because trees do not mind their scale; words by their rank."""
    values = [candidate.configuration[name] for candidate in candidates]
    if all(isinstance(value, int | float) for value in values):
        return np.array(values, np.float64)
    order = {value: rank for rank, value in enumerate(sorted(map(str, set(values))))}
    return np.array([order[str(value)] for value in values], np.float64)
