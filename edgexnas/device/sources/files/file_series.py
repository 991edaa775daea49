"""The frames of a file by number, with their positions, also while the file grows."""

from __future__ import annotations

import os
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgexnas.device.sources.compression import FrameMemory
from edgexnas.device.sources.encoded_frames import Decoder, EncodedPixels, Payload
from edgexnas.device.sources.files.direct_chunks import ChunkReader
from edgexnas.device.sources.source_url import SourceOptions
from edgexnas.errors import ConfigurationError, InputError, MissingFrameError, SourceError
from edgexnas.frames import open_frames
from edgexnas.frames.hdf5 import Hdf5Frames, open_hdf5
from edgexnas.frames.missing import examine_storage
from edgexnas.frames.reading import reading
from edgexnas.frames.series import refuse_filler

if TYPE_CHECKING:
    from edgexnas.frames import FrameSeries

__all__ = ["FileOptions", "FileSeries"]


class FileOptions(SourceOptions):
    """Parameters of a file.

    Attributes
    ----------
    rate
        Frames a second; None for as fast as they are taken. A file waits: none is lost.
    dataset
        Dataset of the frames, where a file holds several.
    channel
        Which image of each frame, where there are several, as of several thresholds.
    file_mask
        Whether the pixel mask of the file is used.
    repeat
        How often the file is given, each time as a series of its own.
    follow
        The file is being written by another process (HDF5 with SWMR, or an Eiger master file whose
        data files come one by one): wait for more frames. A frame is taken once it is written.
    idle_s
        A followed file ends when no frame came for so long.
    positions
        Dataset of (n, 2) scan positions, (row, col) in metres, or in pixels with `pixel_nm`.
    pixel_nm
        Side of an object pixel in nanometres: positions are in pixels, by default those of
        entry/data/positions_px.
    """

    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    dataset: str | None = None
    channel: Annotated[int, Field(ge=0)] | None = None
    file_mask: bool = True
    repeat: Annotated[int, Field(ge=1)] = 1
    follow: bool = False
    idle_s: Annotated[float, Field(gt=0)] = 10.0
    positions: str | None = None
    pixel_nm: Annotated[float, Field(gt=0)] | None = None


