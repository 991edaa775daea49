"""Spots as ImageD11 reads them: a columnfile, as text (.flt) or HDF5.

``sc`` is the row and ``fc`` the column in pixels, counted from the centre of the first pixel, and
``omega`` the angle in degrees. ``Number_of_pixels`` is the number of merged peaks, because pixels
are not counted here; programs drop spots by it. What ImageD11 has no column for keeps its own name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.hdf5_library import new_hdf5
from edgexnas.spots import SpotFlag, Spots

__all__ = ["write_columnfile", "write_hdf5_columnfile"]


def write_columnfile(path: Path, spots: Spots) -> None:
    """Write a text columnfile.

    Raises
    ------
    InputError
        If there are no spots: ImageD11 cannot read such a file.
    OSError
        If the file cannot be written.
    """
    if not len(spots):
        raise InputError(
            "there are no spots, and ImageD11 reads no .flt without any; choose .h5, or check that "
            "there are peaks"
        )
    columns = _columns(spots)
    formats = ["%d" if values.dtype.kind == "i" else "%.6f" for values in columns.values()]
    # As ImageD11 reads it: titles in a comment, two blanks between values.
    np.savetxt(
        path,
        np.stack(list(columns.values()), axis=1),
        fmt="  ".join(formats),
        header="  ".join(columns),
        comments="#  ",
    )


def write_hdf5_columnfile(path: Path, spots: Spots, *, name: str = "peaks") -> None:
    """Write an HDF5 columnfile: one group, a dataset for each column.

    Raises
    ------
    MissingDependencyError
        If h5py is not installed.
    OSError
        If the file cannot be written.
    """
    with new_hdf5(path, "an HDF5 columnfile, other than .flt,") as file:
        group = file.create_group(name)
        group.attrs["ImageD11_type"] = "peaks"
        for column, values in _columns(spots).items():
            group[column] = values


def _columns(spots: Spots) -> dict[str, npt.NDArray[Any]]:
    row, col = spots.positions_px.T.astype(np.float64)
    cut = ((spots.flags & SpotFlag.CUT) > 0).astype(np.int64)
    return {
        "sc": row,
        "fc": col,
        "omega": spots.omega_deg,
        "Number_of_pixels": spots.peaks.astype(np.int64),
        "avg_intensity": spots.intensities.astype(np.float64) / spots.peaks,
        "s_raw": row,
        "f_raw": col,
        "sum_intensity": spots.intensities.astype(np.float64),
        # Which of the two a cut spot touches is not kept; programs look for either.
        "onfirst": cut,
        "onlast": cut,
        "spot3d_id": np.arange(len(spots)),
        "row_sigma_px": spots.sigmas_px[:, 0].astype(np.float64),
        "col_sigma_px": spots.sigmas_px[:, 1].astype(np.float64),
        "omega_sigma_deg": spots.omega_sigmas_deg.astype(np.float64),
        "flags": spots.flags.astype(np.int64),
    }
