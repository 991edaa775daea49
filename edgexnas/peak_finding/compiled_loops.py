"""The loops of the peak finder, compiled by numba; loading this module loads numba.

Each test adds up float64 numbers in the order of the numpy reference, so that the two agree to the
last bit. The functions run without the interpreter's lock and take no memory the size of a frame.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from edgexnas.bragg import CENTRE, PATCH_SIZE, REACH

__all__ = ["cut_patches", "find_peaks"]


_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent

_WIDE = 2 * REACH + 1
_EDGE, _OVERLAP, _MASKED, _SATURATED = 2, 4, 8, 1
# More steps than a window is wide; the reference follows as many.
_ASCENT_STEPS = 32
_UNKNOWN = 1 << 20


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call; keep the code beside the source or in the user's cache folder."""
    try:
        compiled = numba.njit(function, cache=True, nogil=True, error_model="numpy")
        if _is_ours(Path(compiled.stats.cache_path)):
            return compiled
        _log.warning(
            "compiled code is not kept in %s, where others can write", compiled.stats.cache_path
        )
    except RuntimeError:
        # Neither place can be written, as in a read-only container.
        _log.info("compiled code is kept nowhere: each process compiles the peak finder")
    return numba.njit(function, nogil=True, error_model="numpy")


def _is_ours(folder: Path) -> bool:
    """Tell whether nobody else can put code here that would be loaded as ours."""
    trusted = {0, os.geteuid(), _FOLDER.stat().st_uid}
    for place in (folder, *folder.parents):
        if place.exists():
            state = place.stat()
            # In a sticky folder, such as /tmp, others cannot replace what is not theirs.
            loose = state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX
            if loose or state.st_uid not in trusted:
                return False
    return True


@_compiled
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


@_compiled
def _is_significant(
    frame: Any,
    threshold: Any,
    mask: Any,
    masked: bool,
    level: Any,
    noise: Any,
    lit_background: bool,
    row: int,
    col: int,
    minimum_pixels: int,
    snr: float,
    prominence: float,
) -> bool:
    """Apply the tests of size, signal and prominence to a maximum."""
    height, width = frame.shape
    total0 = total1 = total2 = total3 = total4 = 0.0
    n0 = n1 = n2 = n3 = n4 = 0
    lit = 0
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
                if frame[r, c] > threshold[r, c]:
                    lit += 1
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
    if lit < minimum_pixels:
        return False
    spread = 0.0
    if lit_background:
        spread = float(noise[row, col]) * float(noise[row, col])
    mean = total0 / n0
    variance = (spread + max(mean, 0.0)) / n0
    return (
        mean >= snr * math.sqrt(variance)
        and _rises(mean, variance, spread, total1, n1, prominence)
        and _rises(mean, variance, spread, total2, n2, prominence)
        and _rises(mean, variance, spread, total3, n3, prominence)
        and _rises(mean, variance, spread, total4, n4, prominence)
    )


@_compiled
def _rises(
    mean: float, variance: float, spread: float, total: float, number: int, prominence: float
) -> bool:
    if number == 0:
        return True
    around = total / number
    beside = (spread + max(around, 0.0)) / number
    return mean - around >= prominence * math.sqrt(variance + beside)


# Functions of their own, because so the compiler takes many pixels at once.
@_compiled
def _mark_lit(line: Any, limits: Any, lit: Any) -> None:
    for col in range(len(line)):
        lit[col] = line[col] > limits[col]


@_compiled
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


@_compiled
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


