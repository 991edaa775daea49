"""The loops of `PeakChecks`, compiled: what peaks are like, which are unfamiliar, and intervals.

All is float32, in the order in which ``checks.cu`` does it, so that CPU and GPU give the same bits.

Peaks are taken in blocks. What differs from peak to peak in where it looks is done for one after
the other, and all else for many at once: values lie in one piece of memory, in rows of a block, so
that the compiler sees that they do not overlap. `s` is that memory, `b` a peak of the block, and
`lanes` how many are computed, of which the last may be none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgexnas.bragg import CENTRE, PATCH_SIZE, PeakFlag
from edgexnas.compiled_code import compiled, compiled_part
from edgexnas.familiarity.quantities import (
    COUNTED,
    LARGEST_Z,
    LEAST_INTERVAL_PX,
    NARROW_PX2,
    NARROWEST_PX2,
    RESPONSE,
    TOGETHER,
    WHOLE_FRAME,
    WINDOW_LIMITS_PX,
    WINDOW_PX,
)

__all__ = ["check_peaks", "scratch_to_check"]

BLOCK = 64
"""Their patches and values stay in the first cache."""

# Unsigned: else each index is first asked whether it counts from the end, which costs as much as
# the arithmetic, and keeps peaks from being computed side by side.
_U = np.uint64
_NEXT, _SIDE_BY_SIDE = _U(BLOCK), _U(16)


def _row(number: int) -> np.uint64:
    """Give where a row begins."""
    return np.uint64(number * BLOCK)


# The rows. From `_BESIDE` to `_LEAST` they are pairs, of row and col.
_BESIDE, _PLACE, _ENDS, _WIDTH, _START = (_row(n) for n in (0, 2, 4, 6, 8))
_PER_WIDTH, _PLAIN, _FIRST, _MEAN, _RAW = (_row(n) for n in (10, 12, 14, 16, 18))
_GAIN, _HERE, _TWICE, _ODD, _FAR = (_row(n) for n in (20, 22, 24, 26, 28))
_LEAST, _TOTAL, _CROSS, _EMPTY, _RIM = (_row(n) for n in (30, 32, 33, 34, 35))
_RR, _CC, _RC, _QR, _QC, _QQ, _PAIRS = (_row(n) for n in range(36, 43))
_SLOPE, _SCORE, _REASON, _SNR_GROUP, _WIDTH_GROUP = (_row(n) for n in range(43, 48))
_FOUND = tuple(_row(n) for n in range(48, 59))
_WIDTH_PX, _NOISE, _ROOTS = _FOUND[0], _FOUND[3], (_FOUND[3], _FOUND[5], _FOUND[6])
_HEIGHT, _COUNTS = _FOUND[9], _FOUND[10]
# A pair of rows for each pixel of an axis; three for each column of the patches, and later two for
# each two pixels that lie opposite.
_WINDOWS, _SHARED, _ROWS = _row(59), _row(59 + 2 * PATCH_SIZE), 59 + 2 * PATCH_SIZE + 36

# float32 by themselves: numba computes with float64 where a plain number takes part.
_F = np.float32
_ZERO, _HALF, _ONE, _TWO = _F(0), _F(0.5), _F(1), _F(2)
_THREE, _MINUS_FOUR, _FIVE, _TWICE_CENTRE = _F(3), _F(-4), _F(5), _F(2 * CENTRE)
_FARTHEST_START, _FARTHEST = _F(1.5), _F(2)
_WINDOW = _F(WINDOW_PX)
_NARROW, _WIDE = _F(WINDOW_LIMITS_PX[0]), _F(WINDOW_LIMITS_PX[1])
_LINEAR, _SQUARE, _LEAST_RESPONSE = _F(RESPONSE[0]), _F(RESPONSE[1]), _F(RESPONSE[2])
_FLOOR = _F(NARROWEST_PX2)
_LEAST_HALF = _F(LEAST_INTERVAL_PX / 2)
_TINY = _F(1e-6)
_TO_FWHM = _F(2.3548)
_QUARTER, _PER_RIM = _F(0.25), _F(1 / 40)
_AREA = PATCH_SIZE * PATCH_SIZE
_PER_PIXEL = _F(1 / _AREA)
_NARROW_PX2, _NARROWNESS = _F(NARROW_PX2), _F(0.01)
_COUNTED = len(COUNTED)
_OCTAVE, _BIAS = _F(2.0**-23), _F(127)
_LEAST_GAIN = _F(0.01)
_MOST_Z = _F(LARGEST_Z)
_UNFAMILIAR = np.uint8(PeakFlag.UNFAMILIAR)
_TOGETHER, _WHOLE_FRAME = _F(TOGETHER), np.uint8(WHOLE_FRAME)
_ACROSS = 6
_UAREA, _UMIDDLE, _U0, _U1, _U11 = (_U(n) for n in (_AREA, _AREA // 2, 0, 1, PATCH_SIZE))
_U16, _U32, _U48, _U64 = _U(16), _U(32), _U(48), _U(64)


def scratch_to_check() -> tuple[Any, ...]:
    """Make the scratch of `check_peaks`: `s`, its bits, `one` and `columns`."""
    s = np.zeros(_ROWS * BLOCK, np.float32)
    # A patch with room behind it, and sums of each of sixteen columns of the patches of a block.
    return s, s.view(np.int32), np.zeros(128, np.float32), np.zeros(64 * BLOCK, np.float32)


@compiled_part
def _bounded(value: Any, limit: Any) -> Any:
    """Bound to ± a limit."""
    # In this order, NaN is bounded too: pixels are picked by what comes out.
    return min(max(-limit, value), limit)


@compiled_part
def _begin(pixels: Any, offsets: Any, first: Any, count: Any, middle: Any, s: Any) -> None:
    """Pick what is measured of single pixels, and of the network's output."""
    last = _U(offsets.shape[2] - 1)
    for b in range(count):
        peak = first + b
        core = _UAREA * peak + _UMIDDLE
        s[_BESIDE + b] = pixels[core - _U11] + pixels[core + _U11]
        s[_BESIDE + _NEXT + b] = pixels[core - _U1] + pixels[core + _U1]
        s[_PLACE + b] = offsets[peak, 0, middle]
        s[_PLACE + _NEXT + b] = offsets[peak, 1, middle]
        s[_ENDS + b] = offsets[peak, 0, last] - offsets[peak, 0, 0]
        s[_ENDS + _NEXT + b] = offsets[peak, 1, last] - offsets[peak, 1, 0]


