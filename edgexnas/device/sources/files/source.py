"""Frames of a file, given at a rate, also while another process is still writing them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgexnas.device.sources.compression import FrameMemory
from edgexnas.device.sources.encoded_frames import (
    Decoder,
    EncodedFrame,
    EncodedPixels,
    Payload,
    decoded_events,
)
from edgexnas.device.sources.events import (
    SeriesEnd,
    SeriesStart,
    SourceEvent,
    SourceFrame,
    SourceTrouble,
)
from edgexnas.device.sources.pacing import Pacer
from edgexnas.device.sources.source_url import SourceOptions, SourceUrl
from edgexnas.errors import ConfigurationError, InputError, SourceError
from edgexnas.frames import FrameSeries, open_frames
from edgexnas.frames.reading import reading

__all__ = ["FileOptions", "FileSource"]

_HDF5_START = b"\x89HDF\r\n\x1a\n"

_POLL_S = 0.05
"""How often a file that grows is asked for new frames."""


class FileOptions(SourceOptions):
    """Parameters of a file.

    Attributes
    ----------
    rate
        Frames a second; None for as fast as they are taken. A file waits: none is lost.
    dataset
        Dataset of the frames, where a file holds several.
    repeat
        How often the file is given, each time as a series of its own.
    follow
        The file is being written by another process (HDF5 with SWMR): wait for more frames.
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
    repeat: Annotated[int, Field(ge=1)] = 1
    follow: bool = False
    idle_s: Annotated[float, Field(gt=0)] = 10.0
    positions: str | None = None
    pixel_nm: Annotated[float, Field(gt=0)] | None = None


