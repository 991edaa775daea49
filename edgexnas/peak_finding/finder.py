"""Find Bragg peaks on a detector frame: one pass over the frame, then lit pixels only.

This numpy version is the reference that faster kernels must equal: it is deterministic, ties go to
the first pixel in raster order, and every test is stated in `PeakFinder`. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, FloatArray, IntArray, PeakFlag, cut_patches
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.peak_finding.background import Background

__all__ = ["FinderSettings", "FoundPeaks", "PeakFinder"]

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
Frame = npt.NDArray[Any]

_OFFSETS = [(row, col) for row in range(-2, 3) for col in range(-2, 3)]
_MIDDLE = _OFFSETS.index((0, 0))
_INNER = np.array([max(abs(row), abs(col)) <= 1 for row, col in _OFFSETS])
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


@dataclass(frozen=True, slots=True)
class FinderSettings:
    """What counts as a peak.

    Attributes
    ----------
    minimum_counts
        Counts above background that a peak's brightest pixel must exceed.
    noise_sigmas
        The same in units of the background's noise; the larger of the two limits applies.
    snr
        Smallest signal-to-noise ratio of the mean of the 3×3 pixels around the brightest.
    prominence_sigmas
        Smallest significance with which that mean stands above the 5×5 perimeter, in every
        direction.
    minimum_pixels
        How many of the 3×3 pixels, the centre included, must exceed the threshold.
    saturation
        Counts from which a pixel is saturated; None means the largest value of an unsigned
        integer dtype, and no limit for other dtypes.
    capacity
        Largest number of peaks kept of one frame.

    Raises
    ------
    ConfigurationError
        If a value is out of range.
    """

    minimum_counts: float = 20.0
    noise_sigmas: float = 5.0
    snr: float = 5.0
    prominence_sigmas: float = 3.0
    minimum_pixels: int = 3
    saturation: float | None = None
    capacity: int = 20_000

    def __post_init__(self) -> None:
        for name in ("minimum_counts", "noise_sigmas", "snr", "prominence_sigmas"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; give a finite number from 0")
        if not 1 <= self.minimum_pixels <= 9:
            raise ConfigurationError(f"minimum_pixels is {self.minimum_pixels}; give 1 to 9")
        if self.capacity < 1:
            raise ConfigurationError(f"capacity is {self.capacity}; give at least 1")
        if self.saturation is not None and not self.saturation > 0:
            raise ConfigurationError(f"saturation is {self.saturation}; give counts above 0")


@dataclass(frozen=True, slots=True)
class FoundPeaks:
    """The peaks of one frame, sorted by the (row, col) of their brightest pixel.

    Attributes
    ----------
    maxima
        (n, 2) int32, (row, col) of the brightest pixel.
    intensities
        (n,) float32, counts above background of the brightest pixel.
    flags
        (n,) uint8, a combination of `PeakFlag`.
    counts
        (n, 11, 11) float32, patches as `bragg.cut_patches` cuts them.
    overflow
        How many peaks were found beyond the capacity and are missing here.
    """

    maxima: IntArray
    intensities: FloatArray
    flags: npt.NDArray[np.uint8]
    counts: FloatArray
    overflow: int

    def __len__(self) -> int:
        return len(self.maxima)


class PeakFinder:
    """Find the peaks of frames of one shape.

    A pixel with value v is the brightest of a peak when all of these hold. Pixels over the edge and
    masked pixels take no part; c is v minus the background level, s the background noise.

    1. Threshold: c > max(minimum_counts, noise_sigmas · s).
    2. Maximum: v is the largest of its 5×5 pixels; of equals the first in raster order wins.
    3. Size: at least `minimum_pixels` of the 3×3 pixels exceed the threshold.
    4. Signal: with m₃ the mean of c over the n₃ usable pixels of the 3×3,
       m₃ / sqrt((s² + max(m₃, 0)) / n₃) ≥ snr.
    5. Prominence, in each of four directions (along the row, the column, both diagonals): with m₅
       the mean of c over the n₅ ≤ 6 usable pixels that lie opposite each other on the 5×5
       perimeter, (m₃ - m₅) / sqrt((s² + max(m₃, 0)) / n₃ + (s² + max(m₅, 0)) / n₅) ≥
       prominence_sigmas.

    The variance of a pixel is taken as s² plus its counts above background (Poisson). The fifth
    test removes the bumps that counting noise makes on the tails of bright peaks, where the
    profile is straight or hollow, and on the crest of powder rings, which falls off to the sides
    only.

    Parameters
    ----------
    settings
        What counts as a peak.
    shape
        (H, W) of the frames.
    background
        Level and noise; None means 0, as for zero-suppressed frames.
    mask
        (H, W) bool, True where a pixel must not be used.

    Raises
    ------
    ConfigurationError
        If background or mask have another shape than the frames.

    Notes
    -----
    A finder keeps a scratch buffer: use one per thread.
    """

    def __init__(
        self,
        settings: FinderSettings = FinderSettings(),
        *,
        shape: tuple[int, int],
        background: Background | None = None,
        mask: BoolArray | None = None,
    ) -> None:
        self.settings = settings
        self.shape = (int(shape[0]), int(shape[1]))
        self.background = background
        self.mask = None if mask is None or not mask.any() else np.ascontiguousarray(mask, np.bool_)
        given: list[tuple[str, Frame]] = []
        given += [] if background is None else [("level", background.level)]
        given += [] if background is None else [("noise", background.noise)]
        given += [] if mask is None else [("mask", mask)]
        for name, array in given:
            if array.shape != self.shape:
                raise ConfigurationError(
                    f"the {name} has shape {array.shape}, the frames have {self.shape}; "
                    "give both the same"
                )
        self._irregular = _irregular_pixels(self.shape, self.mask)
        self._thresholds: dict[np.dtype[Any], tuple[Frame, Frame]] = {}
        self._lit = np.empty(self.shape[0] * self.shape[1], np.bool_)

    def find(self, frame: Frame) -> FoundPeaks:
        """Find the peaks of one frame.

        Parameters
        ----------
        frame
            (H, W), any integer or float dtype, counts.

        Raises
        ------
        InputError
            If the shape is another, the dtype is not real, or a usable pixel is not finite.
        """
        frame = self._checked(frame)
        flat = frame.reshape(-1)
        threshold, masked_threshold = self._threshold_maps(frame.dtype)
        np.greater(flat, masked_threshold, out=self._lit)
        lit = np.flatnonzero(self._lit)
        irregular = self._irregular[flat[self._irregular] > threshold[self._irregular]]
        values = flat.take(lit)
        brightest = max(values.max(initial=0), flat[irregular].max(initial=0))
        saturated = bool(brightest >= self._saturation(frame.dtype))
        candidates = np.concatenate(
            [
                _regular_maxima(flat, lit, values, self.shape[1]),
                _irregular_maxima(flat, irregular, *self._windows(irregular, 2)),
            ]
        )
        peaks = np.sort(self._accepted(flat, threshold, candidates))
        peaks, overflow = self._brightest(flat, peaks)
        return self._cut(frame, peaks, overflow, saturated)

    def _checked(self, frame: Frame) -> Frame:
        if frame.shape != self.shape:
            raise InputError(f"the frame has shape {frame.shape}; this finder takes {self.shape}")
        if frame.dtype.kind not in "uif":
            raise InputError(
                f"the frame has dtype {frame.dtype}; give real numbers, such as uint16"
            )
        frame = np.ascontiguousarray(frame, frame.dtype.newbyteorder("="))
        if frame.dtype.kind == "f":
            good = np.isfinite(frame)
            if self.mask is not None:
                good |= self.mask
            if not good.all():
                row, col = divmod(int(np.argmin(good)), self.shape[1])
                raise InputError(
                    f"pixel (row {row}, col {col}) of the frame is NaN or infinite; "
                    "mask it or set it to 0"
                )
        return frame

    def _threshold_maps(self, dtype: np.dtype[Any]) -> tuple[Frame, Frame]:
        """Thresholds in the frame's own dtype, and the same with irregular pixels never lit."""
        if dtype not in self._thresholds:
            highest = np.inf if dtype.kind == "f" else np.iinfo(dtype).max
            threshold = np.empty(self.shape, dtype)
            # A few rows at a time: whole frames of float64 would be most of the process's memory.
            for start in range(0, self.shape[0], 64):
                rows = slice(start, start + 64)
                limit = self._limits(rows)
                threshold[rows] = limit if dtype.kind == "f" else _integer_threshold(limit, dtype)
            if self.mask is not None:
                threshold[self.mask] = highest
            threshold = threshold.reshape(-1)
            regular_only = threshold.copy()
            regular_only[self._irregular] = highest
            self._thresholds[dtype] = (threshold, regular_only)
        return self._thresholds[dtype]

    def _limits(self, rows: slice) -> npt.NDArray[np.float64]:
        """Return what each pixel of these rows must exceed, (rows, W)."""
        least = self.settings.minimum_counts
        if self.background is None:
            return np.full((len(range(*rows.indices(self.shape[0]))), self.shape[1]), least)
        noise = self.background.noise[rows].astype(np.float64)
        limit = np.maximum(self.settings.noise_sigmas * noise, least)
        return limit + self.background.level[rows]

    def _accepted(self, flat: Frame, threshold: Frame, candidates: IndexArray) -> IndexArray:
        """Keep the candidates that pass the tests 3 to 5."""
        index, usable = self._windows(candidates, 2)
        lit = (flat[index] > threshold[index]) & usable & _INNER
        kept = np.flatnonzero(np.count_nonzero(lit, axis=1) >= self.settings.minimum_pixels)
        significant = self._significant(flat, index[kept], usable[kept])
        return candidates[kept[significant]]

    def _significant(self, flat: Frame, index: IndexArray, usable: BoolArray) -> BoolArray:
        """Apply the tests of signal and prominence."""
        counts = self._above_background(flat, index)
        noise = np.zeros(len(index))
        if self.background is not None:
            noise = self.background.noise.reshape(-1)[index[:, _MIDDLE]].astype(np.float64)
        number = usable @ _GROUPS
        mean = np.where(usable, counts, 0) @ _GROUPS / np.maximum(number, 1)
        variance = (noise[:, None] ** 2 + np.maximum(mean, 0)) / np.maximum(number, 1)
        loud = mean[:, 0] >= self.settings.snr * np.sqrt(variance[:, 0])
        rise = self.settings.prominence_sigmas * np.sqrt(variance[:, :1] + variance[:, 1:])
        prominent = (mean[:, :1] - mean[:, 1:] >= rise) | (number[:, 1:] == 0)
        significant: BoolArray = loud & prominent.all(axis=1)
        return significant

    def _above_background(self, flat: Frame, index: IndexArray) -> npt.NDArray[np.float64]:
        counts = flat[index].astype(np.float64)
        if self.background is not None:
            counts -= self.background.level.reshape(-1)[index]
        return counts

    def _windows(self, centres: IndexArray, half: int) -> tuple[IndexArray, BoolArray]:
        """Flat indices of square windows, (n, side²), clipped to the frame; which are usable."""
        height, width = self.shape
        span = np.arange(-half, half + 1)
        row, col = (centres // width)[:, None] + span, (centres % width)[:, None] + span
        row_in, col_in = (row >= 0) & (row < height), (col >= 0) & (col < width)
        index = np.clip(row, 0, height - 1)[:, :, None] * width
        area = (len(centres), len(span) ** 2)
        index = (index + np.clip(col, 0, width - 1)[:, None, :]).reshape(area)
        usable = (row_in[:, :, None] & col_in[:, None, :]).reshape(area)
        if self.mask is not None:
            usable &= ~self.mask.reshape(-1)[index]
        return index, usable

    def _brightest(self, flat: Frame, peaks: IndexArray) -> tuple[IndexArray, int]:
        """Keep the brightest `capacity` of the peaks; of equals the first in raster order."""
        overflow = max(0, len(peaks) - self.settings.capacity)
        if overflow:
            order = np.argsort(-self._above_background(flat, peaks), kind="stable")
            peaks = np.sort(peaks[order[: self.settings.capacity]])
        return peaks, overflow

    def _saturation(self, dtype: np.dtype[Any]) -> float:
        if self.settings.saturation is not None:
            return self.settings.saturation
        return float(np.iinfo(dtype).max) if dtype.kind == "u" else float("inf")

    def _cut(self, frame: Frame, peaks: IndexArray, overflow: int, saturated: bool) -> FoundPeaks:
        """Cut the patches and gather the flags."""
        maxima = np.stack(np.divmod(peaks, self.shape[1]), axis=1).astype(np.int32)
        level = None if self.background is None else self.background.level
        patches = cut_patches(frame, maxima, background=level, mask=self.mask)
        flags = patches.flags
        if saturated:
            index, usable = self._windows(peaks, CENTRE)
            full = (frame.reshape(-1)[index] >= self._saturation(frame.dtype)) & usable
            flags[full.any(axis=1)] |= np.uint8(PeakFlag.SATURATED)
        intensities = self._above_background(frame.reshape(-1), peaks).astype(np.float32)
        return FoundPeaks(maxima, intensities, flags, patches.counts, overflow)


def _integer_threshold(limit: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> Frame:
    """Thresholds t in an integer dtype so that v > t exactly when v exceeds the real limit."""
    bounds = np.iinfo(dtype)
    threshold = np.full(limit.shape, bounds.max, dtype)
    whole = np.maximum(np.floor(limit), float(bounds.min))
    fits = whole < float(bounds.max)
    threshold[fits] = whole[fits].astype(dtype)
    return threshold


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
