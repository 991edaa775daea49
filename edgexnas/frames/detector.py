"""What an HDF5 file says of its detector: unusable pixels, saturation and rotation angles.

Objects of h5py are `Any` here: the module is imported without h5py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import SourceError
from edgexnas.frames.hdf5_layout import text_of, where_link_leads
from edgexnas.frames.missing import examine_storage
from edgexnas.frames.reading import reading
from edgexnas.frames.units import units_scale

__all__ = ["pixel_mask", "rotation_angles", "saturation_value"]

_log = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]
Omega = npt.NDArray[np.float64]

_MASK = re.compile(r"(bad_)?pixel_mask(_[0-9]+)?|bad_pixels")
_CXI_MASK = re.compile(_MASK.pattern + "|mask")
"""In a detector's own group `mask` has CXI's meaning, 0 for a good pixel; elsewhere it may be the
opposite."""

_SATURATION = ("saturation_value", "countrate_correction_count_cutoff", "count_cutoff")
_SPECIFIC = "detectorSpecific"

_ANGLES = (
    "omega_deg",
    "omega",
    "/entry/data/omega_deg",
    "/entry/sample/goniometer/omega",
    "/entry/sample/transformations/omega",
)
_ANGLE_GROUPS = ("/entry/sample/goniometer", "/entry/sample/transformations")
_AXIS = re.compile(r"omega|phi|chi|kappa|theta|gonio\w*|rot(?!.*_(end|set|average|total))\w*")


def pixel_mask(file: Any, dataset: Any, count: int, path: Path) -> Mask | None:
    """Read which pixels of a detector are unusable; any set bit makes one so.

    Masks of single frames are used together: a pixel that one of them has is unusable throughout.

    Parameters
    ----------
    file, dataset
        The file, and the frames in it or in one that it links to.
    count
        Frames in all.
    path
        The file, for messages.

    Raises
    ------
    SourceError
        If a mask cannot be used: its link leads nowhere, or it has another shape.
    """
    shape = tuple(dataset.shape[-2:])
    found: dict[str, Mask] = {}
    unfit = []
    for group, own in _groups(file, dataset):
        names = _CXI_MASK if own else _MASK
        for holder, name in _members(group, names):
            mask = _mask_dataset(holder, name, path)
            if tuple(mask.shape[-2:]) == shape and prod(mask.shape[:-2]) in (1, count):
                found[mask.name] = _read_mask(mask, path)
            else:
                unfit.append(mask)
    # Another detector's mask does not fit, and need not where this one's does.
    if unfit and not found:
        raise SourceError(
            f"{unfit[0].name} of {path} has shape {unfit[0].shape}, and the frames have {shape}; "
            "give the mask of these frames, or leave it out with file_mask=0"
        )
    if not found:
        return None
    together: Mask = np.logical_or.reduce(list(found.values()))
    if any((mask != together).any() for mask in found.values()) and len(found) > 1:
        _log.warning("%s holds several masks, which are used together: %s", path, ", ".join(found))
    if together.all():
        raise SourceError(
            f"{', '.join(found)} of {path} masks every pixel; 0 stands for a good pixel there: "
            "turn it round, or leave it out with file_mask=0"
        )
    return together


def saturation_value(file: Any, dataset: Any, path: Path) -> float | None:
    """Read from how many counts a pixel is saturated, the lowest if several values are given."""
    found = []
    for group, _ in _groups(file, dataset):
        for place in (group, group.get(_SPECIFIC)):
            for name in _SATURATION:
                values = None if place is None else _numbers(place, name)
                if values is not None:
                    good = values[np.isfinite(values) & (values > 0)]
                    found += [float(good.min())] if good.size else []
                    if not good.size:
                        _log.warning(
                            "%s/%s of %s is %s, which is no saturation; it is not used",
                            place.name,
                            name,
                            path,
                            values.ravel()[:1],
                        )
    # Too low a level flags a good peak; too high a one hides a bad one.
    return min(found, default=None)


def rotation_angles(file: Any, dataset: Any, count: int, path: Path) -> Omega | None:
    """Read the rotation angles, as start and end of each frame in degrees, (count, 2).

    They turn about the axis as the file gives it. Of several axes the first that moves is taken.

    Raises
    ------
    SourceError
        If they are in an unknown unit.
    """
    first: Omega | None = None
    for angles in _rotations(file, dataset.parent, count, path):
        if angles.shape == (count, 2) and np.ptp(angles[:, 0]) > 0:
            return angles
        first = angles if first is None else first
    return first


def _groups(file: Any, dataset: Any) -> Iterator[tuple[Any, bool]]:
    """Yield the groups that may describe a dataset's detector, and whether each is its own."""
    yield dataset.parent, _is_detector(dataset.parent)
    seen = {dataset.parent.name}
    parts = dataset.name.split("/")
    entries = [parts[1]] if len(parts) > 2 and parts[1] in file else list(file)
    detectors = []
    for entry in (file.get(name) for name in entries):
        for name in entry if hasattr(entry, "keys") else ():
            instrument = entry.get(name)
            if not hasattr(instrument, "keys") or not _is_instrument(name, instrument):
                continue
            groups = (instrument.get(detector) for detector in instrument)
            detectors += [group for group in groups if hasattr(group, "keys")]
    # The detector that holds these very frames is the only one that counts.
    holding = [group for group in detectors if _holds(group, dataset)]
    for group in holding or detectors:
        if group.name not in seen:
            seen.add(group.name)
            yield group, True


