"""Frames in an HDF5 or NeXus file, read one at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError, MissingDependencyError, SourceError
from edgexnas.frames.hdf5_layout import (
    check_filters,
    check_virtual_sources,
    find_blocks,
    frame_axes,
)
from edgexnas.frames.reading import check_shape, reading
from edgexnas.frames.series import Frame, LazyFrames, Mask, Omega
from edgexnas.frames.truth import Truth

_MASK_PLACES = (
    "pixel_mask",
    "/entry/instrument/detector/pixel_mask",
    "/entry/instrument/detector/detectorSpecific/pixel_mask",
)
"""Relative to the group of the frames, then absolute."""

_OMEGA_PLACES = (
    "omega_deg",
    "omega",
    "/entry/data/omega_deg",
    "/entry/sample/goniometer/omega",
    "/entry/sample/transformations/omega",
)


def open_hdf5(path: Path, dataset: str | None = None) -> Hdf5Frames:
    """Open the frames of an HDF5 file; see `open_frames` for which dataset that is.

    Raises
    ------
    SourceError
        If the file is damaged, holds no frames, or holds several datasets that could be meant;
        if a file that it links to is missing, or a filter that its frames were written with.
    MissingDependencyError
        If h5py is not installed.
    """
    h5py = h5py_module(path)
    with reading(str(path)):
        file = h5py.File(path, "r")
    try:
        with reading(str(path)):
            return Hdf5Frames(path, file, find_blocks(file, path, dataset))
    except BaseException:
        file.close()
        raise


class Hdf5Frames(LazyFrames):
    """A `FrameSeries` over datasets of an HDF5 file, one after the other."""

    def __init__(self, path: Path, file: Any, blocks: list[Any]) -> None:
        for block in blocks:
            check_filters(block, path)
            check_virtual_sources(block, path)
        axes = [frame_axes(block, path) for block in blocks]
        count, shape = sum(axis.count for axis in axes), axes[0].shape
        check_shape(shape, count, f"{blocks[0].name} of {path}")
        for block, axis in zip(blocks, axes, strict=True):
            if axis.shape != shape or block.dtype != blocks[0].dtype:
                raise SourceError(
                    f"{block.name} of {path} holds {block.dtype} frames of {axis.shape}, but "
                    f"{blocks[0].name} holds {blocks[0].dtype} of {shape}; name one with dataset="
                )
        super().__init__(
            count=count,
            shape=shape,
            dtype=blocks[0].dtype,
            source=str(path),
            omega_deg=_omega(file, blocks[0].parent, count),
            mask=pixel_mask(blocks[0].parent, shape),
            truth=_truth(file, path),
        )
        self._file = file
        self._blocks = blocks
        self._axes = axes
        self._starts = np.cumsum([0, *(axis.count for axis in axes)])

    def _frame(self, index: int) -> Frame:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        block, axes = self._blocks[number], self._axes[number]
        with reading(f"frame {index} of {block.name} in {self.source}"):
            values = block[axes.selection(index - int(self._starts[number]))]
        return np.asarray(values).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._file.close()


def h5py_module(path: Path) -> ModuleType:
    """Import h5py for reading a file, and register the filters of hdf5plugin where it is there.

    Raises
    ------
    MissingDependencyError
        If h5py is not installed; it names the file.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError.of(
            "h5py", extra="device", purpose=f"reading the HDF5 file {path}"
        ) from None
    # Without it plain files are still readable; check_filters refuses the others.
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  (importing it registers the filters)
    module: ModuleType = h5py
    return module


def _dataset_values(group: Any, place: str) -> npt.NDArray[Any] | None:
    """Values of a numeric dataset, or None if there is no such dataset."""
    found = group.get(place)
    if not hasattr(found, "dtype") or found.shape is None or found.dtype.kind not in "uifb":
        return None
    return np.asarray(found[()])


def pixel_mask(group: Any, shape: tuple[int, int]) -> Mask | None:
    """Take the first pixel mask that fits the frames; any set bit makes a pixel unusable."""
    for place in _MASK_PLACES:
        values = _dataset_values(group, place)
        if values is not None and values.shape in (shape, (1, *shape)):
            mask: Mask = values.reshape(shape) != 0
            return mask
    return None


def _omega(file: Any, group: Any, count: int) -> Omega | None:
    """Take the first rotation angles that fit the frames, as start and end of each."""
    for place in _OMEGA_PLACES:
        values = _dataset_values(group, place)
        if values is None or values.dtype.kind == "b":
            continue
        if values.shape == (count, 2):
            return values.astype(np.float64)
        if values.shape == (count,):
            end = _dataset_values(group, f"{place}_end")
            return _start_and_end(values.astype(np.float64), end)
    return None


def _start_and_end(start: npt.NDArray[np.float64], end: npt.NDArray[Any] | None) -> Omega:
    if end is None or end.shape != start.shape:
        # Without stated ends a frame ends where the next begins, the last after the same step.
        step = start[-1] - start[-2] if len(start) > 1 else 0.0
        end = np.append(start[1:], start[-1] + step)
    return np.stack([start, end.astype(np.float64)], axis=1)


def _truth(file: Any, path: Path) -> Truth | None:
    group = file.get("truth")
    if group is None or not hasattr(group, "keys"):
        return None
    with reading(f"/truth of {path}"):
        columns = {name: np.asarray(group[name][()]) for name in group}
    try:
        return Truth.from_columns(columns)
    except InputError as error:
        raise SourceError(f"/truth of {path} is incomplete: {error}") from error
