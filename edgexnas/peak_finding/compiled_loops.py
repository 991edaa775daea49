"""The loops of the peak finder, compiled by numba; loading this module loads numba.

Each test adds up float64 numbers in the order of the numpy reference, so that the two agree to the
last bit. The functions run without the interpreter's lock and take no memory the size of a frame.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgexnas.bragg import CENTRE, PATCH_SIZE, REACH
from edgexnas.compiled_code import compiled, compiled_part
from edgexnas.peak_finding.settings import PLATEAU_SIDE, RIDGE_FAR, RIDGE_GATE, RIDGE_NEAR

__all__ = ["BAND", "cut_patches", "find_peaks", "scratch_to_cut", "scratch_to_find"]

_WIDE = 2 * REACH + 1
_BORDERED = _WIDE + 2
_EDGE, _OVERLAP, _MASKED, _SATURATED = 2, 4, 8, 1
# More steps than a window is wide; the reference follows as many.
_ASCENT_STEPS = 32

BAND = 8
"""Rows that are compared with one row of limits at a time, to find the few that hold peaks.

With the columns of a word they make tiles of 8×8 pixels, about the size of a spot.
"""
# Dark tiles between bright ones cost less than another call of a row's loop.
_BRIDGED_TILES = 32


@compiled_part
def _is_maximum(frame: Any, mask: Any, masked: bool, row: int, col: int) -> bool:
    """Tell whether no usable one of the 5×5 pixels beats this one; of equals the first wins."""
    height, width = frame.shape
    value = frame[row, col]
    # The nearest rows first: they beat most pixels.
    for r in (row + 1, row - 1, row, row + 2, row - 2):
        if r < 0 or r >= height:
            continue
        for c in range(max(col - 2, 0), min(col + 3, width)):
            other = frame[r, c]
            if other < value or (masked and mask[r, c]):
                continue
            if other > value or r < row or (r == row and c < col):
                return False
    return True


@compiled_part
def _is_large_enough(
    frame: Any,
    mask: Any,
    masked: bool,
    level: Any,
    noise: Any,
    lit_background: bool,
    row: int,
    col: int,
    minimum_pixels: int,
    sigmas: float,
    least: float,
) -> bool:
    """Apply the test of size."""
    height, width = frame.shape
    floor = least
    if lit_background:
        floor = max(sigmas * float(noise[row, col]), least)
    floor *= 0.5
    lit = 0
    for r in range(max(row - 1, 0), min(row + 2, height)):
        for c in range(max(col - 1, 0), min(col + 2, width)):
            if masked and mask[r, c]:
                continue
            count = float(frame[r, c])
            if lit_background:
                count -= float(level[r, c])
            lit += count > floor
    return lit >= minimum_pixels


@compiled_part
def _is_significant(
    frame: Any,
    mask: Any,
    masked: bool,
    level: Any,
    noise: Any,
    lit_background: bool,
    row: int,
    col: int,
    minimum_pixels: int,
    sigmas: float,
    least: float,
    snr: float,
    prominence: float,
    w: Any,
) -> int:
    """Apply the tests of size, signal and prominence to a maximum; `w` is (25,) scratch.

    Returns 0 if it fails, 2 if it may lie on a ridge, and else 1.
    """
    total0 = total1 = total2 = total3 = total4 = 0.0
    n0 = n1 = n2 = n3 = n4 = 0
    height, width = frame.shape
    if not masked and 2 <= row < height - 2 and 2 <= col < width - 2:
        for down in range(5):
            for across in range(5):
                r, c = row + down - 2, col + across - 2
                count = float(frame[r, c])
                if lit_background:
                    count -= float(level[r, c])
                w[5 * down + across] = count
        floor = 0.5 * (max(sigmas * float(noise[row, col]), least) if lit_background else least)
        lit = 0
        # In raster order within each group, as the reference adds them up.
        for down in range(1, 4):
            for across in range(1, 4):
                count = w[5 * down + across]
                lit += count > floor
                total0 += count
        if lit < minimum_pixels:
            return 0
        for place in range(5, 20, 5):
            total1 += w[place]
            total1 += w[place + 4]
        for place in range(1, 4):
            total2 += w[place]
        for place in range(21, 24):
            total2 += w[place]
        total3 = w[0] + w[1] + w[5] + w[19] + w[23] + w[24]
        total4 = w[3] + w[4] + w[9] + w[15] + w[20] + w[21]
        n0 = 9
        n1 = n2 = n3 = n4 = 6
    else:
        if not _is_large_enough(
            frame, mask, masked, level, noise, lit_background, row, col, minimum_pixels, sigmas,
            least,
        ):  # fmt: skip
            return 0
        for down in range(-2, 3):
            r = row + down
            if r < 0 or r >= height:
                continue
            for across in range(-2, 3):
                c = col + across
                if c < 0 or c >= width or (masked and mask[r, c]):
                    continue
                count = float(frame[r, c])
                if lit_background:
                    count -= float(level[r, c])
                if -1 <= down <= 1 and -1 <= across <= 1:
                    total0 += count
                    n0 += 1
                elif -1 <= down <= 1:
                    total1 += count
                    n1 += 1
                elif -1 <= across <= 1:
                    total2 += count
                    n2 += 1
                # The corners and their neighbours along the perimeter make the diagonals.
                if down * across >= 2:
                    total3 += count
                    n3 += 1
                elif down * across <= -2:
                    total4 += count
                    n4 += 1
    spread = 0.0
    if lit_background:
        spread = float(noise[row, col]) * float(noise[row, col])
    mean = total0 / n0
    variance = (spread + max(mean, 0.0)) / n0
    if not (
        mean >= snr * math.sqrt(variance)
        and _rises(mean, variance, spread, total1, n1, prominence)
        and _rises(mean, variance, spread, total2, n2, prominence)
        and _rises(mean, variance, spread, total3, n3, prominence)
        and _rises(mean, variance, spread, total4, n4, prominence)
    ):
        return 0
    gate = RIDGE_GATE * mean
    wide = (
        (n1 > 0 and total1 / n1 > gate)
        or (n2 > 0 and total2 / n2 > gate)
        or (n3 > 0 and total3 / n3 > gate)
        or (n4 > 0 and total4 / n4 > gate)
    )
    return 2 if wide else 1


@compiled_part
def _rises(
    mean: float, variance: float, spread: float, total: float, number: int, prominence: float
) -> bool:
    if number == 0:
        return True
    around = total / number
    beside = (spread + max(around, 0.0)) / number
    return mean - around >= prominence * math.sqrt(variance + beside)


@compiled_part
def _block(
    frame: Any, mask: Any, masked: bool, level: Any, lit_background: bool, row: int, col: int
) -> float:
    """Mean counts above background of the usable ones of 3×3 pixels; NaN without any."""
    height, width = frame.shape
    total = 0.0
    if not masked and 1 <= row < height - 1 and 1 <= col < width - 1:
        for down in range(3):
            for across in range(3):
                count = float(frame[row + down - 1, col + across - 1])
                if lit_background:
                    count -= float(level[row + down - 1, col + across - 1])
                total += count
        return total / 9
    number = 0
    for r in range(max(row - 1, 0), min(row + 2, height)):
        for c in range(max(col - 1, 0), min(col + 2, width)):
            if masked and mask[r, c]:
                continue
            count = float(frame[r, c])
            if lit_background:
                count -= float(level[r, c])
            total += count
            number += 1
    return total / number if number else np.nan


@compiled_part
def _is_on_ridge(
    frame: Any,
    mask: Any,
    masked: bool,
    level: Any,
    lit_background: bool,
    row: int,
    col: int,
    fraction: float,
) -> bool:
    """Apply the test of ridges."""
    height = _block(frame, mask, masked, level, lit_background, row, col)
    for way in range(len(RIDGE_FAR)):
        known = 0
        low = np.inf
        # The base is not negative, so that a direction is out once it is below this.
        enough = fraction * height
        for step in range(4):
            down, across = RIDGE_FAR[way] if step < 2 else RIDGE_NEAR[way]
            side = 1 - 2 * (step % 2)
            value = _block(
                frame, mask, masked, level, lit_background, row + side * down, col + side * across
            )
            if value <= enough:
                low = -np.inf
                break
            if value == value:
                known += 1
                low = min(low, value)
        if known < 3 or low <= enough:
            continue
        base = 0.0
        down, across = RIDGE_FAR[(way + len(RIDGE_FAR) // 2) % len(RIDGE_FAR)]
        for side in (1, -1):
            value = _block(
                frame, mask, masked, level, lit_background, row + side * down, col + side * across
            )
            if value > base:
                base = value
        if low - base > fraction * (height - base):
            return True
    return False


@compiled_part
def _plateau_centre(
    frame: Any, mask: Any, masked: bool, rim: float, row: int, col: int, can: Any, got: Any
) -> int:
    """Give the flat index of the centre of a saturated plateau; −1 if it is larger than a spot.

    A window of PLATEAU_SIDE pixels to each side shows whether it is; its rows are bits of `can`
    and `got`, (2 · PLATEAU_SIDE + 3,) int64 with one more on each end,
    which stays 0.
    """
    height, width = frame.shape
    side = 2 * PLATEAU_SIDE + 1
    for down in range(side):
        can[down + 1] = got[down + 1] = 0
        r = row + down - PLATEAU_SIDE
        if r < 0 or r >= height:
            continue
        for across in range(side):
            c = col + across - PLATEAU_SIDE
            if c < 0 or c >= width or (masked and mask[r, c]):
                continue
            if float(frame[r, c]) >= rim:
                can[down + 1] |= 1 << across
    got[PLATEAU_SIDE + 1] = 1 << PLATEAU_SIDE
    grows = True
    while grows:
        grows = False
        for down in range(1, side + 1):
            spread = got[down - 1] | got[down] | got[down + 1]
            spread = (spread | (spread << 1) | (spread >> 1)) & can[down]
            if spread != got[down]:
                got[down] = spread
                grows = True
    number = rows = cols = 0
    top = left = side
    bottom = right = 0
    first = -1
    for down in range(side):
        for across in range(side):
            if (got[down + 1] >> across) & 1:
                if first < 0:
                    first = down * side + across
                number += 1
                rows += down
                cols += across
                top, bottom = min(top, down), max(bottom, down)
                left, right = min(left, across), max(right, across)
    if max(bottom - top, right - left) >= PLATEAU_SIDE:
        return -1
    down, across = (2 * rows + number) // (2 * number), (2 * cols + number) // (2 * number)
    if not (got[down + 1] >> across) & 1:
        down, across = first // side, first % side
    centre: int = (row + down - PLATEAU_SIDE) * width + col + across - PLATEAU_SIDE
    return centre


# Functions of their own, because so the compiler takes many pixels at once.
@compiled_part
def _mark_lit(line: Any, limits: Any, lit: Any) -> None:
    for col in range(len(line)):
        lit[col] = line[col] > limits[col]


@compiled_part
def _mark_rising(line: Any, limits: Any, above: Any, below: Any, lit: Any) -> None:
    """Mark lit pixels that none of the four nearest beats; the first and last come as lit."""
    last = len(line) - 1
    lit[0] = line[0] > limits[0]
    lit[last] = line[last] > limits[last]
    left, right = line[: last - 1], line[2:]
    middle, limit, up, down, marks = (
        line[1:last], limits[1:last], above[1:last], below[1:last], lit[1:last],
    )  # fmt: skip
    for col in range(len(middle)):
        value = middle[col]
        marks[col] = (
            (value > limit[col])
            & (value > left[col])
            & (value >= right[col])
            & (value > up[col])
            & (value >= down[col])
        )


@compiled_part
def _mark_rising_beside(
    line: Any, limits: Any, above: Any, below: Any, beside: Any, lit: Any
) -> None:
    """Do the same where masked pixels beat none; `beside` tells which have one beside them."""
    last = len(line) - 1
    lit[0] = line[0] > limits[0]
    lit[last] = line[last] > limits[last]
    left, right = line[: last - 1], line[2:]
    middle, limit, up, down, marks, near = (
        line[1:last], limits[1:last], above[1:last], below[1:last], lit[1:last], beside[1:last],
    )  # fmt: skip
    for col in range(len(middle)):
        value = middle[col]
        rising = (
            (value > left[col]) & (value >= right[col]) & (value > up[col]) & (value >= down[col])
        )
        marks[col] = (value > limit[col]) & (rising | near[col])


@compiled_part
def _mark_bright(
    a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, least: Any, lit: Any
) -> None:
    """Mark the columns in which one of the rows exceeds the least of the rows' limits."""
    for col in range(len(least)):
        limit = least[col]
        # Without branches, so that the pass is as fast as memory.
        lit[col] = (
            (a[col] > limit) | (b[col] > limit) | (c[col] > limit) | (d[col] > limit)
            | (e[col] > limit) | (f[col] > limit) | (g[col] > limit) | (h[col] > limit)
        )  # fmt: skip


