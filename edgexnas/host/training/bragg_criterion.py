"""What a network for Bragg peaks minimises, how it is judged, and how its data are augmented."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgexnas.host.networks.bragg_models import LEVELS, middle_of

__all__ = [
    "QuantileCriterion",
    "evaluate_model",
    "predict_offsets",
    "quantile_loss",
    "score_offsets",
    "symmetry",
]


class QuantileCriterion:
    """The pinball loss and the distances of Bragg peaks."""

    symmetries = 8

    def __init__(self, levels: tuple[float, ...], device: torch.device) -> None:
        self._levels = levels
        self._tensor = torch.tensor(levels, device=device)
        self._slopes = 0.5 - self._tensor

    def prepare(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Nothing: patches are scaled one by one."""

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `quantile_loss`."""
        loss: Tensor = _Pinball.apply(predicted, target, self._tensor, self._slopes)  # type: ignore[no-untyped-call]
        return loss

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        """See `evaluate_model`."""
        return evaluate_model(model, x, y, self._levels)

    def symmetry(self, x: Tensor, y: Tensor, fold: int) -> tuple[Tensor, Tensor]:
        """See `symmetry`."""
        return symmetry(x, y, fold)


def quantile_loss(predicted: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean pinball loss in pixels (Koenker and Bassett, Econometrica 46, 33 (1978)).

    Parameters
    ----------
    predicted
        (n, 2, q) quantiles.
    target
        (n, 2).
    levels
        (q,) between 0 and 1.
    """
    loss: Tensor = _Pinball.apply(predicted, target, levels, 0.5 - levels)  # type: ignore[no-untyped-call]
    return loss


class _Pinball(torch.autograd.Function):
    """The mean pinball loss with its gradient in closed form: a fifth of autograd's calls.

    Its slope is 1 - level below the quantile and -level above it, or ½ - level - ½ sign(error).
    """

    @staticmethod
    def forward(
        ctx: Any, predicted: Tensor, target: Tensor, levels: Tensor, slopes: Tensor
    ) -> Tensor:
        error = target.unsqueeze(2) - predicted
        ctx.save_for_backward(error, slopes)
        # One of the two is negative wherever the error is not 0, for levels in (0, 1).
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        error, slopes = ctx.saved_tensors
        slope = torch.sub(slopes, torch.sign(error), alpha=0.5)
        return slope * (gradients[0] / error.numel()), None, None, None


def predict_offsets(model: nn.Module, x: Tensor, batch: int = 4096) -> Tensor:
    """Offsets (n, 2, q) of patches (n, 1, 11, 11), without gradients."""
    with torch.inference_mode():
        return torch.cat([model(x[at : at + batch]) for at in range(0, len(x), batch)])


def score_offsets(
    predicted: np.ndarray, target: np.ndarray, levels: tuple[float, ...]
) -> dict[str, float]:
    """Score predicted quantiles (n, 2, q) against offsets (n, 2), all in pixels.

    Returns
    -------
    ``error`` (mean distance), ``p50_px``, ``p75_px``, ``p95_px`` of the distance, ``quantile_loss``
    (mean pinball loss) and ``coverage`` (share of targets inside the outermost quantiles).
    """
    middle = middle_of(levels)
    distance = np.linalg.norm(predicted[:, :, middle] - target, axis=1)
    # As np.percentile, which costs more than all else here.
    ranked = np.sort(distance)
    p50, p75, p95 = np.interp(
        np.array([0.50, 0.75, 0.95]) * (len(ranked) - 1), np.arange(len(ranked)), ranked
    )
    error = target[:, :, None] - predicted
    level = np.asarray(levels)
    inside = (target >= predicted[:, :, 0]) & (target <= predicted[:, :, -1])
    return {
        "error": float(distance.mean()),
        "p50_px": float(p50),
        "p75_px": float(p75),
        "p95_px": float(p95),
        "quantile_loss": float(np.maximum(level * error, (level - 1) * error).mean()),
        "coverage": float(inside.mean()),
    }


def evaluate_model(
    model: nn.Module, x: Tensor, y: Tensor, levels: tuple[float, ...] = LEVELS
) -> dict[str, float]:
    """Score a network on patches (n, 1, 11, 11) and offsets (n, 2); see `score_offsets`."""
    return score_offsets(predict_offsets(model, x).cpu().numpy(), y.cpu().numpy(), levels)


def symmetry(x: Tensor, y: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Apply one of the eight symmetries of the square to patches and their offsets.

    Parameters
    ----------
    x
        (n, 1, 11, 11).
    y
        (n, 2), offset (row, col) from the centre pixel, which every symmetry leaves in place.
    fold
        Bit 0 transposes, bit 1 then reverses the rows, bit 2 then reverses the columns.
    """
    sign = y.new_tensor([-1.0 if fold & 2 else 1.0, -1.0 if fold & 4 else 1.0])
    # Transposing swaps row and column of the offsets as well.
    if fold & 1:
        x, y = x.transpose(2, 3), y.flip(1)
    axes = [axis for axis, bit in ((2, 2), (3, 4)) if fold & bit]
    return (x.flip(axes) if axes else x.contiguous()), y * sign
