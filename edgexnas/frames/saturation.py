"""From how many counts a pixel is saturated: what a file says, and what its frames show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["estimate_plateau", "header_saturation"]

Frame = npt.NDArray[Any]

_IN_TEXT = re.compile(
    r"(?:count_?cutoff|_array_intensities\.overload|ccd_image_saturation|saturated_value)"
    r"[\s=:]*([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)",
    re.IGNORECASE,
)
"""As DECTRIS, imgCIF, ADSC and Rigaku write it."""

_KEYS = re.compile(
    r"(count_?cutoff|overload|ccd_image_saturation|saturated_value|saturation(_value|_level)?)$",
    re.IGNORECASE,
)

_TOLERANCE = 0.005
"""Width of a plateau as a share of its height: the dark that was subtracted differs."""

_LEAST_PIXELS = 4
_LEAST_SIGMAS = 20.0


def header_saturation(header: Mapping[Any, Any]) -> float | None:
    """Find the counts from which a pixel is saturated in the header of an image.

    Parameters
    ----------
    header
        Names and values, as fabio gives them, also with further lines in a value.
    """
    for name, value in header.items():
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        stated = _IN_TEXT.search(f"{name} {text}")
        if stated is not None:
            return _positive(stated[1])
        if _KEYS.search(str(name)):
            return _positive(text)
    return None


def estimate_plateau(
    frames: Sequence[Frame], *, mask: npt.NDArray[np.bool_] | None = None
) -> float | None:
    """Estimate from how many counts pixels are saturated, where peaks have flat tops.

    The highest value of all frames is a plateau if several pixels hold it, some of them side by
    side, and far fewer hold the values just below: the top of a peak that is not cut off is one
    pixel, and its neighbours are lower.

    Parameters
    ----------
    frames
        (k, H, W) or k frames of (H, W), counts, spread over the series.
    mask
        (H, W) bool, True where a pixel must not be used.

    Returns
    -------
    The lowest counts of the plateau; None if the frames show none.
    """
    usable = np.ones(frames[0].shape, bool) if mask is None else ~mask
    if not usable.any():
        return None
    top = max(float(np.max(frame, where=usable, initial=0)) for frame in frames)
    level = float(np.median(frames[0][usable]))
    noise = 1.4826 * float(np.median(np.abs(frames[0][usable].astype(np.float64) - level)))
    if top < level + max(_LEAST_SIGMAS * noise, 10 * np.sqrt(max(level, 1.0))) or top < 50:
        return None
    lowest = top - _TOLERANCE * (top - level)
    held = below = adjacent = 0
    for frame in frames:
        high = (frame >= lowest) & usable
        held += int(np.count_nonzero(high))
        below += int(np.count_nonzero((frame >= 2 * lowest - top) & usable & ~high))
        adjacent += int(np.count_nonzero(high[:, :-1] & high[:, 1:]))
        adjacent += int(np.count_nonzero(high[:-1] & high[1:]))
    if held < _LEAST_PIXELS or held < 4 * below or 2 * adjacent < held:
        return None
    values = np.concatenate([frame[(frame >= lowest) & usable] for frame in frames])
    return float(values.min())


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
