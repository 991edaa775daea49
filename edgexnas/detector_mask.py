"""Which pixels of a detector must not be used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError

__all__ = ["Mask", "checked_mask", "merged_masks", "read_mask"]

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
    """Merge the mask that a user gave and the one that a series or scan brings.

    Raises
    ------
    InputError
        If they differ in shape.
    """
    if own is None or other is None:
        return other if own is None else own
    if own.shape != other.shape:
        raise InputError(
            f"the series' mask has shape {other.shape}, the one given has {own.shape}; "
            "give masks of one detector"
        )
    return own | other


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """Read a mask from a ``.npy`` file of (H, W) bool, True where a pixel must not be used.

    Raises
    ------
    ConfigurationError
        If the file cannot be read.
    InputError
        If the array has another shape or dtype.
    """
    place = Path(path)
    try:
        # Opening a pipe would wait for somebody who writes to it.
        if place.exists() and not place.is_file():
            raise OSError("it is no regular file")
        array = np.load(place, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"mask {place} cannot be read as .npy: {error}") from error
    return checked_mask(array)
