"""Single images and folders of them, read through fabio."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.errors import MissingDependencyError, SourceError
from edgexnas.frames.reading import check_shape, reading
from edgexnas.frames.series import Frame, LazyFrames, Mask

_FORMATS = ("edf", "cbf", "tif", "tiff", "img", "mccd", "mar2300", "mar3450", "osc", "sfrm", "kcd")
_GENERAL_ELECTRIC = ("ge", "ge1", "ge2", "ge3", "ge4", "ge5")

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

    def __init__(self, paths: Sequence[Path], source: str) -> None:
        self._paths = tuple(paths)
        with _opened(paths[0]) as image:
            first, frames = np.asarray(image.data), int(image.nframes)
            counting = type(image).__name__ == "CbfImage"
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
            mask=_gaps(first) if counting else None,
        )

    def _frame(self, index: int) -> Frame:
        path = self._paths[index if len(self._paths) > 1 else 0]
        inside = 0 if len(self._paths) > 1 else index
        with _opened(path) as image:
            frame: Frame = np.asarray((image.get_frame(inside) if inside else image).data)
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
    # fabio prints while it opens some compressed images; standard output belongs to the caller.
    with reading(str(path)), redirect_stdout(sys.stderr), fabio.open(str(path)) as image:
        yield image


def _gaps(frame: Frame) -> Mask | None:
    """Pilatus detectors write -1 into gaps and -2 into defective pixels."""
    unusable: Mask = frame < 0
    return unusable if unusable.any() else None


def _natural(path: Path) -> list[Any]:
    # Digits land at odd places, so numbers are only ever compared with numbers.
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]
