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
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgexnas.errors import ConfigurationError, SearchError
from edgexnas.host.networks.bragg_models import LEVELS
from edgexnas.host.search.tasks import find_task
from edgexnas.host.training.criteria import Criterion
from edgexnas.host.training.epochs import Epochs
from edgexnas.host.training.normalisation import normalised
from edgexnas.host.training.steps import make_step

if TYPE_CHECKING:
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.search.tasks import Dataset

__all__ = [
    "Criterion",
    "DivergedError",
    "TrainingData",
    "TrainingResult",
    "TrainingSettings",
    "train",
]

EpochHook = Callable[[int, Mapping[str, float]], bool]


class DivergedError(SearchError):
    """The training loss became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train one network.

    Attributes
    ----------
    epochs
        Upper bound; the learning rate falls to 0 along a cosine that ends here.
    batch_size
        Patches a step.
    learning_rate
        Peak rate of Adam, reached after the first 5 % of the steps.
    patience
        Epochs without a better validation error after which to stop; None never stops early. The
        error falls most where the rate does, at the end, so a short patience costs accuracy.
    augment
        Draw one of the task's symmetries of the square for each item and epoch.
    normalise
        Batch-normalise convolutions meanwhile; see `edgexnas.host.training.normalisation`. For
        fresh weights only: put behind trained ones it changes what they say.
    device
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    time_limit_s
        Wall-clock bound; training stops at the end of the epoch that passes it.
    levels
        Quantile levels of the head of a network for Bragg peaks.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-3
    patience: int | None = None
    seed: int = 0
    augment: bool = True
    normalise: bool = False
    device: str = "auto"
    time_limit_s: float | None = None
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; give more than 0")


@dataclass
class TrainingResult:
    """A trained network: the weights of its best epoch, on the CPU, in evaluation mode."""

    model: nn.Module
    metrics: dict[str, float]
    epochs: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingData:
    """Tensors of one task on the training device.

    Attributes
    ----------
    train_x, validation_x
        float32, scaled inputs: patches (n, 1, 11, 11) for "bragg", patterns (n, 1, 64, 64) for
        "ptycho".
    train_y, validation_y
        float32: for "bragg" (n, 2), offset (row, col) from the patch's centre pixel in pixels; for
        "ptycho" (n, 2, 64, 64), amplitude and phase in radians.
    task
        "bragg" or "ptycho".
    """

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    task: str = "bragg"

    @classmethod
    def from_dataset(cls, dataset: Dataset, split: Split, device: str = "auto") -> TrainingData:
        """Put the training and validation parts of a split on the training device."""
        where = training_device(device)
        x = torch.from_numpy(dataset.inputs())
        y = torch.from_numpy(find_task(dataset.task).targets(dataset))
        parts = (split.train, split.validation)
        train_x, train_y, validation_x, validation_y = (
            t[torch.from_numpy(part)].to(where) for part in parts for t in (x, y)
        )
        return cls(train_x, train_y, validation_x, validation_y, dataset.task)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train_x.device


def training_device(name: str) -> torch.device:
    """Resolve "auto" to a GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device is {name!r}; give 'auto', 'cpu', 'cuda' or 'cuda:<number>'"
        ) from error


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
    torch.manual_seed(settings.seed)
    device = data.device
    model.to(device).train()
    criterion = find_task(data.task).criterion(settings.levels, device)
    criterion.prepare(model, data.train_x, data.train_y)
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
    epochs = Epochs(data, settings, criterion)
    step = make_step(model, criterion)
    schedule = _Schedule(settings.learning_rate, settings.epochs * epochs.steps)
    best = _Best(model)
    history: list[dict[str, float]] = []
    for number in range(1, settings.epochs + 1):
        step.run((x, y, schedule.next()) for x, y in epochs)
        model.eval()
        metrics = criterion.evaluate(model, data.validation_x, data.validation_y)
        model.train()
        if not math.isfinite(metrics["error"]):
            break
        history.append(metrics)
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
    """Linear warm-up over 5 % of the steps, then a half cosine to 0."""

    def __init__(self, peak: float, steps: int) -> None:
        self._peak, self._steps = peak, steps
        self._warm = max(1, steps // 20)
        self._step = 0

    def next(self) -> float:
        self._step += 1
        if self._step <= self._warm:
            return self._peak * self._step / self._warm
        done = (self._step - self._warm) / max(1, self._steps - self._warm)
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
            self._state = {k: v.clone() for k, v in self._model.state_dict().items()}

    def restore(self) -> None:
        self._model.load_state_dict(self._state)
