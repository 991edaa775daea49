"""The loops of merging, compiled by numba where it is installed; else Python runs them, slower.

A spot that is open has one row of a float64 table: two sums of its peaks, then what links the next
peak to it. The second sum holds what follows the lowest intensity so far, so that a spot can be
split there later without a list of its peaks. Sums of one spot have the same references, and adding
them joins two parts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgexnas.spots import SpotFlag

try:
    from edgexnas.compiled_code import compiled, compiled_part
except ImportError:

    def _left_to_python(function: Any) -> Any:
        return function

    compiled = compiled_part = _left_to_python

__all__ = ["OPEN_COLUMNS", "SPOT_NUMBERS", "close_all", "merge_frame"]

# Of a sum: weights are 1/σ² of a position, moments are relative to the spot's references.
_COUNT, _FIRST, _LAST, _FIRST_OMEGA, _LAST_OMEGA = 0, 1, 2, 3, 4
_ROW_WEIGHT, _ROW_SUM, _ROW_SQUARES = 5, 6, 7
_COL_WEIGHT, _COL_SUM, _COL_SQUARES = 8, 9, 10
_COUNTS, _OMEGA_SUM = 11, 12
_BRIGHTEST, _FLAGS, _TURNS = 13, 14, 15
_SUM = 16
_VALLEY, _LAST_ROW, _LAST_COL = 2 * _SUM, 2 * _SUM + 1, 2 * _SUM + 2
_REFERENCE_ROW, _REFERENCE_COL, _REFERENCE_OMEGA = 2 * _SUM + 3, 2 * _SUM + 4, 2 * _SUM + 5

OPEN_COLUMNS = 2 * _SUM + 6
"""Numbers that an open spot takes."""

SPOT_NUMBERS = 11
"""Numbers of a spot that ended, in the order of `SPOT_COLUMNS`."""

_SPLIT, _AMBIGUOUS = SpotFlag.SPLIT.value, SpotFlag.AMBIGUOUS.value
_CUT, _GAP, _SATURATED = SpotFlag.CUT.value, SpotFlag.GAP.value, SpotFlag.SATURATED.value
_UNUSUAL = _SPLIT | _CUT | _GAP | _SATURATED

SHARED_VARIANCE = 0.3
"""Share of a position's variance that all peaks of a spot have in common.

They fall on the same pixels, so that what a network gets wrong of one it gets wrong of the next.
"""

# The numbers below are those of 135,000 simulated spots with known angles; host/merging_accuracy.py
# repeats it with others.
PRIOR_SPOTS, PRIOR_FRAMES = 20.0, 30.0
"""Before spots have shown it, they are taken to be on 1.5 frames."""
FAINT_SHARE = 0.02
"""Share of peaks that are fainter than what is taken for the limit of detection."""
FAINT_STEP = 0.05
"""By what share the limit falls with each peak below it."""
UNSEEN = 0.75
"""Error of an angle for each share of a spot's counts that the limit makes, in frames: as many may
lie unseen on the next frame to either side."""
FLUCTUATION = 3.0
"""Standard deviations of counts by which a valley must lie below the lower of two maxima."""


@compiled_part
def _add_peak(
    open_spots: Any,
    spot: int,
    part: int,
    frame: int,
    omega: float,
    turns: float,
    row: float,
    col: float,
    row_sigma: float,
    col_sigma: float,
    counts: float,
    flags: int,
) -> None:
    """Add a peak to one of a spot's two sums."""
    own = open_spots[spot]
    if own[part + _COUNT] == 0:
        own[part + _FIRST] = frame
        own[part + _FIRST_OMEGA] = omega
        own[part + _TURNS] = turns
    own[part + _COUNT] += 1
    own[part + _LAST] = frame
    own[part + _LAST_OMEGA] = omega
    weight, at = 1 / row_sigma**2, row - own[_REFERENCE_ROW]
    own[part + _ROW_WEIGHT] += weight
    own[part + _ROW_SUM] += weight * at
    own[part + _ROW_SQUARES] += weight * at * at
    weight, at = 1 / col_sigma**2, col - own[_REFERENCE_COL]
    own[part + _COL_WEIGHT] += weight
    own[part + _COL_SUM] += weight * at
    own[part + _COL_SQUARES] += weight * at * at
    at = omega - own[_REFERENCE_OMEGA]
    own[part + _COUNTS] += counts
    own[part + _OMEGA_SUM] += counts * at
    own[part + _BRIGHTEST] = max(own[part + _BRIGHTEST], counts)
    own[part + _FLAGS] = float(int(own[part + _FLAGS]) | flags)


