"""Training of networks this small: data resident on the training device, no Python per sample.

An epoch is one gather of the permuted, augmented set and then views of it, see
`edgexnas.host.training.epochs`; a step is recorded once and replayed, see
`edgexnas.host.training.steps`. The loop is the same for every task; what differs is a `Criterion`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgexnas.errors import SearchError
from edgexnas.host.training.criteria import CRITERIA, Criterion
from edgexnas.host.training.epochs import DrawnEpochs, Epochs, fitting_items, make_epochs
from edgexnas.host.training.normalisation import normalised
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.host.training.steps import Batch, make_step

__all__ = [
    "DivergedError",
    "TrainingResult",
    "train",
]

EpochHook = Callable[[int, Mapping[str, float]], bool]
Clock = Callable[[], float]

ROUNDS = 40
"""How often a training that is given a time is scored, so that its best weights are kept."""

LATER_MAY_ERR = 1.1
"""Of a training that is given a time a later round counts though it errs so many times as much as
the best so far: its learning rate is lower, and a few hundred items say no more than that."""

QUEUED_STEPS = 16
"""Steps that a GPU may have waiting before the clock is looked at."""

NORMALISING_ITEMS = 256
"""By which the normalisation of weights that go on begins as what they give."""


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
    steps: int = 0


def train(
    model: nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    *,
    on_epoch: EpochHook | None = None,
    clock: Clock = time.monotonic,
) -> TrainingResult:
    """Train with Adam on the task's loss and keep the weights of the best validation error.

    Parameters
    ----------
    model
        Any network from (n, 1, 11, 11) to (n, 2, q) for "bragg", from (n, 1, 64, 64) to
        (n, 2, 64, 64) for "ptycho"; trained in place.
    on_epoch
        Called after each epoch with its number (from 1) and metrics; True stops the training. Where
        ``settings.seconds`` says how long, after each fortieth of it.
    clock
        What measures the time limits, in seconds; `time.process_time` counts this process alone.

    Raises
    ------
    DivergedError
        If the loss becomes NaN or infinite before a first finite validation error; the message
        says after how many steps, and whether the weights or the answers alone are broken.
    """
    started = time.monotonic()
    # For layers that draw, such as dropout; batches have a generator of their own.
    torch.manual_seed(settings.seed)
    device = data.device
    model.to(device).train()
    criterion = CRITERIA[data.task](settings.levels, device)
    # Constants that a network holds, such as the mean pattern: from the training part alone.
    fitting = fitting_items(data)
    criterion.prepare(model, *fitting)
    seen = fitting[0][:NORMALISING_ITEMS] if settings.continued else None
    with normalised(model, seen) if settings.normalise else nullcontext():
        metrics, history, steps = _best_of_rounds(model, data, settings, criterion, on_epoch, clock)
    model.cpu()
    for parameter in model.parameters():
        # Steps lay parameters out as they like, such as in one vector.
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    seconds = time.monotonic() - started
    epochs = len(history)
    if settings.seconds is not None:
        epochs = max(1, round(steps * settings.batch_size / len(data.train_x)))
    return TrainingResult(model.eval(), metrics, epochs, seconds, history, steps)


def _best_of_rounds(
    model: nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    criterion: Criterion,
    on_epoch: EpochHook | None,
    clock: Clock,
) -> tuple[dict[str, float], list[dict[str, float]], int]:
    """Train; leave the weights of the best round, return its metrics, those of all, and steps."""
    epochs = make_epochs(data, settings, criterion)
    step = make_step(model, criterion)
    # Torch's first optimiser of a process imports its compiler, seconds that are not the network's.
    started = clock()
    rounds: _Rounds | _TimedRounds = (
        _Rounds(epochs, settings, clock, drawn=data.source is not None)
        if settings.seconds is None
        else _TimedRounds(epochs, settings.learning_rate, settings.seconds, started, clock, data)
    )
    best = _Best(model, 1.0 if settings.seconds is None else LATER_MAY_ERR)
    history: list[dict[str, float]] = []
    if settings.continued:
        # Going on must not lose what there is.
        metrics = criterion.evaluate(model.eval(), data.validation_x, data.validation_y)
        model.train()
        history.append(metrics)
        best.offer(1, metrics)
    for number, batches in enumerate(rounds, start=len(history) + 1):
        step.run(batches)
        began = clock()
        model.eval()
        metrics = criterion.evaluate(model, data.validation_x, data.validation_y)
        model.train()
        rounds.scored(clock() - began)
        if not math.isfinite(metrics["error"]):
            if not best.epoch:
                raise DivergedError(_told(model, metrics["error"], rounds.steps, settings))
            # What came before is kept, because the best epoch is a network all the same.
            break
        history.append(metrics)
        # Offered before the hook may stop the training, so that a stopped one has this epoch.
        best.offer(number, metrics)
        if on_epoch is not None and on_epoch(number, metrics):
            break
        if settings.seconds is not None:
            continue
        if settings.patience is not None and number - best.epoch >= settings.patience:
            break
        limit = settings.time_limit_s
        if limit is not None and clock() - started > limit:
            break
    best.restore()
    return best.metrics, history, rounds.steps


def _told(model: nn.Module, error: float, steps: int, settings: TrainingSettings) -> str:
    """Say of a training that diverged when, and which of its numbers did."""
    state = model.state_dict()
    broken = [name for name, values in state.items() if not bool(values.isfinite().all())]
    what = f"{len(broken)} of {len(state)} tensors, {broken[0]} first," if broken else "no weights"
    return (
        f"training diverged: its validation error is {error:g} after step {steps} and {what} hold "
        f"NaN or infinity, at learning rate {settings.learning_rate:g}; lower the learning rate"
    )


class _Rounds:
    """One epoch a round, for a number of epochs.

    Attributes
    ----------
    steps
        How many steps have been taken.
    """

    def __init__(
        self,
        epochs: Epochs | DrawnEpochs,
        settings: TrainingSettings,
        clock: Clock,
        *,
        drawn: bool,
    ) -> None:
        self._epochs, self._count = epochs, settings.epochs
        self._clock, self._started = clock, clock()
        # Fresh patterns need no early stopping, so that a limit of time may shorten the schedule.
        self._ends_s = settings.time_limit_s if drawn else None
        self._peak = settings.learning_rate
        self._total = settings.epochs * epochs.steps
        # At least one step of warm-up, however short the training.
        self._warm = max(1, self._total // 20)
        self.steps = 0

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        for _ in range(self._count):
            yield ((x, y, self._rate()) for x, y in self._epochs)

    def scored(self, seconds: float) -> None:
        """Take note of what scoring after a round took: steps are counted here, not seconds."""

    def _rate(self) -> float:
        self.steps += 1
        at = float(self.steps)
        if self._ends_s is not None:
            at = max(at, self._total * (self._clock() - self._started) / self._ends_s)
        return self._peak * rate_share(at, self._warm, self._total)


class _TimedRounds:
    """Rounds that each take a share of a time, one at least; the learning rate follows the clock.

    What a GPU process loads in its first step and its first scoring is not counted.
    """

    def __init__(
        self,
        epochs: Epochs | DrawnEpochs,
        peak: float,
        seconds: float,
        started: float,
        clock: Clock,
        data: TrainingData,
    ) -> None:
        self._epochs, self._peak, self._seconds = epochs, peak, seconds
        self._started, self._clock = started, clock
        self._on_gpu = data.device.type == "cuda"
        self._scoring_s: float | None = None
        self.steps = 0

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        batches = self._endless()
        # A training without a step would be a failure that the network is not to blame for.
        while (now := self._elapsed()) < self._seconds or not self.steps:
            # Scoring may take a tenth of the time, where it takes long.
            share = max(self._seconds / ROUNDS, 9 * (self._scoring_s or 0.0))
            end = now + share
            # What would be left is too short for a round of its own.
            yield self._until(batches, self._seconds if end + share / 2 > self._seconds else end)

    def _until(self, batches: Iterator[tuple[Tensor, Tensor]], end: float) -> Iterator[Batch]:
        for x, y in batches:
            yield x, y, self._rate()
            # Steps are only queued on a GPU; without a look at it the clock would run ahead.
            if self._on_gpu and (self.steps == 1 or self.steps % QUEUED_STEPS == 0):
                torch.cuda.synchronize()
            if self._on_gpu and self.steps == 1:
                # The first one loads kernels, which takes seconds that are not the network's.
                self._started = self._clock()
            if self._elapsed() >= end:
                return

    def scored(self, seconds: float) -> None:
        """Take note of what scoring after a round took."""
        if self._on_gpu and self._scoring_s is None:
            # The first one loads kernels as well and says nothing about the next.
            self._started += seconds
            seconds = 0.0
        self._scoring_s = seconds

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self._epochs

    def _elapsed(self) -> float:
        # Scoring of the last round belongs to the time as well.
        return self._clock() - self._started + (self._scoring_s or 0.0)

    def _rate(self) -> float:
        self.steps += 1
        return self._peak * rate_share(self._elapsed(), self._seconds / 20, self._seconds)


def rate_share(at: float, warm: float, total: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine to 0."""
    if at <= warm:
        return at / warm
    # From 0 after the warm-up to 1 at the end.
    done = (at - warm) / max(total - warm, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class _Best:
    """The best epoch so far and a copy of its weights.

    Parameters
    ----------
    later
        A later epoch counts as better below so many times the least error so far.
    """

    def __init__(self, model: nn.Module, later: float) -> None:
        self._model, self._later = model, later
        self._least = math.inf
        self._state: dict[str, Tensor] = {}
        self.epoch = 0
        self.metrics: dict[str, float] = {}

    def offer(self, epoch: int, metrics: dict[str, float]) -> None:
        error = metrics["error"]
        if not self.epoch or error < self._later * self._least:
            self.epoch, self.metrics = epoch, metrics
            self._least = min(self._least, error)
            # Cloned, because training goes on in these very tensors.
            self._state = {k: v.clone() for k, v in self._model.state_dict().items()}

    def restore(self) -> None:
        self._model.load_state_dict(self._state)
