"""The loops of `PeakChecks`, compiled: what peaks are like, which are unfamiliar, and intervals.

All is float32, in the order in which ``checks.cu`` does it, so that CPU and GPU give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgexnas.bragg import CENTRE, PATCH_SIZE, PeakFlag
from edgexnas.compiled_code import compiled, compiled_part
from edgexnas.familiarity.quantities import (
    ALONE,
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

# float32 by themselves: numba computes with float64 where a plain number takes part.
_F = np.float32
_ZERO, _HALF, _ONE, _TWO, _EIGHT = _F(0), _F(0.5), _F(1), _F(2), _F(8)
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
_MIDDLE = _AREA // 2
_COUNTED, _ALONE = len(COUNTED), len(ALONE)
_PER_PIXEL = _F(1 / _AREA)
_OCTAVE, _BIAS = _F(2.0**-23), _F(127)
_LEAST_GAIN = _F(0.01)
_MOST_Z = _F(LARGEST_Z)
_NARROW_PX2, _NARROWNESS = _F(NARROW_PX2), _F(0.01)
_UNFAMILIAR = np.uint8(PeakFlag.UNFAMILIAR)
_TOGETHER, _WHOLE_FRAME = TOGETHER, WHOLE_FRAME
# Steps within a flat patch, unsigned: else each index is first asked whether it counts from the
# end, which costs as much as the arithmetic.
_U1, _U2, _U11, _U22 = np.uint64(1), np.uint64(2), np.uint64(11), np.uint64(22)


def scratch_to_check() -> tuple[Any, ...]:
    """Make the scratch of `check_peaks`: `rows` and all behind."""
    return (
        np.zeros(PATCH_SIZE, np.float32),
        np.zeros(PATCH_SIZE, np.float32),
        np.zeros(6, np.float32),
    )


@compiled_part
def _bounded(value: Any, limit: Any) -> Any:
    # In this order, NaN is bounded too: pixels are picked by what comes out.
    return min(max(-limit, value), limit)


@compiled_part
def _make_window(shift: Any, width: Any, weights: Any) -> None:
    """Write [1 - (t / width)²]² of each pixel of an axis, t from the shifted centre."""
    per_width = _ONE / width
    for pixel in range(PATCH_SIZE):
        ratio = (_F(pixel - CENTRE) - shift) * per_width
        u = max(_ONE - ratio * ratio, _ZERO)
        weights[pixel] = u * u


@compiled_part
def _take_moments(
    pixels: Any, base: Any, row: Any, col: Any, reach: int, rows: Any, cols: Any, sums: Any
) -> None:
    """Write windowed sum, means, variances and covariance of a patch about (row, col).

    `reach` is how many pixels about the middle one the windows reach.
    """
    first_pixel, behind = max(CENTRE - reach, 0), min(CENTRE + reach + 1, PATCH_SIZE)
    total = down = across = down2 = across2 = cross = _ZERO
    c = first_pixel
    while c < behind:
        # Two columns at once, whose sums do not wait for each other. A second one beyond the
        # window has no weight, and beyond the patch it is the last once more.
        step = np.uint64(c + 1 < PATCH_SIZE)
        plain = first = second = plain_beside = first_beside = second_beside = _ZERO
        for r in range(first_pixel, behind):
            t, weight = _F(r - CENTRE) - row, rows[r]
            pixel = base + np.uint64(PATCH_SIZE * r + c)
            weighted = weight * pixels[pixel]
            plain += weighted
            weighted *= t
            first += weighted
            second += weighted * t
            weighted = weight * pixels[pixel + step]
            plain_beside += weighted
            weighted *= t
            first_beside += weighted
            second_beside += weighted * t
        for side in range(2 if c + 1 < behind else 1):
            if side:
                plain, first, second = plain_beside, first_beside, second_beside
            t = _F(c + side - CENTRE) - col
            weight = cols[c + side]
            total += weight * plain
            down += weight * first
            down2 += weight * second
            weight *= t
            across += weight * plain
            cross += weight * first
            across2 += weight * t * plain
        c += 2
    per_total = _ONE / max(total, _TINY)
    down *= per_total
    across *= per_total
    sums[0], sums[1], sums[2] = per_total, down, across
    sums[3] = max(down2 * per_total - down * down, _FLOOR)
    sums[4] = max(across2 * per_total - across * across, _FLOOR)
    sums[5] = cross * per_total - down * across


@compiled_part
def _gain(variance: Any, width: Any) -> Any:
    """By how much more than its windowed centroid a peak has moved."""
    share = variance / (width * width)
    return _ONE / max(_ONE - share * (_LINEAR + _SQUARE * share), _LEAST_RESPONSE)


@compiled_part
def _pixel_noise(pixels: Any, base: Any, row: Any, col: Any) -> Any:
    """Find the noise of a pixel from what of the odd part of the peak no shift explains.

    The patch is reflected about the half pixel that is nearest to (row, col), within 5×5 or 6×6
    pixels. A shift shows as t·e·(1 + e), with t the distance from the centre and e the even part:
    halfway between the gradients of a Gaussian, t·e, and of a Lorentzian, t·e², and without the
    noise and the coarseness of differences between pixels.
    """
    twice_row = 2 * CENTRE + int(np.floor(_TWO * _bounded(row, _ONE) + _HALF))
    twice_col = 2 * CENTRE + int(np.floor(_TWO * _bounded(col, _ONE) + _HALF))
    top, left = (twice_row - 4) // 2, (twice_col - 4) // 2
    rows, cols = twice_row - 2 * top + 1, twice_col - 2 * left + 1
    rr = cc = rc = qr = qc = qq = _ZERO
    pairs = 0
    for r in range(top, top + (rows + 1) // 2):
        # The middle row is its own image, of which one half is enough.
        number = cols // 2 if 2 * r == twice_row else cols
        here = base + np.uint64(PATCH_SIZE * r + left)
        there = base + np.uint64(PATCH_SIZE * (twice_row - r) + twice_col - left)
        t_row, t_col = _F(2 * r - twice_row), _F(2 * left - twice_col)
        for _ in range(number):
            one, other = pixels[here], pixels[there]
            odd, even = one - other, one + other
            slope = even * (_TWO + even)
            down, across = t_row * slope, t_col * slope
            rr += down * down
            cc += across * across
            rc += down * across
            qr += odd * down
            qc += odd * across
            qq += odd * odd
            pairs += even > _ZERO
            t_col += _TWO
            here += _U1
            there -= _U1
    determinant = rr * cc - rc * rc
    if determinant > _TINY * rr * cc:
        qq -= (qr * qr * cc - _TWO * qr * qc * rc + qc * qc * rr) / determinant
    # `odd` is twice the odd part, and a shift takes two degrees of freedom.
    return np.sqrt(max(qq, _ZERO) / _F(2 * max(pairs - 2, 1)))


@compiled_part
def _measure(
    pixels: Any, heights: Any, offsets: Any, peak: int, middle: int, rows: Any, cols: Any,
    sums: Any, found: Any, own: Any,
) -> None:  # fmt: skip
    """Write the quantities of a peak, and what its own interval is made of.

    Whole arrays with an index come here, because a part of an array costs a count of references.

    Parameters
    ----------
    pixels
        (n · 121,), the scaled patches.
    found
        (11, n), written: the quantities.
    own
        (n, 2, 3), written: for row and column the distance of the network's position from the
        windowed centroid, the noise of that centroid, and the windowed variance.
    """
    last = offsets.shape[2] - 1
    row, col = offsets[peak, 0, middle], offsets[peak, 1, middle]
    half_row = max((offsets[peak, 0, last] - offsets[peak, 0, 0]) * _HALF, _LEAST_HALF)
    half_col = max((offsets[peak, 1, last] - offsets[peak, 1, 0]) * _HALF, _LEAST_HALF)
    base = np.uint64(_AREA * peak)
    core = base + np.uint64(_MIDDLE)
    beside_row = pixels[core - _U11] + pixels[core + _U11]
    beside_col = pixels[core - _U1] + pixels[core + _U1]
    row_px = min(max(_NARROW, _WINDOW * (_ONE + beside_row)), _WIDE)
    col_px = min(max(_NARROW, _WINDOW * (_ONE + beside_col)), _WIDE)
    x, y = _bounded(row, _FARTHEST_START), _bounded(col, _FARTHEST_START)
    _make_window(x, row_px, rows)
    _make_window(y, col_px, cols)
    reach = int(max(row_px + abs(x), col_px + abs(y)))
    _take_moments(pixels, base, x, y, reach, rows, cols, sums)
    plain_row = plain_col = first_row = first_col = _ZERO
    for pixel in range(PATCH_SIZE):
        along = _F(pixel - CENTRE)
        weight = rows[pixel] * rows[pixel]
        plain_row += weight
        first_row += weight * (along - x) * (along - x)
        weight = cols[pixel] * cols[pixel]
        plain_col += weight
        first_col += weight * (along - y) * (along - y)
    gain_row, gain_col = _gain(sums[3], row_px), _gain(sums[4], col_px)
    x = _bounded(x + sums[1] * gain_row, _FARTHEST)
    y = _bounded(y + sums[2] * gain_col, _FARTHEST)
    noise = _pixel_noise(pixels, base, x, y)
    spread = noise * sums[0]
    own[peak, 0, 0], own[peak, 1, 0] = abs(row - x), abs(col - y)
    own[peak, 0, 1] = spread * np.sqrt(first_row * plain_col) * gain_row
    own[peak, 1, 1] = spread * np.sqrt(plain_row * first_col) * gain_col
    own[peak, 0, 2], own[peak, 1, 2] = sums[3], sums[4]

    variance = np.sqrt(sums[3] * sums[4])
    far = max(own[peak, 0, 0], own[peak, 1, 0])
    interval = np.sqrt(half_row * half_col)
    empty = 0
    for pixel in range(_AREA):
        empty += pixels[base + np.uint64(pixel)] == _ZERO
    above = below = before = behind = _ZERO
    for step in range(PATCH_SIZE - 1):
        above += pixels[base + np.uint64(step)]
        below += pixels[base + np.uint64(_AREA - 1 - step)]
        before += pixels[base + np.uint64(PATCH_SIZE * (step + 1))]
        behind += pixels[base + np.uint64(PATCH_SIZE * (step + 1) - 1)]
    found[0, peak] = _TO_FWHM * np.sqrt(variance)
    found[1, peak] = (sums[3] - sums[4]) / (sums[3] + sums[4])
    found[2, peak] = sums[5] / variance
    found[3, peak] = noise
    found[4, peak] = _F(empty) * _PER_PIXEL
    found[5, peak] = ((above + below) + (before + behind)) * _PER_RIM
    found[6, peak] = interval
    found[7, peak] = far / (far + interval)
    found[8, peak] = (beside_row + beside_col) * _QUARTER
    height = heights[peak]
    found[9, peak] = height
    found[10, peak] = noise * noise * height


@compiled_part
def _take_root(column: Any) -> None:
    for peak in range(len(column)):
        column[peak] = np.sqrt(column[peak])


@compiled_part
def _take_octaves(column: Any, as_int: Any, least: Any) -> None:
    """Take logarithms to base 2, which the bits of a float are, straight between powers of 2.

    No library has another opinion on them.
    """
    for peak in range(len(column)):
        column[peak] = max(column[peak], least)
    for peak in range(len(column)):
        column[peak] = _F(as_int[peak]) * _OCTAVE - _BIAS


@compiled_part
def _standardise(column: Any, centre: Any, per_scale: Any) -> None:
    for peak in range(len(column)):
        column[peak] = _bounded((column[peak] - centre) * per_scale, _MOST_Z)


@compiled_part
def _add_scaled(column: Any, factor: Any, total: Any) -> None:
    for peak in range(len(column)):
        total[peak] += factor * column[peak]


@compiled_part
def _add_products(column: Any, other: Any, total: Any) -> None:
    for peak in range(len(column)):
        total[peak] += column[peak] * other[peak]


@compiled_part
def _note_outside(column: Any, lowest: Any, highest: Any, reason: int, reasons: Any) -> None:
    for peak in range(len(column)):
        # Asked this way round, NaN is not familiar.
        inside = (lowest <= column[peak]) & (column[peak] <= highest)
        reasons[peak] = reasons[peak] if inside else reason


@compiled_part
def _score(
    z: Any, as_int: Any, number: int, centre: Any, per_scale: Any, linear: Any, form: Any,
    slope: Any, total: Any,
) -> None:  # fmt: skip
    """Write the quadratic forms of a `Familiarity`, but for their constant.

    One quantity after the other for all peaks, so that many peaks are computed at once.
    """
    for quantity in (3, 5, 6):
        _take_root(z[quantity])
    if number == _COUNTED:
        _take_octaves(z[9], as_int[9], _ONE)
        _take_octaves(z[10], as_int[10], _LEAST_GAIN)
    for quantity in range(number):
        _standardise(z[quantity], centre[quantity], per_scale[quantity])
    total[:] = _ZERO
    for quantity in range(number):
        slope[:] = linear[quantity]
        # The form is upper triangular.
        for other in range(quantity + 1):
            _add_scaled(z[other], form[other, quantity], slope)
        _add_products(z[quantity], slope, total)


@compiled_part
def _group(value: Any, edges: Any) -> int:
    number = 0
    for edge in edges:
        number += value >= edge
    return number


@compiled_part
def _stretch(offsets: Any, peak: int, axis: int, middle: int, factor: Any, least: Any) -> None:
    """Move quantiles away from the position by a factor, the outer ones by `least` at least."""
    last = offsets.shape[2] - 1
    position = offsets[peak, axis, middle]
    lower, upper = factor, factor
    down, up = _ONE, _ONE
    if least > _ZERO:
        down = (position - offsets[peak, axis, 0]) * factor
        up = (offsets[peak, axis, last] - position) * factor
        if _ZERO < down < least:
            lower *= least / down
        if _ZERO < up < least:
            upper *= least / up
    for quantile in range(middle):
        value = position - offsets[peak, axis, quantile]
        offsets[peak, axis, quantile] = position - value * lower
    for quantile in range(middle + 1, last + 1):
        value = offsets[peak, axis, quantile] - position
        offsets[peak, axis, quantile] = position + value * upper
    # Ends that lie on the position cannot be stretched.
    if middle > 0 and not down > _ZERO:
        offsets[peak, axis, 0] = position - least
    if middle < last and not up > _ZERO:
        offsets[peak, axis, last] = position + least


@compiled
def check_peaks(
    pixels: Any, heights: Any, offsets: Any, middle: int, counted: int, factors: Any,
    snr_edges: Any, width_edges: Any, widening: Any, lowest: Any, highest: Any, centre: Any,
    per_scale: Any, linear: Any, form: Any, limit: Any, frame_share: Any, frame_least: int,
    flags: Any, reasons: Any, values: Any, own: Any, found: Any, as_int: Any, chosen: Any,
    slope: Any, total: Any, rows: Any, cols: Any, sums: Any,
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
    lowest, highest
        (11,), limits of single quantities.
    centre, per_scale, linear, form, limit
        Of a `Familiarity`, the form upper triangular, the limit less the score's constant; empty
        where there is no score.
    frame_share, frame_least
        As of `TrainingData`.
    flags
        (n,) uint8, `PeakFlag.UNFAMILIAR` is added.
    reasons
        (n,) uint8, written: 0 for familiar peaks, else why not; see `quantities.reason_name`.
    values
        (n, 11), written if it has rows: the quantities.
    own, found, as_int, chosen, slope, total
        (n, 2, 3), (11, n), the same memory as int32, and (n,) float32, scratch.
    rows, cols, sums
        Scratch, of `scratch_to_check`.

    Returns
    -------
    How many are unfamiliar.
    """
    number = len(heights)
    for peak in range(number):
        _measure(pixels, heights, offsets, peak, middle, rows, cols, sums, found, own)
    if len(values):
        for peak in range(number):
            for quantity in range(len(found)):
                values[peak, quantity] = found[quantity, peak]
    # Before the quantities become terms of the score.
    for peak in range(number):
        row = _group(_ONE / max(found[3, peak], _TINY), snr_edges)
        chosen[peak] = factors[row, _group(found[0, peak], width_edges)]
    reasons[:] = 0
    for quantity in range(counted - 1, -1, -1):
        _note_outside(found[quantity], lowest[quantity], highest[quantity], quantity + 1, reasons)
    if len(linear):
        _score(found, as_int, counted, centre, per_scale, linear, form, slope, total)
        for peak in range(number):
            if reasons[peak] == 0 and not total[peak] <= limit:
                reasons[peak] = _TOGETHER
    alone = 0
    for peak in range(number):
        alone += reasons[peak] > 0
    whole = alone >= frame_least and _F(alone) > frame_share * _F(number)
    for peak in range(number):
        if whole and reasons[peak] == 0:
            reasons[peak] = _WHOLE_FRAME
        unfamiliar = reasons[peak] > 0
        if unfamiliar:
            flags[peak] |= _UNFAMILIAR
        for axis in range(2):
            least = _ZERO
            if unfamiliar:
                half = (offsets[peak, axis, -1] - offsets[peak, axis, 0]) * _HALF
                far, spread, variance = own[peak, axis, 0], own[peak, axis, 1], own[peak, axis, 2]
                narrow = _NARROW_PX2 / (_NARROW_PX2 + variance)
                narrowness = _NARROWNESS / variance
                least = np.sqrt(
                    widening[0] * half * half
                    + (widening[1] * (_ONE - narrow) + widening[2] * narrow) * far * far
                    + widening[3] * spread * spread
                    + widening[4] * narrowness * narrowness
                    + widening[5] * widening[5]
                )
            _stretch(offsets, peak, axis, middle, chosen[peak], least)
    return number if whole else alone
