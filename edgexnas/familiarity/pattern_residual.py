"""The physics residual: what predicted patches under the probe do not explain of their patterns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgexnas.ptycho import (
    PATTERN_SIZE,
    ComplexArray,
    FloatArray,
    Orientation,
    bin_patterns,
    oriented,
    to_complex,
)

__all__ = ["PatternResidual"]


class PatternResidual:
    """Diffracts predicted patches and compares them with the measured patterns.

    A patch is the object under the middle 64×64 pixels of the probe; beyond it the object is taken
    for the patch's mean, where there is little light.

    Parameters
    ----------
    probe
        (modes, H, W) complex, H = W a multiple of 64.
    orientation
        What brings the detector's patterns into the axes of the positions.
    """

    def __init__(self, probe: ComplexArray, orientation: Orientation = "as-is") -> None:
        self._probe, self._orientation = probe, orientation
        self._factor = probe.shape[-1] // PATTERN_SIZE
        top, left = (side // 2 - PATTERN_SIZE // 2 for side in probe.shape[-2:])
        self._middle = (
            slice(top, top + PATTERN_SIZE),
            slice(left, left + PATTERN_SIZE),
        )

    @staticmethod
    def fits(probe: ComplexArray | None) -> bool:
        """Whether there is a probe whose patterns are binned to 64×64."""
        if probe is None:
            return False
        rows, cols = probe.shape[-2:]
        return bool(rows == cols and rows >= PATTERN_SIZE and rows % PATTERN_SIZE == 0)

    def of(
        self, patterns: FloatArray, amplitude: FloatArray, phase_rad: FloatArray
    ) -> npt.NDArray[np.float64]:
        """Compute the residual of patterns.

        Parameters
        ----------
        patterns
            (n, 64, 64) counts.
        amplitude, phase_rad
            (n, 64, 64) of the predicted patches.

        Returns
        -------
        (n,) Σ(√I - √model)² / ΣI, with the light of the model scaled to that of the pattern: how
        bright it is, is another question.
        """
        residuals = np.empty(len(patterns))
        patches = to_complex(amplitude, phase_rad)
        for index, (pattern, patch) in enumerate(zip(patterns, patches, strict=True)):
            model = self._model(patch)
            light = max(float(pattern.sum()), 1e-9)
            model *= light / max(float(model.sum()), 1e-9)
            residuals[index] = float(np.square(np.sqrt(pattern) - np.sqrt(model)).sum()) / light
        return residuals

    def _model(self, patch: ComplexArray) -> FloatArray:
        sample = np.full(self._probe.shape[-2:], patch.mean(), np.complex64)
        sample[self._middle] = patch
        waves = np.fft.fft2(self._probe * sample, norm="ortho")
        intensity = np.square(np.abs(waves)).sum(axis=0).astype(np.float32)
        seen = oriented(np.fft.fftshift(intensity), self._orientation, inverse=True)
        model: FloatArray = bin_patterns(np.ascontiguousarray(seen)[None], self._factor)[0]
        return model
