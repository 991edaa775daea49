"""The batches of an epoch: views of the permuted, augmented set, or patterns drawn anew."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgexnas.host.data.synthetic_patterns import PatternSource
    from edgexnas.host.training.criteria import Criterion
    from edgexnas.host.training.settings import TrainingData, TrainingSettings

__all__ = ["DrawnEpochs", "Epochs", "fitting_items", "make_epochs"]

DRAWN_PATTERNS = 2048
"""Drawn patterns that count as an epoch: as many as a scan of some size has."""

FITTING_PATTERNS, FITTING_SEED = 1024, 0
"""Drawn to fit what a network takes from its inputs without learning it."""

AUGMENTED_BYTES = 1 << 30
"""Above this size the augmented set is not kept; each epoch transforms anew."""


class Epochs:
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
        # All symmetries side by side: an epoch then draws one for each item by index alone.
        if self._keep and self._folds > 1:
            if self._folds not in data.turned:
                turned = [self._symmetry(self._x, self._y, fold) for fold in range(self._folds)]
                data.turned[self._folds] = (
                    torch.cat([x for x, _ in turned]),
                    torch.cat([y for _, y in turned]),
                )
            self._x, self._y = data.turned[self._folds]
        self._count = len(data.train_x)
        # A last batch of one or two items is noise, so it is dropped where others exist.
        self.steps = max(1, self._count // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self._count, generator=self._generator, device=self._x.device)
        # Another rest is left out each epoch, so no item is missed for long.
        order = order[: self.steps * self._batch]
        if self._folds > 1 and self._keep:
            x, y = self._take(order + self._draw(len(order)) * self._count)
        # Too large to keep: one symmetry for the whole epoch, made when it begins.
        elif self._folds > 1:
            x, y = self._symmetry(*self._take(order), int(self._draw(1)))
        else:
            x, y = self._take(order)
        yield from zip(torch.split(x, self._batch), torch.split(y, self._batch), strict=True)

    def _take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._x[index], self._y[index]

    def _draw(self, count: int) -> Tensor:
        return torch.randint(
            self._folds, (count,), generator=self._generator, device=self._x.device
        )


class DrawnEpochs:
    """Yields batches of patterns that are drawn anew at every step; none is seen twice.

    An epoch ends early once the limit of time has passed: the learning rate is 0 from there on.
    """

    def __init__(self, source: PatternSource, settings: TrainingSettings) -> None:
        # By the training's own seed, so that trainings that share a source do not touch each other.
        self._source = source.seeded(settings.seed)
        self._batch = settings.batch_size
        limit = settings.time_limit_s
        self._ends = math.inf if limit is None else time.monotonic() + limit
        self.steps = max(1, DRAWN_PATTERNS // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.steps):
            # The first of an epoch always: a training has at least one.
            if step and time.monotonic() > self._ends:
                return
            yield self._source.draw(self._batch)


def make_epochs(
    data: TrainingData, settings: TrainingSettings, criterion: Criterion
) -> Epochs | DrawnEpochs:
    """Make the batches of a training: drawn ones where there is a source."""
    if data.source is not None:
        return DrawnEpochs(data.source, settings)
    return Epochs(data, settings, criterion)


def fitting_items(data: TrainingData) -> tuple[Tensor, Tensor]:
    """Give inputs and targets of which a network takes constants, such as the mean pattern.

    Patterns are drawn once, for all trainings on the same data.
    """
    if data.source is None:
        return data.train_x, data.train_y
    if not data.fitting:
        # Seconds where the probe is large, which a short training does not have each time.
        data.fitting.append(data.source.seeded(FITTING_SEED).draw_many(FITTING_PATTERNS))
    return data.fitting[0]