@compiled_part
def _fold(open_spots: Any, spot: int) -> None:
    """Add the second sum to the first and empty it."""
    own = open_spots[spot]
    if own[_SUM + _COUNT] == 0:
        return
    own[_LAST] = own[_SUM + _LAST]
    own[_LAST_OMEGA] = own[_SUM + _LAST_OMEGA]
    own[_COUNT] += own[_SUM + _COUNT]
    for index in range(_ROW_WEIGHT, _BRIGHTEST):
        own[index] += own[_SUM + index]
    own[_BRIGHTEST] = max(own[_BRIGHTEST], own[_SUM + _BRIGHTEST])
    own[_FLAGS] = float(int(own[_FLAGS]) | int(own[_SUM + _FLAGS]))
    own[_SUM : 2 * _SUM] = 0


@compiled_part
def _omega(count: float, width: float, centroid: float, middle: float, frames: float) -> Any:
    """Estimate an angle and its standard deviation, as of a bright spot.

    A rocking curve narrower than a frame, cut by the edge between two, gives them shares that say
    little of where it is: their centroid lies too far from the edge, the further the narrower
    curves are. How narrow is known from how many frames spots are on.
    """
    if count == 1:
        return centroid, width * 0.265 * math.exp(-0.33 * (frames - 1))
    if count == 2:
        share = min(0.25 + 0.24 * (frames - 1), 1.0)
        return middle + share * (centroid - middle), width * max(0.085 - 0.015 * (frames - 1), 0.04)
    if count == 3:
        return middle + 1.1 * (centroid - middle), width * 0.03
    return centroid, width * (0.02 if count == 4 else 0.014)


@compiled_part
def _scattered(weight: float, total: float, squares: float, count: float) -> float:
    """Give a position's deviation: what its peaks state, or how far they scatter if more."""
    variance = (1 + SHARED_VARIANCE * (count - 1)) / weight
    if count > 1:
        scatter = (squares - total * total / weight) / (count - 1)
        variance *= max(scatter, 1.0)
    return math.sqrt(variance)


@compiled_part
def _emit(
    open_spots: Any, spot: int, flags: int, width: float, seen: Any, ended: Any, at: int
) -> None:
    """Write the first sum of a spot as a spot that has ended."""
    own = open_spots[spot]
    flags |= int(own[_FLAGS])
    count, counts = own[_COUNT], max(own[_COUNTS], 1e-9)
    usual = not flags & _UNUSUAL
    if usual:
        seen[0] += 1
        seen[1] += count
    frames = (PRIOR_FRAMES + seen[1]) / (PRIOR_SPOTS + seen[0])
    moment = own[_OMEGA_SUM] / counts
    centroid = own[_REFERENCE_OMEGA] + moment
    first, last = own[_FIRST_OMEGA], own[_LAST_OMEGA]
    middle = (first + last) / 2
    # Counts below background are no weights: with some the sum may lie anywhere.
    centroid = min(max(centroid, min(first, last)), max(first, last))
    if own[_COUNTS] <= 0:
        centroid = middle
    if usual:
        omega, deviation = _omega(count, width, centroid, middle, frames)
    else:
        # What is missing of it, as above saturation, may lie on either side.
        omega, deviation = centroid, 0.289 * width
    ended[at, 0] = own[_REFERENCE_ROW] + own[_ROW_SUM] / own[_ROW_WEIGHT]
    ended[at, 1] = own[_REFERENCE_COL] + own[_COL_SUM] / own[_COL_WEIGHT]
    # In the turn in which it began, as the angles of its first frame are.
    ended[at, 2] = omega - own[_TURNS]
    ended[at, 3] = _scattered(own[_ROW_WEIGHT], own[_ROW_SUM], own[_ROW_SQUARES], count)
    ended[at, 4] = _scattered(own[_COL_WEIGHT], own[_COL_SUM], own[_COL_SQUARES], count)
    # Narrow curves do not reach a next frame, where they might stay unseen.
    unseen = UNSEEN * width * min(seen[2] / counts, 1.0) * min(frames - 1, 1.0)
    ended[at, 5] = math.sqrt(deviation**2 + unseen**2)
    ended[at, 6] = own[_COUNTS]
    ended[at, 7] = count
    ended[at, 8] = own[_FIRST]
    ended[at, 9] = own[_LAST]
    ended[at, 10] = flags


