"""Single images and folders of them, read through fabio."""

from __future__ import annotations

import bz2
import gzip
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.errors import MissingDependencyError, SourceError
from edgexnas.frames.identity import SeriesIdentity
from edgexnas.frames.reading import check_shape, number_ranges, reading
from edgexnas.frames.saturation import header_saturation
from edgexnas.frames.series import Frame, LazyFrames

_log = logging.getLogger(__name__)

_FORMATS = ("edf", "cbf", "tif", "tiff", "img", "mccd", "mar2300", "mar3450", "osc", "sfrm", "kcd")
_GENERAL_ELECTRIC = ("ge", "ge1", "ge2", "ge3", "ge4", "ge5")

_CBF_SECTION = b"--CIF-BINARY-FORMAT-SECTION--"
_CBF_PIXELS = b"\x0c\x1a\x04\xd5"
_LONGEST_HEADER = 1 << 20
"""Bytes in which the header of a CBF file ends; those of detectors have some kB."""

IMAGE_SUFFIXES = frozenset(f".{name}" for name in (*_FORMATS, *_GENERAL_ELECTRIC))
"""What the name of an image in a folder ends with, before .gz or .bz2; other files are ignored."""


def open_images(paths: Sequence[Path], *, source: str | None = None) -> ImageFrames:
    """Open images as one series, in the natural order of their names (2 before 10).

    One file may hold several frames; several files hold one each.

    Raises
    ------
    SourceError
        If fabio cannot read the first file.
    MissingDependencyError
        If fabio is not installed.
    """
    ordered = sorted(paths, key=_natural)
    return ImageFrames(ordered, source or str(ordered[0]))


class ImageFrames(LazyFrames):
    """A `FrameSeries` over image files; a file is read when its frame is asked for."""

    shows_gaps = True

    def __init__(self, paths: Sequence[Path], source: str) -> None:
        self._paths = tuple(paths)
        with _opened(paths[0]) as image:
            first, frames = np.asarray(image.data), int(image.nframes)
            saturation = header_saturation(image.header)
        if first.ndim != 2 or first.dtype.kind not in "uif":
            raise SourceError(
                f"{paths[0]} holds {first.dtype} of shape {first.shape}; "
                "give images of one channel of real numbers"
            )
        if frames > 1 and len(paths) > 1:
            raise SourceError(
                f"{paths[0]} holds {frames} frames and is one of {len(paths)} images; "
                "open such files one at a time"
            )
        check_shape(first.shape, frames, str(paths[0]))
        super().__init__(
            count=max(frames, len(paths)),
            shape=(first.shape[0], first.shape[1]),
            dtype=first.dtype,
            source=source,
            saturation=saturation,
            identity=SeriesIdentity.of(Path(source), paths),
        )
        if len(paths) > 1:
            _name_absent_numbers(paths, source)

    def _frame(self, index: int) -> Frame:
        path = self._paths[index if len(self._paths) > 1 else 0]
        inside = 0 if len(self._paths) > 1 else index
        with _opened(path) as image:
            # A file of several frames opens at its first one.
            chosen = image.get_frame(inside) if inside else image
            frame: Frame = np.asarray(chosen.data)
            _check_size(chosen.header, frame)
        # fabio may give the file's own byte order.
        if frame.shape != self.shape or frame.dtype.newbyteorder("=") != self.dtype:
            raise SourceError(
                f"{path} holds {frame.dtype} of shape {frame.shape}, but the series begins with "
                f"{self.dtype} of shape {self.shape}; keep one detector in a folder"
            )
        return frame.astype(self.dtype, copy=False)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an image with fabio for as long as its pixels are read."""
    try:
        import fabio
    except ImportError:
        raise MissingDependencyError.of(
            "fabio", extra="formats", purpose=f"reading the image {path}"
        ) from None
    faults = _Faults()
    log = logging.getLogger("fabio")
    log.addHandler(faults)
    try:
        # fabio prints while it opens some compressed images; standard output belongs to the caller.
        with reading(str(path)), redirect_stdout(sys.stderr):
            _check_binary_section(path)
            with fabio.open(str(path)) as image:
                yield image
            if faults.message is not None:
                raise ValueError(faults.message)
    finally:
        log.removeHandler(faults)


def _check_binary_section(path: Path) -> None:
    """Refuse a CBF file without pixels, in which fabio would look for their start for ever.

    Raises
    ------
    ValueError
        If so.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    with openers.get(path.suffix.lower(), open)(path, "rb") as file:
        header = file.read(_LONGEST_HEADER)
    is_cbf = ".cbf" in path.suffixes[-2:] or header.startswith(b"###CBF")
    if is_cbf and _CBF_PIXELS not in header.partition(_CBF_SECTION)[2]:
        raise ValueError("it has no binary section")


class _Faults(logging.Handler):
    """Keeps what fabio only logs: of a short file it fills up the rest with zeros."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.message: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first message of this thread."""
        # fabio's log is one for the whole process; another thread's fault is none of this image.
        if record.thread == threading.get_ident():
            self.message = self.message or record.getMessage()


def _check_size(header: Mapping[str, Any], frame: Frame) -> None:
    """Refuse an uncompressed image whose header names another size than its shape has.

    Raises
    ------
    ValueError
        If so.
    """
    packed = str(header.get("Compression", header.get("compression_type", "1"))).casefold()
    if packed not in ("1", "none", "no", ""):
        return
    for name in ("EDF_BinarySize", "Size", "stripByteCounts"):
        sizes = [int(size) for size in re.findall(r"[0-9]+", str(header.get(name, "")))]
        if sizes and sum(sizes) != frame.nbytes:
            raise ValueError(
                f"{name} is {header[name]}, and {frame.dtype} of shape {frame.shape} take "
                f"{frame.nbytes} bytes"
            )


def _name_absent_numbers(paths: Sequence[Path], source: str) -> None:
    """Warn of numbers that are left out in otherwise consecutive names of images."""
    parts = [_natural(path) for path in paths]
    places = [n for n in range(1, len(parts[0]), 2) if len({p[n] for p in parts if n < len(p)}) > 1]
    if len({len(part) for part in parts}) > 1 or len(places) != 1:
        return
    numbers = [part[places[0]] for part in parts]
    steps = np.diff(numbers)
    # With a step of 2 or more every time the names are numbered so.
    if steps.max() > 1 and steps.min() == 1:
        absent = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
        _log.warning(
            "%s lacks the images with the numbers %s; the frames after each count on without it",
            source,
            number_ranges(absent),
        )


def _natural(path: Path) -> list[Any]:
    # Digits land at odd places, so numbers are only ever compared with numbers.
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
