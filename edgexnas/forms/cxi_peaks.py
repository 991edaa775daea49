"""Peaks of each frame as CXI, which CrystFEL (``--peaks=cxi``) and Cheetah's viewers read.

``/entry_1/result_1`` has a row for each frame: ``nPeaks``, and in rows padded with 0 the positions
``peakXPosRaw`` (column) and ``peakYPosRaw`` (row), in pixels from the centre of the first pixel, to
which CrystFEL adds the half pixel by itself, and ``peakTotalIntensity``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.hdf5_library import new_hdf5

__all__ = ["write_cxi_peaks"]

_MOST_BYTES = 2**32


def write_cxi_peaks(path: Path, peaks: npt.NDArray[np.void], *, frames: int | None = None) -> None:
    """Write the peaks of all frames of a series.

    Parameters
    ----------
    peaks
        (n,) of `edgexnas.forms.csv_tables.PEAK`, frames numbered from 0.
    frames
        How many frames the series has; None for up to the last with a peak.

    Raises
    ------
    MissingDependencyError
        If h5py is not installed.
    InputError
        If its table, with a row for each frame, would take more than 4 GiB.
    OSError
        If the file cannot be written.
    """
    peaks = peaks[np.argsort(peaks["frame"], kind="stable")]
    count = int(peaks["frame"].max(initial=-1)) + 1 if frames is None else frames
    most = int(np.unique(peaks["frame"], return_counts=True)[1].max(initial=0))
    if 4 * count * max(most, 1) > _MOST_BYTES:
        raise InputError(
            f"CXI has a row for each of {count} frames, and of {most} peaks, which takes "
            f"{4 * count * max(most, 1) / 2**30:.0f} GiB; leave out frames that are numbered far "
            "beyond the others"
        )
    number = np.bincount(peaks["frame"], minlength=count)
    first = np.cumsum(number) - number
    slot = np.arange(len(peaks)) - first[peaks["frame"]]
    with new_hdf5(path, "CXI") as file:
        file["cxi_version"] = 160
        entry = file.create_group("entry_1")
        entry.attrs["NX_class"] = "NXentry"
        result = entry.create_group("result_1")
        result.attrs["NX_class"] = "NXcollection"
        result["nPeaks"] = number.astype(np.int32)
        for name, column in (
            ("peakXPosRaw", "col_px"),
            ("peakYPosRaw", "row_px"),
            ("peakTotalIntensity", "counts"),
        ):
            padded = np.zeros((count, int(number.max(initial=0))), np.float32)
            padded[peaks["frame"], slot] = peaks[column]
            result.create_dataset(name, data=padded, compression="gzip" if padded.size else None)
