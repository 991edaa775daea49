"""The peak finder in numpy: what the compiled twin and the GPU kernels must equal.

It is deterministic, ties go to the first pixel in raster order, and sums are taken in raster order,
so that every twin that keeps to float64 gives the same to the last bit.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, FloatArray, IntArray, PeakFlag, cut_patches, scale_patches
from edgexnas.peak_finding.background import Background
from edgexnas.peak_finding.settings import (
    PLATEAU_RIM,
    PLATEAU_SIDE,
    RIDGE_FAR,
    RIDGE_GATE,
    RIDGE_NEAR,
    FinderSettings,
)

__all__ = ["CutPatches", "ReferenceFinder"]

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
Frame = npt.NDArray[Any]

_OFFSETS = [(row, col) for row in range(-2, 3) for col in range(-2, 3)]
_MIDDLE = _OFFSETS.index((0, 0))
# The 3×3, and opposite pixels of the perimeter along a row, a column and both diagonals.
_GROUPS = np.array(
    [
        (
            max(abs(row), abs(col)) <= 1,
            abs(row) <= 1 and abs(col) == 2,
            abs(row) == 2 and abs(col) <= 1,
            row * col >= 2,
            row * col <= -2,
        )
        for row, col in _OFFSETS
    ],
    np.float64,
)
# The nearest come first: they beat most pixels, and lie in the cache line that was just read.
_NEIGHBOURS = sorted((o for o in _OFFSETS if o != (0, 0)), key=lambda o: (o[0] ** 2 + o[1] ** 2, o))


class CutPatches(NamedTuple):
    """What is cut around n peaks of one frame.

    Attributes
    ----------
    patches
        (n, 11, 11) float32, as `bragg.cut_patches` cuts them, scaled if that was asked for.
    flags
        (n,) uint8, a combination of `PeakFlag`.
    intensities
        (n,) float32, counts above background of the brightest pixel.
    """

    patches: FloatArray
    flags: npt.NDArray[np.uint8]
    intensities: FloatArray


class ReferenceFinder:
    """Find and cut the peaks of frames of one shape and dtype; see `PeakFinder` for the rules.

    Parameters
    ----------
    settings
        What counts as a peak.
    threshold
        (H, W), what a pixel must exceed, of the frames' dtype; masked pixels never exceed it.
    background, mask
        As of `PeakFinder`.
    saturation
        Counts from which a pixel is saturated.
    """

    def __init__(
        self,
        settings: FinderSettings,
        threshold: Frame,
        *,
        background: Background | None,
        mask: BoolArray | None,
        saturation: float,
    ) -> None:
        self._settings = settings
        self._background = background
        self._mask = mask
        self._saturation = saturation
        self._shape: tuple[int, int] = threshold.shape
        self._threshold = threshold.reshape(-1)
        self._irregular = _irregular_pixels(self._shape, mask)
        # The same thresholds with irregular pixels never lit.
        self._regular_only = self._threshold.copy()
        highest = np.inf if threshold.dtype.kind == "f" else np.iinfo(threshold.dtype).max
        self._regular_only[self._irregular] = highest
        self._lit = np.empty(threshold.size, np.bool_)

    def find(self, frame: Frame) -> IndexArray:
        """Return the flat indices of all peaks of an (H, W) frame, in raster order."""
        flat = frame.reshape(-1)
        np.greater(flat, self._regular_only, out=self._lit)
        lit = np.flatnonzero(self._lit)
        irregular = self._irregular[flat[self._irregular] > self._threshold[self._irregular]]
        candidates = np.concatenate(
            [
                _regular_maxima(flat, lit, flat.take(lit), self._shape[1]),
                _irregular_maxima(flat, irregular, *self._windows(irregular, 2)),
            ]
        )
        candidates = candidates[flat[candidates] < self._saturation]
        return np.union1d(self._accepted(flat, candidates), self._plateaus(frame))

    def cut(self, frame: Frame, maxima: IntArray, *, scaled: bool) -> CutPatches:
        """Cut the patches of the peaks at (n, 2) maxima, sorted by (row, col)."""
        level = None if self._background is None else self._background.level
        patches = cut_patches(frame, maxima, background=level, mask=self._mask)
        flags = patches.flags
        peaks = maxima[:, 0].astype(np.intp) * self._shape[1] + maxima[:, 1]
        if frame.size and frame.max() >= self._saturation:
            index, usable = self._windows(peaks, CENTRE)
            full = (frame.reshape(-1)[index] >= self._saturation) & usable
            flags[full.any(axis=1)] |= np.uint8(PeakFlag.SATURATED)
        intensities = self._above_background(frame.reshape(-1), peaks).astype(np.float32)
        given = scale_patches(patches.counts) if scaled else patches.counts
        return CutPatches(given, flags, intensities)

    def _accepted(self, flat: Frame, candidates: IndexArray) -> IndexArray:
        """Keep the candidates that pass the tests 3 to 6."""
        kept = candidates[self._large_enough(flat, candidates)]
        index, usable = self._windows(kept, 2)
        significant, wide = self._significant(flat, index, usable)
        suspects = kept[significant & wide]
        return np.union1d(kept[significant & ~wide], suspects[~self._on_ridge(flat, suspects)])

    def _large_enough(self, flat: Frame, candidates: IndexArray) -> BoolArray:
        """Apply the test of size."""
        index, usable = self._windows(candidates, 1)
        noise = self._noise(candidates)[:, None]
        settings = self._settings
        floor = 0.5 * np.maximum(settings.noise_sigmas * noise, settings.least_counts)
        lit = (self._above_background(flat, index) > floor) & usable
        enough: BoolArray = np.count_nonzero(lit, axis=1) >= settings.minimum_pixels
        return enough

    def _noise(self, index: IndexArray) -> npt.NDArray[np.float64]:
        if self._background is None:
            return np.zeros(len(index))
        return self._background.noise.reshape(-1)[index].astype(np.float64)

    def _significant(
        self, flat: Frame, index: IndexArray, usable: BoolArray
    ) -> tuple[BoolArray, BoolArray]:
        """Apply the tests of signal and prominence; tell also which may lie on a ridge."""
        counts = self._above_background(flat, index)
        noise = self._noise(index[:, _MIDDLE])
        number = usable @ _GROUPS
        mean = _group_sums(np.where(usable, counts, 0)) / np.maximum(number, 1)
        variance = (noise[:, None] ** 2 + np.maximum(mean, 0)) / np.maximum(number, 1)
        loud = mean[:, 0] >= self._settings.snr * np.sqrt(variance[:, 0])
        rise = self._settings.prominence_sigmas * np.sqrt(variance[:, :1] + variance[:, 1:])
        prominent = (mean[:, :1] - mean[:, 1:] >= rise) | (number[:, 1:] == 0)
        wide = (mean[:, 1:] > RIDGE_GATE * mean[:, :1]) & (number[:, 1:] > 0)
        significant: BoolArray = loud & prominent.all(axis=1)
        suspect: BoolArray = np.any(wide, axis=1)
        return significant, suspect

    def _on_ridge(self, flat: Frame, peaks: IndexArray) -> BoolArray:
        """Apply the test of ridges: tell which peaks lie on one."""
        row, col = np.divmod(peaks, self._shape[1])
        height = self._blocks(flat, row, col)
        fraction = self._settings.ridge_fraction

        def both_sides(way: tuple[int, int]) -> list[npt.NDArray[np.float64]]:
            down, across = way
            return [self._blocks(flat, row + side * down, col + side * across) for side in (1, -1)]

        far = [both_sides(way) for way in RIDGE_FAR]
        on_ridge = np.zeros(len(peaks), np.bool_)
        for number, near in enumerate(RIDGE_NEAR):
            along = np.stack([*far[number], *both_sides(near)])
            base = np.zeros(len(peaks))
            for beside in far[(number + len(far) // 2) % len(far)]:
                base = np.fmax(base, beside)
            known = np.count_nonzero(~np.isnan(along), axis=0) >= 3
            low = np.fmin.reduce(along, axis=0)
            on_ridge |= known & (low - base > fraction * (height - base))
        return on_ridge

    def _blocks(self, flat: Frame, row: IndexArray, col: IndexArray) -> npt.NDArray[np.float64]:
        """Mean counts above background of the usable ones of 3×3 pixels, (n,); NaN without any."""
        height, width = self._shape
        total, number = np.zeros((2, len(row)))
        for down, across in itertools.product((-1, 0, 1), repeat=2):
            r, c = row + down, col + across
            usable = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            index = np.where(usable, r * width + c, 0)
            if self._mask is not None:
                usable &= ~self._mask.reshape(-1)[index]
            total += np.where(usable, self._above_background(flat, index), 0.0)
            number += usable
        mean = np.full(len(row), np.nan)
        np.divide(total, number, out=mean, where=number > 0)
        return mean

    def _plateaus(self, frame: Frame) -> IndexArray:
        """Return the flat indices of the centres of saturated plateaus that are large enough."""
        full = (frame >= self._saturation) & (frame > self._threshold.reshape(self._shape))
        rim = frame >= PLATEAU_RIM * self._saturation
        if self._mask is not None:
            rim &= ~self._mask
        centres: list[int] = []
        seen: set[tuple[int, int]] = set()
        for peak in np.flatnonzero(full).tolist():
            place = divmod(peak, self._shape[1])
            # All pixels of a plateau have the same centre, and all of one too large have none.
            if place not in seen:
                inside, centre = self._plateau(rim, *place)
                seen |= inside
                centres += [] if centre is None else [centre]
        found, flat = np.unique(np.array(centres, np.intp)), frame.reshape(-1)
        found = found[flat[found] > self._threshold[found]]
        return found[self._large_enough(flat, found)]

    def _plateau(
        self, rim: BoolArray, row: int, col: int
    ) -> tuple[set[tuple[int, int]], int | None]:
        """Return pixels of a plateau and the flat index of its centre; None if it is too large."""
        height, width = self._shape
        inside = {(row, col)}
        fresh = [(row, col)]
        while fresh:
            r, c = fresh.pop()
            for place in itertools.product(range(r - 1, r + 2), range(c - 1, c + 2)):
                if (
                    place not in inside
                    and 0 <= place[0] < height
                    and 0 <= place[1] < width
                    and max(abs(place[0] - row), abs(place[1] - col)) <= PLATEAU_SIDE
                    and rim[place]
                ):
                    inside.add(place)
                    fresh.append(place)
        rows, cols = zip(*inside, strict=True)
        if max(max(rows) - min(rows), max(cols) - min(cols)) >= PLATEAU_SIDE:
            return inside, None
        number = len(inside)
        centre = (
            (2 * sum(rows) + number) // (2 * number),
            (2 * sum(cols) + number) // (2 * number),
        )
        first = min(inside)
        row, col = centre if centre in inside else first
        return inside, row * width + col

    def _above_background(self, flat: Frame, index: IndexArray) -> npt.NDArray[np.float64]:
        counts = flat[index].astype(np.float64)
        if self._background is not None:
            counts -= self._background.level.reshape(-1)[index]
        return counts

    def _windows(self, centres: IndexArray, half: int) -> tuple[IndexArray, BoolArray]:
        """Flat indices of square windows, (n, side²), clipped to the frame; which are usable."""
        height, width = self._shape
        span = np.arange(-half, half + 1)
        row, col = (centres // width)[:, None] + span, (centres % width)[:, None] + span
        row_in, col_in = (row >= 0) & (row < height), (col >= 0) & (col < width)
        index = np.clip(row, 0, height - 1)[:, :, None] * width
        area = (len(centres), len(span) ** 2)
        index = (index + np.clip(col, 0, width - 1)[:, None, :]).reshape(area)
        usable = (row_in[:, :, None] & col_in[:, None, :]).reshape(area)
        if self._mask is not None:
            usable &= ~self._mask.reshape(-1)[index]
        return index, usable


def _group_sums(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, 25) → (n, 5), each added up pixel by pixel; a matrix product promises no order."""
    sums = np.zeros((len(counts), _GROUPS.shape[1]))
    for pixel, groups in enumerate(_GROUPS):
        for group in np.flatnonzero(groups):
            sums[:, group] += counts[:, pixel]
    return sums


