"""Split conformal prediction: factors that make intervals hold as often as they say.

Romano, Patterson & Candès, "Conformalized quantile regression" (2019), in its scaled form, and
within groups (Mondrian; Vovk 2005): the score of a coordinate is its distance from the position
over the distance of the outer quantile on that side, and the factor is the score of rank
⌈(m + 1) · level⌉ of m scores. Whatever the network and the distribution, a fresh coordinate of the
same kind then lies within with a probability of at least `level`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["conformal_factor", "group_factors", "group_of", "interval_scores", "wilson"]

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]

SMALLEST_HALF_PX = 1e-4
"""Half intervals below this are taken for so wide: an interval of 0 has no factor."""


def interval_scores(quantiles: Array, targets: Array, middle: int) -> npt.NDArray[np.float64]:
    """Score targets by predicted quantiles.

    Parameters
    ----------
    quantiles
        (n, 2, q), increasing along the last axis.
    targets
        (n, 2).
    middle
        Which quantile is the position.

    Returns
    -------
    (n, 2): 1 where a target lies on an end of its interval, less within.
    """
    position = quantiles[:, :, middle].astype(np.float64)
    below = np.maximum(position - quantiles[:, :, 0], SMALLEST_HALF_PX)
    above = np.maximum(quantiles[:, :, -1] - position, SMALLEST_HALF_PX)
    error = targets - position
    scores: npt.NDArray[np.float64] = np.where(error < 0, -error / below, error / above)
    return scores


def conformal_factor(scores: Array, level: float) -> float:
    """Return the score of rank ⌈(m + 1) · level⌉ of m scores; the largest where m is too small."""
    ordered = np.sort(np.asarray(scores, np.float64).reshape(-1))
    # A hair less, because 10 · 0.9 is a little more than 9.
    rank = math.ceil((len(ordered) + 1) * level - 1e-9)
    return float(ordered[min(rank, len(ordered)) - 1])


def group_of(values: Array, edges: Array) -> npt.NDArray[np.intp]:
    """(n,) number of the group of each value; a value on an edge belongs above it."""
    return np.searchsorted(np.asarray(edges), values, side="right")


def group_factors(
    scores: Array, rows: Index, cols: Index, shape: tuple[int, int], *, level: float, fewest: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Find the factor of each group.

    Parameters
    ----------
    scores
        (n, 2), of `interval_scores`.
    rows, cols
        (n,), group of each peak.
    shape
        Numbers of groups.
    fewest
        A group of fewer peaks has the factor of its row, and that of fewer the factor of all.

    Returns
    -------
    Factors and numbers of peaks, both of `shape`.
    """
    factors, counts = np.empty(shape), np.zeros(shape, np.intp)
    of_all = conformal_factor(scores, level)
    for row in range(shape[0]):
        in_row = rows == row
        of_row = conformal_factor(scores[in_row], level) if in_row.sum() >= fewest else of_all
        for col in range(shape[1]):
            group = in_row & (cols == col)
            counts[row, col] = group.sum()
            enough = counts[row, col] >= fewest
            factors[row, col] = conformal_factor(scores[group], level) if enough else of_row
    # An interval that is always far too wide may have the factor 0, which no interval has.
    return np.maximum(factors, 1e-3), counts


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share that was seen in n (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
