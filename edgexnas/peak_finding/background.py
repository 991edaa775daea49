"""What a detector shows without peaks, estimated from frames that also hold peaks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import FloatArray
from edgexnas.errors import InputError

__all__ = [
    "BACKGROUND_BYTES",
    "BACKGROUND_FRAMES",
    "Background",
    "background_numbers",
    "enough_background",
    "estimate_background",
    "refuse_nan",
]

BoolArray = npt.NDArray[np.bool_]
Frame = npt.NDArray[Any]

_log = logging.getLogger(__name__)

TILE = 32
"""Side in pixels of the tiles whose statistics make the background."""

BACKGROUND_FRAMES = 16
"""Most frames of a series from which its background is estimated."""

BACKGROUND_BYTES = 32 * 1024 * 1024
"""Most memory that those frames take together; one frame may take more."""

SEEN_NOISE = 0.002
"""Share of the pixels: fewer lonely ones make no peak of three pixels by chance, and may themselves
be what is left of weak peaks."""

FIRING_SIGMAS = 5.0
FIRING_FRACTION = 0.1
ALONE_FRACTION = 2 / 3
FEWEST_SUPPRESSED = 20
CHANCE = 1e-4
_AROUND = np.array([(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1) if row or col])

SHIFT_SIGMAS = 3.0
"""Standard deviations of a pixel's noise by which frames differ in level at most, unannounced."""

SHIFT_PIXELS = 65_536
"""About how many pixels of a frame tell its level."""

CLIP_SIGMAS = 3.0
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Background:
    """What a frame shows without peaks.

    Attributes
    ----------
    level
        (H, W) float32, counts.
    noise
        (H, W) float32, standard deviation in counts.
    saturation
        Counts at which the detector is seen to saturate; None where it is not.
    hot
        (H, W) bool, True where a pixel fires by itself; None where none does.
    tiles
        (2, rows, columns) float32, level and noise of the tiles between whose centres the maps are
        interpolated: all there is to keep of them. None if it was not made from tiles.
    """

    level: FloatArray
    noise: FloatArray
    saturation: float | None = None
    hot: BoolArray | None = None
    tiles: FloatArray | None = None

    @classmethod
    def of_tiles(
        cls,
        tiles: FloatArray,
        shape: tuple[int, int],
        *,
        saturation: float | None = None,
        hot: BoolArray | None = None,
    ) -> Background:
        """Make the background of (H, W) frames from what `tiles` of another one was.

        Raises
        ------
        InputError
            If frames of this shape have another number of tiles.
        """
        rows, cols = _tile_slices(shape[0]), _tile_slices(shape[1])
        if tiles.shape != (2, len(rows), len(cols)):
            raise InputError(
                f"the tiles have shape {tiles.shape}, {shape} frames have "
                f"{(2, len(rows), len(cols))}; specify the shape that they were made for"
            )
        # float32 before the large products: a whole frame in float64 would double the memory.
        down = _linear_weights(shape[0], rows).astype(np.float32)
        across = _linear_weights(shape[1], cols).astype(np.float32)
        level, noise = (down @ tile @ across.T for tile in tiles)
        return cls(level, noise, saturation, hot, tiles)


def enough_background(
    frame_bytes: int, *, frames: int = BACKGROUND_FRAMES, total_bytes: float = BACKGROUND_BYTES
) -> int:
    """Say from how many frames of a series its background is estimated, at least one.

    Parameters
    ----------
    frame_bytes
        Size of one frame.
    frames, total_bytes
        Most frames, in number and in bytes.
    """
    return max(1, min(frames, int(total_bytes / max(1, frame_bytes))))


