"""Pixels that never measure: constants that detectors write into gaps and dead pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["constant_gaps", "filler_value"]

Frame = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_MOST_NEGATIVES = 3
"""Different negative values that can be constants; dark-subtracted data have more."""

_FEW = 1e-3
"""Share of pixels that may be masked without asking whether they hang together."""

_MOST_DARK = 0.3
"""Share of pixels that zeros in gaps take at most; where there are more, they are measured."""

_LIKE_ELSEWHERE = 0.75
"""Share of the counts of all pixels that those beside a gap have at least."""

_SPECIAL = (65534, 65535, 2**31 - 1, 2**32 - 2, 2**32 - 1)
"""Highest values of narrower dtypes, which stay where frames were widened, and the last but one of
DECTRIS, which means a defective pixel."""


def constant_gaps(frames: Sequence[Frame]) -> Mask | None:
    """Find the pixels that hold the same impossible value in all frames, and dark areas.

    Impossible are NaN and infinities; the highest values of an integer dtype, also of a narrower
    one and also as float; and negative values where there are few different ones, such as -1, -2
    and the lowest of the dtype. Where negative values spread, the dark was subtracted, and they
    are measured. A pixel at a highest value whose surroundings are bright is a saturated peak and
    not a gap.

    Parameters
    ----------
    frames
        (H, W) frames of one dtype, from 1, spread over the series.

    Returns
    -------
    (H, W) bool, True where a pixel must not be used; None if there is none such.
    """
    first = frames[0]
    gaps = _negative_gaps(frames) if first.dtype.kind != "u" else np.zeros(first.shape, bool)
    # The first frame alone decides where to look: a constant is on it as on all others.
    highest = _at(first, _highest(first.dtype))
    if highest.any():
        for frame in frames[1:]:
            highest &= frame == first
        if highest.any():
            gaps |= _without_peaks(highest, first)
    dark = _dark_areas(frames)
    if dark is not None:
        gaps |= dark
    if first.dtype.kind == "f":
        unknown = ~np.isfinite(first)
        for frame in frames[1:]:
            unknown &= ~np.isfinite(frame)
        gaps |= unknown
    return gaps if gaps.any() else None


def filler_value(frame: Frame, fill: Any = None) -> str | None:
    """Tell the value that fills a whole frame, if it is one that no detector measures.

    Parameters
    ----------
    frame
        (H, W).
    fill
        The fill value of its dataset; 0 is one that detectors measure, too.
    """
    value = frame[0, 0]
    if np.isnan(value):
        return "NaN" if np.isnan(frame).all() else None
    # Compared at two corners first, which spares most frames the comparison of all pixels.
    if value == 0 or value != frame[-1, -1]:
        return None
    if value < 0 or value in _highest(frame.dtype) or value == fill:
        return str(value) if (frame == value).all() else None
    return None


def _highest(dtype: np.dtype[Any]) -> tuple[float, ...]:
    """Values that no pixel of a dtype measures."""
    if dtype.kind == "f":
        return (*(float(value) for value in _SPECIAL), float(np.finfo(dtype).max))
    limits = np.iinfo(dtype)
    narrower = (value for value in _SPECIAL if value < limits.max - 1)
    return (*narrower, int(limits.max) - 1, int(limits.max))


def _at(frame: Frame, values: tuple[float, ...]) -> Mask:
    least = min(values)
    high = frame >= least
    if not high.any():
        return high
    found: Mask = high & np.isin(frame, np.array(values, np.float64).astype(frame.dtype))
    return found


def _negative_gaps(frames: Sequence[Frame]) -> Mask:
    first = frames[0]
    gaps: Mask = first < 0
    if not gaps.any():
        return gaps
    for frame in frames:
        # A sample is enough to see a spread, and quicker than sorting all.
        values = frame[frame < 0]
        if len(np.unique(values[:: max(1, len(values) // 65536)])) > _MOST_NEGATIVES:
            return np.zeros_like(gaps)
    for frame in frames[1:]:
        gaps &= frame == first
    if np.count_nonzero(gaps) > _FEW * gaps.size and not _hangs_together(gaps):
        return np.zeros_like(gaps)
    return gaps


def _dark_areas(frames: Sequence[Frame]) -> Mask | None:
    """Find areas of 0 among pixels that measure."""
    first = frames[0]
    dark: Mask = first == 0
    if not 0 < np.count_nonzero(dark) <= _MOST_DARK * dark.size:
        return None
    for frame in frames[1:]:
        dark &= frame == 0
    total = np.count_nonzero(dark)
    if not total or not _hangs_together(dark):
        return None
    lit = np.count_nonzero(dark[:, :-2] & ~dark[:, 1:-1] & dark[:, 2:])
    lit += np.count_nonzero(dark[:-2] & ~dark[1:-1] & dark[2:])
    around = np.zeros_like(dark)
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        around[near] |= dark[far]
        around[far] |= dark[near]
    measured = ~dark if first.dtype.kind != "f" else ~dark & np.isfinite(first)
    if lit > _FEW * total or not (around & measured).any():
        return None
    counts = np.abs(first.astype(np.float64))
    edge, elsewhere = (np.median(counts[part]) for part in (around & measured, measured))
    return dark if edge >= _LIKE_ELSEWHERE * elsewhere else None


def _hangs_together(mask: Mask) -> bool:
    """Tell areas from single pixels, which noise around 0 makes."""
    total = np.count_nonzero(mask)
    beside = max(
        np.count_nonzero(mask[:, :-1] & mask[:, 1:]), np.count_nonzero(mask[:-1] & mask[1:])
    )
    # By chance a share of total / size of the pixels has a neighbour.
    return bool(beside > total * (1 + total / mask.size) / 2)


def _without_peaks(mask: Mask, frame: Frame) -> Mask:
    """Leave out areas whose surroundings rise towards them: the tops of saturated peaks."""
    labels, count = _areas(mask)
    usable = frame[~mask & np.isfinite(frame)].astype(np.float64)
    if not usable.size:
        return mask
    level = float(np.median(usable))
    # 1.4826 turns a median absolute deviation into a standard deviation (Gaussian noise).
    noise = 1.4826 * float(np.median(np.abs(usable - level)))
    bright = frame > max(level + 5 * noise, level + 0.02 * (float(frame[mask].min()) - level))
    around, lit = np.zeros(count), np.zeros(count)
    for towards in (_beside(labels, axis, step) for axis in (0, 1) for step in (1, -1)):
        border = (towards >= 0) & ~mask
        around += np.bincount(towards[border], minlength=count)
        lit += np.bincount(towards[border & bright], minlength=count)
    peak = lit > 0.3 * np.maximum(around, 1)
    gaps = np.zeros_like(mask)
    gaps[mask] = ~peak[labels[mask]]
    return gaps


def _beside(labels: npt.NDArray[np.intp], axis: int, step: int) -> npt.NDArray[np.intp]:
    """Give each pixel the label of its neighbour, -1 beyond the edge."""
    moved = np.full_like(labels, -1)
    target, origin = [slice(None)] * 2, [slice(None)] * 2
    target[axis], origin[axis] = (slice(1, None), slice(None, -1))[::step]
    moved[tuple(target)] = labels[tuple(origin)]
    return moved


def _areas(mask: Mask) -> tuple[npt.NDArray[np.intp], int]:
    """Label connected areas from 0, and -1 elsewhere, in numpy: the device has no scipy."""
    index = np.full(mask.shape, -1, np.intp)
    count = int(np.count_nonzero(mask))
    index[mask] = np.arange(count)
    right, down = mask[:, :-1] & mask[:, 1:], mask[:-1] & mask[1:]
    one = np.concatenate([index[:, :-1][right], index[:-1][down]])
    other = np.concatenate([index[:, 1:][right], index[1:][down]])
    label = np.arange(count)
    # Each round hooks roots to the lowest neighbouring root and halves the paths to it.
    while True:
        lowest = np.minimum(label[one], label[other])
        np.minimum.at(label, label[one], lowest)
        np.minimum.at(label, label[other], lowest)
        label = label[label]
        if np.array_equal(label[one], label[other]):
            break
    index[mask] = np.unique(label, return_inverse=True)[1]
    return index, int(index.max()) + 1
