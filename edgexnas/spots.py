"""The contract of spots: Bragg peaks merged over the frames of a rotation. numpy only.

Conventions
-----------
* Positions are (row, col) as of `edgexnas.bragg`: the centre of a frame's first pixel is (0, 0).
* Rotation angles are those of the rotation that was merged over, in degrees; the angle of a frame
  is the middle between its start and its end.
* An uncertainty is a standard deviation: 90 % of errors are within 1.645 of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PeakFlag
from edgexnas.errors import InputError

__all__ = ["SPOT", "SPOT_COLUMNS", "SpotFlag", "Spots"]

FloatArray = npt.NDArray[np.float32]


class SpotFlag(IntFlag):
    """Why a spot deserves less trust. Flagged spots are kept, never dropped."""

    SATURATED = PeakFlag.SATURATED.value
    """One of its peaks is saturated; so for `EDGE`, `OVERLAP` and `MASKED`, as of `PeakFlag`."""
    EDGE = PeakFlag.EDGE.value
    OVERLAP = PeakFlag.OVERLAP.value
    MASKED = PeakFlag.MASKED.value
    SPLIT = 16
    """It follows on another one, or another on it, with a valley of intensity between them."""
    AMBIGUOUS = 32
    """One of its peaks was near enough for another spot too; the nearest pair was linked."""
    CUT = 64
    """It touches the first or the last frame of a wedge: a part of it may be outside."""
    GAP = 128
    """A frame within it or next to it is missing."""
    UNFAMILIAR = 256
    """One of its peaks is unlike those that the network was trained on; see `PeakFlag`."""


SPOT_COLUMNS = {
    "row_px": ("<f4", "px"),
    "col_px": ("<f4", "px"),
    "omega_deg": ("<f8", "deg"),
    "row_sigma_px": ("<f4", "px"),
    "col_sigma_px": ("<f4", "px"),
    "omega_sigma_deg": ("<f4", "deg"),
    "intensity": ("<f4", "counts"),
    "peaks": ("<i4", ""),
    "first_frame": ("<i8", ""),
    "last_frame": ("<i8", ""),
    "flags": ("<u2", ""),
}
"""Columns of spots with their type and unit, in all forms of results."""

SPOT = np.dtype([(name, type_) for name, (type_, _) in SPOT_COLUMNS.items()])
"""A spot, as in `Spots.table`."""

_PAIRS = ("positions_px", "sigmas_px", "frames")


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """n spots in the order in which they ended, those that ended with one frame by row.

    Attributes
    ----------
    positions_px
        (n, 2) float32, (row, col) in pixels.
    sigmas_px
        (n, 2) float32, standard deviations of (row, col) in pixels.
    omega_deg
        (n,) float64, rotation angle in degrees.
    omega_sigmas_deg
        (n,) float32, its standard deviation in degrees.
    intensities
        (n,) float32, counts above background: the sum of its peaks' intensities.
    peaks
        (n,) int32, how many peaks were merged.
    frames
        (n, 2) int64, numbers of its first and its last frame.
    flags
        (n,) uint16, a combination of `SpotFlag`.

    Raises
    ------
    InputError
        If the arrays differ in length or have other shapes.
    """

    positions_px: FloatArray
    sigmas_px: FloatArray
    omega_deg: npt.NDArray[np.float64]
    omega_sigmas_deg: FloatArray
    intensities: FloatArray
    peaks: npt.NDArray[np.int32]
    frames: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        count = len(self.omega_deg)
        for name in self.__slots__:
            wanted = (count, 2) if name in _PAIRS else (count,)
            shape = getattr(self, name).shape
            if shape != wanted:
                raise InputError(f"{name} of {count} spots has shape {shape}; give {wanted}")

    def __len__(self) -> int:
        return len(self.omega_deg)

    @property
    def table(self) -> npt.NDArray[np.void]:
        """(n,) structured array with the fields of `SPOT_COLUMNS`."""
        table = np.empty(len(self), SPOT)
        table["row_px"], table["col_px"] = self.positions_px.T
        table["row_sigma_px"], table["col_sigma_px"] = self.sigmas_px.T
        table["omega_deg"], table["omega_sigma_deg"] = self.omega_deg, self.omega_sigmas_deg
        table["intensity"], table["peaks"] = self.intensities, self.peaks
        table["first_frame"], table["last_frame"] = self.frames.T
        table["flags"] = self.flags
        return table

    @classmethod
    def from_table(cls, table: npt.NDArray[np.void]) -> Spots:
        """Make spots of a structured array with the fields of `SPOT_COLUMNS`, in any order.

        Raises
        ------
        InputError
            If a field is missing.
        """
        missing = [name for name in SPOT_COLUMNS if name not in (table.dtype.names or ())]
        if missing:
            raise InputError(f"the table of spots lacks {', '.join(missing)}; give all its columns")

        def pair(first: str, second: str) -> npt.NDArray[Any]:
            return np.stack([table[first], table[second]], axis=1)

        return cls(
            pair("row_px", "col_px").astype(np.float32),
            pair("row_sigma_px", "col_sigma_px").astype(np.float32),
            table["omega_deg"].astype(np.float64),
            table["omega_sigma_deg"].astype(np.float32),
            table["intensity"].astype(np.float32),
            table["peaks"].astype(np.int32),
            pair("first_frame", "last_frame").astype(np.int64),
            table["flags"].astype(np.uint16),
        )

    @classmethod
    def joined(cls, parts: Sequence[Spots]) -> Spots:
        """Put spots one after the other; none give an empty list."""
        if not parts:
            return cls.from_table(np.empty(0, SPOT))
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__)
        )

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> Spots:
        """Keep the given rows: a boolean mask, indices or a slice."""
        return Spots(*(getattr(self, name)[rows] for name in self.__slots__))
