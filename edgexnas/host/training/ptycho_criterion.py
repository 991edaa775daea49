"""What a ptychography network minimises, how it is judged, and how its data may be augmented.

A diffraction pattern leaves the phase of the object open up to a constant, so each patch is
compared after its own best constant is removed; the amplitude is compared as a share of its mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgexnas.host.networks.ptycho_models import Contrast, Shadow

__all__ = ["PatchCriterion", "phase_differences", "symmetry"]

SCORING_BATCH = 64
"""Patterns scored at once: a convolution's output on them is larger than on a Bragg patch."""


def phase_differences(predicted: Tensor, target: Tensor) -> Tensor:
    """Phase differences without each patch's constant, the short way round the circle.

    The constant is that of `edgexnas.ptycho.align_phase`; no gradient passes through it.

    Parameters
    ----------
    predicted, target
        (n, 2, 64, 64): amplitude, then phase in radians.

    Returns
    -------
    (n, 64, 64) in radians, from −π to π.
    """
    difference = predicted[:, 1] - target[:, 1]
    with torch.no_grad():
        weight = predicted[:, 0] * target[:, 0]
        sine = (weight * difference.sin()).sum((1, 2), keepdim=True)
        cosine = (weight * difference.cos()).sum((1, 2), keepdim=True)
        constant = torch.atan2(sine, cosine)
        # Whole turns are taken off, since −π and π are the same phase.
        turns = ((difference - constant) / (2 * math.pi)).round() * (2 * math.pi)
    return difference - constant - turns


@dataclass(frozen=True)
class PatchCriterion:
    """Mean absolute phase error in radians plus the weighted relative amplitude error.

    Attributes
    ----------
    amplitude_weight
        Radians that an amplitude error of the whole mean amplitude counts as.
    symmetries
        How many of `symmetry`'s folds a training draws from: 8 only for a probe that has all the
        symmetries of the square. The wave of a measured probe has none, and drawing from them
        then teaches what is wrong.
    """

    amplitude_weight: float = 1.0
    symmetries: int = 1

    def prepare(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Fit the network's `Contrast` and `Shadow` to the training patterns and patches."""
        for part in model.modules():
            if isinstance(part, Contrast):
                part.fit(x)
            elif isinstance(part, Shadow):
                part.fit(x - x.mean(0), y)

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Scalar from (n, 2, 64, 64) each."""
        amplitude = (predicted[:, 0] - target[:, 0]).abs().mean() / target[:, 0].mean()
        phase = phase_differences(predicted, target).abs().mean()
        return phase + self.amplitude_weight * amplitude

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        """Score a network, as `edgexnas.ptycho.patch_errors` does.

        Returns
        -------
        ``error`` (mean absolute phase error in radians) and ``amplitude_error`` (mean absolute
        amplitude error as a share of the mean amplitude).
        """
        phase = amplitude = 0.0
        with torch.inference_mode():
            for at in range(0, len(x), SCORING_BATCH):
                target = y[at : at + SCORING_BATCH]
                predicted = model(x[at : at + SCORING_BATCH])
                phase += float(phase_differences(predicted, target).abs().mean((1, 2)).sum())
                amplitude += float((predicted[:, 0] - target[:, 0]).abs().mean((1, 2)).sum())
        mean = float(y[:, 0].mean())
        return {"error": phase / len(x), "amplitude_error": amplitude / len(x) / mean}

    def symmetry(self, x: Tensor, y: Tensor, fold: int) -> tuple[Tensor, Tensor]:
        """Turn patterns and patches together; see `symmetry`."""
        return symmetry(x, y, fold)


def symmetry(x: Tensor, y: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Apply one of the eight symmetries of the square to patterns and their patches.

    A far field is a Fourier transform, which turns and mirrors with the field behind the probe.
    Turning the object alone therefore turns the pattern as far as the probe's own wave has that
    symmetry. The conjugate of the object is no symmetry, unless the probe is in focus.

    Both images are mirrored about pixel 32, where the direct beam and the probe's middle are.
    Row 0 then has no partner: a pattern wraps round, a patch repeats its last row.

    Parameters
    ----------
    x
        (n, 1, 64, 64) scaled patterns.
    y
        (n, 2, 64, 64) amplitude and phase.
    fold
        Bit 0 reverses rows, bit 1 reverses columns, bit 2 then transposes.
    """
    for axis, bit in ((2, 1), (3, 2)):
        if fold & bit:
            x = x.flip(axis).roll(1, axis)
            y = y.flip(axis)
            y = torch.cat([y.narrow(axis, 0, 1), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    if fold & 4:
        x, y = x.transpose(2, 3), y.transpose(2, 3)
    return x.contiguous(), y.contiguous()
