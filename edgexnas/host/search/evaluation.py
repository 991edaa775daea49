"""One evaluation: build a network, train it, score it, and say what went wrong if something did.

Requests, contexts and results are plain values, so that an evaluation can run in this process, in
another one, or on another machine, and give the same result.
"""

from __future__ import annotations

import functools
import io
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError, SearchError
from edgexnas.host.networks.hyperparameters import Configuration
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.search.tasks import find_task

if TYPE_CHECKING:
    from torch import nn

    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.data.synthetic_patterns import Drawing
    from edgexnas.host.training.settings import TrainingData

__all__ = [
    "FAILURES",
    "EvaluationContext",
    "EvaluationRequest",
    "EvaluationResult",
    "evaluate",
    "evaluation_context",
    "load_checkpoint",
    "trial_seed",
]

Reason = Literal[
    "", "diverged", "memory", "timeout", "killed", "exception", "measure", "constraint"
]

FAILURES: dict[str, str] = {
    "diverged": "the loss became NaN or infinite",
    "memory": "the evaluation needed more memory than it may have",
    "timeout": "the evaluation did not end in time and was killed",
    "killed": "the worker process died",
    "exception": "an exception was raised while building or training",
    "measure": "the measurement of latency or energy failed",
    "constraint": "a measured value exceeds its constraint",
}
"""Why an evaluation can have no result."""

RUNG_BASE = 3
"""Errors are kept at epochs 1, 3, 9, …, where Hyperband compares them."""

CALIBRATION_ITEMS = 512
"""Training items that fix the grids where networks train or are scored with INT8 rounding."""

LEAST_TRAINING, LEAST_VALIDATION = 64, 16
"""Fewest labelled items for which a search says anything."""

GPU_OBJECTS = 4
"""Times as many objects to draw patterns of as on a CPU: a GPU takes so many steps that networks
would learn the fewer ones by heart."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EvaluationContext:
    """What all evaluations of a run share; sent to each worker once.

    Attributes
    ----------
    train_x, train_y, validation_x, validation_y
        As in `edgexnas.host.training.settings.TrainingData`.
    device
        "auto", "cpu", "cuda", ...
    patience
        Epochs without improvement after which a training stops; None never stops early.
    task
        "bragg" or "ptycho".
    drawing
        What every training draws its patterns from; None trains on `train_x` and `train_y`.
    object_count
        How many objects it draws them of: more for the GPU of the process that starts the search.
    int8
        Score networks with INT8 rounding too.
    """

    train_x: FloatArray
    train_y: FloatArray
    validation_x: FloatArray
    validation_y: FloatArray
    device: str = "auto"
    patience: int | None = None
    task: str = "bragg"
    drawing: Drawing | None = None
    object_count: int = 0
    int8: bool = False

    @functools.cached_property
    def objects(self) -> npt.NDArray[np.complex64] | None:
        """Objects to draw patterns of, made when first used: a hundred times what is pickled."""
        return None if self.drawing is None else self.drawing.objects(self.object_count)

    @functools.cached_property
    def training_data(self) -> TrainingData:
        """The arrays on the training device, and what is drawn once, made when first used."""
        import torch

        from edgexnas.host.training.epochs import fitting_items
        from edgexnas.host.training.settings import TrainingData, training_device

        where = training_device(self.device)
        arrays = (self.train_x, self.train_y, self.validation_x, self.validation_y)
        train_x, train_y, validation_x, validation_y = (
            torch.from_numpy(array).to(where) for array in arrays
        )
        source = None
        if self.drawing is not None and self.objects is not None:
            source = self.drawing.source(objects=self.objects, device=str(where))
            source = source.mixed(train_x, train_y)
        data = TrainingData(train_x, train_y, validation_x, validation_y, self.task, source)
        fitting_items(data)
        return data

    def __getstate__(self) -> dict[str, Any]:
        # Fields alone: `training_data`, once used, holds tensors on a device of this process, and
        # `objects` are made anew elsewhere.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A frozen dataclass rejects assignment, so the state goes in below it.
        self.__dict__.update(state)


@dataclass(frozen=True)
class EvaluationRequest:
    """One configuration to train.

    Attributes
    ----------
    stop_above
        Epoch → error; a training that is not below it then is stopped.
    time_limit_s
        Training ends after the epoch that passes it and counts with the weights it has.
    seconds
        Train for as long, whatever epochs the configuration has.
    kill_after_s
        Seconds after which this evaluation is killed; None leaves it to the evaluator.
    weights
        Checkpoint to go on from, as bytes.
    rate_share
        Share of the configuration's learning rate to train with.
    rounded_share
        Share of `seconds`, at their end, in which it trains with INT8 rounding, where the context
        scores with it.
    """

    trial: int
    space: SearchSpace
    configuration: Configuration
    seed: int
    stop_above: Mapping[int, float] = field(default_factory=dict)
    time_limit_s: float | None = None
    seconds: float | None = None
    kill_after_s: float | None = None
    weights: bytes | None = None
    rate_share: float = 1.0
    rounded_share: float = 0.0

    def kill_limit(self, usual: float | None) -> float | None:
        """Seconds after which it is killed: its own, or the evaluator's."""
        return usual if self.kill_after_s is None else self.kill_after_s


