"""A canvas on which patches are averaged into an image of the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.ptycho.patches import ComplexArray
from edgexnas.ptycho.patterns import PATTERN_SIZE, FloatArray

__all__ = [
    "ObjectCanvas",
    "ObjectImage",
    "SpreadPatch",
    "hann_weight",
    "spread_patch",
]

Window = tuple[slice, slice]
Number = TypeVar("Number", np.float32, np.complex64)


@dataclass(frozen=True, slots=True)
class ObjectImage:
    """A stitched object.

    Attributes
    ----------
    values
        (H, W) complex64; 0 where nothing was measured.
    coverage
        (H, W) float32: sum of the weights of the patches that cover a pixel.
    skipped
        Patches that were not used, such as ones whose position was NaN or off the canvas.
    origin_px
        (row, col) of the image's first pixel in the coordinates of the positions.
    """

    values: ComplexArray
    coverage: FloatArray
    skipped: int
    origin_px: tuple[int, int] = (0, 0)

    @property
    def amplitude(self) -> FloatArray:
        """(H, W) float32, without unit."""
        return np.abs(self.values)

    @property
    def phase_rad(self) -> FloatArray:
        """(H, W) float32, radians in (-π, π]."""
        return np.angle(self.values)


@dataclass(frozen=True, slots=True)
class SpreadPatch:
    """A patch times its weight, spread over whole pixels.

    Attributes
    ----------
    row, col
        Whole-pixel position of the first pixel.
    values
        (65, 65) complex64.
    weight
        (65, 65) float32.
    """

    row: int
    col: int
    values: ComplexArray
    weight: FloatArray

    def turned(self, phase_rad: float) -> SpreadPatch:
        """Add a constant to the phase."""
        values = self.values * np.complex64(np.exp(1j * phase_rad))
        return SpreadPatch(self.row, self.col, values, self.weight)


class ObjectCanvas:
    """Averages patches into an object image by their positions.

    Each patch is spread over the four nearest whole-pixel positions with bilinear weights, so that
    a fraction of a pixel is not lost. Sums are kept in double precision and patches are added one
    after the other, so the image does not depend on how patches were batched.

    Parameters
    ----------
    shape
        (H, W) of the canvas in object pixels.
    weight
        (64, 64) float32 weight of a patch's pixels, such as the probe's intensity; None for a
        raised cosine that trusts the middle of a patch most.
    origin_px
        (row, col) of the canvas's first pixel in the coordinates of the positions.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        weight: FloatArray | None = None,
        origin_px: tuple[int, int] = (0, 0),
    ) -> None:
        if min(shape) <= PATTERN_SIZE:
            raise ConfigurationError(
                f"canvas has shape {shape}; it must be larger than a patch, 64×64"
            )
        self._weight = np.asarray(hann_weight() if weight is None else weight, np.float32)
        if self._weight.shape != (PATTERN_SIZE, PATTERN_SIZE):
            raise InputError(f"weight has shape {self._weight.shape}; give (64, 64)")
        self._sum = np.zeros(shape, np.complex128)
        self._weights = np.zeros(shape, np.float64)
        self._skipped = 0
        self._origin = origin_px

    @classmethod
    def of(
        cls,
        sums: npt.NDArray[np.complex128],
        weights: npt.NDArray[np.float64],
        origin_px: tuple[int, int],
    ) -> ObjectCanvas:
        """Make a canvas of the weighted sums and the weights, (H, W), that another one held."""
        height, width = sums.shape
        canvas = cls((height, width), origin_px=origin_px)
        canvas._sum, canvas._weights = sums, weights
        return canvas

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in object pixels."""
        height, width = self._sum.shape
        return height, width

    @property
    def origin_px(self) -> tuple[int, int]:
        """(row, col) of the first pixel in the coordinates of the positions."""
        return self._origin

    def add(self, patches: ComplexArray, positions_px: npt.ArrayLike) -> None:
        """Add patches.

        Parameters
        ----------
        patches
            (n, 64, 64) complex.
        positions_px
            (n, 2), (row, col) of each patch's first pixel. A patch whose position is NaN or that
            would reach over the canvas is counted in `ObjectImage.skipped`.
        """
        positions = np.asarray(positions_px, np.float64)
        if patches.shape != (len(positions), PATTERN_SIZE, PATTERN_SIZE) or positions.ndim != 2:
            raise InputError(
                f"patches have shape {patches.shape} and positions {positions.shape}; "
                "give (n, 64, 64) and (n, 2)"
            )
        inside = positions - self._origin
        # One pixel less, because a patch between pixels is spread over 65.
        last = np.array(self._sum.shape) - PATTERN_SIZE - 1
        # NaN fails both comparisons.
        fits = ((inside >= 0) & (inside <= last)).all(axis=1)
        self._skipped += int((~fits).sum())
        for patch, position in zip(patches[fits], positions[fits], strict=True):
            self.add_spread(spread_patch(patch, position, self._weight))

    def add_spread(self, patch: SpreadPatch) -> None:
        """Add a patch that lies on the canvas as a whole."""
        here, _ = self._overlap((patch.row, patch.col), patch.values.shape)
        self._sum[here] += patch.values
        self._weights[here] += patch.weight

    def compare(self, patch: SpreadPatch) -> tuple[complex, float]:
        """Compare a patch, which may reach over the canvas, with what is there.

        Returns
        -------
        Σ canvas · patch*, weighted, whose argument is the phase by which the patch must be turned
        to fit best (see `align_phase`); and the share of its weight on covered pixels.
        """
        here, there = self._overlap((patch.row, patch.col), patch.values.shape)
        covered = patch.weight[there][self._weights[here] > 0].sum()
        product = np.vdot(patch.values[there], self._sum[here])
        return complex(product), float(covered / patch.weight.sum())

    def extend(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Put (rows, cols) of empty pixels before the first and after the last pixel."""
        margins = tuple(zip(before, after, strict=True))
        self._sum = np.pad(self._sum, margins)
        self._weights = np.pad(self._weights, margins)
        self._origin = self._origin[0] - before[0], self._origin[1] - before[1]

    def absorb(self, other: ObjectCanvas, turn_rad: float = 0.0) -> None:
        """Add what lies here of another canvas, after its phase is turned by a constant."""
        here, there = self._overlap(other.origin_px, other.shape)
        self._sum[here] += other._sum[there] * np.exp(1j * turn_rad)
        self._weights[here] += other._weights[there]
        self._skipped += other._skipped

    def image(self) -> ObjectImage:
        """Return the object as it stands now."""
        covered = self._weights > 0
        values = np.divide(self._sum, self._weights, where=covered, out=np.zeros_like(self._sum))
        return ObjectImage(
            values.astype(np.complex64),
            self._weights.astype(np.float32),
            self._skipped,
            self._origin,
        )

    def _overlap(self, origin: tuple[int, int], shape: tuple[int, ...]) -> tuple[Window, Window]:
        """Where a rectangle lies on this canvas, and which part of the rectangle that is."""
        here, there = [], []
        for own, first, length, count in zip(
            self._origin, origin, self._sum.shape, shape, strict=True
        ):
            # Where they do not meet both ends are equal, and the slices empty.
            begin, end = max(own, first), max(own, first, min(own + length, first + count))
            here.append(slice(begin - own, end - own))
            there.append(slice(begin - first, end - first))
        return (here[0], here[1]), (there[0], there[1])


