"""What a series of frames is, and the series over an array in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from operator import index as as_index
from types import TracebackType
from typing import Any, Protocol, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError, SourceError
from edgexnas.frames.truth import Truth

Frame = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Omega = npt.NDArray[np.float64]

_Series = TypeVar("_Series", bound="LazyFrames")


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
        """(H, W) bool, True where a pixel is unusable."""

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
    an IndexError. A frame that is asked for after `close` is a SourceError.
    """

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
    ) -> None:
        self._count = count
        self._closed = False
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self.source = source
        self.omega_deg = omega_deg
        self.mask = mask
        self.truth = truth

    @abstractmethod
    def _frame(self, index: int) -> Frame:
        """Make frame `index`, 0 ≤ index < len(self)."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: SupportsIndex, /) -> Frame:
        number = as_index(index)
        if not -self._count <= number < self._count:
            raise IndexError(f"{self.source} has {self._count} frames; there is no frame {number}")
        if self._closed:
            raise SourceError(f"{self.source} is closed; read its frames before closing it")
        return self._frame(number % self._count)

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


class ArrayFrames(LazyFrames):
    """A `FrameSeries` over an array in memory.

    Parameters
    ----------
    frames
        (n, H, W) of real numbers, or (H, W) for one frame. It is not copied.
    omega_deg
        (n, 2), rotation angle at the start and the end of each frame in degrees.
    mask
        (H, W) bool, True where a pixel is unusable.
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

    def __init__(
        self,
        frames: npt.ArrayLike,
        *,
        omega_deg: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        source: str = "array",
        truth: Truth | None = None,
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
        super().__init__(
            count=len(stack),
            shape=(stack.shape[1], stack.shape[2]),
            dtype=stack.dtype,
            source=source,
            omega_deg=_checked("omega_deg", omega_deg, (len(stack), 2), np.float64),
            mask=_checked("mask", mask, stack.shape[1:], np.bool_),
            truth=truth,
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
