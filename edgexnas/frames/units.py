"""Units of numbers in NeXus and CXI files."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgexnas.errors import SourceError

__all__ = ["units_scale"]

_DEGREE = 180 / np.pi
_ELECTRONVOLT = 1.602176634e-19

_UNITS: dict[str, dict[str, float]] = {
    "length": {
        "m meter metre": 1,
        "cm centimeter centimetre": 1e-2,
        "mm millimeter millimetre": 1e-3,
        "um µm μm micron micrometer micrometre": 1e-6,
        "nm nanometer nanometre": 1e-9,
        "a å angstrom": 1e-10,
        "pm": 1e-12,
    },
    "energy": {
        "j joule": 1,
        "ev": _ELECTRONVOLT,
        "kev": 1e3 * _ELECTRONVOLT,
    },
    "angle": {
        "deg degree °": 1,
        "rad radian": _DEGREE,
        "mrad": 1e-3 * _DEGREE,
        "urad µrad μrad": 1e-6 * _DEGREE,
        "mdeg": 1e-3,
        "arcmin": 1 / 60,
        "arcsec": 1 / 3600,
    },
}
"""Names of each unit, and what it is in metres, joules or degrees."""


def units_scale(item: Any, quantity: str, path: object) -> float:
    """Tell by what to multiply the numbers of a dataset to get metres, joules or degrees.

    Parameters
    ----------
    item
        A dataset with or without the attribute `units`; without it is in these units.
    quantity
        "length", "energy" or "angle".
    path
        The file, for messages.

    Raises
    ------
    SourceError
        If the unit is none of this quantity.
    """
    units = item.attrs.get("units")
    if isinstance(units, np.ndarray) and units.size == 1:
        units = units.flat[0]
    if isinstance(units, bytes):
        units = units.decode("utf-8", "replace")
    if units is None or not str(units).strip():
        return 1.0
    scales = {name: by for names, by in _UNITS[quantity].items() for name in names.split()}
    name = str(units).strip().casefold()
    for known in (name, name.rstrip("s")):
        if known in scales:
            return scales[known]
    known_units = ", ".join(names.split()[0] for names in _UNITS[quantity])
    raise SourceError(
        f"{item.name} of {path} is in {str(units)!r}, which is no known unit of "
        f"{quantity}; write it in one of {known_units}"
    )