@dataclass(frozen=True)
class EvaluationResult:
    """What came of a request.

    Attributes
    ----------
    reason
        "" if it succeeded, else a key of `FAILURES`.
    message
        One sentence of detail, or "".
    metrics
        The scores of the task's criterion, ``error`` among them, ``epochs``, the number that was
        trained, and ``steps`` of a training that was given a time.
    rungs
        Epoch → best validation error so far, at epochs 1, 3, 9, …
    checkpoint
        The file that `load_checkpoint` reads, as bytes; None if it failed.
    """

    trial: int
    reason: Reason = ""
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    rungs: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    checkpoint: bytes | None = None


def evaluation_context(
    dataset: Dataset, split: Split, *, device: str = "auto", patience: int | None = None
) -> EvaluationContext:
    """Take the training and validation parts of labelled data.

    Raises
    ------
    InputError
        If there is too little to train or to validate, or it holds NaN or infinity.
    """
    from edgexnas.host.data.synthetic_patterns import OBJECTS
    from edgexnas.host.training.settings import training_arrays, training_device

    task = find_task(dataset.task)
    for part, least in (("train", LEAST_TRAINING), ("validation", LEAST_VALIDATION)):
        count = len(getattr(split, part))
        if count < least:
            raise InputError(
                f"{dataset.source} leaves {count} {task.items} for {part} and a search needs "
                f"{least}; label more frames"
            )
    arrays = training_arrays(dataset, split)
    drawing = task.drawing(dataset, split)
    on_gpu = training_device(device).type == "cuda"
    objects = OBJECTS * (GPU_OBJECTS if on_gpu else 1)
    return EvaluationContext(*arrays, device, patience, task.name, drawing, objects)


def trial_seed(seed: int, trial: int) -> int:
    """Seed of a trial's weights and batches, independent of all other trials'."""
    # Seeded by text, which Python hashes first, so neighbouring trials are unrelated.
    return random.Random(f"{seed}/trial/{trial}").randrange(2**31)


def evaluate(request: EvaluationRequest, context: EvaluationContext) -> EvaluationResult:
    """Train and score one configuration; a failure is a result with a reason, never raised."""
    started = time.monotonic()
    # Filled while training, so that a failed evaluation still shows how far it came.
    rungs: dict[int, float] = {}
    try:
        metrics, checkpoint = _train(request, context, rungs)
        reason, message = "", ""
        # The journal holds no NaN and no strategy can learn from one: such a result is a failure.
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            after = "" if request.seconds is None else f" after {metrics['steps']:.0f} steps"
            reason, message = "diverged", f"{broken[0]} is {metrics[broken[0]]}{after}"
    except Exception as error:
        reason, message = classify(error)
    seconds = time.monotonic() - started
    if reason:
        return EvaluationResult(request.trial, reason, message, rungs=rungs, seconds=seconds)  # type: ignore[arg-type]
    return EvaluationResult(
        request.trial, metrics=metrics, rungs=rungs, seconds=seconds, checkpoint=checkpoint
    )


