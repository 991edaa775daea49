"""Peaks and spots as CSV, as `edgexnas predict` writes them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from enum import IntFlag
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PeakFlag
from edgexnas.errors import SourceError
from edgexnas.spots import SPOT, SPOT_COLUMNS, SpotFlag, Spots

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks

__all__ = ["PEAK", "PEAK_HEADER", "peak_rows", "read_csv", "spot_rows"]

PEAK = np.dtype(
    [
        ("frame", "<i8"),
        ("row_px", "<f4"),
        ("col_px", "<f4"),
        ("row_interval_px", "<f4"),
        ("col_interval_px", "<f4"),
        ("counts", "<f4"),
        ("flags", "u1"),
    ]
)
"""A peak of a table."""

PEAK_HEADER: tuple[str, ...] = PEAK.names or ()

_MOST_WHOLE = 2**31
"""Frames and peaks are fewer."""

_DECIMALS = {"omega_deg": 5, "omega_sigma_deg": 5, "intensity": 1}


def peak_rows(peaks: Peaks) -> Iterator[tuple[str, ...]]:
    """Give the peaks of a frame as rows of `PEAK_HEADER`; flags are names joined by "|"."""
    for position, interval, counts, flags in zip(
        peaks.positions_px, peaks.intervals_px, peaks.intensities, peaks.flags, strict=True
    ):
        numbers = (f"{number:.4f}" for number in (*position, *interval))
        yield (str(peaks.frame_number), *numbers, f"{counts:.0f}", _names(PeakFlag, flags))


def spot_rows(spots: Spots) -> Iterator[tuple[str, ...]]:
    """Give spots as rows of `SPOT_COLUMNS`; flags are names joined by "|"."""
    for row in spots.table:
        yield tuple(
            _names(SpotFlag, row[name])
            if name == "flags"
            else (
                f"{row[name]:.{_DECIMALS.get(name, 4)}f}"
                if row[name].dtype.kind == "f"
                else str(row[name])
            )
            for name in SPOT_COLUMNS
        )


def read_csv(path: Path) -> Spots | npt.NDArray[np.void]:
    """Read what `edgexnas predict` has written.

    Returns
    -------
    `Spots`, or the peaks of all frames as (n,) of `PEAK`, as the header says.

    Raises
    ------
    SourceError
        If the file cannot be read, or is neither; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _read(file, path)
    except SourceError:
        # It is an OSError too, and has its own sentence.
        raise
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is no text: {error}; specify a CSV file of predict") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check the path") from error


def _read(file: IO[str], path: Path) -> Spots | npt.NDArray[np.void]:
    lines = csv.reader(file)
    try:
        header = tuple(next(lines, ()))
        if header == tuple(SPOT_COLUMNS):
            return Spots.from_table(_table(lines, header, SPOT, SpotFlag))
        if header == PEAK_HEADER:
            return _table(lines, header, PEAK, PeakFlag)
    except (csv.Error, ValueError, KeyError) as error:
        raise SourceError(
            f"{path}:{lines.line_num}: {error}; write the file anew with edgexnas predict"
        ) from error
    raise SourceError(
        f"{path} begins with {','.join(header)[:80]!r}, and not with the columns of peaks or "
        "spots; specify a CSV file of edgexnas predict"
    )


def _table(
    lines: Iterable[Sequence[str]], header: Sequence[str], dtype: np.dtype[np.void],
    kind: type[IntFlag],
) -> npt.NDArray[np.void]:  # fmt: skip
    whole = [dtype[name].kind in "iu" for name in header[:-1]]
    rows = []
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"it has {len(line)} values, not {len(header)}")
        *texts, names = line
        for text, integer in zip(texts, whole, strict=True):
            if integer and not 0 <= int(text) < _MOST_WHOLE:
                raise ValueError(f"{text} is no number of a frame or of peaks")
        numbers = [int(text) if w else float(text) for text, w in zip(texts, whole, strict=True)]
        if not np.isfinite(numbers).all():
            raise ValueError("a value is not finite")
        bits = sum({kind[name.upper()] for name in names.split("|") if name})
        rows.append((*numbers, bits))
    return np.array(rows, dtype)


def _names(kind: type[IntFlag], flags: int) -> str:
    return "|".join(str(flag.name).lower() for flag in kind if flag & int(flags))