@compiled_part
def _make_windows(axis: Any, lanes: Any, s: Any) -> None:
    """Write [1 - (t / width)²]² of each pixel of an axis, t from the shifted centre, and sums."""
    for b in range(lanes):
        a = axis + b
        s[_WIDTH + a] = min(max(_NARROW, _WINDOW * (_ONE + s[_BESIDE + a])), _WIDE)
        s[_START + a] = _bounded(s[_PLACE + a], _FARTHEST_START)
        s[_PER_WIDTH + a] = _ONE / s[_WIDTH + a]
        s[_PLAIN + a] = _ZERO
        s[_FIRST + a] = _ZERO
    for pixel in range(PATCH_SIZE):
        along = _F(pixel - CENTRE)
        row = _WINDOWS + _U(2 * pixel) * _NEXT + axis
        for b in range(lanes):
            a = axis + b
            t = along - s[_START + a]
            ratio = t * s[_PER_WIDTH + a]
            u = max(_ONE - ratio * ratio, _ZERO)
            weight = u * u
            s[row + b] = weight
            weight *= weight
            s[_PLAIN + a] += weight
            s[_FIRST + a] += weight * t * t


@compiled_part
def _sum_columns(pixels: Any, base: Any, begin: Any, behind: Any, s: Any, columns: Any) -> None:
    """Write the windowed sum and moments along each column of patches, and its empty pixels."""
    for b in range(begin, behind):
        start, here = s[_START + b], _U64 * b
        # Sixteen columns at once, of which five lie behind the patch and are not looked at.
        for c in range(_U16):
            plain = moment = second = empty = _ZERO
            for r in range(PATCH_SIZE):
                value = pixels[base + _U(PATCH_SIZE * r) + c]
                empty += _ONE if value == _ZERO else _ZERO
                weighted = s[_WINDOWS + _U(2 * r) * _NEXT + b] * value
                t = _F(r - CENTRE) - start
                plain += weighted
                weighted *= t
                moment += weighted
                second += weighted * t
            columns[here + c] = plain
            columns[here + _U16 + c] = moment
            columns[here + _U32 + c] = second
            columns[here + _U48 + c] = empty
        base += _UAREA


