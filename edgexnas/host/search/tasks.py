"""The two applications: what a search, a training and an export need to know of each.

Everything else in this package treats them alike. A task only points to its parts and imports
them when they are asked for, because torch takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.host.measuring.objectives import OBJECTIVES, PTYCHO_OBJECTIVES, Objective

if TYPE_CHECKING:
    import torch

    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.bundling import Bundling
    from edgexnas.host.training.criteria import Criterion

__all__ = ["TASKS", "Dataset", "Task", "find_task"]

FloatArray = npt.NDArray[np.float32]

TaskName = Literal["bragg", "ptycho"]


class Dataset(Protocol):
    """Labelled data of one task, such as `PeakDataset`."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def source(self) -> str:
        """Where the data came from."""

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the content."""

    @property
    def against(self) -> Literal["fit", "iterative", "truth"]:
        """What the targets are."""

    def inputs(self) -> FloatArray:
        """Network inputs (n, 1, side, side), scaled as the device scales them."""

    def split(self) -> Split:
        """Parts to train, calibrate, validate and test on."""

    def save(self, path: str | Path) -> object:
        """Write a file that the task loads."""


class Task(Protocol):
    """One application."""

    name: TaskName
    items: str
    """What is labelled, for messages."""
    spaces: tuple[str, ...]
    """Search spaces that are taken if none is named."""
    objectives: Mapping[str, Objective]
    normalise: bool
    """Whether a search normalises convolutions while it trains; see `TrainingSettings`."""

    def load(self, path: str | Path) -> Dataset:
        """Read a dataset's file; SourceError if that fails."""

    def targets(self, dataset: Any) -> FloatArray:
        """Return what a network should give for `dataset.inputs()`."""

    def criterion(self, levels: tuple[float, ...], device: torch.device) -> Criterion:
        """Make the loss, the scores and the symmetries of a training."""

    def bundling(self, levels: tuple[float, ...]) -> Bundling:
        """Make the part of an export that the tasks do not share."""


class BraggTask:
    """Peaks to positions and intervals."""

    name: TaskName = "bragg"
    items = "good peaks"
    spaces: tuple[str, ...] = ("mlpBraggSymmetric", "mlpBragg", "cnnBragg")
    objectives: Mapping[str, Objective] = OBJECTIVES
    normalise = False

    def load(self, path: str | Path) -> Dataset:
        """Read what `PeakDataset.save` wrote."""
        from edgexnas.host.data.peak_dataset import PeakDataset

        return PeakDataset.load(path)

    def targets(self, dataset: Any) -> FloatArray:
        """(n, 2) offsets in pixels."""
        targets: FloatArray = dataset.targets_px
        return targets

    def criterion(self, levels: tuple[float, ...], device: torch.device) -> Criterion:
        """Pinball loss and distances."""
        from edgexnas.host.training.criteria import QuantileCriterion

        return QuantileCriterion(levels, device)

    def bundling(self, levels: tuple[float, ...]) -> Bundling:
        """Distances in pixels."""
        from edgexnas.host.exporting.bundling import BraggBundling

        return BraggBundling(levels)


class PtychoTask:
    """Diffraction patterns to amplitude and phase."""

    name: TaskName = "ptycho"
    items = "patterns"
    spaces: tuple[str, ...] = ("mlpPtycho", "cnnPtycho")
    objectives: Mapping[str, Objective] = PTYCHO_OBJECTIVES
    # Its plain stacks otherwise hardly leave the mean answer.
    normalise = True

    def load(self, path: str | Path) -> Dataset:
        """Read what `PtychoDataset.save` wrote."""
        from edgexnas.host.data.ptycho_dataset import PtychoDataset

        return PtychoDataset.load(path)

    def targets(self, dataset: Any) -> FloatArray:
        """(n, 2, 64, 64) amplitude and phase in radians."""
        targets: FloatArray = dataset.targets
        return targets

    def criterion(self, levels: tuple[float, ...], device: torch.device) -> Criterion:
        """Phase and amplitude errors; quantile levels mean nothing here."""
        from edgexnas.host.training.ptycho_criterion import PatchCriterion

        return PatchCriterion()

    def bundling(self, levels: tuple[float, ...]) -> Bundling:
        """Phase errors in radians and relative amplitude errors."""
        from edgexnas.host.exporting.bundling import PtychoBundling

        return PtychoBundling()


TASKS: dict[str, Task] = {task.name: task for task in (BraggTask(), PtychoTask())}
"""The tasks by name."""


def find_task(name: str) -> Task:
    """Look a task up by name.

    Raises
    ------
    ConfigurationError
        If there is none of that name.
    """
    if name not in TASKS:
        raise ConfigurationError(f"task {name!r} is unknown; give one of {list(TASKS)}")
    return TASKS[name]
