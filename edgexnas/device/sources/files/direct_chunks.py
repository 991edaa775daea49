"""Frames of an HDF5 dataset, decoded from their chunks without HDF5's filter pipeline.

A frame that is one chunk, as detectors write them, is read as it lies in the file and decoded by
`edgexnas.device.sources.compression`, in whatever thread and memory; whatever else a dataset may be
is left to HDF5. Objects of h5py are `Any` here.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources.compression import Codec, FrameMemory, decompress
from edgexnas.device.sources.encoded_frames import EncodedPixels, Payload
from edgexnas.errors import InputError, SourceError
from edgexnas.frames.hdf5_layout import FrameAxes, check_filters
from edgexnas.frames.missing import examine_storage
from edgexnas.frames.reading import reading

__all__ = ["ChunkReader"]

_BITSHUFFLE, _LZ4, _BLOSC = 32008, 32004, 32001
_BITSHUFFLE_LZ4 = 2


class ChunkReader:
    """Reads the frames of a dataset, which may grow.

    Parameters
    ----------
    dataset
        (n, H, W) or (H, W) real numbers.
    path
        Where it lies, for messages.

    Raises
    ------
    SourceError
        If it needs a filter that is not installed.
    """

    def __init__(self, dataset: Any, path: Path, axes: FrameAxes) -> None:
        check_filters(dataset, path)
        self.dataset = dataset
        self.shape = axes.shape
        self.dtype = dataset.dtype.newbyteorder("=")
        # Frames are decoded in other threads, also when the file is closed.
        self._stored = dataset.dtype
        self._label = f"{dataset.name} in {path}"
        self._axes = axes
        self._codec = _codec(dataset)

    @property
    def codec(self) -> Codec | None:
        """How chunks are decoded here; None where HDF5 decodes them."""
        return self._codec

    def __len__(self) -> int:
        axis = self._axes.axis
        return 1 if axis is None else int(self.dataset.shape[axis])

    def refresh(self) -> None:
        """Ask how far another process has written."""
        self.dataset.refresh()

    def read(self, index: int) -> npt.NDArray[Any]:
        """Read a frame, (H, W) in native byte order.

        Raises
        ------
        SourceError
            If it cannot be read or decoded.
        """
        encoded = self.encoded(index)
        if encoded is not None:
            try:
                return encoded.decode()
            except InputError as error:
                raise SourceError(str(error)) from error
        with reading(self._name(index)):
            pixels = np.empty(self.shape, self.dtype)
            self.dataset.read_direct(pixels, self._axes.selection(index))
            return pixels

    def is_written(self, index: int) -> bool:
        """Tell whether all chunks of a frame are in the file, while that grows."""
        dataset = self.dataset
        if dataset.is_virtual:
            return index not in examine_storage(dataset, axis=self._axes.axis).missing
        if dataset.chunks is None:
            return True
        place = (*self._axes.selection(index), 0, 0)
        first = [at // step * step for at, step in zip(place, dataset.chunks, strict=True)]
        sides = zip(dataset.shape[-2:], dataset.chunks[-2:], strict=True)
        try:
            for row, col in product(*(range(0, size, step) for size, step in sides)):
                # Asking for a chunk's place would visit every chunk before it.
                dataset.id.read_direct_chunk((*first[:-2], row, col))
        except (OSError, RuntimeError):
            return False
        return True

    def encoded(self, index: int) -> EncodedPixels | None:
        """Read a frame's chunk as it lies in the file; None where `read` leaves it to HDF5.

        Raises
        ------
        SourceError
            If the file cannot be read.
        """
        if self._codec is None:
            return None
        with reading(self._name(index)):
            offset = (*self._axes.selection(index), 0, 0)
            try:
                # HDF5's global lock is held for the read alone; its filter pipeline would decode
                # under it.
                skipped_filters, payload = self.dataset.id.read_direct_chunk(offset)
            except (OSError, RuntimeError):
                # It is not in the file, or damaged. Asking get_chunk_info_by_coord beforehand would
                # visit every chunk before it, 10 ms a frame after a hundred thousand.
                return None
        # A writer may leave out filters chunk by chunk, as where data would not shrink.
        if skipped_filters:
            return None
        return EncodedPixels(payload, partial(self._decode, index), len(payload))

    def _decode(self, index: int, payload: Payload, memory: FrameMemory | None) -> npt.NDArray[Any]:
        assert self._codec is not None
        try:
            return decompress(self._codec, payload, self.shape, self._stored, memory)
        except InputError as error:
            raise InputError(
                f"{self._name(index)} is damaged: {error}; copy or record it again"
            ) from error

    def _name(self, index: int) -> str:
        return f"frame {index} of {self._label}"


def _codec(dataset: Any) -> Codec | None:
    """Tell how the chunks of a dataset can be decoded here, if each is a frame."""
    if dataset.is_virtual or dataset.chunks is None or dataset.ndim < 3:
        return None
    # One frame must be one chunk: of a tile nothing can be decoded into a frame's memory.
    if dataset.chunks != (*(1 for _ in dataset.shape[:-2]), *dataset.shape[-2:]):
        return None
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    if not filters:
        return "none"
    # A pipeline of several, such as shuffle and lz4, is left to HDF5.
    if len(filters) > 1:
        return None
    code, _, values, _ = filters[0]
    if code == _BITSHUFFLE and len(values) >= 5 and values[4] == _BITSHUFFLE_LZ4:
        return "bslz4-hdf5"
    return {_LZ4: "lz4-hdf5", _BLOSC: "blosc"}.get(code)  # type: ignore[return-value]