@compiled_part
def _sum_rims(pixels: Any, first: Any, count: Any, s: Any) -> None:
    for b in range(count):
        base = _UAREA * (first + b)
        above = below = before = behind = _ZERO
        for step in range(PATCH_SIZE - 1):
            above += pixels[base + _U(step)]
            below += pixels[base + _U(_AREA - 1 - step)]
            before += pixels[base + _U(PATCH_SIZE * (step + 1))]
            behind += pixels[base + _U(PATCH_SIZE * (step + 1) - 1)]
        s[_RIM + b] = ((above + below) + (before + behind)) * _PER_RIM


@compiled_part
def _look_at_patches(pixels: Any, first: Any, count: Any, s: Any, one: Any, columns: Any) -> None:
    """Write what is summed of each patch, column by column and at its rim."""
    _sum_columns(pixels, _UAREA * first, _U0, count - _U1, s, columns)
    # Of the last one, behind which the frame's patches may end, a copy has room for more.
    base = _UAREA * (first + count - _U1)
    for pixel in range(_UAREA):
        one[pixel] = pixels[base + pixel]
    _sum_columns(one, _U0, count - _U1, count, s, columns)
    for b in range(count):
        here, empty = _U64 * b, _ZERO
        for c in range(PATCH_SIZE):
            column = here + _U(c)
            row = _SHARED + _U(3 * c) * _NEXT + b
            s[row] = columns[column]
            s[row + _NEXT] = columns[column + _U16]
            s[row + _NEXT + _NEXT] = columns[column + _U32]
            empty += columns[column + _U48]
        s[_EMPTY + b] = empty * _PER_PIXEL


@compiled_part
def _take_moments(lanes: Any, s: Any) -> None:
    """Write the windowed sum, and first and second moments of patches, before they are divided."""
    for b in range(lanes):
        start = s[_START + _NEXT + b]
        total = down = across = down2 = across2 = cross = _ZERO
        for c in range(PATCH_SIZE):
            row = _SHARED + _U(3 * c) * _NEXT + b
            plain, moment, second = s[row], s[row + _NEXT], s[row + _NEXT + _NEXT]
            weight = s[_WINDOWS + _U(2 * c + 1) * _NEXT + b]
            t = _F(c - CENTRE) - start
            total += weight * plain
            down += weight * moment
            down2 += weight * second
            weight *= t
            across += weight * plain
            cross += weight * moment
            across2 += weight * t * plain
        s[_TOTAL + b] = total
        s[_CROSS + b] = cross
        s[_MEAN + b] = down
        s[_MEAN + _NEXT + b] = across
        s[_RAW + b] = down2
        s[_RAW + _NEXT + b] = across2


@compiled_part
def _find_centres(axis: Any, lanes: Any, s: Any) -> None:
    """Write the windowed centroids and variances (in `_RAW`) along an axis."""
    for b in range(lanes):
        a = axis + b
        mean = s[_MEAN + a] * s[_TOTAL + b]
        s[_MEAN + a] = mean
        variance = max(s[_RAW + a] * s[_TOTAL + b] - mean * mean, _FLOOR)
        s[_RAW + a] = variance
        share = variance / (s[_WIDTH + a] * s[_WIDTH + a])
        # By how much more than its windowed centroid a peak has moved.
        gain = _ONE / max(_ONE - share * (_LINEAR + _SQUARE * share), _LEAST_RESPONSE)
        s[_GAIN + a] = gain
        here = _bounded(s[_START + a] + mean * gain, _FARTHEST)
        s[_HERE + a] = here
        twice = _TWICE_CENTRE + np.floor(_TWO * _bounded(here, _ONE) + _HALF)
        s[_TWICE + a] = twice
        # 1 where the patch is reflected about the edge of a pixel, 0 about its centre.
        s[_ODD + a] = twice - _TWO * np.floor(twice * _HALF)


