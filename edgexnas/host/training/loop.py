"""Training of networks this small: data resident on the training device, no Python per sample.

An epoch is one gather of the permuted, augmented set and then views of it, see
`edgexnas.host.training.epochs`; a step is recorded once and replayed, see
`edgexnas.host.training.steps`. The loop is the same for every task; what differs is a `Criterion`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgexnas.errors import SearchError
from edgexnas.host.training.criteria import CRITERIA, Criterion
from edgexnas.host.training.epochs import fitting_items, make_epochs
from edgexnas.host.training.normalisation import normalised
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.host.training.steps import make_step

__all__ = [
    "DivergedError",
    "TrainingResult",
    "train",
]

EpochHook = Callable[[int, Mapping[str, float]], bool]


class DivergedError(SearchError):
    """The training loss became NaN or infinite."""


@dataclass
class TrainingResult:
    """A trained network: the weights of its best epoch, on the CPU, in evaluation mode."""

    model: nn.Module
    metrics: dict[str, float]
    epochs: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    *,
    on_epoch: EpochHook | None = None,
) -> TrainingResult:
    """Train with Adam on the task's loss and keep the weights of the best validation error.

    Parameters
    ----------
    model
        Any network from (n, 1, 11, 11) to (n, 2, q) for "bragg", from (n, 1, 64, 64) to
        (n, 2, 64, 64) for "ptycho"; trained in place.
    on_epoch
        Called after each epoch with its number (from 1) and metrics; True stops the training.

    Raises
    ------
    DivergedError
        If the loss becomes NaN or infinite before a first finite validation error.
    """
    started = time.monotonic()
    # For layers that draw, such as dropout; batches have a generator of their own.
    torch.manual_seed(settings.seed)
    device = data.device
    model.to(device).train()
    criterion = CRITERIA[data.task](settings.levels, device)
    # Constants that a network holds, such as the mean pattern: from the training part alone.
    criterion.prepare(model, *fitting_items(data, settings.seed))
    with normalised(model) if settings.normalise else nullcontext():
        metrics, history = _best_of_epochs(model, data, settings, criterion, on_epoch)
    model.cpu()
    for parameter in model.parameters():
        # Steps lay parameters out as they like, such as in one vector.
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    seconds = time.monotonic() - started
    return TrainingResult(model.eval(), metrics, len(history), seconds, history)


def _best_of_epochs(
    model: nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    criterion: Criterion,
    on_epoch: EpochHook | None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train; leave the weights of the best epoch, return its metrics and those of all."""
    started = time.monotonic()
    epochs = make_epochs(data, settings, criterion)
    step = make_step(model, criterion)
    # Fresh patterns need no early stopping, so that a limit of time may shorten the schedule.
    ends_s = settings.time_limit_s if data.source is not None else None
    schedule = _Schedule(settings.learning_rate, settings.epochs * epochs.steps, ends_s)
    best = _Best(model)
    history: list[dict[str, float]] = []
    for number in range(1, settings.epochs + 1):
        step.run((x, y, schedule.next()) for x, y in epochs)
        model.eval()
        metrics = criterion.evaluate(model, data.validation_x, data.validation_y)
        model.train()
        # Diverged: what came before is kept, because the best epoch is a network all the same.
        if not math.isfinite(metrics["error"]):
            break
        history.append(metrics)
        # Offered before the hook may stop the training, so that a stopped one has this epoch.
        best.offer(number, metrics)
        if on_epoch is not None and on_epoch(number, metrics):
            break
        if settings.patience is not None and number - best.epoch >= settings.patience:
            break
        limit = settings.time_limit_s
        if limit is not None and time.monotonic() - started > limit:
            break
    if not best.epoch:
        raise DivergedError(
            f"training diverged in its first epoch at learning rate {settings.learning_rate:g}; "
            "lower the learning rate"
        )
    best.restore()
    return best.metrics, history


class _Schedule:
    """Linear warm-up over 5 % of the steps, then a half cosine to 0.

    With a limit of time it follows whichever runs out first.
    """

    def __init__(self, peak: float, steps: int, ends_s: float | None = None) -> None:
        self._peak, self._steps = peak, steps
        self._ends_s, self._began = ends_s, time.monotonic()
        self._warm = max(1, steps // 20)
        self._step = 0

    def next(self) -> float:
        self._step += 1
        step = float(self._step)
        if self._ends_s is not None:
            step = max(step, self._steps * (time.monotonic() - self._began) / self._ends_s)
        if step <= self._warm:
            return self._peak * step / self._warm
        # From 0 after the warm-up to 1 at the last step.
        done = (step - self._warm) / max(1, self._steps - self._warm)
        return 0.5 * self._peak * (1 + math.cos(math.pi * min(done, 1.0)))


class _Best:
    """The best epoch so far and a copy of its weights."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._state: dict[str, Tensor] = {}
        self.epoch = 0
        self.metrics: dict[str, float] = {}

    def offer(self, epoch: int, metrics: dict[str, float]) -> None:
        if not self.epoch or metrics["error"] < self.metrics["error"]:
            self.epoch, self.metrics = epoch, metrics
            # Cloned, because training goes on in these very tensors.
            self._state = {k: v.clone() for k, v in self._model.state_dict().items()}

    def restore(self) -> None:
        self._model.load_state_dict(self._state)
