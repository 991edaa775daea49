"""Frame caches of hexrd: a .npz file that keeps the lit pixels of each frame.

Frame k is the members ``k_row``, ``k_col`` and ``k_data``; ``shape``, ``nframes`` and ``dtype``
describe all of them, and ``omega`` (n, 2), in degrees, is optional.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from edgexnas.errors import SourceError
from edgexnas.frames.reading import check_shape, reading
from edgexnas.frames.series import Frame, LazyFrames, Omega

_MAXIMUM_INFLATED_BYTES = 2**31


def open_frame_cache(path: Path) -> FrameCache:
    """Open a frame cache of hexrd.

    Raises
    ------
    SourceError
        If the file is damaged, or is a .npz file with something else in it.
    """
    with reading(str(path)):
        # np.load would leave the file open if the archive is damaged.
        archive = ZipFile(path)
    try:
        return FrameCache(path, archive)
    except BaseException:
        archive.close()
        raise


class FrameCache(LazyFrames):
    """A `FrameSeries` over a frame cache; a frame is made dense when it is asked for."""

    def __init__(self, path: Path, archive: ZipFile) -> None:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        lacking = sorted({"shape", "nframes", "dtype"} - members)
        if lacking:
            raise SourceError(
                f"{path} is no frame cache: it lacks the member {lacking[0]!r}; "
                "save plain frames as .npy or HDF5"
            )
        with reading(f"the header of {path}"):
            rows, columns = (int(side) for side in _member(archive, "shape"))
            count = int(_member(archive, "nframes"))
            dtype = np.dtype(_text(_member(archive, "dtype")))
        check_shape((rows, columns), count, str(path))
        if dtype.kind not in "uif":
            raise SourceError(f"{path} holds {dtype} pixels; a frame cache needs real numbers")
        self._check_members(path, members, count)
        super().__init__(
            count=count,
            shape=(rows, columns),
            dtype=dtype,
            source=str(path),
            omega_deg=_omega(path, archive, count) if "omega" in members else None,
        )
        self._archive = archive

    @staticmethod
    def _check_members(path: Path, members: set[str], count: int) -> None:
        if 3 * count > len(members):
            raise SourceError(
                f"{path} claims {count} frames but has only {len(members)} members; "
                "it is incomplete: write it again"
            )

    def _frame(self, index: int) -> Frame:
        frame = np.zeros(self.shape, self.dtype)
        with reading(f"frame {index} of {self.source}"):
            names = (f"{index}_row", f"{index}_col", f"{index}_data")
            row, col, data = (_member(self._archive, name) for name in names)
            if not row.shape == col.shape == data.shape:
                raise ValueError(f"{len(row)} rows, {len(col)} columns and {len(data)} values")
            # A negative index would silently wrap round to the other side of the frame.
            if len(row) and (row.min() < 0 or col.min() < 0):
                raise ValueError("a pixel lies outside the frame")
            frame[row, col] = data
        return frame

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._archive.close()


def _member(archive: ZipFile, name: str) -> npt.NDArray[Any]:
    """Read a member, unless it would inflate to more than memory should hold."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > _MAXIMUM_INFLATED_BYTES:
        raise ValueError(f"the member {name!r} would take {info.file_size} bytes")
    with archive.open(info) as file:
        values: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return values


def _text(value: npt.NDArray[Any]) -> str:
    text = value.item()
    return text.decode("ascii") if isinstance(text, bytes) else str(text)


def _omega(path: Path, archive: ZipFile, count: int) -> Omega:
    with reading(f"omega of {path}"):
        omega: Omega = _member(archive, "omega").astype(np.float64)
    if omega.shape != (count, 2):
        raise SourceError(
            f"omega of {path} has shape {omega.shape}; {count} frames need ({count}, 2)"
        )
    return omega
