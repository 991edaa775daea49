"""Keep a stitched object: its values and coverage in one file, and pictures beside it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from edgexnas.errors import ConfigurationError
from edgexnas.forms.object_nexus import turned_object, write_nexus_object
from edgexnas.ptycho import ObjectImage, Refinement
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


def save_object(
    image: ObjectImage, path: str | Path, *, refinement: Refinement | None = None
) -> tuple[Path, ...]:
    """Write an object, whole or not at all, then pictures of its phase and amplitude.

    Parameters
    ----------
    image
        The object as it was stitched.
    path
        NAME.npz with the arrays object (H, W) complex64, coverage (H, W) float32 and origin_px
        (2,); or NAME.h5, as of `write_nexus_object`. The pictures are NAME-phase.png and
        NAME-amplitude.png. In the arrays the mean phase of the object is turned to 0, since a
        constant is not known.
    refinement
        What became of the object by refinement: `object` is the refined one then, and the file has
        besides network (H, W) complex64, the object as it was stitched, and residuals and seconds
        (sweeps + 1,) float64. NAME-refinement.png shows both phases and their difference.

    Returns
    -------
    The paths of the files.

    Raises
    ------
    ConfigurationError
        As of `check_object_path`, or if the disk is full.
    MissingDependencyError
        If h5py is not installed and HDF5 is asked for.
    """
    from edgexnas.device.pictures.pictures import (
        amplitude_picture,
        phase_picture,
        refinement_picture,
    )

    place = check_object_path(path)
    shown = image if refinement is None else refinement.image
    pictures = {
        place.with_name(f"{place.stem}-phase.png"): phase_picture(shown).png,
        place.with_name(f"{place.stem}-amplitude.png"): amplitude_picture(shown).png,
    }
    if refinement is not None:
        compared = refinement_picture(image, refinement.image).png
        pictures[place.with_name(f"{place.stem}-refinement.png")] = compared
    try:
        # The object first: pictures without it would look like success.
        with whole_file(place) as draft:
            if place.suffix.lower() == ".npz":
                _write_npz(draft, image, refinement)
            else:
                write_nexus_object(draft, image, title=place.stem, refinement=refinement)
        for name, content in pictures.items():
            write_whole(name, content)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written: {error.strerror or error}; choose another folder or free "
            "some space"
        ) from error
    return place, *pictures


def _write_npz(draft: Path, image: ObjectImage, refinement: Refinement | None) -> None:
    arrays = {
        "object": turned_object(image if refinement is None else refinement.image),
        "coverage": image.coverage,
        "origin_px": np.array(image.origin_px, np.int64),
    }
    if refinement is not None:
        arrays["network"] = turned_object(image)
        arrays["residuals"], arrays["seconds"] = refinement.residuals, refinement.seconds
    with draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
