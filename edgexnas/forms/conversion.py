"""Which forms there are, and how one is chosen and written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.forms import FORMS, Form
from edgexnas.forms.columnfile import write_columnfile, write_hdf5_columnfile
from edgexnas.forms.csv_tables import spot_rows
from edgexnas.forms.cxi_peaks import write_cxi_peaks
from edgexnas.forms.midas_list import write_midas_list
from edgexnas.forms.object_cxi import write_cxi_object
from edgexnas.forms.object_nexus import write_nexus_object
from edgexnas.forms.object_tiff import write_tiff_object
from edgexnas.forms.reflections import write_reflections
from edgexnas.merging import MergeSettings, Rotation
from edgexnas.ptycho import ObjectImage
from edgexnas.spots import SPOT_COLUMNS, Spots
from edgexnas.whole_files import whole_file

__all__ = ["Kind", "form_of", "write_form"]

Kind: TypeAlias = Literal["peaks", "spots", "object"]

_KINDS: dict[Form, tuple[Kind, ...]] = {
    "csv": ("spots",),
    "imaged11": ("spots",),
    "imaged11-hdf5": ("spots",),
    "midas": ("spots",),
    "dials": ("spots",),
    "cxi": ("peaks", "object"),
    "nexus": ("object",),
    "tiff": ("object",),
}
"""What each form holds."""

_SUFFIXES: dict[str, tuple[Form, ...]] = {
    ".csv": ("csv",),
    ".flt": ("imaged11",),
    ".h5": ("imaged11-hdf5", "nexus"),
    ".hdf5": ("imaged11-hdf5", "nexus"),
    ".refl": ("dials",),
    ".cxi": ("cxi",),
    ".nxs": ("nexus",),
    ".tif": ("tiff",),
    ".tiff": ("tiff",),
}


def form_of(path: Path, form: Form | None, *, peaks: bool) -> tuple[Form, Kind]:
    """Choose the form of a file, and what is written to it.

    Parameters
    ----------
    path
        The file; its suffix says the form unless `form` does.
    peaks
        Whether there are peaks or spots to write; else there is an object.

    Raises
    ------
    ConfigurationError
        If neither says a form, or the form does not hold such results.
    """
    held: tuple[Kind, ...] = ("peaks", "spots") if peaks else ("object",)
    chosen = (form,) if form is not None else _SUFFIXES.get(path.suffix.lower(), ())
    if not chosen:
        raise ConfigurationError(
            f"{path} has no suffix that tells its form; use one of {', '.join(_SUFFIXES)}, or "
            f"specify --form {', '.join(FORMS)}"
        )
    for one in chosen:
        for kind in _KINDS[one]:
            if kind in held:
                return one, kind
    fitting = [one for one in FORMS if set(_KINDS[one]) & set(held)]
    raise ConfigurationError(
        f"{chosen[0]} does not hold {' or '.join(held)}, which there are to convert; choose one of "
        f"{', '.join(fitting)}"
    )


def write_form(
    path: Path,
    form: Form,
    result: Spots | npt.NDArray[np.void] | ObjectImage,
    *,
    settings: MergeSettings | None = None,
    beam_centre_px: tuple[float, float] | None = None,
    frames: int | None = None,
) -> tuple[Path, ...]:
    """Write results in a form of others; each file appears whole.

    Parameters
    ----------
    result
        Spots, the peaks of all frames as (n,) of `csv_tables.PEAK`, or an object, as the form
        holds.
    settings
        With rotation angles, which "midas" and "dials" need.
    beam_centre_px
        (row, col), which "midas" needs.
    frames
        How many frames there are, for "cxi".

    Returns
    -------
    The paths of the files.

    Raises
    ------
    ConfigurationError
        If something that the form needs is missing.
    MissingDependencyError
        If a library that the form needs is not installed.
    OSError
        If a file cannot be written.
    """
    if form == "tiff":
        assert isinstance(result, ObjectImage)
        return write_tiff_object(path, result)
    if form in ("midas", "dials"):
        rotation = Rotation.of(settings or MergeSettings())
    if form == "midas" and beam_centre_px is None:
        raise ConfigurationError(
            "midas needs the beam centre, for the radius of each spot; specify --beam-centre-px"
        )
    with whole_file(path) as draft:
        if isinstance(result, ObjectImage):
            writer = write_cxi_object if form == "cxi" else write_nexus_object
            writer(draft, result, title=path.stem)
        elif not isinstance(result, Spots):
            write_cxi_peaks(draft, result, frames=frames)
        elif form == "imaged11":
            write_columnfile(draft, result)
        elif form == "imaged11-hdf5":
            write_hdf5_columnfile(draft, result)
        elif form == "midas":
            assert beam_centre_px is not None
            write_midas_list(draft, result, rotation=rotation, beam_centre_px=beam_centre_px)
        elif form == "dials":
            write_reflections(draft, result, rotation=rotation)
        else:
            with draft.open("w", newline="") as file:
                writer_ = csv.writer(file)
                writer_.writerow(SPOT_COLUMNS)
                writer_.writerows(spot_rows(result))
    return (path,)
