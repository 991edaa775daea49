"""Which pixels of a detector must not be used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = ["Mask", "checked_mask", "merged_masks"]

Mask = npt.NDArray[np.bool_]


def checked_mask(mask: npt.ArrayLike) -> Mask:
    """Copy a mask, (H, W) bool, True where a pixel must not be used.

    Raises
    ------
    InputError
        If it has another shape or dtype.
    """
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype != np.bool_:
        raise InputError(
            f"the mask has shape {array.shape} and dtype {array.dtype}; "
            "give (H, W) bool, True where a pixel must not be used"
        )
    return array.copy()


def merged_masks(own: Mask | None, other: Mask | None) -> Mask | None:
    """Merge a predictor's own mask and the one that a series or scan brings.

    Raises
    ------
    InputError
        If they differ in shape.
    """
    if own is None or other is None:
        return other if own is None else own
    if own.shape != other.shape:
        raise InputError(
            f"the series' mask has shape {other.shape}, this predictor's has {own.shape}; "
            "give masks of one detector"
        )
    return own | other