@compiled_part
def _bright_stretches(words: Any, width: int, stretches: Any) -> int:
    """List the (first, one behind the last) columns that hold bright tiles; return how many."""
    number = 0
    last = -_BRIDGED_TILES - 1
    for word in range(len(words)):
        if words[word] != 0:
            if word - last > _BRIDGED_TILES:
                stretches[number, 0] = 8 * word
                number += 1
            last = word
            stretches[number - 1, 1] = min(8 * word + 8, width)
    return number


@compiled_part
def _list_lit(lit: Any, words: Any, first: int, behind: int, columns: Any) -> int:
    """List the lit columns of a stretch; return how many."""
    number = 0
    for word in range(first // 8, (behind + 7) // 8):
        # Eight dark pixels at once; most are.
        if words[word] != 0:
            for col in range(8 * word, 8 * word + 8):
                # Which are lit cannot be foretold, so a branch would cost more than the writing.
                columns[number] = col
                number += lit[col]
    return number


def scratch_to_find(width: int) -> tuple[Any, ...]:
    """Make the scratch of `find_peaks` for rows of so many pixels: `lit` to `got`."""
    words = -(-width // 8)
    lit = np.zeros(8 * words, np.uint8)
    stretches, columns = np.empty((words, 2), np.int64), np.empty(len(lit) + 1, np.int64)
    can, got = (np.zeros(2 * PLATEAU_SIDE + 3, np.int64) for _ in range(2))
    return lit, lit.view(np.uint64), stretches, columns, np.empty(25, np.float64), can, got


@compiled
def find_peaks(
    frame: Any,
    threshold: Any,
    least: Any,
    mask: Any,
    masked: bool,
    level: Any,
    noise: Any,
    lit_background: bool,
    minimum_pixels: int,
    sigmas: float,
    minimum_counts: float,
    snr: float,
    prominence: float,
    ridge_fraction: float,
    saturation: float,
    rim: float,
    beside: Any,
    lit: Any,
    words: Any,
    stretches: Any,
    columns: Any,
    window: Any,
    can: Any,
    got: Any,
    peaks: Any,
) -> int:
    """Write the flat indices of all peaks; count also those that find no room.

    They come in raster order, but for the centres of saturated plateaus, which stand where the
    first of their pixels was met, some of them more than once.

    Parameters
    ----------
    frame
        (H, W).
    threshold
        (H, W), what a pixel must exceed, in the frame's dtype; masked pixels never do.
    least
        (H / BAND rounded up, W), the least threshold of each column in a band of rows.
    mask, masked
        (H, W) bool, and whether it counts.
    level, noise, lit_background
        (H, W) float32, and whether they count.
    beside
        (H, W) bool, which pixels have a masked one among their 3×3; used where masked.
    lit, words, stretches, columns, window, can, got
        Scratch, of `scratch_to_find`; made there, because numba compiles each kind of array that
        its code makes for long.
    peaks
        (m,) int64, written.
    """
    height, width = frame.shape
    room = len(peaks)
    found = 0
    for band in range(len(least)):
        top = BAND * band
        end = min(top + BAND, height)
        # The last band may be lower; its last row then stands in for those that are missing.
        _mark_bright(
            frame[top], frame[min(top + 1, end - 1)], frame[min(top + 2, end - 1)],
            frame[min(top + 3, end - 1)], frame[min(top + 4, end - 1)],
            frame[min(top + 5, end - 1)], frame[min(top + 6, end - 1)], frame[end - 1],
            least[band], lit,
        )  # fmt: skip
        number = _bright_stretches(words, width, stretches)
        if number == 0:
            continue
        for row in range(top, end):
            for stretch in range(number):
                first, behind = stretches[stretch, 0], stretches[stretch, 1]
                # One pixel more on each side, which is dark, because the first and the last of a
                # line are compared with the limit only.
                left, right = max(first - 1, 0), min(behind + 1, width)
                line, marks = frame[row, left:right], lit[left:right]
                if row == 0 or row == height - 1 or len(line) < 3:
                    _mark_lit(line, threshold[row, left:right], marks)
                elif masked:
                    _mark_rising_beside(
                        line, threshold[row, left:right], frame[row - 1, left:right],
                        frame[row + 1, left:right], beside[row, left:right], marks,
                    )  # fmt: skip
                else:
                    # The band's limits are at hand; the few that they let pass are sorted out.
                    _mark_rising(
                        line, least[band, left:right], frame[row - 1, left:right],
                        frame[row + 1, left:right], marks,
                    )  # fmt: skip
                candidates = _list_lit(lit, words, first, behind, columns)
                for candidate in range(candidates):
                    col = columns[candidate]
                    if float(frame[row, col]) >= saturation:
                        if frame[row, col] <= threshold[row, col]:
                            continue
                        peak = _plateau_centre(frame, mask, masked, rim, row, col, can, got)
                        down, across = peak // width, peak % width
                        if (
                            peak < 0
                            or frame[down, across] <= threshold[down, across]
                            or not _is_large_enough(
                                frame, mask, masked, level, noise, lit_background, down, across,
                                minimum_pixels, sigmas, minimum_counts,
                            )
                        ):  # fmt: skip
                            continue
                    else:
                        if not (
                            _is_maximum(frame, mask, masked, row, col)
                            and frame[row, col] > threshold[row, col]
                        ):
                            continue
                        kind = _is_significant(
                            frame, mask, masked, level, noise, lit_background, row, col,
                            minimum_pixels, sigmas, minimum_counts, snr, prominence, window,
                        )  # fmt: skip
                        if kind == 0 or (
                            kind == 2
                            and _is_on_ridge(
                                frame, mask, masked, level, lit_background, row, col, ridge_fraction
                            )
                        ):
                            continue
                        peak = row * width + col
                    if found < room:
                        peaks[found] = peak
                    found += 1
    return found


def scratch_to_cut() -> tuple[Any, ...]:
    """Make the scratch of `cut_patches`: `ends` and all behind."""
    ends = np.empty(2, np.float32)
    wide = np.full(_BORDERED * _BORDERED, -1, np.float32)
    # As many as leave room for the last pixel's 3×3.
    number = _BORDERED * (_WIDE - 1) + _WIDE
    steps = np.empty(number, np.int32)
    return (
        ends,
        ends.view(np.int32),
        wide,
        np.empty(number, np.float32),
        steps,
        np.zeros(number, np.uint8),
    )


@compiled_part
def _cut_inside(
    frame: Any, level: Any, lit_background: bool, saturation: float, row: int, col: int, patch: Any
) -> int:
    """Do what `_cut` does where no pixel lies over the edge or under the mask."""
    full = False
    for down in range(PATCH_SIZE):
        for across in range(PATCH_SIZE):
            r, c = row + down - CENTRE, col + across - CENTRE
            value = frame[r, c]
            full |= float(value) >= saturation
            count = np.float32(value)
            if lit_background:
                count -= level[r, c]
            patch[down, across] = max(count, np.float32(0))
    return _SATURATED if full else 0


@compiled_part
def _cut(
    frame: Any,
    mask: Any,
    masked: bool,
    level: Any,
    lit_background: bool,
    saturation: float,
    row: int,
    col: int,
    patch: Any,
) -> int:
    """Write the (11, 11) counts around a pixel; return the flags that the pixels give."""
    height, width = frame.shape
    flags = 0
    for down in range(PATCH_SIZE):
        r = row + down - CENTRE
        for across in range(PATCH_SIZE):
            c = col + across - CENTRE
            if r < 0 or r >= height or c < 0 or c >= width:
                flags |= _EDGE
                patch[down, across] = 0
                continue
            if masked and mask[r, c]:
                flags |= _MASKED
                patch[down, across] = 0
                continue
            value = frame[r, c]
            if float(value) >= saturation:
                flags |= _SATURATED
            count = np.float32(value)
            if lit_background:
                count -= level[r, c]
            patch[down, across] = max(count, np.float32(0))
    return flags


@compiled_part
def _copy_wide(frame: Any, mask: Any, masked: bool, row: int, col: int, wide: Any) -> None:
    """Write the (21, 21) raw counts around a pixel inside a border of −1."""
    height, width = frame.shape
    inside = REACH <= row < height - REACH and REACH <= col < width - REACH
    for down in range(_WIDE):
        r = row + down - REACH
        target = wide[(down + 1) * _BORDERED + 1 : (down + 2) * _BORDERED - 1]
        if inside and not masked:
            line = frame[r, col - REACH : col + REACH + 1]
            for across in range(_WIDE):
                target[across] = max(np.float32(line[across]), np.float32(0))
            continue
        for across in range(_WIDE):
            c = col + across - REACH
            usable = 0 <= r < height and 0 <= c < width and not (masked and mask[r, c])
            count = np.float32(frame[r, c]) if usable else np.float32(0)
            target[across] = max(count, np.float32(0))


@compiled_part
def _ascend(wide: Any, highest: Any, steps: Any) -> None:
    """Write the step from each pixel to the steepest of its neighbours, 0 at a top.

    All are counted from the corner of a pixel's 3×3 in the bordered window, so that one loop takes
    many pixels at once; what lies across the end of a row is never reached.
    """
    number = len(steps)
    # A loop, because numba compiles the error text of an assignment whose shapes differ.
    for pixel in range(number):
        highest[pixel] = wide[pixel]
        steps[pixel] = -_BORDERED - 1
    for place in range(1, 9):
        step = np.int32((place // 3 - 1) * _BORDERED + place % 3 - 1)
        shift = step + _BORDERED + 1
        neighbours = wide[shift : shift + number]
        for pixel in range(number):
            neighbour = neighbours[pixel]
            # Strictly above: of equals the first in raster order stays.
            rises = neighbour > highest[pixel]
            highest[pixel] = neighbour if rises else highest[pixel]
            steps[pixel] = step if rises else steps[pixel]


@compiled_part
def _clear_other_basins(patch: Any, steps: Any, tops: Any) -> None:
    """Set to 0 the pixels of a patch from which steepest ascent reaches another peak."""
    inner = REACH - CENTRE
    for down in range(PATCH_SIZE):
        for across in range(PATCH_SIZE):
            if patch[down, across] == 0:
                continue
            place = (down + inner) * _BORDERED + across + inner
            for _ in range(_ASCENT_STEPS):
                step = steps[place]
                if step == 0:
                    break
                place += step
            if tops[place]:
                patch[down, across] = 0


@compiled_part
def _scale(patch: Any, bits: Any, ends: Any, end_bits: Any) -> None:
    """Scale a flat patch to [0, 1] as `bragg.scale_patches` does; `ends` holds two numbers."""
    # No count is negative, and such numbers order as their bits do, of which many are compared at
    # once.
    least = most = bits[0]
    for pixel in range(len(bits)):
        least = min(least, bits[pixel])
        most = max(most, bits[pixel])
    # Through memory, because numba sees an array's bits as another type, but not a number's.
    end_bits[0], end_bits[1] = least, most
    low, span = ends[0], ends[1] - ends[0]
    if not span > 0:
        span = np.float32(1)
    for pixel in range(len(patch)):
        patch[pixel] = (patch[pixel] - low) / span


@compiled
def cut_patches(
    frame: Any,
    mask: Any,
    masked: bool,
    level: Any,
    lit_background: bool,
    saturation: float,
    scaled: bool,
    maxima: Any,
    patches: Any,
    flat: Any,
    bits: Any,
    flags: Any,
    intensities: Any,
    ends: Any,
    end_bits: Any,
    wide: Any,
    highest: Any,
    steps: Any,
    tops: Any,
) -> None:
    """Write patches, flags and intensities of all peaks; see `bragg.cut_patches`.

    Parameters
    ----------
    saturation
        Counts from which a pixel is saturated.
    scaled
        Whether patches are scaled, or left in counts.
    maxima
        (n, 2) int32, sorted by (row, col).
    patches, flags, intensities
        (n, 11, 11) float32, (n,) uint8 and (n,) float32, written.
    flat, bits
        The memory of the patches as (n, 121) float32 and int32.
    ends, end_bits, wide, highest, steps, tops
        Scratch, of `scratch_to_cut`.
    """
    height, width = frame.shape
    number = len(maxima)
    first = 0
    for peak in range(number):
        row, col = maxima[peak, 0], maxima[peak, 1]
        inside = CENTRE <= row < height - CENTRE and CENTRE <= col < width - CENTRE
        if inside and not masked:
            found = _cut_inside(frame, level, lit_background, saturation, row, col, patches[peak])
        else:
            found = _cut(
                frame, mask, masked, level, lit_background, saturation, row, col, patches[peak]
            )
        intensity = float(frame[row, col])
        if lit_background:
            intensity -= float(level[row, col])
        intensities[peak] = intensity
        while row - maxima[first, 0] > REACH:
            first += 1
        crowded = False
        for other in range(first, number):
            down, across = maxima[other, 0] - row, maxima[other, 1] - col
            if down > REACH:
                break
            if other != peak and -REACH <= across <= REACH:
                tops[(down + REACH) * _BORDERED + across + REACH] = 1
                crowded = True
        if crowded:
            found |= _OVERLAP
            _copy_wide(frame, mask, masked, row, col, wide)
            _ascend(wide, highest, steps)
            _clear_other_basins(patches[peak], steps, tops)
            tops[:] = 0
        flags[peak] = found
        if scaled:
            _scale(flat[peak], bits[peak], ends, end_bits)