def _train(
    request: EvaluationRequest, context: EvaluationContext, rungs: dict[int, float]
) -> tuple[dict[str, float], bytes]:
    import torch

    from edgexnas.host.training.loop import train
    from edgexnas.host.training.settings import TrainingSettings

    configuration = request.configuration
    # Where nothing is scored with rounding, all of the time is for training without it.
    rounded_share = request.rounded_share if context.int8 else 0.0
    settings = TrainingSettings(
        epochs=int(configuration["epochs"]),
        batch_size=int(configuration["batch_size"]),
        learning_rate=request.rate_share * float(configuration["learning_rate"]),
        patience=context.patience,
        seed=request.seed,
        normalise=find_task(context.task).normalise,
        device=context.device,
        time_limit_s=request.time_limit_s,
        seconds=None if request.seconds is None else (1 - rounded_share) * request.seconds,
        continued=request.weights is not None,
    )
    # The caller's own random numbers are left as they were.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(request.seed)
        model = request.space.build(configuration)
        if request.weights is not None:
            saved = torch.load(io.BytesIO(request.weights), map_location="cpu", weights_only=True)
            model.load_state_dict(saved["weights"])
        result = train(model, context.training_data, settings, on_epoch=_rung_hook(request, rungs))
        int8_error = None
        if context.int8:
            from edgexnas.host.exporting.quantisation_aware import scored_for_int8

            data = context.training_data
            result, int8_error = scored_for_int8(
                result,
                data,
                data.train_x[:CALIBRATION_ITEMS],
                settings,
                rounded_share * (request.seconds or 0.0),
            )
    metrics = {name: float(value) for name, value in result.metrics.items()}
    metrics["epochs"] = float(result.epochs)
    if request.seconds is not None:
        metrics["steps"] = float(result.steps)
    if int8_error is not None:
        metrics["int8_error"] = int8_error
    return metrics, _checkpoint(request, result.model)


def _rung_hook(
    request: EvaluationRequest, rungs: dict[int, float]
) -> Callable[[int, Mapping[str, float]], bool]:
    best = math.inf

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> bool:
        nonlocal best
        # The best so far, because that is the epoch whose weights are kept.
        best = min(best, float(metrics["error"]))
        # Rounded, because log(243, 3) is 4.999…
        if math.isfinite(best) and RUNG_BASE ** round(math.log(epoch, RUNG_BASE)) == epoch:
            rungs[epoch] = best
        return best >= request.stop_above.get(epoch, math.inf)

    return on_epoch


def classify(error: BaseException) -> tuple[Reason, str]:
    """Name the reason of a failed evaluation and describe it in one line."""
    from edgexnas.host.training.loop import DivergedError

    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:500]
    # Its message is a whole sentence already.
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    # torch reports an allocation that fails on the CPU as a plain RuntimeError.
    starved = type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and any(
            hint in str(error)
            for hint in ("can't allocate memory", "not enough memory", "bad_alloc")
        )
    )
    return ("memory" if starved or isinstance(error, MemoryError) else "exception"), message


def _checkpoint(request: EvaluationRequest, model: nn.Module) -> bytes:
    import torch

    buffer = io.BytesIO()
    content = {
        "space": request.space.name,
        "configuration": dict(request.configuration),
        "weights": model.state_dict(),
    }
    torch.save(content, buffer)
    return buffer.getvalue()


def load_checkpoint(path: Path, space: SearchSpace) -> nn.Module:
    """Build the network of a checkpoint and give it its trained weights.

    Raises
    ------
    SearchError
        If the file cannot be read.
    ConfigurationError
        If it belongs to another space.
    """
    import torch

    try:
        # weights_only: a checkpoint is data and runs no code.
        content = torch.load(path, map_location="cpu", weights_only=True)
        configuration, weights = content["configuration"], content["weights"]
    except Exception as error:
        raise SearchError(
            f"checkpoint {path} cannot be read ({error}); evaluate the candidate again"
        ) from error
    if content["space"] != space.name:
        raise ConfigurationError(
            f"checkpoint {path} is of space {content['space']}, not {space.name}; specify its space"
        )
    model = space.build(configuration)
    model.load_state_dict(weights)
    return model.eval()