def _irregular_pixels(shape: tuple[int, int], mask: BoolArray | None) -> IndexArray:
    """Flat indices of usable pixels whose 5×5 pixels are not all usable."""
    height, width = shape
    hidden = np.ones((height + 4, width + 4), np.bool_)
    hidden[2:-2, 2:-2] = False if mask is None else mask
    near = np.zeros(shape, np.bool_)
    for row in range(5):
        for col in range(5):
            near |= hidden[row : row + height, col : col + width]
    return np.flatnonzero(near & ~hidden[2:-2, 2:-2])


def _regular_maxima(flat: Frame, lit: IndexArray, values: Frame, width: int) -> IndexArray:
    """Keep the lit pixels that none of their 24 neighbours beats; all neighbours exist."""
    # Of two lit neighbours in a row exactly one loses; settling that first needs no gathering.
    adjacent = np.diff(lit) == 1
    rising = values[1:] > values[:-1]
    beaten = np.zeros(len(lit), np.bool_)
    beaten[:-1] = adjacent & rising
    beaten[1:] |= adjacent & ~rising
    keep = np.flatnonzero(~beaten)
    lit, values = lit.take(keep), values.take(keep)
    for row, col in _NEIGHBOURS:
        step = row * width + col
        other = flat.take(lit + step)
        keep = np.flatnonzero(values > other if step < 0 else values >= other)
        lit, values = lit.take(keep), values.take(keep)
    return lit


def _irregular_maxima(
    flat: Frame, lit: IndexArray, index: IndexArray, usable: BoolArray
) -> IndexArray:
    """Keep the lit pixels that no usable one of their 5×5 pixels beats; (n, 25) indices."""
    values = flat[index]
    middle = values[:, _MIDDLE, None]
    beaten = values > middle
    # Of equals the first in raster order wins: an earlier pixel must be smaller.
    beaten[:, :_MIDDLE] |= values[:, :_MIDDLE] == middle
    return lit[~(beaten & usable).any(axis=1)]