class FileSeries:
    """Frames of a file, read by number.

    Parameters
    ----------
    path
        A file or folder.
    options
        What of it, and whether it is followed.

    Attributes
    ----------
    frames
        The open series.

    Raises
    ------
    SourceError
        If it cannot be opened, or its positions are not there.
    ConfigurationError
        If positions are asked for, and it is not HDF5.
    """

    frames: FrameSeries

    def __init__(self, path: Path, options: FileOptions) -> None:
        self._path, self._options = path, options
        self._readers: list[ChunkReader] = []
        self._fill: Any = None
        self._positions_m: npt.NDArray[np.float64] | None = None
        self._open()

    def __len__(self) -> int:
        # From the readers where there are some: those of a growing file are refreshed.
        return sum(map(len, self._readers)) if self._readers else len(self.frames)

    def close(self) -> None:
        """Close the file."""
        self.frames.close()

    @property
    def identity(self) -> str:
        """What tells these frames from others, as of `SeriesStart`.

        Of a file that grows, its first frame stands for size and time, so that what is written
        under the same name later is another series.
        """
        known = self.frames.identity
        identity = str(self._path) if known is None else known.id
        if not self._options.follow or not self.is_written(0):
            return identity
        try:
            first = self.read(0)
        except (SourceError, InputError):
            # It is told of in its turn.
            return identity
        content = bytes(first.payload) if isinstance(first, EncodedPixels) else first.tobytes()
        return f"{identity}-{sha256(content).hexdigest()[:12]}"

    def read(self, index: int) -> npt.NDArray[Any] | EncodedPixels:
        """Read a frame, or its bytes where they are better decoded elsewhere.

        Raises
        ------
        MissingFrameError
            If it is not there. Where its bytes are decoded elsewhere, only that shows a filler,
            which is an InputError there.
        SourceError
            If it cannot be read.
        """
        if not self._readers:
            return np.ascontiguousarray(self.frames[index])
        reader, inside = self._place(index)
        encoded = reader.encoded(inside)
        # HDF5 itself reads what is not a single chunk, or needs filters that are not decoded here.
        if encoded is None:
            pixels = reader.read(inside)
            refuse_filler(pixels, self._fill, index, str(self._path))
            return pixels
        decoder = partial(self._decode, index, encoded.decoder)
        return EncodedPixels(encoded.payload, decoder, encoded.nbytes)

    def position(self, index: int) -> tuple[float, float] | None:
        """Return the (row, col) of a frame in metres; None if it is not known."""
        if self._positions_m is None or index >= len(self._positions_m):
            return None
        row, col = self._positions_m[index].tolist()
        return (row, col) if np.isfinite(row) and np.isfinite(col) else None

    def is_written(self, index: int) -> bool:
        """Tell whether a frame of a growing file is there."""
        if index >= len(self):
            return False
        reader, inside = self._place(index)
        return reader.is_written(inside)

    def next_written(self, index: int) -> int | None:
        """Return the first frame from `index` on that is there, found without trying each."""
        start = 0
        for reader in self._readers:
            missing = examine_storage(reader.dataset).missing
            for inside in range(max(0, index - start), len(reader)):
                if inside not in missing:
                    return start + inside
            start += len(reader)
        return None

    def why_missing(self, index: int) -> str:
        """Say why a frame is not there."""
        return self.frames.why_missing(index) or "they were never written"

    def refresh(self) -> None:
        """Ask how far another process has written; a file that was replaced is opened anew.

        Raises
        ------
        SourceError
            If it cannot be opened again so far; it is closed then.
        """
        # External links and virtual datasets: files that appear later are seen only by opening
        # anew.
        links = any(
            reader.dataset.is_virtual
            or os.fsdecode(reader.dataset.file.filename) != str(self._path)
            for reader in self._readers
            if reader.dataset
        )
        identity = self.frames.identity
        try:
            # By inode: a writer that starts over makes a new file under the old name.
            replaced = identity is not None and os.stat(self._path).st_ino != identity.inode
        except OSError:
            # It is being replaced right now.
            return
        if links or replaced or not self._readers or not self._readers[0].dataset:
            # HDF5 shares what it knows of a file that is open twice, so it is closed first.
            self.close()
            self._open()
            return
        for reader in self._readers:
            reader.refresh()

    def why_it_ends(self) -> str | None:
        """Say what a followed file still announces that did not come; None if nothing."""
        self.close()
        try:
            open_hdf5(self._path, self._options.dataset, channel=self._options.channel).close()
        except SourceError as error:
            return str(error)
        return None

    def _open(self) -> None:
        options = self._options
        if options.follow:
            if not self._path.is_file():
                raise SourceError(f"there is no file {self._path}; check the path")
            self.frames = open_hdf5(
                self._path,
                options.dataset,
                channel=options.channel,
                file_mask=options.file_mask,
                growing=True,
            )
        else:
            self.frames = open_frames(
                self._path,
                dataset=options.dataset,
                channel=options.channel,
                file_mask=options.file_mask,
            )
        try:
            self._adopt(self.frames)
        except BaseException:
            self.close()
            raise

    def _adopt(self, frames: FrameSeries) -> None:
        options = self._options
        if isinstance(frames, Hdf5Frames):
            self._fill = frames.blocks[0].fillvalue
            pairs = zip(frames.blocks, frames.axes, strict=True)
            self._readers = [ChunkReader(block, self._path, axes) for block, axes in pairs]
            self._positions_m = self._positions(frames.file, len(frames))
        elif options.positions is not None or options.pixel_nm is not None:
            raise ConfigurationError(
                f"{self._path} is not HDF5, so it holds no positions; leave positions and "
                "pixel_nm out"
            )

    def _place(self, index: int) -> tuple[ChunkReader, int]:
        inside = index
        for reader in self._readers:
            if inside < len(reader):
                return reader, inside
            inside -= len(reader)
        raise SourceError(f"there is no frame {index} in the file any more; record it again")

    def _decode(
        self, index: int, decoder: Decoder, payload: Payload, memory: FrameMemory | None
    ) -> npt.NDArray[Any]:
        pixels = decoder(payload, memory)
        try:
            refuse_filler(pixels, self._fill, index, str(self._path))
        except MissingFrameError as error:
            raise InputError(str(error)) from error
        return pixels

    def _positions(self, file: Any, count: int) -> npt.NDArray[np.float64] | None:
        options = self._options
        if options.positions is None and options.pixel_nm is None:
            return None
        place = options.positions or "entry/data/positions_px"
        found = file.get(place)
        shape = getattr(found, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] != 2 or (shape[0] < count):
            raise SourceError(
                f"{self._path} has no positions {place!r} of shape ({count}, 2), but {shape}; name "
                "the dataset of (row, col) with positions"
            )
        scale = 1.0 if options.pixel_nm is None else options.pixel_nm * 1e-9
        with reading(f"the positions {place} of {self._path}"):
            return np.asarray(found[()], np.float64) * scale
