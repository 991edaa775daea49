"""An object of ptychography as CXI: one complex image, after the CXI file format 1.6 (2016)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgexnas.forms.object_nexus import turned_object
from edgexnas.hdf5_library import h5py_for, new_hdf5
from edgexnas.ptycho import ObjectImage

__all__ = ["write_cxi_object"]

_MISSING = 0x200
"""The bit of CXI's masks for a pixel that was not measured."""


def write_cxi_object(path: Path, image: ObjectImage, *, title: str) -> None:
    """Write an object; NeXus tools show its phase.

    ::

        /cxi_version             160
        /entry_1                 NXentry, default "data_1"
            image_1              data (H, W) complex64, data_space "real", data_type "unitless",
                                 image_size in pixels, mask (H, W) uint32: 0x200, missing, where
                                 there is no patch
            data_1               NXdata, signal "phase", rad

    Raises
    ------
    MissingDependencyError
        If h5py is not installed.
    OSError
        If the file cannot be written.
    """
    h5py = h5py_for("CXI")
    values = turned_object(image)
    with new_hdf5(path, "CXI") as file:
        file.attrs.update({"NX_class": "NXroot", "default": "entry_1"})
        file["cxi_version"] = 160
        entry = file.create_group("entry_1")
        entry.attrs.update({"NX_class": "NXentry", "default": "data_1"})
        entry["title"] = title
        result = entry.create_group("image_1")
        result.attrs["NX_class"] = "NXcollection"
        result["data"] = values
        result["data_space"], result["data_type"] = "real", "unitless"
        result["image_size"] = np.array(values.shape)
        result["mask"] = np.where(image.coverage > 0, 0, _MISSING).astype(np.uint32)
        data = entry.create_group("data_1")
        data.attrs.update({"NX_class": "NXdata", "signal": "phase"})
        data["phase"] = np.angle(values)
        data["phase"].attrs["units"] = "rad"
        data["data"] = h5py.SoftLink("/entry_1/image_1/data")
