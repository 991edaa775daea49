"""Spots as DIALS reads them: a reflection table (.refl), as its spot finder leaves it.

A table is MessagePack: ``["dials::af::reflection_table", 1, {identifiers, nrows, data}]``, where
data maps a name to ``[type, [rows, bytes]]``, little-endian. DIALS counts pixels and frames from
the edge of the first one: its x, y and z are col + 0.5, row + 0.5, and the angle in frames from the
start of frame 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError, MissingDependencyError, SourceError
from edgexnas.merging import Rotation
from edgexnas.spots import Spots

__all__ = ["read_reflections", "spots_of", "write_reflections"]

_KIND, _VERSION = "dials::af::reflection_table", 1

_STRONG = 1 << 5
"""The flag with which the spot finder of DIALS marks its spots."""

_TYPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "int": ("<i4", ()),
    "int6": ("<i4", (6,)),
    "double": ("<f8", ()),
    "std::size_t": ("<u8", ()),
    "bool": ("?", ()),
    "vec3<double>": ("<f8", (3,)),
    "vec2<double>": ("<f8", (2,)),
    "mat3<double>": ("<f8", (9,)),
    "cctbx::miller::index<>": ("<i4", (3,)),
}

_MALFORMED = (ValueError, TypeError, KeyError, AttributeError)

_MOST_BYTES = 2**31
"""A longer column is taken for a damaged file."""


def write_reflections(path: Path, spots: Spots, *, rotation: Rotation) -> None:
    """Write a reflection table.

    Parameters
    ----------
    rotation
        Angles of the frames, in equal steps.

    Raises
    ------
    MissingDependencyError
        If msgpack is not installed.
    OSError
        If the file cannot be written.
    """
    row, col = spots.positions_px.T.astype(np.float64)
    z = (spots.omega_deg - rotation.start_deg) / rotation.step_deg
    row_sigma, col_sigma = spots.sigmas_px.T.astype(np.float64)
    z_sigma = spots.omega_sigmas_deg.astype(np.float64) / abs(rotation.step_deg)
    corner = np.stack([np.rint(col), np.rint(row)], axis=1)
    box = np.empty((len(spots), 6))
    # The spot finder gives the box of a spot's pixels; here the 5×5 pixels around its centre.
    box[:, [0, 2]], box[:, [1, 3]] = corner - 2, corner + 3
    box[:, 4], box[:, 5] = spots.frames[:, 0], spots.frames[:, 1] + 1
    zero = np.zeros(len(spots))
    columns: dict[str, tuple[str, npt.NDArray[Any]]] = {
        "bbox": ("int6", box),
        "flags": ("std::size_t", zero + _STRONG),
        "id": ("int", zero - 1),
        "imageset_id": ("int", zero),
        "intensity.sum.value": ("double", spots.intensities),
        # Of counts; DIALS weighs by it.
        "intensity.sum.variance": ("double", np.maximum(spots.intensities, 1)),
        "panel": ("std::size_t", zero),
        "xyzobs.px.value": ("vec3<double>", np.stack([col + 0.5, row + 0.5, z], axis=1)),
        "xyzobs.px.variance": (
            "vec3<double>",
            np.stack([col_sigma, row_sigma, z_sigma], axis=1) ** 2,
        ),
    }
    data = {
        name: [kind, [len(spots), np.ascontiguousarray(values, _TYPES[kind][0]).tobytes()]]
        for name, (kind, values) in columns.items()
    }
    table = {"identifiers": {}, "nrows": len(spots), "data": data}
    path.write_bytes(_msgpack().packb([_KIND, _VERSION, table]))


def read_reflections(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the columns of a reflection table by their DIALS names.

    Columns of other types, such as shoeboxes, are left out.

    Raises
    ------
    MissingDependencyError
        If msgpack is not installed.
    SourceError
        If the file cannot be read, or is no reflection table.
    """
    msgpack = _msgpack()
    try:
        content = path.read_bytes()
        kind, version, table = msgpack.unpackb(
            content, strict_map_key=False, max_bin_len=_MOST_BYTES
        )
        if (kind, version) != (_KIND, _VERSION):
            raise ValueError(f"it is a {str(kind)[:60]!r} of version {version!r}")
        return dict(_read_columns(table))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except (*_MALFORMED, msgpack.exceptions.UnpackException) as error:
        raise SourceError(
            f"{path} is no reflection table of DIALS ({error}); specify a .refl file"
        ) from error


def spots_of(columns: dict[str, npt.NDArray[Any]], *, rotation: Rotation) -> Spots:
    """Make spots of the columns of a table of observed spots.

    Raises
    ------
    InputError
        If a column is missing.
    """
    names = ("xyzobs.px.value", "xyzobs.px.variance", "intensity.sum.value", "bbox")
    missing = [name for name in names if name not in columns]
    if missing:
        raise InputError(
            f"the reflection table lacks {', '.join(missing)}; specify one of observed spots"
        )
    place, variance, counts, box = (columns[name] for name in names)
    return Spots(
        (place[:, [1, 0]] - 0.5).astype(np.float32),
        np.sqrt(variance[:, [1, 0]]).astype(np.float32),
        rotation.start_deg + place[:, 2] * rotation.step_deg,
        (np.sqrt(variance[:, 2]) * abs(rotation.step_deg)).astype(np.float32),
        counts.astype(np.float32),
        (box[:, 5] - box[:, 4]).astype(np.int32),
        (box[:, 4:6] - [0, 1]).astype(np.int64),
        np.zeros(len(place), np.uint16),
    )


def _read_columns(table: Any) -> Any:
    count = table["nrows"]
    for name, (kind, (rows, content)) in table["data"].items():
        if kind in _TYPES:
            dtype, shape = _TYPES[kind]
            values = np.frombuffer(content, dtype).reshape(rows, *shape)
            if rows != count:
                raise ValueError(f"{name} has {rows} rows, and the table {count}")
            yield str(name), values


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError:
        raise MissingDependencyError.of(
            "msgpack", extra="formats", purpose="a reflection table of DIALS"
        ) from None
    return msgpack
