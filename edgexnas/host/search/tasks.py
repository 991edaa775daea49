"""The two applications: what a search needs to know of each.

Training has a table of its own, from a task to what it minimises (`training.criteria`), and so has
exporting, from a task to the form of its bundles (`exporting.bundling`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from edgexnas.errors import ConfigurationError
from edgexnas.host.data.dataset import Dataset
from edgexnas.host.measuring.objectives import OBJECTIVES, PTYCHO_OBJECTIVES, Objective
from edgexnas.host.networks.search_space import SearchSpace

if TYPE_CHECKING:
    from edgexnas.host.data.ptycho_dataset import PtychoDataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.data.synthetic_patterns import Drawing

__all__ = ["PAPER", "TASKS", "Task", "expand_spaces", "find_task"]

SpaceName = str | SearchSpace


@dataclass(frozen=True, kw_only=True)
class Task:
    """One application.

    Attributes
    ----------
    items
        What is labelled, for messages.
    spaces
        Search spaces that are taken if none is named.
    dataset
        Module of `edgexnas.host.data` and class of its datasets. Imported on first use, because
        h5py and what reads frames take a while.
    normalise
        Whether a search normalises convolutions while it trains; see `TrainingSettings`.
    paper
        The spaces of the paper's Table 1, which ``"paper"`` names.
    objectives_of_budget
        What a search with a budget minimises if it is not told.
    budget
        Budget of a search that is told neither a time nor a number of evaluations.
    synthetic
        To how many items a search with a budget fills the training part up with synthetic ones; 0
        where it draws none.
    """

    name: Literal["bragg", "ptycho"]
    items: str
    spaces: tuple[str, ...]
    objectives: Mapping[str, Objective]
    dataset: tuple[str, str]
    normalise: bool
    paper: tuple[str, ...]
    objectives_of_budget: tuple[str, ...]
    budget: str
    synthetic: int

    def load(self, path: str | Path) -> Dataset:
        """Read a dataset's file; SourceError if that fails."""
        module, name = self.dataset
        loaded: Dataset = getattr(
            importlib.import_module(f"edgexnas.host.data.{module}"), name
        ).load(path)
        return loaded

    def drawing(self, dataset: Dataset, split: Split) -> Drawing | None:
        """Give what trainings draw their patterns from; None where they train on the dataset."""
        if getattr(dataset, "probe", None) is None:
            return None
        # torch takes seconds to import.
        from edgexnas.host.data.synthetic_patterns import Drawing

        return Drawing.of(cast("PtychoDataset", dataset), split.train)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="bragg",
            items="good peaks",
            spaces=("mlpBraggMirrored", "mlpBragg", "cnnBragg"),
            objectives=OBJECTIVES,
            dataset=("peak_dataset", "PeakDataset"),
            normalise=False,
            paper=("mlpBragg", "cnnBragg"),
            # What a device runs. By the error in float alone deep and narrow networks win, which
            # lose twice their accuracy to rounding.
            objectives_of_budget=("int8_error", "parameters"),
            budget="10min",
            synthetic=100_000,
        ),
        Task(
            name="ptycho",
            items="patterns",
            spaces=("ptychoUnet",),
            objectives=PTYCHO_OBJECTIVES,
            dataset=("ptycho_dataset", "PtychoDataset"),
            # Its plain stacks otherwise hardly leave the mean answer.
            normalise=True,
            paper=("mlpPtycho", "cnnPtycho"),
            objectives_of_budget=("error", "parameters"),
            budget="30min",
            synthetic=0,
        ),
    )
}
"""The tasks by name."""


PAPER = "paper"
"""Stands for the task's spaces of the paper's Table 1, with every range as printed."""


def expand_spaces(given: Iterable[SpaceName], task: Task) -> list[SpaceName]:
    """Put the spaces that "paper" stands for in its place."""
    names: list[SpaceName] = []
    for item in given:
        names += task.paper if item == PAPER else [item]
    return names


def find_task(name: str) -> Task:
    """Look a task up by name.

    Raises
    ------
    ConfigurationError
        If there is none of that name.
    """
    if name not in TASKS:
        raise ConfigurationError(f"task {name!r} is unknown; specify one of {list(TASKS)}")
    return TASKS[name]
