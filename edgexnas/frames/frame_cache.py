"""Frame caches of hexrd, which keep the lit pixels of each frame.

``shape``, ``nframes`` and ``dtype`` describe all frames, and ``omega`` (n, 2), in degrees, is
optional. In a .npz file, frame k is the members ``k_row``, ``k_col`` and ``k_data``. In a .fch5
file, which is HDF5, it is the rows ``frame_ids[2k]`` to ``frame_ids[2k + 1]`` of ``indices``
(row, col) and of ``data``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from edgexnas.errors import SourceError
from edgexnas.frames.hdf5_file import open_hdf5_file
from edgexnas.frames.identity import SeriesIdentity
from edgexnas.frames.reading import check_shape, reading
from edgexnas.frames.series import Frame, LazyFrames

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


def holds_frame_cache(path: Path) -> bool:
    """Tell whether an HDF5 file is a frame cache."""
    with open_hdf5_file(path) as file, reading(str(path)):
        return "HEXRD_FRAMECACHE_VERSION" in file.attrs


def open_hdf5_frame_cache(path: Path) -> Hdf5FrameCache:
    """Open a frame cache of hexrd in an HDF5 file.

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    file = open_hdf5_file(path)
    try:
        return Hdf5FrameCache(path, file)
    except BaseException:
        file.close()
        raise


class _SparseFrames(LazyFrames):
    """Frames that are made dense when they are asked for."""

    def __init__(
        self, path: Path, *, shape: Any, count: Any, dtype: Any, omega: npt.NDArray[Any] | None
    ) -> None:
        with reading(f"the header of {path}"):
            rows, columns = (int(side) for side in shape)
            frames, kind = int(count), np.dtype(_text(np.asarray(dtype)))
        check_shape((rows, columns), frames, str(path))
        if kind.kind not in "uif":
            raise SourceError(f"{path} holds {kind} pixels; a frame cache needs real numbers")
        self._check_count(path, frames)
        if omega is not None and omega.shape != (frames, 2):
            raise SourceError(
                f"omega of {path} has shape {omega.shape}; {frames} frames need ({frames}, 2)"
            )
        super().__init__(
            count=frames,
            shape=(rows, columns),
            dtype=kind,
            source=str(path),
            omega_deg=None if omega is None else omega.astype(np.float64),
            identity=SeriesIdentity.of(path),
        )

    def _check_count(self, path: Path, count: int) -> None:
        """Refuse a header that claims more frames than the file can hold."""

    def _dense(self, row: Frame, col: Frame, data: Frame) -> Frame:
        frame = np.zeros(self.shape, self.dtype)
        if not row.shape == col.shape == data.shape:
            raise ValueError(f"{len(row)} rows, {len(col)} columns and {len(data)} values")
        # A negative index would silently wrap round to the other side of the frame.
        if len(row) and (row.min() < 0 or col.min() < 0):
            raise ValueError("a pixel lies outside the frame")
        frame[row, col] = data
        return frame


class Hdf5FrameCache(_SparseFrames):
    """A `FrameSeries` over a frame cache in an HDF5 file."""

    def __init__(self, path: Path, file: Any) -> None:
        with reading(str(path)):
            lacking = {"shape", "nframes", "dtype", "indices", "data", "frame_ids"} - set(file)
            if lacking:
                raise SourceError(
                    f"{path} is an incomplete frame cache: it lacks {min(lacking)!r}; "
                    "write it again"
                )
            omega = file.get("metadata/omega", file.get("omega"))
            angles = None if omega is None else np.asarray(omega[()])
            header = {"shape": file["shape"][()], "count": file["nframes"][()]}
            super().__init__(path, **header, dtype=file["dtype"][()], omega=angles)
            bounds = np.asarray(file["frame_ids"][()]).ravel()
        held = len(file["indices"])
        starts, stops = bounds[::2], bounds[1::2]
        if bounds.shape != (2 * len(self),) or (starts > stops).any() or stops.max() > held:
            raise SourceError(
                f"{path} claims {len(self)} frames and {bounds.size} ends of frames over {held} "
                "pixels, which do not fit; write it again"
            )
        self._file, self._bounds = file, bounds.reshape(-1, 2)

    def _frame(self, index: int) -> Frame:
        with reading(f"frame {index} of {self.source}"):
            lit = slice(*(int(bound) for bound in self._bounds[index]))
            place = np.asarray(self._file["indices"][lit])
            return self._dense(place[:, 0], place[:, 1], np.ravel(self._file["data"][lit]))

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._file.close()


class FrameCache(_SparseFrames):
    """A `FrameSeries` over a frame cache in a .npz file."""

    def __init__(self, path: Path, archive: ZipFile) -> None:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        lacking = sorted({"shape", "nframes", "dtype"} - members)
        if lacking:
            raise SourceError(
                f"{path} is no frame cache: it lacks the member {lacking[0]!r}; "
                "save plain frames as .npy or HDF5"
            )
        with reading(f"the header of {path}"):
            header = {
                "shape": _member(archive, "shape"),
                "count": _member(archive, "nframes"),
                "dtype": _member(archive, "dtype"),
            }
        self._members = members
        with reading(f"omega of {path}"):
            omega = _member(archive, "omega") if "omega" in members else None
        super().__init__(path, **header, omega=omega)
        self._archive = archive

    def _check_count(self, path: Path, count: int) -> None:
        # Each frame has three members, beside those of the header.
        if 3 * count > len(self._members):
            raise SourceError(
                f"{path} claims {count} frames but has only {len(self._members)} members; "
                "it is incomplete: write it again"
            )

    def _frame(self, index: int) -> Frame:
        with reading(f"frame {index} of {self.source}"):
            names = (f"{index}_row", f"{index}_col", f"{index}_data")
            return self._dense(*(_member(self._archive, name) for name in names))

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
