"""Keep a stitched object: its values and coverage in one file, and pictures beside it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from edgexnas.errors import ConfigurationError
from edgexnas.forms.object_nexus import turned_object, write_nexus_object
from edgexnas.ptycho import ObjectImage
from edgexnas.whole_files import whole_file, write_whole

__all__ = ["OBJECT_SUFFIXES", "check_object_path", "save_object"]

OBJECT_SUFFIXES = (".npz", ".h5", ".hdf5", ".nxs")


def check_object_path(path: str | Path) -> Path:
    """Reject a place where no object can be kept, before there is one.

    Raises
    ------
    ConfigurationError
        If the suffix is none of `OBJECT_SUFFIXES`, or the folder does not exist or cannot be
        written.
    """
    place = Path(path)
    if place.suffix.lower() not in OBJECT_SUFFIXES:
        raise ConfigurationError(
            f"{place} has no suffix that tells its format; specify one of {OBJECT_SUFFIXES}"
        )
    # Asked before a scan begins: an hour of measuring must not end at a full path.
    if place.is_dir() or not os.access(place.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{place} cannot be written; specify a file in a folder that exists and is yours"
        )
    return place


def save_object(image: ObjectImage, path: str | Path) -> tuple[Path, ...]:
    """Write an object, whole or not at all, then pictures of its phase and amplitude.

    Parameters
    ----------
    path
        NAME.npz with the arrays object (H, W) complex64, coverage (H, W) float32 and origin_px
        (2,); or NAME.h5, as of `write_nexus_object`. The pictures are NAME-phase.png and
        NAME-amplitude.png. In the arrays the mean phase of the object is turned to 0, since a
        constant is not known.

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
    from edgexnas.device.pictures.pictures import amplitude_picture, phase_picture

    place = check_object_path(path)
    pictures = {
        place.with_name(f"{place.stem}-phase.png"): phase_picture(image).png,
        place.with_name(f"{place.stem}-amplitude.png"): amplitude_picture(image).png,
    }
    try:
        # The object first: pictures without it would look like success.
        with whole_file(place) as draft:
            if place.suffix.lower() == ".npz":
                _write_npz(draft, image)
            else:
                write_nexus_object(draft, image, title=place.stem)
        for name, content in pictures.items():
            write_whole(name, content)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written: {error.strerror or error}; choose another folder or free "
            "some space"
        ) from error
    return place, *pictures


def _write_npz(draft: Path, image: ObjectImage) -> None:
    arrays = {
        "object": turned_object(image),
        "coverage": image.coverage,
        "origin_px": np.array(image.origin_px, np.int64),
    }
    with draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
