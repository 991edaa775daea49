"""An object of ptychography as NeXus, which silx, NeXpy and others open as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from edgexnas.errors import SourceError
from edgexnas.hdf5_library import h5py_for, new_hdf5
from edgexnas.ptycho import ObjectImage, Refinement

__all__ = ["read_object", "turned_object", "write_nexus_object"]


def write_nexus_object(
    path: Path, image: ObjectImage, *, title: str, refinement: Refinement | None = None
) -> None:
    """Write an object as NeXus, so that its phase is what a NeXus tool plots.

    ::

        /entry               NXentry, default "object"
            title
            object           NXdata, signal "phase", auxiliary signals "amplitude" and "coverage"
                phase        (H, W) float32, rad; its mean over the object is turned to 0
                amplitude    (H, W) float32; with the phase this is the complex object
                coverage     (H, W) float32, sum of the weights of the patches that cover a pixel
                row_px       (H,) and col_px (W,): the pixels in the coordinates of the positions
            network          NXdata, the same before refinement; only where there was one
            refinement       NXprocess, only where there was one
                residual     (sweeps + 1,) float64, part of the light that is not explained: before,
                             then during each sweep
                seconds      (sweeps + 1,) float64, s, since the start when each was known

    Parameters
    ----------
    path
        File to write; one that is there is replaced. Where it has to appear whole, a draft.
    image
        The object.
    title
        What it shows.
    refinement
        What became of it by refinement; None without.

    Raises
    ------
    MissingDependencyError
        If h5py is not installed.
    OSError
        If the file cannot be written.
    """
    with new_hdf5(path, "writing an object as HDF5, other than as .npz,") as file:
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "edgexnas"})
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "object"})
        entry["title"] = title
        _write_data(entry, "object", image if refinement is None else refinement.image)
        if refinement is not None:
            _write_data(entry, "network", image)
            process = entry.create_group("refinement")
            process.attrs["NX_class"] = "NXprocess"
            process["program"] = "edgexnas"
            process["residual"], process["seconds"] = refinement.residuals, refinement.seconds
            process["seconds"].attrs["units"] = "s"


def _write_data(entry: Any, name: str, image: ObjectImage) -> None:
    rows, cols = image.values.shape
    (row, col), turned = image.origin_px, turned_object(image)
    data = entry.create_group(name)
    data.attrs.update({"NX_class": "NXdata", "signal": "phase", "axes": ["row_px", "col_px"]})
    data.attrs["auxiliary_signals"] = ["amplitude", "coverage"]
    data["phase"], data["amplitude"] = np.angle(turned), np.abs(turned)
    data["coverage"] = image.coverage
    data["row_px"], data["col_px"] = np.arange(row, row + rows), np.arange(col, col + cols)
    for column, unit in (("phase", "rad"), ("row_px", "px"), ("col_px", "px")):
        data[column].attrs["units"] = unit


def read_object(path: Path) -> ObjectImage:
    """Read an object that `edgexnas predict` or a service has written, .npz or HDF5.

    Raises
    ------
    SourceError
        If the file cannot be read, or holds no object.
    """
    try:
        if path.suffix.lower() == ".npz":
            # Opened here: numpy leaves open what is no zip file.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                values, coverage = file["object"], file["coverage"]
                origin = file["origin_px"]
        else:
            h5py = h5py_for(f"reading the HDF5 file {path}")
            with h5py.File(path, "r") as file:
                data = file["entry/object"]
                values = data["amplitude"][:] * np.exp(1j * data["phase"][:])
                coverage = data["coverage"][:]
                origin = np.array([data["row_px"][0], data["col_px"][0]])
        row, col = map(int, origin)
        if values.ndim != 2 or values.shape != coverage.shape:
            raise ValueError(f"it has shapes {values.shape} and {coverage.shape}")
        if not (np.isfinite(values).all() and np.isfinite(coverage).all()):
            raise ValueError("a value is not finite")
    except (OSError, KeyError, ValueError, TypeError, IndexError, EOFError, BadZipFile) as error:
        raise SourceError(
            f"{path} holds no object ({error}); specify a file that edgexnas predict has written "
            "with a bundle of ptychography"
        ) from error
    return ObjectImage(values.astype(np.complex64), coverage.astype(np.float32), 0, (row, col))


def turned_object(image: ObjectImage) -> npt.NDArray[np.complex64]:
    """Turn the mean phase of an object to 0."""
    # The angle of the sum, not the mean of angles, which is wrong across ±π.
    constant = np.exp(-1j * np.angle(image.values.sum(dtype=np.complex128)))
    turned: npt.NDArray[np.complex64] = (image.values * constant).astype(np.complex64)
    return turned