class FileSource:
    """Frames of a file; see `edgexnas.device.sources.EventSource`.

    Chunks of HDF5 files are decoded directly (`ChunkReader`); other files are read as
    `edgexnas.frames.open_frames` does. A frame that cannot be read is a `SourceTrouble` with its
    number, and the file goes on.
    """

    live = False

    def __init__(self, url: str, path: Path, options: FileOptions) -> None:
        self.url = url
        self._path = path
        self._options = options
        self._pacer = Pacer(options.rate)
        self._tick = 0
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    @classmethod
    def open(cls, url: SourceUrl, given: Mapping[str, Any]) -> FileSource:
        """Check a path or a file:// URL and that its frames can be found."""
        options = url.options(FileOptions, given)
        path = Path(url.place)
        if options.follow and options.repeat > 1:
            raise ConfigurationError(f"{url.text} is followed, so it cannot repeat; leave one out")
        if not options.follow:
            with ExitStack() as stack:
                _open_series(path, options, stack)
        return cls(url.text, path, options)

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over the frames; ends with the file, or after `close`."""
        return decoded_events(self.encoded_events())

    def encoded_events(self) -> Iterator[SourceEvent | EncodedFrame]:
        """Iterate as `events` does, with compressed frames not decoded."""
        for turn in range(self._options.repeat):
            name = self._path.name + (f"#{turn + 1}" if self._options.repeat > 1 else "")
            with ExitStack() as stack:
                series = self._wait_for_series(stack)
                if series is None:
                    return
                yield self._start(name, series)
                given = 0
                for index in self._numbers(series):
                    given += 1
                    yield self._event(name, index, series)
                yield SeriesEnd(name, given, time.monotonic_ns())
            if self._pacer.closed:
                return

    def close(self) -> None:
        """Let `events` end before its next frame."""
        self._pacer.close()

    def status(self) -> Mapping[str, int | str]:
        """Count frames, and those that could not be read."""
        names = ("frames", "missed", "malformed", "reconnects", "overruns")
        return {name: self._counts[name] for name in names}

    def _start(self, name: str, series: _Series) -> SeriesStart:
        return SeriesStart(
            name,
            shape=series.shape,
            dtype=series.dtype,
            frames_expected=None if self._options.follow else len(series),
            mask=series.mask,
            metadata={"path": str(self._path)},
            arrival_ns=time.monotonic_ns(),
        )

    def _event(
        self, name: str, index: int, series: _Series
    ) -> SourceFrame | EncodedFrame | SourceTrouble:
        try:
            pixels = series.read(index)
        except SourceError as error:
            self._count("malformed")
            return SourceTrouble(name, index, str(error), time.monotonic_ns())
        self._count("frames")
        position, now_ns = series.position(index), time.monotonic_ns()
        if isinstance(pixels, EncodedPixels):
            counted = replace(pixels, decoder=partial(self._decode, pixels.decoder))
            return EncodedFrame(name, index, counted, now_ns, position_m=position)
        return SourceFrame(name, index, pixels, now_ns, position_m=position)

    def _decode(
        self, decoder: Decoder, payload: Payload, memory: FrameMemory | None
    ) -> npt.NDArray[Any]:
        """Decode the pixels of a frame, in the thread of who needs them."""
        try:
            return decoder(payload, memory)
        except InputError:
            self._count("malformed")
            self._count("frames", -1)
            raise

    def _count(self, what: str, change: int = 1) -> None:
        with self._counting:
            self._counts[what] += change

    def _numbers(self, series: _Series) -> Iterator[int]:
        """Numbers of the frames when they are due, and there."""
        number, deadline = 0, time.monotonic() + self._options.idle_s
        while not self._pacer.closed:
            if number < len(series):
                self._pacer.wait(self._tick)
                if self._pacer.closed:
                    return
                yield number
                self._tick += 1
                number, deadline = number + 1, time.monotonic() + self._options.idle_s
            elif not self._options.follow or time.monotonic() > deadline:
                return
            else:
                self._pacer.pause(_POLL_S)
                series.refresh()

    def _wait_for_series(self, stack: ExitStack) -> _Series | None:
        """Open the file; one that is followed may still have to appear."""
        deadline = time.monotonic() + self._options.idle_s
        while True:
            try:
                return _open_series(self._path, self._options, stack)
            except SourceError:
                if not self._options.follow or time.monotonic() > deadline:
                    raise
                self._pacer.pause(_POLL_S)
                if self._pacer.closed:
                    return None


class _Series:
    """Frames that are read by number, with their positions."""

    def __init__(self, blocks: Sequence[Any], mask: npt.NDArray[np.bool_] | None) -> None:
        self._blocks = blocks
        self.shape: tuple[int, int] = blocks[0].shape
        self.dtype: np.dtype[Any] = blocks[0].dtype
        self.mask = mask
        self.positions_m: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks)

    def refresh(self) -> None:
        for block in self._blocks:
            block.refresh()

    def read(self, index: int) -> npt.NDArray[Any] | EncodedPixels:
        for block in self._blocks:
            if index < len(block):
                found: npt.NDArray[Any] | EncodedPixels | None = block.encoded(index)
                return block.read(index) if found is None else found
            index -= len(block)
        raise SourceError(f"there is no frame {index} in the file any more; record it again")

    def position(self, index: int) -> tuple[float, float] | None:
        if self.positions_m is None or index >= len(self.positions_m):
            return None
        row, col = self.positions_m[index].tolist()
        return (row, col) if np.isfinite(row) and np.isfinite(col) else None


class _WholeSeries:
    """A `FrameSeries` as one block of frames."""

    def __init__(self, series: FrameSeries) -> None:
        self.shape, self.dtype = series.shape, series.dtype
        self._series = series

    def __len__(self) -> int:
        return len(self._series)

    def encoded(self, index: int) -> None:
        return None

    def read(self, index: int) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self._series[index])


def _open_series(path: Path, options: FileOptions, stack: ExitStack) -> _Series:
    if options.follow or _is_hdf5(path):
        return _open_hdf5(path, options, stack)
    if options.positions is not None or options.pixel_nm is not None:
        raise ConfigurationError(
            f"{path} is not HDF5, so it holds no positions; leave positions and pixel_nm out"
        )
    series = stack.enter_context(open_frames(path, dataset=options.dataset))
    return _Series([_WholeSeries(series)], series.mask)


def _is_hdf5(path: Path) -> bool:
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:
            return file.read(8) == _HDF5_START
    return False


def _open_hdf5(path: Path, options: FileOptions, stack: ExitStack) -> _Series:
    from edgexnas.device.sources.files.direct_chunks import ChunkReader
    from edgexnas.frames.hdf5 import h5py_module, pixel_mask
    from edgexnas.frames.hdf5_layout import find_blocks, frame_axes
    from edgexnas.frames.reading import check_shape

    h5py = h5py_module(path)
    if not path.is_file():
        raise SourceError(f"there is no file {path}; check the path")
    with reading(str(path)):
        file = stack.enter_context(h5py.File(path, "r", swmr=options.follow))
        found = find_blocks(file, path, options.dataset)
        blocks = [ChunkReader(block, path, frame_axes(block, path)) for block in found]
        series = _Series(blocks, pixel_mask(found[0].parent, blocks[0].shape))
        check_shape(series.shape, max(len(series), options.follow), f"{found[0].name} of {path}")
        for name, block in zip(found, blocks, strict=True):
            if (block.shape, block.dtype) != (series.shape, series.dtype):
                raise SourceError(
                    f"{name.name} of {path} holds {block.dtype} frames of {block.shape}, but "
                    f"{found[0].name} holds {series.dtype} of {series.shape}; name one with dataset"
                )
        series.positions_m = _positions(file, path, options, len(series))
    return series


def _positions(
    file: Any, path: Path, options: FileOptions, count: int
) -> npt.NDArray[np.float64] | None:
    if options.positions is None and options.pixel_nm is None:
        return None
    place = options.positions or "entry/data/positions_px"
    found = file.get(place)
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != 2 or (shape[0] < count):
        raise SourceError(
            f"{path} has no positions {place!r} of shape ({count}, 2), but {shape}; name the "
            "dataset of (row, col) with positions"
        )
    scale = 1.0 if options.pixel_nm is None else options.pixel_nm * 1e-9
    return np.asarray(found[()], np.float64) * scale
