"""Frames in an HDF5 or NeXus file, read one at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.errors import InputError, MissingFrameError, SourceError
from edgexnas.frames.detector import pixel_mask, rotation_angles, saturation_value
from edgexnas.frames.hdf5_file import open_hdf5_file
from edgexnas.frames.hdf5_layout import check_filters, find_blocks, frame_axes
from edgexnas.frames.identity import SeriesIdentity
from edgexnas.frames.missing import examine_storage, mapped_files
from edgexnas.frames.reading import check_shape, reading
from edgexnas.frames.series import Frame, LazyFrames, Mask
from edgexnas.frames.truth import Truth

__all__ = ["Hdf5Frames", "open_hdf5"]


def open_hdf5(
    path: Path,
    dataset: str | None = None,
    *,
    channel: int | None = None,
    file_mask: bool = True,
    growing: bool = False,
) -> Hdf5Frames:
    """Open the frames of an HDF5 file; see `open_frames` for which dataset that is.

    Parameters
    ----------
    path, dataset, channel, file_mask
        As of `open_frames`.
    growing
        Another process may be writing it: it may hold no frame so far.

    Raises
    ------
    SourceError
        If the file is damaged or being written, holds no frames, or holds several datasets that
        could be meant; if a file that it links to is missing, or a filter that its frames were
        written with; if its pixel mask cannot be used.
    MissingDependencyError
        If h5py is not installed.
    """
    file = open_hdf5_file(path, swmr=growing)
    try:
        with reading(str(path)):
            blocks = find_blocks(file, path, dataset, growing=growing)
            return Hdf5Frames(
                path, file, blocks, channel=channel, file_mask=file_mask, growing=growing
            )
    except BaseException:
        file.close()
        raise


class Hdf5Frames(LazyFrames):
    """A `FrameSeries` over datasets of an HDF5 file, one after the other.

    Attributes
    ----------
    file
        The open file.
    blocks, axes
        The datasets, and how the frames lie in each.
    """

    shows_gaps = True

    def __init__(
        self,
        path: Path,
        file: Any,
        blocks: list[Any],
        *,
        channel: int | None = None,
        file_mask: bool = True,
        growing: bool = False,
    ) -> None:
        for block in blocks:
            check_filters(block, path)
        first = blocks[0]
        self.file, self.blocks = file, blocks
        self.axes = [frame_axes(block, path, channel) for block in blocks]
        count, shape = sum(axes.count for axes in self.axes), self.axes[0].shape
        # A growing file may hold none so far.
        check_shape(shape, max(count, growing), f"{first.name} of {path}")
        for block, axes in zip(blocks, self.axes, strict=True):
            if axes.shape != shape or block.dtype != first.dtype:
                raise SourceError(
                    f"{block.name} of {path} holds {block.dtype} frames of {axes.shape}, but "
                    f"{first.name} holds {first.dtype} of {shape}; name one with dataset="
                )
        missing, mask = self._storage()
        if missing and len(missing) == count and not growing:
            raise MissingFrameError(
                f"none of the {count} frames of {first.name} of {path} is there: {missing[0]}; "
                "record or copy them again"
            )
        if file_mask:
            stated = pixel_mask(file, first, count, path)
            mask = mask if stated is None else stated | (False if mask is None else mask)
        parts = {Path(os.fsdecode(block.file.filename)) for block in blocks} - {path}
        parts = parts.union(*map(mapped_files, blocks))
        place = str(first.name) + ("" if channel is None else f"[{channel}]")
        super().__init__(
            count=count,
            shape=shape,
            dtype=first.dtype,
            source=str(path),
            omega_deg=rotation_angles(file, first, count, path),
            mask=mask,
            truth=_truth(file, path),
            saturation=saturation_value(file, first, path),
            identity=SeriesIdentity.of(path, sorted(parts), growing=growing, place=place),
            missing=missing,
            fill=first.fillvalue or None,
        )
        self._starts = np.cumsum([0, *(axes.count for axes in self.axes)])

    def place(self, index: int) -> tuple[int, int]:
        """Tell in which block a frame is, and which of its frames it is."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def _storage(self) -> tuple[dict[int, str], Mask | None]:
        """Find the frames that are not in their files, and pixels that no file holds."""
        missing: dict[int, str] = {}
        unmapped: Mask | None = None
        start = 0
        for block, axes in zip(self.blocks, self.axes, strict=True):
            storage = examine_storage(block, axis=axes.axis)
            missing |= {start + number: reason for number, reason in storage.missing.items()}
            if storage.unmapped is not None:
                unmapped = storage.unmapped | (False if unmapped is None else unmapped)
            start += axes.count
        return missing, unmapped

    def _frame(self, index: int) -> Frame:
        number, inside = self.place(index)
        block = self.blocks[number]
        with reading(f"frame {index} of {block.name} in {self.source}"):
            values = block[self.axes[number].selection(inside)]
        return np.asarray(values).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Close the file."""
        super().close()
        self.file.close()


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
