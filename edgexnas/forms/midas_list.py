"""Spots as MIDAS reads them after its merging: ``Result_StartNr_FIRST_EndNr_LAST.csv``.

Columns follow `RESULT_HEADER_LEGACY` of midas_transforms 0.12. ``YCen`` is the column and ``ZCen``
the row of the frames as they are, so that MIDAS needs no transformation of images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgexnas.bragg import PeakFlag
from edgexnas.merging import Rotation
from edgexnas.spots import Spots

__all__ = ["write_midas_list"]

HEADER = (
    "SpotID IntegratedIntensity Omega YCen ZCen IMax MinOme MaxOme SigmaR SigmaEta NrPx NrPxTot "
    "Radius Eta RawSumIntensity maskTouched FitRMSE"
)


def write_midas_list(
    path: Path, spots: Spots, *, rotation: Rotation, beam_centre_px: tuple[float, float]
) -> None:
    """Write a list of merged spots.

    Widths and residuals of fits, ``SigmaR``, ``SigmaEta`` and ``FitRMSE``, are 0: a network fits
    nothing. ``IMax`` is the mean of its peaks, ``NrPx`` their number.

    Parameters
    ----------
    rotation
        Angles of the frames, for where each spot begins and ends.
    beam_centre_px
        (row, col) where the beam meets the detector, for ``Radius`` and ``Eta``.

    Raises
    ------
    InputError
        If a frame has no angle.
    OSError
        If the file cannot be written.
    """
    row, col = spots.positions_px.T.astype(np.float64)
    # As seen against the beam: y grows towards smaller columns, and eta is 0 at larger rows.
    y, z = beam_centre_px[1] - col, row - beam_centre_px[0]
    ends = np.array(
        [
            (rotation.of_frame(int(first))[0], rotation.of_frame(int(last))[1])
            for first, last in spots.frames
        ]
    ).reshape(-1, 2)
    nothing = np.zeros(len(spots))
    table = [
        np.arange(1, len(spots) + 1),
        spots.intensities,
        spots.omega_deg,
        col,
        row,
        spots.intensities / spots.peaks,
        ends.min(axis=1) if len(ends) else nothing,
        ends.max(axis=1) if len(ends) else nothing,
        nothing,
        nothing,
        spots.peaks,
        spots.peaks,
        np.hypot(y, z),
        -np.rad2deg(np.arctan2(y, z)),
        spots.intensities,
        (spots.flags & PeakFlag.MASKED) > 0,
        nothing,
    ]
    np.savetxt(path, np.stack(table, axis=1), fmt="%.6f", header=HEADER, comments="")
