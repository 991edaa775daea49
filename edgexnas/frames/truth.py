"""What is truly on the frames of a simulated series."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = ["Truth"]

_DTYPES: dict[str, type[np.generic]] = {
    "frame": np.int32,
    "row": np.float64,
    "col": np.float64,
    "counts": np.float32,
    "fwhm_major_px": np.float32,
    "fwhm_minor_px": np.float32,
    "angle_rad": np.float32,
    "mixing": np.float32,
    "omega_deg": np.float64,
    "grain": np.int32,
    "reflection": np.int32,
    "overlap": np.bool_,
    "saturated": np.bool_,
    "masked": np.bool_,
    "visible": np.bool_,
}


@dataclass(frozen=True, slots=True)
class Truth:
    """The spots of a simulated series, one row for each spot and frame, by (frame, row, col).

    Attributes
    ----------
    frame
        (n,) int32, number of the frame in its series, from 0.
    row, col
        (n,) float64, centre of the spot in px: the centre of the first pixel is (0, 0).
    counts
        (n,) float32, expected height of the profile at its centre on this frame, above the
        background. What the brightest pixel expects is lower, for it averages over its area.
    fwhm_major_px, fwhm_minor_px
        (n,) float32, full widths at half maximum of the profile along its two axes in px.
    angle_rad
        (n,) float32 in (−π/2, π/2], from the +col axis towards the +row axis to the major axis.
    mixing
        (n,) float32, Lorentzian fraction of the pseudo-Voigt profile, 0 … 1.
    omega_deg
        (n,) float64, rotation angle at which the reflection is centred, in degrees.
    grain
        (n,) int32, number of the grain that diffracts.
    reflection
        (n,) int32, number of the reflection; one that spreads over frames has several rows.
    overlap
        (n,) bool, whether the brightest pixel of another visible spot lies within 10 px in both
        directions.
    saturated
        (n,) bool, whether the brightest pixel is expected to reach the saturation level.
    masked
        (n,) bool, whether a pixel of the 11×11 px around the brightest pixel is unusable.
    visible
        (n,) bool, whether the brightest pixel is usable, is expected to rise above the
        background by 5 standard deviations of the noise or more, and survives zero suppression.
    """

    frame: npt.NDArray[np.int32]
    row: npt.NDArray[np.float64]
    col: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float32]
    fwhm_major_px: npt.NDArray[np.float32]
    fwhm_minor_px: npt.NDArray[np.float32]
    angle_rad: npt.NDArray[np.float32]
    mixing: npt.NDArray[np.float32]
    omega_deg: npt.NDArray[np.float64]
    grain: npt.NDArray[np.int32]
    reflection: npt.NDArray[np.int32]
    overlap: npt.NDArray[np.bool_]
    saturated: npt.NDArray[np.bool_]
    masked: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def positions_px(self) -> npt.NDArray[np.float64]:
        """(n, 2) float64, (row, col) of the centres in frame coordinates."""
        return np.stack([self.row, self.col], axis=1)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns by name, in the order of the class."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> Truth:
        """Keep the given rows: a boolean mask, indices or a slice."""
        return Truth(**{name: column[rows] for name, column in self.columns().items()})

    def of_frame(self, frame: int) -> Truth:
        """Keep the spots of one frame; found by bisection."""
        first, last = np.searchsorted(self.frame, [frame, frame + 1])
        return self.select(slice(int(first), int(last)))

    @classmethod
    def from_columns(cls, columns: dict[str, npt.NDArray[Any]]) -> Truth:
        """Build a truth from its columns, with the dtypes of the class.

        Raises
        ------
        InputError
            If a column is missing or is not as long as the others.
        """
        missing = [name for name in _DTYPES if name not in columns]
        if missing:
            raise InputError(f"the truth lacks the column {missing[0]!r}; give all of its columns")
        lengths = {np.shape(columns[name]) for name in _DTYPES}
        if len(lengths) != 1 or len(lengths.pop()) != 1:
            raise InputError("the columns of the truth differ in length; give one row a spot")
        return cls(**{name: columns[name].astype(kind) for name, kind in _DTYPES.items()})
