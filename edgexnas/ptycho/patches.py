"""Patches of the object: amplitude and phase, and how far they lie from others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = [
    "ComplexArray",
    "ObjectPatches",
    "PatchErrors",
    "PlacedPatches",
    "align_phase",
    "decode_patches",
    "patch_errors",
    "to_complex",
]

FloatArray = npt.NDArray[np.float32]
ComplexArray = npt.NDArray[np.complex64]


@dataclass(frozen=True, slots=True)
class ObjectPatches:
    """Patches of the object under the probe, as a network predicts them.

    Attributes
    ----------
    amplitude
        (n, 64, 64) float32, without unit.
    phase_rad
        (n, 64, 64) float32, radians; known up to a constant a patch.
    reasons
        (n,) uint8, why a pattern is unlike those of the training data, 0 if it is not, 255 if it
        was not looked at; see `edgexnas.familiarity.pattern_reason_name`. None where the bundle
        does not tell.
    """

    amplitude: FloatArray
    phase_rad: FloatArray
    reasons: npt.NDArray[np.uint8] | None = field(default=None, kw_only=True)

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

    The constant is the argument of ``Σ reference · values*``, which minimises
    ``Σ |values·e^{iφ} - reference|²``. Values of zero weigh nothing, so uncovered pixels do no
    harm.

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