def hann_weight() -> npt.NDArray[np.float64]:
    """Weigh a patch, (64, 64), by a raised cosine: near 1 in the middle and positive everywhere."""
    # Half a pixel in, so that even the outermost pixels keep a weight above 0.
    axis = np.sin(np.pi * (np.arange(PATTERN_SIZE) + 0.5) / PATTERN_SIZE) ** 2
    return np.outer(axis, axis)


def spread_patch(
    patch: ComplexArray, position: npt.NDArray[np.float64], weight: FloatArray
) -> SpreadPatch:
    """Weigh a (64, 64) patch and spread it bilinearly over the whole pixels at its position."""
    (row, col), (row_part, col_part) = np.floor(position).tolist(), (position % 1).tolist()
    values = _spread(patch * weight, row_part, col_part)
    return SpreadPatch(int(row), int(col), values, _spread(weight, row_part, col_part))


def _spread(values: npt.NDArray[Number], row_part: float, col_part: float) -> npt.NDArray[Number]:
    """Move (64, 64) values by less than a pixel along each axis, bilinearly, to (65, 65)."""
    rows = np.zeros((PATTERN_SIZE + 1, PATTERN_SIZE), values.dtype)
    rows[:-1] = values * (1 - row_part)
    rows[1:] += values * row_part
    moved = np.zeros((PATTERN_SIZE + 1, PATTERN_SIZE + 1), values.dtype)
    moved[:, :-1] = rows * (1 - col_part)
    moved[:, 1:] += rows * col_part
    return moved