def _is_detector(group: Any) -> bool:
    if text_of(group.attrs.get("NX_class")) == "NXdetector":
        return True
    return re.search(r"instrument[^/]*/[^/]+$", group.name) is not None


def _is_instrument(name: str, group: Any) -> bool:
    return name.startswith("instrument") or text_of(group.attrs.get("NX_class")) == "NXinstrument"


def _holds(group: Any, dataset: Any) -> bool:
    # h5py compares the objects in the file, so a link to the frames counts as well.
    return any(group.get(name, getlink=False) == dataset for name in ("data", "raw_data"))


def _members(group: Any, names: re.Pattern[str]) -> Iterator[tuple[Any, str]]:
    """Members of a group and of its vendor's part whose names fit, links that dangle included."""
    for holder in (group, group.get(_SPECIFIC)):
        if hasattr(holder, "keys"):
            yield from ((holder, name) for name in holder if names.fullmatch(name))


def _mask_dataset(group: Any, name: str, path: Path) -> Any:
    label = f"the pixel mask {group.name.rstrip('/')}/{name} of {path}"
    with reading(label):
        try:
            found = group.get(name)
        except (KeyError, OSError, RuntimeError):
            found = None
    if found is None:
        file, place = where_link_leads(group, name)
        target = f"{place} of the file {file}, which is missing" if file else f"{place}, nowhere"
        raise SourceError(
            f"{label} leads to {target}; copy that beside it, or leave the mask out with "
            "file_mask=0"
        )
    if getattr(found, "shape", None) is None or found.dtype.kind not in "uifb":
        raise SourceError(f"{label} holds no numbers; leave it out with file_mask=0")
    return found


def _read_mask(mask: Any, path: Path) -> Mask:
    lacking = examine_storage(mask).missing if mask.is_virtual else {}
    if lacking:
        raise SourceError(
            f"the pixel mask {mask.name} of {path} is missing: {next(iter(lacking.values()))}; "
            "leave it out with file_mask=0"
        )
    unusable = np.zeros(mask.shape[-2:], bool)
    with reading(f"the pixel mask {mask.name} of {path}"):
        for index in np.ndindex(mask.shape[:-2]):
            unusable |= mask[index] != 0
    return unusable


def _numbers(group: Any, place: str) -> npt.NDArray[Any] | None:
    """Values of a numeric dataset, or None if there is no such dataset."""
    try:
        found = group.get(place)
    except (KeyError, OSError, RuntimeError):
        return None
    if not hasattr(found, "dtype") or found.shape is None or found.dtype.kind not in "uif":
        return None
    return np.asarray(found[()])


def _rotations(file: Any, group: Any, count: int, path: Path) -> Iterator[Omega]:
    places = [(group, name) for name in _ANGLES]
    for name in _ANGLE_GROUPS:
        holder = file.get(name)
        if hasattr(holder, "keys"):
            places += [(holder, axis) for axis in holder if _AXIS.fullmatch(axis)]
    for holder, place in places:
        angles = _degrees(holder, place, path)
        if angles is None:
            continue
        if angles.shape == (count, 2):
            yield angles
        elif angles.shape == (count,):
            yield _start_and_end(holder, place, angles, path)
        elif angles.size > 1:
            _log.warning(
                "%s of %s holds angles of shape %s for %d frames; they are not used",
                place,
                path,
                angles.shape,
                count,
            )


def _degrees(group: Any, place: str, path: Path) -> Omega | None:
    values = _numbers(group, place)
    if values is None or text_of(group[place].attrs.get("transformation_type")) == "translation":
        return None
    return values.astype(np.float64) * units_scale(group[place], "angle", path)


def _start_and_end(group: Any, place: str, start: Omega, path: Path) -> Omega:
    end = _degrees(group, f"{place}_end", path)
    if end is None or end.shape != start.shape:
        # Without stated ends a frame ends where the next begins, the last after the same step.
        stated = _degrees(group, f"{place}_increment_set", path)
        step = start[-1] - start[-2] if len(start) > 1 else 0.0
        if stated is not None and stated.size:
            step = float(stated.flat[-1])
        end = np.append(start[1:], start[-1] + step)
    return np.stack([start, end], axis=1)