@compiled_part
def _pick_pairs(pixels: Any, first: Any, count: Any, s: Any) -> None:
    """Copy the pixels of half of each peak, and those that lie opposite."""
    for b in range(count):
        twice_row, twice_col = int(s[_TWICE + b]), int(s[_TWICE + _NEXT + b])
        top, left = (twice_row - 4) >> 1, (twice_col - 4) >> 1
        base = _UAREA * (first + b)
        here = base + _U(PATCH_SIZE * top + left)
        there = base + _U(PATCH_SIZE * (twice_row - top) + twice_col - left)
        for down in range(3):
            for across in range(_ACROSS):
                step = _U(PATCH_SIZE * down + across)
                row = _SHARED + _U(2 * (_ACROSS * down + across)) * _NEXT + b
                s[row] = pixels[here + step]
                s[row + _NEXT] = pixels[there - step]


@compiled_part
def _find_noise(lanes: Any, s: Any) -> None:
    """Find the noise of a pixel from what of the odd part of the peak no shift explains.

    The patch is reflected about the half pixel that is nearest to the centroid, within 5×5 or 6×6
    pixels. A shift shows as t·e·(1 + e), with t the distance from the centre and e the even part:
    halfway between the gradients of a Gaussian, t·e, and of a Lorentzian, t·e², and without the
    noise and the coarseness of differences between pixels.
    """
    for b in range(lanes):
        s[_RR + b] = _ZERO
        s[_CC + b] = _ZERO
        s[_RC + b] = _ZERO
        s[_QR + b] = _ZERO
        s[_QC + b] = _ZERO
        s[_QQ + b] = _ZERO
        s[_PAIRS + b] = _ZERO
    for pair in range(3 * _ACROSS):
        # Of the middle row, which is its own image, one half is enough.
        halves = _ZERO if pair < 2 * _ACROSS else _ONE
        steps_down, steps = _F(2 * (pair // _ACROSS)), _F(pair % _ACROSS)
        row = _SHARED + _U(2 * pair) * _NEXT
        for b in range(lanes):
            odd_row, odd_col = s[_ODD + b], s[_ODD + _NEXT + b]
            # 5 or 6 pixels, or 2 or 3.
            number = _FIVE + odd_col - _THREE * halves * (_ONE - odd_row)
            used = steps < number
            one, other = s[row + b], s[row + _NEXT + b]
            odd = one - other if used else _ZERO
            even = one + other if used else _ZERO
            slope = even * (_TWO + even)
            down = (_MINUS_FOUR - odd_row + steps_down) * slope
            across = (_MINUS_FOUR - odd_col + _TWO * steps) * slope
            s[_RR + b] += down * down
            s[_CC + b] += across * across
            s[_RC + b] += down * across
            s[_QR + b] += odd * down
            s[_QC + b] += odd * across
            s[_QQ + b] += odd * odd
            s[_PAIRS + b] += _ONE if even > _ZERO else _ZERO
    for b in range(lanes):
        rr, cc, rc, qr, qc = s[_RR + b], s[_CC + b], s[_RC + b], s[_QR + b], s[_QC + b]
        determinant = rr * cc - rc * rc
        solvable = determinant > _TINY * rr * cc
        explained = qr * qr * cc - _TWO * qr * qc * rc + qc * qc * rr
        divisor = determinant if solvable else _ONE
        explained = explained if solvable else _ZERO
        qq = s[_QQ + b] - explained / divisor
        # `odd` is twice the odd part, and a shift takes two degrees of freedom.
        s[_NOISE + b] = np.sqrt(max(qq, _ZERO) / (_TWO * max(s[_PAIRS + b] - _TWO, _ONE)))


@compiled_part
def _find_least(axis: Any, other: Any, lanes: Any, widening: Any, s: Any) -> None:
    """Write the half width that an interval has at least where a peak is unfamiliar."""
    wide, disagreement, narrow_disagreement = widening[0], widening[1], widening[2]
    noisy, narrow_by, floor = widening[3], widening[4], widening[5]
    for b in range(lanes):
        a = axis + b
        far = abs(s[_PLACE + a] - s[_HERE + a])
        s[_FAR + a] = far
        spread = s[_NOISE + b] * s[_TOTAL + b]
        spread = spread * np.sqrt(s[_FIRST + a] * s[_PLAIN + other + b]) * s[_GAIN + a]
        half = s[_ENDS + a] * _HALF
        narrow = _NARROW_PX2 / (_NARROW_PX2 + s[_RAW + a])
        narrowness = _NARROWNESS / s[_RAW + a]
        s[_LEAST + a] = np.sqrt(
            wide * half * half
            + (disagreement * (_ONE - narrow) + narrow_disagreement * narrow) * far * far
            + noisy * spread * spread
            + narrow_by * narrowness * narrowness
            + floor * floor
        )


@compiled_part
def _conclude(first: Any, count: Any, lanes: Any, heights: Any, s: Any) -> None:
    """Write the quantities, of which the noise is there."""
    for b in range(count):
        s[_FOUND[9] + b] = heights[first + b]
    for b in range(lanes):
        of_row, of_col = s[_RAW + b], s[_RAW + _NEXT + b]
        variance = np.sqrt(of_row * of_col)
        covariance = s[_CROSS + b] * s[_TOTAL + b] - s[_MEAN + b] * s[_MEAN + _NEXT + b]
        s[_FOUND[0] + b] = _TO_FWHM * np.sqrt(variance)
        s[_FOUND[1] + b] = (of_row - of_col) / (of_row + of_col)
        s[_FOUND[2] + b] = covariance / variance
        s[_FOUND[4] + b] = s[_EMPTY + b]
        s[_FOUND[5] + b] = s[_RIM + b]
        half_row = max(s[_ENDS + b] * _HALF, _LEAST_HALF)
        half_col = max(s[_ENDS + _NEXT + b] * _HALF, _LEAST_HALF)
        interval = np.sqrt(half_row * half_col)
        far = max(s[_FAR + b], s[_FAR + _NEXT + b])
        s[_FOUND[6] + b] = interval
        s[_FOUND[7] + b] = far / (far + interval)
        s[_FOUND[8] + b] = (s[_BESIDE + b] + s[_BESIDE + _NEXT + b]) * _QUARTER
        s[_FOUND[10] + b] = s[_NOISE + b] * s[_NOISE + b] * s[_FOUND[9] + b]


@compiled_part
def _measure(
    pixels: Any, heights: Any, offsets: Any, first: Any, count: Any, lanes: Any, middle: Any,
    widening: Any, s: Any, one: Any, columns: Any,
) -> None:  # fmt: skip
    """Measure peaks `first` to `first + count` of a frame.

    Parameters
    ----------
    pixels, heights, offsets, middle, widening
        As of `compiled_checks.check_peaks`.
    first, count, lanes
        uint64; how many peaks, `BLOCK` at most, and how many columns are computed, no fewer.
    s
        Written: the quantities in the rows from `_FOUND` on, and in `_LEAST` and the row behind it
        the half width, along both axes, that the interval of an unfamiliar peak has at least.
    one, columns
        Scratch.
    """
    # First, because it reads all there is of the patches, one line of memory after the other.
    _sum_rims(pixels, first, count, s)
    _begin(pixels, offsets, first, count, middle, s)
    _make_windows(_U0, lanes, s)
    _make_windows(_NEXT, lanes, s)
    _look_at_patches(pixels, first, count, s, one, columns)
    _take_moments(lanes, s)
    for b in range(lanes):
        s[_TOTAL + b] = _ONE / max(s[_TOTAL + b], _TINY)
    _find_centres(_U0, lanes, s)
    _find_centres(_NEXT, lanes, s)
    _pick_pairs(pixels, first, count, s)
    _find_noise(lanes, s)
    _find_least(_U0, _NEXT, lanes, widening, s)
    _find_least(_NEXT, _U0, lanes, widening, s)
    _conclude(first, count, lanes, heights, s)


@compiled_part
def _take_root(row: Any, lanes: Any, s: Any) -> None:
    for b in range(lanes):
        s[row + b] = np.sqrt(s[row + b])


@compiled_part
def _take_octaves(row: Any, lanes: Any, s: Any, bits: Any, least: Any) -> None:
    """Take logarithms to base 2, which the bits of a float are, straight between powers of 2.

    No library has another opinion on them.
    """
    for b in range(lanes):
        s[row + b] = max(s[row + b], least)
    for b in range(lanes):
        s[row + b] = _F(bits[row + b]) * _OCTAVE - _BIAS


@compiled_part
def _score(count: int, lanes: Any, standard: Any, form: Any, s: Any, bits: Any) -> None:
    """Write the quadratic forms of a `Familiarity`, but for their constant.

    Quantities become what of them goes into it.
    """
    for root in _ROOTS:
        _take_root(root, lanes, s)
    if count == _COUNTED:
        _take_octaves(_HEIGHT, lanes, s, bits, _ONE)
        _take_octaves(_COUNTS, lanes, s, bits, _LEAST_GAIN)
    for quantity in range(count):
        middle, per_scale = standard[0, quantity], standard[1, quantity]
        row = _WIDTH_PX + _U(quantity) * _NEXT
        for b in range(lanes):
            s[row + b] = _bounded((s[row + b] - middle) * per_scale, _MOST_Z)
    for b in range(lanes):
        s[_SCORE + b] = _ZERO
    for quantity in range(count):
        linear = standard[2, quantity]
        for b in range(lanes):
            s[_SLOPE + b] = linear
        # The form is upper triangular.
        for other in range(quantity + 1):
            factor, row = form[other, quantity], _WIDTH_PX + _U(other) * _NEXT
            for b in range(lanes):
                s[_SLOPE + b] += factor * s[row + b]
        row = _WIDTH_PX + _U(quantity) * _NEXT
        for b in range(lanes):
            s[_SCORE + b] += s[row + b] * s[_SLOPE + b]


@compiled_part
def _note_outside(row: Any, lowest: Any, highest: Any, reason: Any, lanes: Any, s: Any) -> None:
    for b in range(lanes):
        # Asked this way round, NaN is not familiar.
        inside = (lowest <= s[row + b]) & (s[row + b] <= highest)
        s[_REASON + b] = s[_REASON + b] if inside else reason


@compiled_part
def _note_together(limit: Any, lanes: Any, s: Any) -> None:
    for b in range(lanes):
        inside = (s[_REASON + b] > _ZERO) | (s[_SCORE + b] <= limit)
        s[_REASON + b] = s[_REASON + b] if inside else _TOGETHER


@compiled_part
def _group(row: Any, edge: Any, lanes: Any, value: Any, s: Any) -> None:
    for b in range(lanes):
        s[row + b] += _ONE if s[value + b] >= edge else _ZERO


@compiled_part
def _choose(
    snr_edges: Any, width_edges: Any, factors: Any, first: Any, count: Any, lanes: Any, s: Any,
    kept: Any,
) -> None:  # fmt: skip
    """Write the factors of intervals, and beside them what they are at least if unfamiliar."""
    for b in range(lanes):
        # The slope is needed only later.
        s[_SLOPE + b] = _ONE / max(s[_NOISE + b], _TINY)
        s[_SNR_GROUP + b] = _ZERO
        s[_WIDTH_GROUP + b] = _ZERO
    for edge in snr_edges:
        _group(_SNR_GROUP, edge, lanes, _SLOPE, s)
    for edge in width_edges:
        _group(_WIDTH_GROUP, edge, lanes, _WIDTH_PX, s)
    for b in range(count):
        chosen = factors[_U(s[_SNR_GROUP + b]), _U(s[_WIDTH_GROUP + b])]
        kept[first + b, 0] = chosen
        kept[first + b, 1] = s[_LEAST + b]
        kept[first + b, 2] = s[_LEAST + _NEXT + b]


@compiled_part
def _widen(offsets: Any, peak: Any, axis: Any, middle: Any, factor: Any, least: Any) -> None:
    """Move quantiles away from the position by a factor, the outer ones by `least` at least."""
    last = _U(offsets.shape[2] - 1)
    position = offsets[peak, axis, middle]
    lower, upper = factor, factor
    down = (position - offsets[peak, axis, 0]) * factor
    up = (offsets[peak, axis, last] - position) * factor
    if _ZERO < down < least:
        lower *= least / down
    if _ZERO < up < least:
        upper *= least / up
    for quantile in range(middle):
        value = position - offsets[peak, axis, quantile]
        offsets[peak, axis, quantile] = position - value * lower
    for quantile in range(middle + _U1, last + _U1):
        value = offsets[peak, axis, quantile] - position
        offsets[peak, axis, quantile] = position + value * upper
    # Ends that lie on the position cannot be stretched.
    if middle > _U0 and not down > _ZERO:
        offsets[peak, axis, 0] = position - least
    if middle < last and not up > _ZERO:
        offsets[peak, axis, last] = position + least


@compiled_part
def _stretch(offsets: Any, middle: Any, number: Any, reasons: Any, kept: Any) -> None:
    """Stretch intervals by the factors of their groups, and widen those of unfamiliar peaks."""
    levels = _U(offsets.shape[2])
    for peak in range(number):
        factor, unfamiliar = kept[peak, 0], reasons[peak] > 0
        for axis in range(_U(2)):
            least = kept[peak, _U1 + axis]
            if unfamiliar and least > _ZERO:
                _widen(offsets, peak, axis, middle, factor, least)
                continue
            position = offsets[peak, axis, middle]
            for quantile in range(middle):
                value = position - offsets[peak, axis, quantile]
                offsets[peak, axis, quantile] = position - value * factor
            for quantile in range(middle + _U1, levels):
                value = offsets[peak, axis, quantile] - position
                offsets[peak, axis, quantile] = position + value * factor


@compiled
def check_peaks(
    pixels: Any, heights: Any, offsets: Any, middle: int, counted: int, factors: Any,
    snr_edges: Any, width_edges: Any, widening: Any, limits: Any, standard: Any, form: Any,
    limit: Any, frame_share: Any, frame_least: int, flags: Any, reasons: Any, kept: Any, s: Any,
    bits: Any, one: Any, columns: Any,
) -> int:  # fmt: skip
    """Judge the peaks of one frame, and calibrate and widen their quantiles in place.

    Parameters
    ----------
    pixels
        (n · 121,) float32, scaled patches.
    heights
        (n,) float32, counts above background of the brightest pixel.
    offsets
        (n, 2, q) float32, the network's output, written.
    middle
        Which quantile is the position.
    counted
        How many of the quantities are looked at: 11, or 9 where heights are no counts.
    factors, snr_edges, width_edges
        As of `IntervalCalibration`.
    widening
        (6,), as of `Widening`, in its order.
    limits
        (2, 11), lowest and highest of single quantities.
    standard, form, limit
        Of a `Familiarity`: (3, counted) centres, 1 / scales and linear coefficients; the form
        upper triangular; the limit less the score's constant. Without columns there is no score.
    frame_share, frame_least
        As of `TrainingData`.
    flags
        (n,) uint8, `PeakFlag.UNFAMILIAR` is added.
    reasons
        (n,) uint8, written: 0 for familiar peaks, else why not; see `quantities.reason_name`.
    kept
        (n, 3) float32, scratch.
    s, bits, one, columns
        Scratch, of `scratch_to_check`.

    Returns
    -------
    How many are unfamiliar.
    """
    number, place = len(heights), _U(middle)
    alone = 0
    for begin in range(0, number, BLOCK):
        first, count = _U(begin), _U(min(BLOCK, number - begin))
        # So many that none is left over, for which there would be loops of their own.
        lanes = (count + _SIDE_BY_SIDE - _U1) // _SIDE_BY_SIDE * _SIDE_BY_SIDE
        _measure(pixels, heights, offsets, first, count, lanes, place, widening, s, one, columns)
        # Before the quantities become terms of the score.
        _choose(snr_edges, width_edges, factors, first, count, lanes, s, kept)
        for b in range(lanes):
            s[_REASON + b] = _ZERO
        for quantity in range(counted - 1, -1, -1):
            _note_outside(
                _WIDTH_PX + _U(quantity) * _NEXT, limits[0, quantity], limits[1, quantity],
                _F(quantity + 1), lanes, s,
            )  # fmt: skip
        if standard.shape[1]:
            _score(counted, lanes, standard, form, s, bits)
            _note_together(limit, lanes, s)
        for b in range(count):
            reasons[first + b] = np.uint8(s[_REASON + b])
            alone += s[_REASON + b] > _ZERO
    whole = alone >= frame_least and _F(alone) > frame_share * _F(number)
    for peak in range(_U(number)):
        if whole and reasons[peak] == 0:
            reasons[peak] = _WHOLE_FRAME
        if reasons[peak] > 0:
            flags[peak] |= _UNFAMILIAR
    _stretch(offsets, place, _U(number), reasons, kept)
    return number if whole else alone
