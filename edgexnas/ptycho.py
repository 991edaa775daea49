"""The contract of ptychography: patterns, scaling, patches, phase and stitching.

Training and inference call the same functions here. numpy only.

Conventions
-----------
* A pattern is a far-field diffraction pattern, 64×64 photon counts with the direct beam in the
  middle: pixel (32, 32).
* A patch is the object under the probe, 64×64: amplitude without unit and phase in radians.
* Positions are (row, col) in object pixels: where the first pixel of a patch lies on the canvas.
  They need not be whole numbers.
* The phase of a diffraction pattern is known up to a constant, so phases are compared and shown
  after that constant is removed; see `align_phase`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError

__all__ = [
    "PATTERN_SIZE",
    "ObjectCanvas",
    "ObjectImage",
    "ObjectPatches",
    "PatchErrors",
    "PlacedPatches",
    "SpreadPatch",
    "align_phase",
    "as_patterns",
    "bin_patterns",
    "check_counts",
    "decode_patches",
    "hann_weight",
    "patch_errors",
    "scale_patterns",
    "spread_patch",
    "to_complex",
]

PATTERN_SIZE = 64
"""Side of a pattern and of a patch in pixels, as in PtychoNN (Cherukara et al., APL 2020)."""

FloatArray = npt.NDArray[np.float32]
ComplexArray = npt.NDArray[np.complex64]
Window = tuple[slice, slice]
Number = TypeVar("Number", np.float32, np.complex64)


@dataclass(frozen=True, slots=True)
class ObjectPatches:
    """Patches of the object under the probe, as a network predicts them.

    Attributes
    ----------
    amplitude
        (n, 64, 64) float32, without unit.
    phase_rad
        (n, 64, 64) float32, radians; known up to a constant a patch.
    """

    amplitude: FloatArray
    phase_rad: FloatArray

    def __len__(self) -> int:
        return len(self.amplitude)

    @property
    def values(self) -> ComplexArray:
        """(n, 64, 64) complex64: amplitude · e^(i · phase)."""
        return to_complex(self.amplitude, self.phase_rad)


@dataclass(frozen=True, slots=True)
class PlacedPatches(ObjectPatches):
    """Patches with their places in a scan.

    Attributes
    ----------
    positions_px
        (n, 2) float64, (row, col) of each patch's first pixel in object pixels; NaN where it was
        not known when the pattern came.
    frame_numbers
        (n,) int64, number of the pattern in its scan, from 0.
    """

    positions_px: npt.NDArray[np.float64]
    frame_numbers: npt.NDArray[np.int64]


def check_counts(
    patterns: npt.NDArray[Any], *, saturation: float | None = None, first_number: int = 0
) -> None:
    """Refuse patterns that hold something else than photon counts.

    Parameters
    ----------
    patterns
        (n, H, W), any dtype.
    saturation
        Counts from which a pixel is saturated; None for the largest value of an unsigned integer
        dtype, which detectors also write for pixels without a reading, and no limit for others.
    first_number
        Number of the first pattern in its series, for messages.

    Raises
    ------
    InputError
        If the dtype is not real, or a count is negative, not finite or saturated; the message
        names the pattern, the pixel and the value.
    """
    kind = patterns.dtype.kind
    if kind not in "uif":
        raise InputError(f"patterns have dtype {patterns.dtype}; give real numbers, such as uint16")
    limit = float(np.iinfo(patterns.dtype).max) if kind == "u" else np.inf
    limit = limit if saturation is None else saturation
    # Whole-array extremes first: they are fast, and NaN fails both comparisons.
    if patterns.size == 0 or (patterns.min() >= 0 and patterns.max() < limit):
        return
    number, row, col = np.argwhere(~((patterns >= 0) & (patterns < limit)))[0]
    value = patterns[number, row, col]
    where = f"pattern {first_number + number} holds {value} at row {row}, col {col}"
    if limit <= value < np.inf:
        raise InputError(
            f"{where}, and counts from {limit:g} are saturated; "
            "mask a pixel that is always so, or lower the flux"
        )
    raise InputError(
        f"{where}, where counts are finite and not negative; set masked pixels to 0, or give a mask"
    )


def as_patterns(patterns: npt.ArrayLike, *, saturation: float | None = None) -> FloatArray:
    """Check patterns from outside and bring them to (n, 64, 64) float32.

    Parameters
    ----------
    patterns
        (n, 64, 64) or (n, 1, 64, 64), any real dtype, photon counts.
    saturation
        As in `check_counts`.

    Raises
    ------
    InputError
        If the shape is another, the dtype is not real, or a count is negative, not finite or
        saturated.
    """
    array = np.asarray(patterns)
    if array.dtype.kind not in "uif":
        raise InputError(f"patterns have dtype {array.dtype}; give real numbers, such as uint16")
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3 or array.shape[1:] != (PATTERN_SIZE, PATTERN_SIZE):
        raise InputError(
            f"patterns have shape {np.shape(patterns)}; give (n, 64, 64) or (n, 1, 64, 64), "
            "with bin_patterns where the detector is larger"
        )
    check_counts(array, saturation=saturation)
    return array.astype(np.float32, copy=False)


def bin_patterns(patterns: npt.ArrayLike, factor: int) -> FloatArray:
    """Crop square patterns around the direct beam and sum blocks of pixels, down to 64×64.

    Parameters
    ----------
    patterns
        (n, H, W) counts with the direct beam at (H // 2, W // 2); H and W at least 64 × `factor`.
    factor
        Pixels of the detector along each axis that become one.

    Returns
    -------
    (n, 64, 64) float32 counts.

    Raises
    ------
    InputError
        If the patterns are smaller than 64 × `factor`.
    """
    array = np.asarray(patterns)
    side = PATTERN_SIZE * factor
    if factor < 1:
        raise ConfigurationError(f"binning factor is {factor}; give 1 or more")
    if array.ndim != 3 or min(array.shape[1:]) < side:
        raise InputError(
            f"patterns have shape {array.shape}; binning by {factor} needs (n, {side}, {side}) "
            "or larger"
        )
    top, left = (length // 2 - side // 2 for length in array.shape[1:])
    cut = array[:, top : top + side, left : left + side].astype(np.float32, copy=False)
    blocks = cut.reshape(len(cut), PATTERN_SIZE, factor, PATTERN_SIZE, factor)
    binned: FloatArray = blocks.sum(axis=(2, 4), dtype=np.float32)
    return binned


def scale_patterns(patterns: FloatArray, intensity_scale: float) -> FloatArray:
    """Scale counts for the network: the square root of counts / `intensity_scale`.

    The root makes Poisson noise equally large everywhere. The scale is a constant of the model and
    not of the data, because a stream's brightest pattern is unknown while it runs.

    Parameters
    ----------
    patterns
        (n, 64, 64) float32 counts.
    intensity_scale
        Counts that become 1.
    """
    if not intensity_scale > 0:
        raise ConfigurationError(f"intensity_scale is {intensity_scale}; give more than 0 counts")
    scaled: FloatArray = np.sqrt(patterns / np.float32(intensity_scale))
    return scaled


def to_complex(amplitude: FloatArray, phase_rad: FloatArray) -> ComplexArray:
    """Combine amplitude and phase (radians) of equal shape into a complex array."""
    if amplitude.shape != phase_rad.shape:
        raise InputError(
            f"amplitude has shape {amplitude.shape} and phase {phase_rad.shape}; give equal shapes"
        )
    # A real sine and cosine take a tenth of the time of a complex exponential.
    combined: ComplexArray = np.empty(amplitude.shape, np.complex64)
    np.multiply(amplitude, np.cos(phase_rad), out=combined.real, casting="same_kind")
    np.multiply(amplitude, np.sin(phase_rad), out=combined.imag, casting="same_kind")
    return combined


def decode_patches(output: FloatArray) -> ObjectPatches:
    """Read a network's output (n, 2, 64, 64): amplitude, and phase in radians."""
    return ObjectPatches(output[:, 0], output[:, 1])


def align_phase(
    values: npt.NDArray[np.complexfloating],
    reference: npt.NDArray[np.complexfloating],
) -> npt.NDArray[np.complexfloating]:
    """Turn `values` by the constant phase that brings them nearest to `reference`.

    The constant is the argument of Σ reference · values*, which minimises Σ |values·e^{iφ} -
    reference|². Values of zero weigh nothing, so uncovered pixels do no harm.

    Parameters
    ----------
    values, reference
        Complex arrays of one shape.
    """
    overlap = np.vdot(values, reference)
    turned: npt.NDArray[np.complexfloating] = values * np.exp(1j * np.angle(overlap))
    return turned.astype(values.dtype)


@dataclass(frozen=True, slots=True)
class PatchErrors:
    """How far patches lie from their references, as means over all pixels of all patches.

    Attributes
    ----------
    phase_rad
        Mean absolute phase difference in radians, after the best constant phase of each patch
        (`align_phase`) is removed; a difference counts the short way round the circle.
    amplitude
        Mean absolute amplitude difference as a share of the references' mean amplitude.
    """

    phase_rad: float
    amplitude: float


def patch_errors(patches: FloatArray, references: FloatArray) -> PatchErrors:
    """Compare network outputs with references, as accuracy tables and gates do.

    Parameters
    ----------
    patches, references
        (n, 2, 64, 64) float32 with n at least 1: amplitude, then phase in radians.

    Raises
    ------
    InputError
        If the shapes differ, there is no patch, or the references have no amplitude.
    """
    if patches.shape != references.shape or patches.ndim != 4 or not len(patches):
        raise InputError(
            f"patches have shape {patches.shape} and references {references.shape}; give equal "
            "shapes (n, 2, 64, 64) with n at least 1"
        )
    scale = float(np.abs(references[:, 0]).mean(dtype=np.float64))
    if not scale > 0:
        raise InputError(f"the references' mean amplitude is {scale}; give more than 0")
    amplitude = float(np.abs(patches[:, 0] - references[:, 0]).mean(dtype=np.float64))
    turn = np.exp(1j * (references[:, 1] - patches[:, 1]))
    overlap = (patches[:, 0] * references[:, 0] * turn).sum(axis=(1, 2), keepdims=True)
    # The product with the conjugate removes each patch's constant before the angle wraps.
    phase = np.abs(np.angle(turn * np.exp(-1j * np.angle(overlap))))
    return PatchErrors(float(phase.mean(dtype=np.float64)), amplitude / scale)


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
            begin, end = max(own, first), max(own, first, min(own + length, first + count))
            here.append(slice(begin - own, end - own))
            there.append(slice(begin - first, end - first))
        return (here[0], here[1]), (there[0], there[1])


def hann_weight() -> npt.NDArray[np.float64]:
    """Weigh a patch, (64, 64), by a raised cosine: near 1 in the middle and positive everywhere."""
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
