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

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError

__all__ = [
    "PATTERN_SIZE",
    "ObjectCanvas",
    "ObjectImage",
    "align_phase",
    "as_patterns",
    "bin_patterns",
    "scale_patterns",
    "to_complex",
]

PATTERN_SIZE = 64
"""Side of a pattern and of a patch in pixels, as in PtychoNN (Cherukara et al., APL 2020)."""

FloatArray = npt.NDArray[np.float32]
ComplexArray = npt.NDArray[np.complex64]


def as_patterns(patterns: npt.ArrayLike) -> FloatArray:
    """Check patterns from outside and bring them to (n, 64, 64) float32.

    Parameters
    ----------
    patterns
        (n, 64, 64) or (n, 1, 64, 64), any real dtype, photon counts.

    Raises
    ------
    InputError
        If the shape is another, the dtype is not real, or a count is negative or not finite.
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
    result = array.astype(np.float32, copy=False)
    # NaN fails the comparison too.
    valid = ((result >= 0) & np.isfinite(result)).all(axis=(1, 2))
    if not valid.all():
        raise InputError(
            f"pattern {int(np.argmin(valid))} holds a negative count, NaN or infinity; "
            "set masked pixels to 0"
        )
    return result


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
    combined: ComplexArray = (amplitude * np.exp(1j * phase_rad)).astype(np.complex64)
    return combined


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
class ObjectImage:
    """A stitched object.

    Attributes
    ----------
    values
        (H, W) complex64; 0 where nothing was measured.
    coverage
        (H, W) float32: sum of the weights of the patches that cover a pixel.
    skipped
        Patches that were not used because their position was NaN or off the canvas.
    """

    values: ComplexArray
    coverage: FloatArray
    skipped: int

    @property
    def amplitude(self) -> FloatArray:
        """(H, W) float32, without unit."""
        return np.abs(self.values)

    @property
    def phase_rad(self) -> FloatArray:
        """(H, W) float32, radians in (-π, π]."""
        return np.angle(self.values)


class ObjectCanvas:
    """Averages patches into an object image by their positions.

    Each patch is spread over the four nearest whole-pixel positions with bilinear weights, so that
    a fraction of a pixel is not lost. Sums are kept in float64 and patches are added one after the
    other, so the image does not depend on how patches were batched.

    Parameters
    ----------
    shape
        (H, W) of the canvas in object pixels.
    weight
        (64, 64) float32 weight of a patch's pixels, such as the probe's intensity; None for a
        raised cosine that trusts the middle of a patch most.
    """

    def __init__(self, shape: tuple[int, int], *, weight: FloatArray | None = None) -> None:
        if min(shape) <= PATTERN_SIZE:
            raise ConfigurationError(
                f"canvas has shape {shape}; it must be larger than a patch, 64×64"
            )
        self._weight = hann_weight() if weight is None else np.asarray(weight, np.float64)
        if self._weight.shape != (PATTERN_SIZE, PATTERN_SIZE):
            raise InputError(f"weight has shape {self._weight.shape}; give (64, 64)")
        self._sum = np.zeros(shape, np.complex128)
        self._weights = np.zeros(shape, np.float64)
        self._skipped = 0

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
        last = np.array(self._sum.shape) - PATTERN_SIZE - 1
        # NaN fails both comparisons.
        fits = ((positions >= 0) & (positions <= last)).all(axis=1)
        self._skipped += int((~fits).sum())
        for patch, position in zip(patches[fits], positions[fits], strict=True):
            self._add_one(patch, position)

    def _add_one(self, patch: ComplexArray, position: npt.NDArray[np.float64]) -> None:
        first = np.floor(position).astype(int)
        row_part, col_part = position - first
        weighted = patch * self._weight
        for row_step, row_share in ((0, 1 - row_part), (1, row_part)):
            for col_step, col_share in ((0, 1 - col_part), (1, col_part)):
                row, col = first[0] + row_step, first[1] + col_step
                where = slice(row, row + PATTERN_SIZE), slice(col, col + PATTERN_SIZE)
                self._sum[where] += weighted * (row_share * col_share)
                self._weights[where] += self._weight * (row_share * col_share)

    def image(self) -> ObjectImage:
        """Return the object as it stands now."""
        covered = self._weights > 0
        values = np.divide(self._sum, self._weights, where=covered, out=np.zeros_like(self._sum))
        return ObjectImage(
            values.astype(np.complex64), self._weights.astype(np.float32), self._skipped
        )


def hann_weight() -> npt.NDArray[np.float64]:
    """Weigh a patch, (64, 64), by a raised cosine: near 1 in the middle and positive everywhere."""
    axis = np.sin(np.pi * (np.arange(PATTERN_SIZE) + 0.5) / PATTERN_SIZE) ** 2
    return np.outer(axis, axis)
