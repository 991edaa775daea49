"""Confidence intervals of means of time series."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgexnas.device.power import PowerTrace

__all__ = [
    "MeanPower",
    "half_width",
    "mean_power",
    "part_count",
    "series_half_width",
    "student_t_975",
]

SHORTEST_BATCH_S = 0.25
"""Batches hold a few readings at least, or their means say nothing of slow changes."""

MOST_BATCHES = 10

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

    Neighbours are alike (a busy moment slows several runs), so the means of ten successive parts
    are taken as independent, and not the values themselves: the method of batch means.
    """
    if len(values) < 2 * MOST_BATCHES:
        return half_width(values)
    return half_width([float(np.mean(part)) for part in np.array_split(values, MOST_BATCHES)])


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
    return MeanPower(watts, math.hypot(half_width(batches), resolution), tuple(batches))
