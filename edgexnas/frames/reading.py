"""Turn what other people's parsers raise into `SourceError`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from edgexnas.errors import EdgexnasError, SourceError

MAXIMUM_PIXELS = 2**28
"""Pixels of the largest frame that is read, 16384²; a header that asks for more is damaged."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as a SourceError that names `what`.

    Parameters
    ----------
    what
        What is read, such as "frame 3 of scan.h5".
    """
    try:
        yield
    except EdgexnasError:
        raise
    # Damaged files make h5py, zipfile, numpy and fabio raise almost anything, RecursionError and
    # MemoryError among it; no list of classes is complete.
    except Exception as error:
        raise SourceError(
            f"{what} cannot be read ({_reason(error)}); the file is damaged, incomplete or of "
            "another kind than its name says"
        ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def check_shape(shape: tuple[int, ...], count: int, source: str) -> None:
    """Refuse a series without frames, without pixels, or with frames of impossible size."""
    if count < 1 or min(shape) < 1:
        raise SourceError(
            f"{source} holds no frames (its shape is {(count, *shape)}); "
            "check that the acquisition wrote some"
        )
    if shape[0] * shape[1] > MAXIMUM_PIXELS:
        raise SourceError(
            f"{source} claims frames of {shape[0]}×{shape[1]} px, more than the "
            f"{MAXIMUM_PIXELS} px that are read; the file is damaged or holds no detector frames"
        )


def number_ranges(numbers: Sequence[int], most: int = 6) -> str:
    """Write increasing numbers as ranges, such as "3-5, 9"; of many ranges only the first ones."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:most]]
    return ", ".join(shown) + (", ..." if len(runs) > most else "")
