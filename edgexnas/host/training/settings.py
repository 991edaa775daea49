"""What a training is given: its settings, and the tensors on the training device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgexnas.errors import ConfigurationError
from edgexnas.host.data.dataset import Dataset, require_finite
from edgexnas.host.data.splitting import Split
from edgexnas.host.networks.bragg_models import LEVELS

if TYPE_CHECKING:
    from edgexnas.host.data.synthetic_patterns import PatternSource

__all__ = ["TrainingData", "TrainingSettings", "training_arrays", "training_device"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train one network.

    Attributes
    ----------
    epochs
        Upper bound; the learning rate falls to 0 along a cosine that ends here. An epoch of drawn
        patterns is 2,048 of them.
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
        Batch-normalise convolutions meanwhile; see `edgexnas.host.training.normalisation`.
    device
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    time_limit_s
        Wall-clock bound; training stops at the end of the epoch that passes it. On drawn patterns
        the learning rate has fallen to 0 by then.
    seconds
        Train for as long instead of for a number of epochs: the learning rate falls to 0 along a
        cosine that ends then, whatever a step takes on this machine. `epochs` and `patience` are
        not looked at.
    continued
        The network has trained before: the weights that it comes with count as a first round.
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
    seconds: float | None = None
    continued: bool = False
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; specify more than 0")
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigurationError(f"seconds is {self.seconds}; specify more than 0, or None")


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
    source
        Draws the batches of a training in place of `train_x` and `train_y`; None takes these.
    turned
        Number of symmetries → the training part in all of them, kept by `Epochs` for the next
        training on the same data.
    fitting
        What `fitting_items` has drawn, kept for the next training too.
    """

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    task: str = "bragg"
    source: PatternSource | None = None
    turned: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    fitting: list[tuple[Tensor, Tensor]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @classmethod
    def from_dataset(cls, dataset: Dataset, split: Split, device: str = "auto") -> TrainingData:
        """Put the training and validation parts of a split on the training device.

        Raises
        ------
        InputError
            If one of them holds NaN or infinity.
        """
        where = training_device(device)
        train_x, train_y, validation_x, validation_y = (
            torch.from_numpy(array).to(where) for array in training_arrays(dataset, split)
        )
        return cls(train_x, train_y, validation_x, validation_y, dataset.task)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train_x.device


def training_arrays(
    dataset: Dataset, split: Split
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Take inputs and targets to train on, then those to validate on.

    Raises
    ------
    InputError
        If they hold NaN or infinity; the message names the part and the item.
    """
    x, y = dataset.inputs(), dataset.network_targets()
    for part in ("train", "validation"):
        chosen = getattr(split, part)
        require_finite(f"the {part} part of {dataset.source}", inputs=x[chosen], targets=y[chosen])
    return x[split.train], y[split.train], x[split.validation], y[split.validation]


def training_device(name: str) -> torch.device:
    """Resolve "auto" to a GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device is {name!r}; specify 'auto', 'cpu', 'cuda' or 'cuda:<number>'"
        ) from error
