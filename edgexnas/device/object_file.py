"""Keep a stitched object: its values and coverage in one file, and pictures beside it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from edgexnas.errors import ConfigurationError, MissingDependencyError
from edgexnas.ptycho import ObjectImage
from edgexnas.whole_files import whole_file, write_whole

__all__ = ["OBJECT_SUFFIXES", "check_object_path", "save_object"]

OBJECT_SUFFIXES = (".npz", ".h5", ".hdf5", ".nxs")


def check_object_path(path: str | Path) -> Path:
    """Refuse a place where no object can be kept, before there is one.

    Raises
    ------
    ConfigurationError
        If the suffix is none of `OBJECT_SUFFIXES`, or the folder does not exist or cannot be
        written.
    """
    place = Path(path)
    if place.suffix.lower() not in OBJECT_SUFFIXES:
        raise ConfigurationError(
            f"{place} has no suffix that tells its format; give one of {OBJECT_SUFFIXES}"
        )
    if place.is_dir() or not os.access(place.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{place} cannot be written; give a file in a folder that exists and is yours"
        )
    return place


def save_object(image: ObjectImage, path: str | Path) -> tuple[Path, ...]:
    """Write an object, whole or not at all, then pictures of its phase and amplitude.

    Parameters
    ----------
    path
        NAME.npz with the arrays object (H, W) complex64, coverage (H, W) float32 and origin_px
        (2,); or NAME.h5 with the same as NeXus, in entry/object. The mean phase of the object is
        turned to 0, since a constant is not known. The pictures are NAME-phase.png and
        NAME-amplitude.png.

    Returns
    -------
    The paths of the three files.

    Raises
    ------
    ConfigurationError
        As of `check_object_path`, or if the disk is full.
    MissingDependencyError
        If h5py is not installed and HDF5 is asked for.
    """
    from edgexnas.device.monitoring.pictures import amplitude_picture, phase_picture

    place = check_object_path(path)
    turned = image.values * np.exp(-1j * np.angle(image.values.sum(dtype=np.complex128)))
    arrays = {
        "object": turned.astype(np.complex64),
        "coverage": image.coverage,
        "origin_px": np.array(image.origin_px, np.int64),
    }
    pictures = {
        place.with_name(f"{place.stem}-phase.png"): phase_picture(image).png,
        place.with_name(f"{place.stem}-amplitude.png"): amplitude_picture(image).png,
    }
    try:
        with whole_file(place) as draft:
            (_write_npz if place.suffix.lower() == ".npz" else _write_hdf5)(draft, arrays)
        for name, content in pictures.items():
            write_whole(name, content)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written: {error.strerror or error}; choose another folder or free "
            "some space"
        ) from error
    return place, *pictures


def _write_npz(draft: Path, arrays: dict[str, np.ndarray]) -> None:
    with draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_hdf5(draft: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError.of(
            "h5py", extra="device", purpose="writing an object as HDF5; .npz needs nothing"
        ) from None
    with h5py.File(draft, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs["NX_class"], entry.attrs["default"] = "NXentry", "object"
        group = entry.create_group("object")
        group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "object"
        for name, values in arrays.items():
            group.create_dataset(name, data=values)
