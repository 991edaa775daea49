"""Confidence intervals of means of time series."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgexnas.device.power import PowerTrace

__all__ = [
    "MeanPower",
    "half_width",
    "mean_power",
    "median_half_width",
    "part_count",
    "series_half_width",
    "student_t_975",
]

SHORTEST_BATCH_S = 0.25
"""Batches hold a few readings at least, or their means say nothing of slow changes."""

MOST_BATCHES = 10

MOST_PARTS = 20
"""Enough that the correlation of neighbouring parts can be told; of runs of a latency."""

FEWEST_CORRELATED = 10
"""Fewer values say nothing of a correlation."""

FloatArray = npt.NDArray[np.float64]

_STUDENT_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622,
)  # fmt: skip
"""For 1 to 9 degrees of freedom."""


def student_t_975(freedom: int) -> float:
    """Factor of a two-sided 95 % interval for a number of degrees of freedom, at least 1.

    From 10 on by Fisher's expansion (Abramowitz and Stegun 26.7.5), right to 0.001.
    """
    if freedom < 1:
        return math.inf
    if freedom < 10:
        return _STUDENT_T_975[freedom - 1]
    z, n = 1.959964, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def half_width(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the mean of independent values; infinite below two."""
    count = len(values)
    if count < 2:
        return math.inf
    return student_t_975(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)


def series_half_width(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the mean of values that follow each other in time.

    Neighbours are alike (a busy moment slows several runs), so the method of batch means: the
    means of up to `MOST_PARTS` successive parts take the values' place, and where these are still
    alike, the interval grows by their own correlation (see `_correlated_half_width`). For
    autoregressive noise of 375 values it holds the mean in 92 of 100 series or more, as long as
    the noise forgets within a quarter of the series. It cannot know of what changes more slowly
    than the series lasts, and of what happens a few times only (rare long stalls) it knows too
    little: the median's interval is the one to compare by then.
    """
    return _correlated_half_width([float(np.mean(part)) for part in _parts(values)])


def median_half_width(runs: Sequence[Sequence[float]]) -> float:
    """Half-width of the 95 % interval of the median of all values, runs following each other.

    As `series_half_width`, from the medians of successive parts. Rare long stalls move neither the
    median nor its interval.

    Parameters
    ----------
    runs
        (runs, values of each run), in the order in which they were made.
    """
    return _correlated_half_width([float(np.median(part)) for part in _parts(runs)])


def _parts(values: Sequence[float] | Sequence[Sequence[float]]) -> list[FloatArray]:
    array = np.asarray(values, np.float64)
    # Of equal length but for one: what is left of a division is not dropped.
    return np.array_split(array, min(MOST_PARTS, len(array)))


def _correlated_half_width(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the mean of values of which neighbours are alike.

    For first-order autoregressive noise with correlation r, n values tell no more of the mean than
    n (1 - r) / (1 + r) independent ones. The r of a short series comes out too small by
    (1 + 3 r) / n (Marriott and Pope, Biometrika 41, 390, 1954), which is put back.
    """
    count = len(values)
    deviations = np.asarray(values, np.float64) - float(np.mean(values))
    square = float(deviations @ deviations)
    if count < FEWEST_CORRELATED or square == 0:
        return half_width(values)
    r = float(deviations[1:] @ deviations[:-1]) / square
    # No gain from a negative correlation, and beyond 0.9 the series is too short to tell.
    r = min(max(r + (1 + 3 * r) / count, 0.0), 0.9)
    share = (1 - r) / (1 + r)
    freedom = max(1, int((count - 1) * share))
    return student_t_975(freedom) * math.sqrt(square / (count - 1) / (count * share))


@dataclass(frozen=True)
class MeanPower:
    """Mean power of the module in a window.

    Attributes
    ----------
    half_width_w
        Of the 95 % interval: the spread of the means of successive parts of the window, which
        holds slow changes too, and what the sensors' steps may hide.
    batches_w
        Means of the parts.
    """

    watts: float
    half_width_w: float
    batches_w: tuple[float, ...]


def part_count(seconds: float, period_s: float) -> int:
    """Parts that a window is divided into, two to ten, each of a few readings."""
    return max(2, min(MOST_BATCHES, int(seconds / max(SHORTEST_BATCH_S, 3 * period_s))))


def mean_power(trace: PowerTrace, start_s: float, end_s: float) -> MeanPower:
    """Mean power in a window with its 95 % interval, by the method of batch means.

    Parameters
    ----------
    trace
        Power readings.
    start_s, end_s
        The window, on the sampler's clock; half a second at least.

    Raises
    ------
    MeasurementError
        As `PowerTrace.energy_j`.
    """
    seconds = end_s - start_s
    watts = trace.best_energy_j(start_s, end_s) / seconds
    count = part_count(seconds, trace.period_s)
    edges = np.linspace(start_s, end_s, count + 1)
    batches = [
        trace.best_energy_j(float(a), float(b)) / float(b - a) for a, b in itertools.pairwise(edges)
    ]
    resolution = trace.resolution_w(start_s, end_s)
    # The spread of means does not see rounding that all of them share; it is added as a square.
    return MeanPower(watts, math.hypot(half_width(batches), resolution), tuple(batches))