@compiled_part
def _follow(
    open_spots: Any,
    spot: int,
    frame: int,
    omega: float,
    turns: float,
    row: float,
    col: float,
    row_sigma: float,
    col_sigma: float,
    counts: float,
    flags: int,
    valley: float,
) -> bool:
    """Add the next peak of a spot; tell whether its first sum has ended by a valley."""
    own = open_spots[spot]
    falls = counts <= own[_VALLEY]
    if falls:
        _fold(open_spots, spot)
        own[_VALLEY] = counts
    part = 0 if falls else _SUM
    _add_peak(
        open_spots, spot, part, frame, omega, turns, row, col, row_sigma, col_sigma, counts, flags
    )
    own[_LAST_ROW], own[_LAST_COL] = row, col
    if falls:
        return False
    lower = min(own[_BRIGHTEST], own[_SUM + _BRIGHTEST])
    low = own[_VALLEY]
    if (
        lower > 0
        and low < valley * lower
        and lower - low > FLUCTUATION * math.sqrt(lower + max(low, 0.0))
    ):
        return True
    if own[_SUM + _BRIGHTEST] >= own[_BRIGHTEST]:
        # The maximum before it stays the lower one, so this valley never becomes deep enough.
        _fold(open_spots, spot)
        own[_VALLEY] = counts
    return False


