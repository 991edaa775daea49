"""Training of networks this small: data resident on the training device, no Python per sample.

An epoch is one gather of the permuted, augmented set and then views of it, so a step costs the
network's own kernels and one fused optimiser call. Augmentation is the symmetries of the square,
computed once and drawn anew for every sample and epoch. The loop is the same for every task; what
differs is a `Criterion`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgexnas.errors import ConfigurationError, SearchError
from edgexnas.host.models import LEVELS, middle_of
from edgexnas.host.tasks import find_task

if TYPE_CHECKING:
    from edgexnas.host.splitting import Split
    from edgexnas.host.tasks import Dataset

__all__ = [
    "Criterion",
    "DivergedError",
    "QuantileCriterion",
    "TrainingData",
    "TrainingResult",
    "TrainingSettings",
    "evaluate_model",
    "predict_offsets",
    "quantile_loss",
    "score_offsets",
    "train",
]

EpochHook = Callable[[int, Mapping[str, float]], bool]

AUGMENTED_BYTES = 1 << 30
"""Above this size the augmented set is not kept; each epoch transforms anew."""


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


class Criterion(Protocol):
    """What a training minimises, how a network is judged, and how its data may be augmented."""

    @property
    def symmetries(self) -> int:
        """How many folds `symmetry` knows; fold 0 changes nothing."""

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Set what a network takes from the training inputs without learning it."""

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Scalar to minimise, from a batch's outputs and targets."""

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        """Score a network in evaluation mode; ``error`` decides which epoch is best."""

    def symmetry(self, x: Tensor, y: Tensor, fold: int) -> tuple[Tensor, Tensor]:
        """Transform inputs and targets together."""


class QuantileCriterion:
    """The pinball loss and the distances of Bragg peaks."""

    symmetries = 8

    def __init__(self, levels: tuple[float, ...], device: torch.device) -> None:
        self._levels = levels
        self._tensor = torch.tensor(levels, device=device)

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Nothing: patches are scaled one by one."""

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """See `quantile_loss`."""
        return quantile_loss(predicted, target, self._tensor)

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
    error = target.unsqueeze(2) - predicted
    return torch.maximum(levels * error, (levels - 1) * error).mean()


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
    p50, p75, p95 = np.percentile(distance, [50, 75, 95])
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
    # Convolutions run up to a third faster in this layout; other layers do not mind.
    # The stubs do not know this keyword.
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    criterion = find_task(data.task).criterion(settings.levels, device)
    criterion.prepare(model, data.train_x)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    epochs = _Epochs(data, settings, criterion)
    schedule = _Schedule(settings.learning_rate, settings.epochs * epochs.steps)
    best = _Best()
    history: list[dict[str, float]] = []
    for number in range(1, settings.epochs + 1):
        for x, y in epochs:
            optimiser.param_groups[0]["lr"] = schedule.next()
            optimiser.zero_grad(set_to_none=True)
            loss = criterion.loss(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        model.eval()
        metrics = criterion.evaluate(model, data.validation_x, data.validation_y)
        model.train()
        if not math.isfinite(metrics["error"]):
            break
        history.append(metrics)
        best.offer(number, metrics, model)
        if on_epoch is not None and on_epoch(number, metrics):
            break
        if settings.patience is not None and number - best.epoch >= settings.patience:
            break
        limit = settings.time_limit_s
        if limit is not None and time.monotonic() - started > limit:
            break
    if best.state is None:
        raise DivergedError(
            f"training diverged in its first epoch at learning rate {settings.learning_rate:g}; "
            "lower the learning rate"
        )
    model.load_state_dict(best.state)
    model.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    seconds = time.monotonic() - started
    return TrainingResult(model.eval(), best.metrics, len(history), seconds, history)


class _Epochs:
    """Yields the batches of one epoch as views of one permuted, augmented copy."""

    def __init__(
        self, data: TrainingData, settings: TrainingSettings, criterion: Criterion
    ) -> None:
        self._x, self._y, self._batch = data.train_x, data.train_y, settings.batch_size
        self._generator = torch.Generator(device=data.device).manual_seed(settings.seed)
        self._symmetry = criterion.symmetry
        self._folds = criterion.symmetries if settings.augment else 1
        size = self._x.nbytes + self._y.nbytes
        self._keep = size * self._folds <= AUGMENTED_BYTES
        if self._keep and self._folds > 1:
            turned = [self._symmetry(self._x, self._y, fold) for fold in range(self._folds)]
            self._x = torch.cat([x for x, _ in turned])
            self._y = torch.cat([y for _, y in turned])
        self._count = len(data.train_x)
        # A last batch of one or two items is noise, so it is dropped where others exist.
        self.steps = max(1, self._count // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self._count, generator=self._generator, device=self._x.device)
        order = order[: self.steps * self._batch]
        if self._folds > 1 and self._keep:
            x, y = self._take(order + self._draw(len(order)) * self._count)
        elif self._folds > 1:
            x, y = self._symmetry(*self._take(order), int(self._draw(1)))
        else:
            x, y = self._take(order)
        for start in range(0, len(x), self._batch):
            yield x[start : start + self._batch], y[start : start + self._batch]

    def _take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._x[index], self._y[index]

    def _draw(self, count: int) -> Tensor:
        return torch.randint(
            self._folds, (count,), generator=self._generator, device=self._x.device
        )


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
    if fold & 1:
        x, y = x.transpose(2, 3), y.flip(1)
    axes = [axis for axis, bit in ((2, 2), (3, 4)) if fold & bit]
    return (x.flip(axes) if axes else x.contiguous()), y * sign


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

    def __init__(self) -> None:
        self.epoch = 0
        self.metrics: dict[str, float] = {}
        self.state: dict[str, Tensor] | None = None

    def offer(self, epoch: int, metrics: dict[str, float], model: nn.Module) -> None:
        if self.state is None or metrics["error"] < self.metrics["error"]:
            self.epoch, self.metrics = epoch, metrics
            self.state = copy.deepcopy(model.state_dict())