def background_numbers(
    total: int, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[np.intp]:
    """Say which frames of a series show its background: up to 16, fewer where they are large.

    They are the middles of equal parts of the series: a single frame comes from its middle, where
    the sample is as it was meant to be, and neither the first nor the last frame is one of many.

    Parameters
    ----------
    total
        Frames in the series, from 1.
    shape, dtype
        (rows, columns) and pixel type of each.

    Returns
    -------
    Numbers from 0, increasing.
    """
    count = min(total, enough_background(math.prod(shape) * np.dtype(dtype).itemsize))
    return (2 * np.arange(count) + 1) * total // (2 * count)


def estimate_background(
    frames: Sequence[Frame] | Frame,
    *,
    mask: BoolArray | None = None,
    find_hot: bool = True,
) -> Background:
    """Estimate level, noise, saturation and hot pixels from frames that also hold peaks.

    Each tile of 32×32 pixels, over all frames, gives the mean and the standard deviation of the
    values within 3 robust standard deviations (1.4826 × the median absolute deviation, and at
    least one count for integers, which would otherwise be quantised) of the tile's median. A 3×3
    median over tiles removes tiles that bright spots dominate; bilinear interpolation between
    tile centres makes the maps. Zero-suppressed frames give level 0 and noise 0; where the noise
    itself passes the suppression, in more than `SEEN_NOISE` of the pixels, it is measured on pixels
    without a neighbour: peaks have some.

    Level and noise of pixels are not treated one by one over time: a reflection that lasts for most
    of the given frames would then become background.

    A pixel is hot if it fires, 5 standard deviations or more above the level, in at least two and
    more than a tenth of the frames, mostly without a neighbour, and if its neighbours' mean stays
    at the level: where a reflection lasts, it does not.

    The detector saturates at the largest value of all if more pixels than can be chance share just
    this value, and fewer lie within its counting noise below.

    Frames whose levels differ by more than `SHIFT_SIGMAS` of the noise are logged as a warning:
    their shifts count as noise, in which weak peaks are lost.

    Parameters
    ----------
    frames
        (k, H, W) or k frames of (H, W), counts. Frames spread over the series serve best; see
        `background_numbers`.
    mask
        (H, W) bool, True where a pixel must not be used.
    find_hot
        Whether hot pixels are looked for.

    Raises
    ------
    InputError
        If there is no frame, the shapes differ, every pixel is masked, or one that is not is NaN
        or infinite.
    """
    stack = list(frames)
    if not stack or any(frame.ndim != 2 or frame.shape != stack[0].shape for frame in stack):
        raise InputError(
            f"the frames have shapes {[frame.shape for frame in stack]}; "
            "give at least one (H, W) frame, all of one shape"
        )
    shape = stack[0].shape
    usable = None if mask is None else ~mask
    if usable is not None and (usable.shape != shape or not usable.any()):
        raise InputError(
            f"the mask of shape {usable.shape} leaves no pixel of the {shape} frames; "
            "give one that does"
        )
    for frame in stack:
        refuse_nan(frame, mask)
    _warn_of_shifts(stack, usable)
    rows, cols = _tile_slices(shape[0]), _tile_slices(shape[1])
    moments = np.array([[_clipped_moments(_part(stack, usable, r, c)) for c in cols] for r in rows])
    silent = moments[:, :, 1] == 0
    if silent.any():
        moments[silent, 1] = _passed_noise(stack, usable)
    tiles = np.stack([_smooth(moments[:, :, k]).astype(np.float32) for k in range(2)])
    background = Background.of_tiles(tiles, shape)
    hot = _hot_pixels(stack, background.level, background.noise, usable) if find_hot else None
    if hot is not None:
        usable = ~hot if usable is None else usable & ~hot
    return replace(background, saturation=_plateau(stack, usable), hot=hot)


def _warn_of_shifts(stack: list[Frame], usable: BoolArray | None) -> None:
    """Warn if all pixels of a frame lie higher or lower than in another one."""
    if len(stack) == 1:
        return
    step = math.ceil(math.sqrt(stack[0].size / SHIFT_PIXELS))
    few = np.s_[::step, ::step]
    kept = np.ones(stack[0].shape, bool)[few] if usable is None else usable[few]
    if not kept.any():
        return
    first = stack[0][few][kept].astype(np.float64)
    levels, noise = [0.0], 0.0
    for frame in stack[1:]:
        difference = frame[few][kept] - first
        levels.append(float(np.median(difference)))
        spread = float(np.median(np.abs(difference - levels[-1])))
        # A difference has the noise of two frames.
        noise = max(noise, MAD_TO_SIGMA * spread / math.sqrt(2))
    shift = max(levels) - min(levels)
    if shift > SHIFT_SIGMAS * max(noise, 1.0 if stack[0].dtype.kind in "ui" else 0.0):
        _log.warning(
            "the background of frames differs by %.3g counts, which counts as noise, and their own "
            "noise is %.3g counts: weak peaks are lost; correct frames for dark current and beam "
            "current, or process frames of one level together",
            shift,
            noise,
        )


def _passed_noise(stack: list[Frame], usable: BoolArray | None) -> float:
    """Measure the noise that passes zero suppression; 0 if little does.

    The mean of what was suppressed is not known: 5 of these standard deviations above 0 are 5
    robust ones of the lonely pixels above their median.
    """
    values = []
    for frame in stack:
        lit = np.pad((frame > 0) if usable is None else (frame > 0) & usable, 1)
        rows, cols = frame.shape
        around = sum(
            lit[1 + row : 1 + row + rows, 1 + col : 1 + col + cols].astype(np.uint8)
            for row, col in _AROUND.tolist()
        )
        values.append(frame[lit[1:-1, 1:-1] & (around == 0)])
    lonely = np.concatenate(values).astype(np.float64)
    few = len(lonely) < SEEN_NOISE * sum(frame.size for frame in stack)
    # Single counts were not suppressed: tiles without any have no noise.
    if few or lonely.min() <= 1:
        return 0.0
    median = float(np.median(lonely))
    deviation = MAD_TO_SIGMA * max(1.0, float(np.median(np.abs(lonely - median))))
    return median / FIRING_SIGMAS + deviation


def _hot_pixels(
    stack: list[Frame], level: FloatArray, noise: FloatArray, usable: BoolArray | None
) -> BoolArray | None:
    """Mark the pixels that fire by themselves, (H, W); None if there are none."""
    if len(stack) < 2:
        return None
    shape = stack[0].shape
    level64, noise64 = level.astype(np.float64), noise.astype(np.float64)
    limit = level64 + np.maximum(FIRING_SIGMAS * noise64, _poisson_limit(noise64))
    fired = np.zeros(shape, np.uint8)
    whole = limit
    if (dtype := stack[0].dtype).kind in "ui" and dtype.itemsize <= 4:
        # Compared in the pixels' own type, which is several times as fast.
        ends = np.iinfo(dtype)
        whole = np.floor(limit).clip(ends.min, ends.max).astype(dtype)
    for frame in stack:
        fired += frame > whole
    often = fired >= max(2, int(FIRING_FRACTION * len(stack)) + 1)
    if usable is not None:
        often &= usable
    # A neighbour beyond the edge is the pixel's mirror image.
    row, col = np.nonzero(often)
    if not len(row):
        return None
    rows = _mirrored(row[:, None] + _AROUND[:, 0], shape[0])
    cols = _mirrored(col[:, None] + _AROUND[:, 1], shape[1])
    counted = np.ones(rows.shape, np.bool_) if usable is None else usable[rows, cols]
    alone, total, own = np.zeros((3, len(row)))
    sigma, limit_there = noise64[row, col], limit[row, col]
    level_around = level64[rows, cols]
    half = (limit_there - level64[row, col])[:, None] / 2
    for frame in stack:
        fires = frame[row, col] > limit_there
        around = np.where(counted, frame[rows, cols] - level_around, 0.0)
        lit = around > half
        lonely = fires & ~lit.any(axis=1)
        alone += lonely
        total += np.where(lonely, around.sum(axis=1), 0.0)
        own += np.where(fires, frame[row, col], 0)
    times = fired[row, col].astype(np.float64)
    number = np.maximum(alone * counted.sum(axis=1), 1)
    dark = total / number <= sigma * (FIRING_SIGMAS / np.sqrt(number) + 0.5)
    # Zero suppression hides the neighbours of weak peaks.
    hidden = sigma == 0
    if hidden.any():
        least = min(float(f[f > 0].min()) for f in stack if (f > 0).any())
        hidden &= own < FEWEST_SUPPRESSED * least * times
    hot = np.zeros(shape, np.bool_)
    kept = (alone >= ALONE_FRACTION * times) & dark & ~hidden
    hot[row[kept], col[kept]] = True
    return hot if hot.any() else None


def _poisson_limit(noise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give the counts c that are 4 of their own standard deviations, c = 4·sqrt(noise² + c)."""
    return 8 + np.sqrt(64 + 16 * noise**2)


def _mirrored(index: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.intp]:
    index = np.abs(index)
    return np.where(index >= size, np.maximum(2 * size - 2 - index, 0), index)


def _plateau(stack: list[Frame], usable: BoolArray | None) -> float | None:
    """Give the value that so many pixels share that the detector must saturate there."""
    dtype = stack[0].dtype
    # Gaps and dead pixels often read the largest number there is, which saturates in any case.
    end = np.inf if dtype.kind == "f" else np.iinfo(dtype).max
    seen = np.ones(stack[0].shape, np.bool_) if usable is None else usable
    highest = max(float(np.max(f, where=seen & (f < end), initial=0)) for f in stack)
    width = math.sqrt(highest)
    if width < 3:
        return None
    at, below = np.zeros(seen.shape, np.bool_), np.zeros(seen.shape, np.bool_)
    for frame in stack:
        at |= frame == highest
        below |= (frame >= highest - width) & (frame < highest)
    shared, near = int(np.count_nonzero(at & seen)), int(np.count_nonzero(below & seen & ~at))
    # Each further pixel has the same value as the first by chance once in `width` times.
    enough = 1 + math.ceil(math.log(CHANCE) / -math.log(width))
    return highest if shared >= enough and shared > near else None


def refuse_nan(frame: Frame, mask: BoolArray | None) -> None:
    """Refuse a frame with a NaN, which would spread over a whole tile of the background.

    Parameters
    ----------
    frame
        (H, W) counts.
    mask
        (H, W) bool, True where a pixel must not be used.

    Raises
    ------
    InputError
        If a pixel that is not masked is NaN or infinite; it names the pixel.
    """
    if frame.dtype.kind != "f":
        return
    good = np.isfinite(frame) if mask is None else np.isfinite(frame) | mask
    if not good.all():
        row, col = divmod(int(np.argmin(good)), frame.shape[1])
        raise InputError(
            f"pixel (row {row}, col {col}) of the frame is NaN or infinite; mask it or set it to 0"
        )


def _tile_slices(size: int) -> list[slice]:
    edges = np.linspace(0, size, max(1, round(size / TILE)) + 1).round().astype(int)
    return [slice(int(low), int(high)) for low, high in pairwise(edges)]


def _part(
    stack: list[Frame], usable: npt.NDArray[np.bool_] | None, rows: slice, cols: slice
) -> npt.NDArray[Any]:
    """Gather the usable values of a tile, (n,)."""
    if usable is None:
        return np.concatenate([frame[rows, cols].reshape(-1) for frame in stack])
    return np.concatenate([frame[rows, cols][usable[rows, cols]] for frame in stack])


def _clipped_moments(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of the values near the median; NaN where there are none."""
    if not len(values):
        return np.nan, np.nan
    least = 1.0 if values.dtype.kind in "ui" else 0.0
    if values.dtype in (np.uint8, np.uint16):
        # Few distinct values: counting them is ten times faster than two medians.
        counts = np.bincount(values)
        distinct = np.flatnonzero(counts)
        return _weighted_moments(distinct.astype(np.float64), counts[distinct], least)
    values = values.astype(np.float64)
    distance = np.abs(values - np.median(values))
    near = values[distance <= CLIP_SIGMAS * max(MAD_TO_SIGMA * float(np.median(distance)), least)]
    return float(near.mean()), float(near.std())


def _weighted_moments(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.intp], least: float
) -> tuple[float, float]:
    """Do the same with increasing values, each of which was counted."""
    distance = np.abs(values - _weighted_median(values, counts))
    order = np.argsort(distance, kind="stable")
    deviation = _weighted_median(distance[order], counts[order])
    near = distance <= CLIP_SIGMAS * max(MAD_TO_SIGMA * deviation, least)
    values, counts = values[near], counts[near]
    mean = float(values @ counts / counts.sum())
    return mean, math.sqrt(float((values - mean) ** 2 @ counts / counts.sum()))


def _weighted_median(values: npt.NDArray[np.float64], counts: npt.NDArray[np.intp]) -> float:
    """Median of increasing values; of an even number the mean of the middle two."""
    up_to = np.cumsum(counts)
    middle = np.array([(up_to[-1] - 1) // 2, up_to[-1] // 2])
    return float(values[np.searchsorted(up_to, middle, side="right")].mean())


def _smooth(tiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median over 3×3 tiles; tiles without a usable pixel take it from the nearest ones."""
    result = tiles
    first = True
    while first or np.isnan(result).any():
        padded = np.pad(result, 1, mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*tiles.shape, 9)
        median = np.full(tiles.shape, np.nan)
        known = ~np.isnan(around).all(axis=2)
        median[known] = np.nanmedian(around[known], axis=1)
        result = median if first else np.where(np.isnan(result), median, result)
        first = False
    return result


def _linear_weights(size: int, tiles: list[slice]) -> npt.NDArray[np.float64]:
    """(size, n) weights of linear interpolation between tile centres, constant beyond them."""
    centres = [(tile.start + tile.stop - 1) / 2 for tile in tiles]
    one_at_each = np.eye(len(tiles))
    pixels = np.arange(size)
    return np.stack([np.interp(pixels, centres, one) for one in one_at_each], axis=1)
