"""How a detector's pixels lie to the axes of the positions: one of eight ways.

A detector may be mounted turned or mirrored, and its rows may be read from the bottom. Its patterns
are then not those of the object in the axes of the positions, and no phase retrieval explains them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy.typing as npt

__all__ = ["ORIENTATIONS", "Orientation", "oriented"]

Orientation: TypeAlias = Literal[
    "as-is",
    "flip-rows",
    "flip-columns",
    "rotate-180",
    "transpose",
    "rotate-clockwise",
    "rotate-counterclockwise",
    "anti-transpose",
]
"""What brings patterns into the axes of the positions."""

ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)
"""By number: bit 0 reverses the rows, bit 1 the columns, and bit 2 then exchanges the two."""

_ROWS, _COLUMNS, _EXCHANGED = 1, 2, 4


def oriented(
    images: npt.NDArray[Any], orientation: Orientation, *, inverse: bool = False
) -> npt.NDArray[Any]:
    """Bring (..., H, W) patterns into the axes of the positions, or back.

    Parameters
    ----------
    images
        Patterns as the detector gives them; with `inverse`, in the axes of the positions.
    orientation
        What is done to the detector's patterns.

    Returns
    -------
    A view; H and W are exchanged where rows and columns are.
    """
    number = ORIENTATIONS.index(orientation)
    if inverse and number & _EXCHANGED:
        images = images.swapaxes(-2, -1)
    if number & _ROWS:
        images = images[..., ::-1, :]
    if number & _COLUMNS:
        images = images[..., ::-1]
    if not inverse and number & _EXCHANGED:
        images = images.swapaxes(-2, -1)
    return images