@compiled
def merge_frame(
    open_spots: Any,
    count: int,
    frame: int,
    omega: float,
    turns: float,
    width: float,
    positions: Any,
    sigmas: Any,
    intensities: Any,
    peak_flags: Any,
    begin_flags: int,
    tolerance: float,
    valley: float,
    seen: Any,
    ended: Any,
) -> Any:
    """Link the peaks of a frame to the open spots; those without one have ended.

    Parameters
    ----------
    open_spots
        (capacity, OPEN_COLUMNS) float64 table of open spots, `count` of them; capacity for `count`
        and all peaks.
    frame, omega, turns, width
        Number of the frame, its angle, the turns in this that a table does not count, and how far
        it turns, in degrees.
    positions, sigmas
        (n, 2) float64 in pixels.
    intensities, peak_flags
        (n,) float64 and int64.
    begin_flags
        Flags of spots that begin on this frame, or end before it.
    tolerance, valley
        As of `MergeSettings`.
    seen
        (3,) float64: spots that ended and their frames so far, and the limit of detection in
        counts.
    ended
        (capacity, SPOT_NUMBERS) float64, filled with the spots that have ended.

    Returns
    -------
    How many spots are open, and how many have ended.
    """
    peaks = len(positions)
    by_row = np.argsort(open_spots[:count, _LAST_ROW], kind="mergesort")
    sorted_rows = open_spots[:count, _LAST_ROW][by_row]
    # Pairs within the tolerance, counted first so that they take no more than they need.
    pairs = 0
    for fill in range(2):
        if fill == 1:
            pair_spot = np.empty(pairs, np.int64)
            pair_peak = np.empty(pairs, np.int64)
            distances = np.empty(pairs, np.float64)
        pairs = 0
        for peak in range(peaks):
            row, col = positions[peak, 0], positions[peak, 1]
            at = np.searchsorted(sorted_rows, row - tolerance)
            while at < count and sorted_rows[at] <= row + tolerance:
                spot = by_row[at]
                apart = (row - sorted_rows[at]) ** 2 + (col - open_spots[spot, _LAST_COL]) ** 2
                if apart <= tolerance * tolerance:
                    if fill == 1:
                        pair_spot[pairs] = spot
                        pair_peak[pairs] = peak
                        distances[pairs] = apart
                    pairs += 1
                at += 1
    spot_of = np.full(peaks, -1, np.int64)
    peak_of = np.full(count, -1, np.int64)
    spot_doubts = np.zeros(count, np.int64)
    peak_doubts = np.zeros(peaks, np.int64)
    for pair in np.argsort(distances, kind="mergesort"):
        spot, peak = pair_spot[pair], pair_peak[pair]
        if spot_of[peak] < 0 and peak_of[spot] < 0:
            spot_of[peak], peak_of[spot] = spot, peak
        spot_doubts[spot] += 1
        peak_doubts[peak] += 1
    # Who had a choice, and who was one of several chosen from, may be linked wrongly.
    peak_flags = peak_flags.copy()
    for pair in range(pairs):
        spot, peak = pair_spot[pair], pair_peak[pair]
        if spot_doubts[spot] > 1 or peak_doubts[peak] > 1:
            open_spots[spot, _FLAGS] = float(int(open_spots[spot, _FLAGS]) | _AMBIGUOUS)
            peak_flags[peak] |= _AMBIGUOUS
    over = 0
    for spot in range(count):
        peak = peak_of[spot]
        if peak < 0:
            _fold(open_spots, spot)
            _emit(open_spots, spot, begin_flags, width, seen, ended, over)
            over += 1
            continue
        flags = peak_flags[peak] | begin_flags
        if _follow(
            open_spots, spot, frame, omega, turns, positions[peak, 0], positions[peak, 1],
            sigmas[peak, 0], sigmas[peak, 1], intensities[peak], flags, valley,
        ):  # fmt: skip
            _emit(open_spots, spot, _SPLIT, width, seen, ended, over)
            over += 1
            open_spots[spot, :_SUM] = open_spots[spot, _SUM : 2 * _SUM]
            open_spots[spot, _SUM : 2 * _SUM] = 0
            open_spots[spot, _FLAGS] = float(int(open_spots[spot, _FLAGS]) | _SPLIT)
            open_spots[spot, _VALLEY] = intensities[peak]
    for peak in range(peaks):
        if seen[2] == 0:
            seen[2] = 0.5 * max(intensities[peak], 0.0)
        # A quantile without a list: it rests where as much falls as rises.
        below = intensities[peak] < seen[2]
        seen[2] *= 1 - FAINT_STEP if below else 1 + FAINT_STEP * FAINT_SHARE
    kept = 0
    for spot in range(count):
        if peak_of[spot] >= 0:
            if kept != spot:
                open_spots[kept] = open_spots[spot]
            kept += 1
    for peak in range(peaks):
        if spot_of[peak] >= 0:
            continue
        row, col, counts = positions[peak, 0], positions[peak, 1], intensities[peak]
        open_spots[kept] = 0
        own = open_spots[kept]
        own[_REFERENCE_ROW], own[_REFERENCE_COL], own[_REFERENCE_OMEGA] = row, col, omega
        own[_LAST_ROW], own[_LAST_COL], own[_VALLEY] = row, col, counts
        flags = peak_flags[peak] | begin_flags
        _add_peak(
            open_spots, kept, 0, frame, omega, turns, row, col,
            sigmas[peak, 0], sigmas[peak, 1], counts, flags,
        )  # fmt: skip
        kept += 1
    return kept, over


@compiled
def close_all(open_spots: Any, count: int, flags: int, width: float, seen: Any, ended: Any) -> None:
    """End all open spots, with these flags; parameters as of `merge_frame`."""
    for spot in range(count):
        _fold(open_spots, spot)
        _emit(open_spots, spot, flags, width, seen, ended, spot)