@_compiled
def find_peaks(
    frame: Any,
    threshold: Any,
    mask: Any,
    masked: bool,
    level: Any,
    noise: Any,
    lit_background: bool,
    minimum_pixels: int,
    snr: float,
    prominence: float,
    beside: Any,
    lit: Any,
    peaks: Any,
) -> int:
    """Write the flat indices of all peaks in raster order; count also those that find no room.

    Parameters
    ----------
    frame
        (H, W).
    threshold
        (H, W), what a pixel must exceed, in the frame's dtype; masked pixels never do.
    mask, masked
        (H, W) bool, and whether it counts.
    level, noise, lit_background
        (H, W) float32, and whether they count.
    beside
        (H, W) bool, which pixels have a masked one among their 3×3; used where masked.
    lit
        (W rounded up to a multiple of 8,) uint8, scratch, 0 at the first call.
    peaks
        (m,) int64, written.
    """
    height, width = frame.shape
    room = len(peaks)
    words = lit.view(np.uint64)
    found = 0
    for row in range(height):
        line = frame[row]
        limits = threshold[row]
        if row == 0 or row == height - 1 or width < 3:
            _mark_lit(line, limits, lit)
        elif masked:
            above, below = frame[row - 1], frame[row + 1]
            _mark_rising_beside(line, limits, above, below, beside[row], lit)
        else:
            _mark_rising(line, limits, frame[row - 1], frame[row + 1], lit)
        for word in range(len(words)):
            # Eight dark pixels at once; most are.
            if words[word] == 0:
                continue
            for col in range(8 * word, min(8 * word + 8, width)):
                if (
                    lit[col]
                    and _is_maximum(frame, mask, masked, row, col)
                    and _is_significant(
                        frame, threshold, mask, masked, level, noise, lit_background, row, col,
                        minimum_pixels, snr, prominence,
                    )
                ):  # fmt: skip
                    if found < room:
                        peaks[found] = row * width + col
                    found += 1
    return found


@_compiled
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


@_compiled
def _copy_wide(frame: Any, mask: Any, masked: bool, row: int, col: int, wide: Any) -> None:
    """Write the (21, 21) raw counts around a pixel inside a border of −1."""
    height, width = frame.shape
    for down in range(_WIDE):
        r = row + down - REACH
        for across in range(_WIDE):
            c = col + across - REACH
            usable = 0 <= r < height and 0 <= c < width and not (masked and mask[r, c])
            count = np.float32(frame[r, c]) if usable else np.float32(0)
            wide[down + 1, across + 1] = max(count, np.float32(0))


@_compiled
def _ascent(wide: Any, row: int, col: int) -> int:
    """Give the step from a pixel of the (21, 21) to the steepest of its neighbours, 0 at a top."""
    highest = wide[row, col]
    step = -_WIDE - 1
    for down in range(3):
        for across in range(3):
            neighbour = wide[row + down, col + across]
            # Strictly above: of equals the first in raster order stays.
            if neighbour > highest:
                highest = neighbour
                step = (down - 1) * _WIDE + across - 1
    return step


@_compiled
def _clear_other_basins(patch: Any, wide: Any, steps: Any, tops: Any) -> None:
    """Set to 0 the pixels of a patch from which steepest ascent reaches another peak."""
    steps[:] = _UNKNOWN
    inner = REACH - CENTRE
    for down in range(PATCH_SIZE):
        for across in range(PATCH_SIZE):
            if patch[down, across] == 0:
                continue
            place = (down + inner) * _WIDE + across + inner
            for _ in range(_ASCENT_STEPS):
                step = steps[place]
                if step == _UNKNOWN:
                    step = _ascent(wide, place // _WIDE, place % _WIDE)
                    steps[place] = step
                if step == 0:
                    break
                place += step
            if tops[place]:
                patch[down, across] = 0


@_compiled
def cut_patches(
    frame: Any,
    mask: Any,
    masked: bool,
    level: Any,
    lit_background: bool,
    saturation: float,
    maxima: Any,
    counts: Any,
    flags: Any,
    intensities: Any,
) -> None:
    """Write patches, flags and intensities of all peaks; see `bragg.cut_patches`.

    Parameters
    ----------
    saturation
        Counts from which a pixel is saturated.
    maxima
        (n, 2) int32, sorted by (row, col).
    counts, flags, intensities
        (n, 11, 11) float32, (n,) uint8 and (n,) float32, written.
    """
    number = len(maxima)
    wide = np.full((_WIDE + 2, _WIDE + 2), -1, np.float32)
    steps = np.empty(_WIDE * _WIDE, np.int64)
    tops = np.zeros(_WIDE * _WIDE, np.uint8)
    first = 0
    for peak in range(number):
        row, col = maxima[peak, 0], maxima[peak, 1]
        found = _cut(frame, mask, masked, level, lit_background, saturation, row, col, counts[peak])
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
                tops[(down + REACH) * _WIDE + across + REACH] = 1
                crowded = True
        if crowded:
            found |= _OVERLAP
            _copy_wide(frame, mask, masked, row, col, wide)
            _clear_other_basins(counts[peak], wide, steps, tops)
            tops[:] = 0
        flags[peak] = found
