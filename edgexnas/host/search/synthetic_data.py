"""Synthetic items that a search fills its training part up with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgexnas.errors import ConfigurationError
from edgexnas.host.search.evaluation import EvaluationContext
from edgexnas.host.search.run_folder import SYNTHETIC_FILE
from edgexnas.host.search.tasks import find_task

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset

__all__ = ["fill_up", "repeat_measured"]

logger = logging.getLogger(__name__)

LEAST = 1_000
"""Fewer are not worth having."""


MEASURED_SHARE = 0.2
"""Of what a training sees. Synthetic peaks have fewer of the odd ones, where networks err most: on
ruby seeing measured peaks as often took the mean test error of a small network from 0.0066 px to
0.0051–0.0057 after as many steps."""


def repeat_measured(filled: EvaluationContext, measured: EvaluationContext) -> EvaluationContext:
    """Repeat the measured training items beside synthetic ones until they are a fifth of all.

    Parameters
    ----------
    filled
        Has both.
    measured
        Has the measured ones alone.
    """
    count, own = len(filled.train_x), len(measured.train_x)
    wanted = MEASURED_SHARE / (1 - MEASURED_SHARE) * (count - own)
    times = max(0, round(wanted / own) - 1)
    return replace(
        filled,
        train_x=np.concatenate([filled.train_x, *[measured.train_x] * times]),
        train_y=np.concatenate([filled.train_y, *[measured.train_y] * times]),
    )


def fill_up(
    dataset: Dataset,
    folder: Path,
    count: int,
    *,
    seed: int,
    seconds: float | None,
    say: Callable[[str], None],
) -> Dataset:
    """Add synthetic items until the training part has `count`, as many as fit into a time.

    They are kept in the run folder: a resumed run and an export take the same.

    Parameters
    ----------
    folder
        The run folder.
    seconds
        How long it may take; None takes as long as it takes.
    say
        Called with a line about what is done.

    Raises
    ------
    SourceError
        If what an earlier session drew cannot be read.
    """
    path = folder / SYNTHETIC_FILE
    if path.exists():
        return find_task(dataset.task).load(path)
    missing = count - len(dataset.split().train)
    if missing < LEAST:
        return dataset
    # Here, because drawing peaks loads what fits them.
    from edgexnas.host.data.peak_dataset import PeakDataset
    from edgexnas.host.data.synthetic_peaks import with_synthetic_peaks

    if not isinstance(dataset, PeakDataset):
        return dataset
    try:
        say(f"drawing up to {missing:,} synthetic peaks like those of the training part")
        # On one thread: on a busy machine two take many times as long.
        filled = with_synthetic_peaks(dataset, missing, seed=seed, seconds=seconds)
    except ConfigurationError as error:
        # Labels that cannot be resampled can still be learned from as they are.
        say(f"no synthetic peaks: {error}")
        logger.warning("no synthetic peaks: %s", error)
        return dataset
    filled.save(path)
    return filled
