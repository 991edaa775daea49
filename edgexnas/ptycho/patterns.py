"""Diffraction patterns: checks, binning and the network's scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError

__all__ = [
    "PATTERN_SIZE",
    "SMALLEST_SPREAD_PX",
    "FloatArray",
    "as_patterns",
    "bin_patterns",
    "check_counts",
    "scale_patterns",
]

PATTERN_SIZE = 64
"""Side of a pattern and of a patch in pixels, as in PtychoNN (Cherukara et al., APL 2020)."""

SMALLEST_SPREAD_PX = 0.5
"""Positions that all differ by less, but do differ, are taken for metres or millimetres: a scan of
micrometres spreads over 1e-6 to 1e-4 of the one, and 1e-3 to 0.1 of the other."""

FloatArray = npt.NDArray[np.float32]


def check_counts(
    patterns: npt.NDArray[Any], *, saturation: float | None = None, first_number: int = 0
) -> None:
    """Refuse patterns that hold something else than photon counts.

    Parameters
    ----------
    patterns
        (n, H, W), any dtype.
    saturation
        Counts from which a pixel is saturated; None for the largest value of an unsigned integer
        dtype, which detectors also write for pixels without a reading, and no limit for others.
    first_number
        Number of the first pattern in its series, for messages.

    Raises
    ------
    InputError
        If the dtype is not real, or a count is negative, not finite or saturated; the message
        names the pattern, the pixel and the value.
    """
    kind = patterns.dtype.kind
    if kind not in "uif":
        raise InputError(f"patterns have dtype {patterns.dtype}; give real numbers, such as uint16")
    limit = float(np.iinfo(patterns.dtype).max) if kind == "u" else np.inf
    limit = limit if saturation is None else saturation
    # Whole-array extremes first: they are fast, and NaN fails both comparisons.
    if patterns.size == 0 or (patterns.min() >= 0 and patterns.max() < limit):
        return
    number, row, col = np.argwhere(~((patterns >= 0) & (patterns < limit)))[0]
    value = patterns[number, row, col]
    where = f"pattern {first_number + number} holds {value} at row {row}, col {col}"
    if limit <= value < np.inf:
        raise InputError(
            f"{where}, and counts from {limit:g} are saturated; "
            "mask a pixel that is always so, or lower the flux"
        )
    raise InputError(
        f"{where}, where counts are finite and not negative; set masked pixels to 0, or give a mask"
    )


def as_patterns(patterns: npt.ArrayLike, *, saturation: float | None = None) -> FloatArray:
    """Check patterns from outside and bring them to (n, 64, 64) float32.

    Parameters
    ----------
    patterns
        (n, 64, 64) or (n, 1, 64, 64), any real dtype, photon counts.
    saturation
        As in `check_counts`.

    Raises
    ------
    InputError
        If the shape is another, the dtype is not real, or a count is negative, not finite or
        saturated.
    """
    array = np.asarray(patterns)
    if array.dtype.kind not in "uif":
        raise InputError(f"patterns have dtype {array.dtype}; give real numbers, such as uint16")
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3 or array.shape[1:] != (PATTERN_SIZE, PATTERN_SIZE):
        raise InputError(
            f"patterns have shape {np.shape(patterns)}; give (n, 64, 64) or (n, 1, 64, 64), "
            "with bin_patterns where the detector is larger"
        )
    check_counts(array, saturation=saturation)
    return array.astype(np.float32, copy=False)


def bin_patterns(patterns: npt.ArrayLike, factor: int) -> FloatArray:
    """Crop square patterns around the direct beam and sum blocks of pixels, down to 64×64.

    Parameters
    ----------
    patterns
        (n, H, W) counts with the direct beam at (H // 2, W // 2); H and W at least 64 × `factor`.
    factor
        Pixels of the detector along each axis that become one.

    Returns
    -------
    (n, 64, 64) float32 counts.

    Raises
    ------
    InputError
        If the patterns are smaller than 64 × `factor`.
    """
    array = np.asarray(patterns)
    side = PATTERN_SIZE * factor
    if factor < 1:
        raise ConfigurationError(f"binning factor is {factor}; give 1 or more")
    if array.ndim != 3 or min(array.shape[1:]) < side:
        raise InputError(
            f"patterns have shape {array.shape}; binning by {factor} needs (n, {side}, {side}) "
            "or larger"
        )
    # About (H // 2, W // 2), so that the direct beam comes to lie at (32, 32).
    top, left = (length // 2 - side // 2 for length in array.shape[1:])
    cut = array[:, top : top + side, left : left + side].astype(np.float32, copy=False)
    blocks = cut.reshape(len(cut), PATTERN_SIZE, factor, PATTERN_SIZE, factor)
    binned: FloatArray = blocks.sum(axis=(2, 4), dtype=np.float32)
    return binned


def scale_patterns(patterns: FloatArray, intensity_scale: float) -> FloatArray:
    """Scale counts for the network: the square root of counts / `intensity_scale`.

    The root makes Poisson noise equally large everywhere. The scale is a constant of the model and
    not of the data, because a stream's brightest pattern is unknown while it runs.

    Parameters
    ----------
    patterns
        (n, 64, 64) float32 counts.
    intensity_scale
        Counts that become 1.
    """
    if not intensity_scale > 0:
        raise ConfigurationError(f"intensity_scale is {intensity_scale}; give more than 0 counts")
    scaled: FloatArray = np.sqrt(patterns / np.float32(intensity_scale))
    return scaled
