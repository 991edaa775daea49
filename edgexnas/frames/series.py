"""What a series of frames is, and the series over an array in memory."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from operator import index as as_index
from types import TracebackType
from typing import Any, Protocol, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError, MissingFrameError, SourceError
from edgexnas.frames.gaps import constant_gaps, filler_value
from edgexnas.frames.identity import SeriesIdentity
from edgexnas.frames.reading import number_ranges
from edgexnas.frames.truth import Truth

Frame = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Omega = npt.NDArray[np.float64]

_Series = TypeVar("_Series", bound="LazyFrames")

_log = logging.getLogger(__name__)

GAP_FRAMES = 4
"""Frames that show which pixels hold a constant; each costs the reading of a frame."""

_GAP_BYTES = 64 * 1024 * 1024
"""Most memory that these take together; one may take more."""

_LEAST_PIXELS = 64
"""A frame of fewer pixels may well hold one value."""


class FrameSeries(Protocol):
    """Frames of one detector, in the order in which they were taken."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of every frame."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every frame, in native byte order."""

    @property
    def omega_deg(self) -> Omega | None:
        """(n, 2) float64, rotation angle at the start and the end of each frame in degrees."""

    @property
    def mask(self) -> Mask | None:
        """(H, W) bool, True where a pixel is unusable: what the source says, and constant gaps."""

    @property
    def saturation(self) -> float | None:
        """Counts from which a pixel is saturated, if the source says."""

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames that are known to be missing, increasing; more may turn out."""

    def why_missing(self, index: int) -> str | None:
        """Say why a frame is missing; None if it is not known to be."""

    @property
    def identity(self) -> SeriesIdentity | None:
        """Which files these frames are, if they are of files."""

    @property
    def source(self) -> str:
        """What the series was opened from, for messages and provenance."""

    @property
    def truth(self) -> Truth | None:
        """The spots that are on the frames, if the series was simulated."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Frame: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Close the series; closing it again does nothing."""

    def __enter__(self) -> FrameSeries: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class LazyFrames(ABC):
    """A `FrameSeries` that makes a frame when it is asked for; subclasses say how.

    Indices are those of a sequence: negative ones count from the end, one outside the series is
    an IndexError. A frame that is asked for after `close` is a SourceError, and one whose bytes are
    not there, or that a filler stands for, a MissingFrameError.
    """

    shows_gaps = False
    """Whether the frames themselves are asked for pixels that hold a constant."""

    def __init__(
        self,
        *,
        count: int,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        source: str,
        omega_deg: Omega | None = None,
        mask: Mask | None = None,
        truth: Truth | None = None,
        saturation: float | None = None,
        identity: SeriesIdentity | None = None,
        missing: Mapping[int, str] | None = None,
        fill: Any = None,
    ) -> None:
        self._count = count
        self._closed = False
        self._mask = mask
        self._gaps_known = not self.shows_gaps
        self._missing = missing or {}
        self._fill = fill
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self.source = source
        self.omega_deg = omega_deg
        self.truth = truth
        self.saturation = saturation
        self.identity = identity

    @abstractmethod
    def _frame(self, index: int) -> Frame:
        """Make frame `index`, 0 ≤ index < len(self)."""

    @property
    def mask(self) -> Mask | None:
        """(H, W) bool, True where a pixel is unusable: what the source says, and constant gaps."""
        if not self._gaps_known and not self._closed:
            gaps = self._constant_gaps()
            if gaps is not None:
                self._mask = gaps if self._mask is None else self._mask | gaps
            self._gaps_known = True
        return self._mask

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames that are known to be missing, increasing; more may turn out."""
        return np.array(sorted(self._missing), np.int64)

    def why_missing(self, index: int) -> str | None:
        """Say why a frame is missing; None if it is not known to be."""
        return self._missing.get(index)

    def _constant_gaps(self) -> Mask | None:
        """Look at some frames for pixels that hold a constant."""
        pixels = self.shape[0] * self.shape[1]
        most = max(1, min(GAP_FRAMES, _GAP_BYTES // (self.dtype.itemsize * pixels)))
        shown: list[Frame] = []
        there = [number for number in range(self._count) if number not in self._missing]
        # Spread over the series, so that a peak that stays on a pixel for a while is no constant.
        for number in there[:: max(1, len(there) // most)]:
            # What is wrong with a frame is said when it is asked for.
            with suppress(SourceError):
                shown.append(self[number])
            # A gap is one on the first frame already, and most detectors write no constants.
            if len(shown) == most or (shown and constant_gaps(shown) is None):
                break
        return constant_gaps(shown) if shown else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: SupportsIndex, /) -> Frame:
        number = as_index(index)
        if not -self._count <= number < self._count:
            raise IndexError(f"{self.source} has {self._count} frames; there is no frame {number}")
        if self._closed:
            raise SourceError(f"{self.source} is closed; read its frames before closing it")
        number %= self._count
        if number in self._missing:
            raise missing_frame(number, self.source, self._missing[number])
        frame = self._frame(number)
        refuse_filler(frame, self._fill, number, self.source)
        return frame

    def __iter__(self) -> Iterator[Frame]:
        return (self[number] for number in range(self._count))

    def close(self) -> None:
        """Close the series; closing it again does nothing."""
        self._closed = True

    def __enter__(self: _Series) -> _Series:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        rows, columns = self.shape
        return (
            f"<{type(self).__name__}: {self._count} frames of {rows}×{columns} {self.dtype} "
            f"from {self.source}>"
        )


def missing_frame(number: int, source: str, reason: str) -> MissingFrameError:
    """Say of a frame that it is missing, and why."""
    return MissingFrameError(
        f"frame {number} of {source} is missing: {reason}; record or copy it again, or leave it out"
    )


def refuse_filler(frame: Frame, fill: Any, number: int, source: str) -> None:
    """Refuse a frame that is filled with one value which no detector measures.

    Raises
    ------
    MissingFrameError
        If so.
    """
    value = filler_value(frame, fill) if frame.size >= _LEAST_PIXELS else None
    if value is not None:
        raise missing_frame(number, source, f"each of its pixels holds the filler {value}")


def existing_numbers(series: FrameSeries) -> npt.NDArray[np.int64]:
    """Numbers of the frames that are not known to be missing, increasing."""
    # A series of the caller's own may know of none.
    return np.delete(np.arange(len(series)), getattr(series, "missing", ()))


def existing_frames(
    series: FrameSeries, numbers: Iterable[int] | None = None, *, quiet: bool = False
) -> Iterator[tuple[int, Frame]]:
    """Iterate over those frames of a series that are there, with their numbers.

    At the end a warning says which are missing, unless `quiet`.

    Parameters
    ----------
    series
        Frames.
    numbers
        Which are asked for; None for all.

    Raises
    ------
    SourceError
        If a frame that is there cannot be read.
    MissingFrameError
        If all are missing.
    """
    missing: list[int] = []
    last: MissingFrameError | None = None
    given = 0
    for number in range(len(series)) if numbers is None else numbers:
        try:
            frame = series[number]
        except MissingFrameError as error:
            missing.append(number)
            last = error
        else:
            given += 1
            yield number, frame
    if last is None:
        return
    if not given:
        raise MissingFrameError(f"none of {len(missing)} frames is there: {last}") from last
    if quiet:
        return
    _log.warning(
        "%d of %d frames of %s are missing and left out (%s): %s",
        len(missing),
        len(missing) + given,
        series.source,
        number_ranges(missing),
        last,
    )


class ArrayFrames(LazyFrames):
    """A `FrameSeries` over an array in memory.

    Parameters
    ----------
    frames
        (n, H, W) of real numbers, or (H, W) for one frame. It is not copied. What a numpy masked
        array masks on any frame is unusable on all.
    omega_deg
        (n, 2), rotation angle at the start and the end of each frame in degrees.
    mask
        (H, W) bool, True where a pixel is unusable; pixels that hold a constant such as -1 on all
        frames come beside it.
    saturation
        Counts from which a pixel is saturated.
    source
        What the frames come from, for messages and provenance.
    truth
        The spots that are on the frames.

    Raises
    ------
    InputError
        If the array is empty, has another number of dimensions or holds no real numbers, or if
        `omega_deg` or `mask` do not fit it.
    """

    shows_gaps = True

    def __init__(
        self,
        frames: npt.ArrayLike,
        *,
        omega_deg: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        source: str = "array",
        truth: Truth | None = None,
        saturation: float | None = None,
        identity: SeriesIdentity | None = None,
    ) -> None:
        stack = np.asarray(frames)
        if stack.ndim == 2:
            stack = stack[None]
        if stack.ndim != 3 or 0 in stack.shape:
            raise InputError(
                f"frames have shape {np.shape(frames)}; give (n, H, W) or (H, W), none of them 0"
            )
        if stack.dtype.kind not in "uif":
            raise InputError(f"frames have dtype {stack.dtype}; give real numbers, such as uint16")
        given = _checked("mask", mask, stack.shape[1:], np.bool_)
        if isinstance(frames, np.ma.MaskedArray):
            masked: Mask = np.asarray(np.ma.getmaskarray(frames).reshape(stack.shape).any(axis=0))
            given = masked if given is None else given | masked
        super().__init__(
            count=len(stack),
            shape=(stack.shape[1], stack.shape[2]),
            dtype=stack.dtype,
            source=source,
            omega_deg=_checked("omega_deg", omega_deg, (len(stack), 2), np.float64),
            mask=given,
            truth=truth,
            saturation=saturation,
            identity=identity,
        )
        self._stack = stack

    def _frame(self, index: int) -> Frame:
        frame: Frame = self._stack[index].astype(self.dtype, copy=False)
        return frame


def _checked(
    name: str, values: npt.ArrayLike | None, shape: tuple[int, ...], dtype: type[np.generic]
) -> npt.NDArray[Any] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}; these frames need {shape}")
    return array.astype(dtype, copy=False)
