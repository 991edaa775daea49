"""What a training minimises, by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from edgexnas.host.training.bragg_criterion import QuantileCriterion
from edgexnas.host.training.ptycho_criterion import PatchCriterion

__all__ = ["CRITERIA", "Criterion"]


class Criterion(Protocol):
    """What a training minimises, how a network is judged, and how its data may be augmented."""

    @property
    def symmetries(self) -> int:
        """How many folds `symmetry` knows; fold 0 changes nothing."""

    def prepare(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Set what a network takes from the training data without learning it."""

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Scalar to minimise, from a batch's outputs and targets."""

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        """Score a network in evaluation mode; ``error`` decides which epoch is best."""

    def symmetry(self, x: Tensor, y: Tensor, fold: int) -> tuple[Tensor, Tensor]:
        """Transform inputs and targets together."""


CRITERIA: dict[str, Callable[[tuple[float, ...], torch.device], Criterion]] = {
    "bragg": QuantileCriterion,
    # Amplitude and phase have no quantiles.
    "ptycho": lambda levels, device: PatchCriterion(),
}
"""Task → its criterion, made from quantile levels and the training device."""
