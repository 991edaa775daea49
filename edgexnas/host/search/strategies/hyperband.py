"""Hyperband: many random candidates, most of them stopped after a few epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import Configuration
from edgexnas.host.search.evaluation import RUNG_BASE
from edgexnas.host.search.strategies.random_search import RandomSearch
from edgexnas.host.search.strategies.strategy import SearchProblem

__all__ = ["Hyperband"]


class Hyperband(RandomSearch):
    """Asynchronous successive halving in several brackets (Li et al., JMLR 18, 185 (2018)).

    Every candidate aims at the largest number of epochs of its space. At epochs 1, 3, 9, … it is
    stopped if at least `rivals` networks that are no larger had an error there that is at least
    `margin` lower. A rule on the error alone would stop every small network, which are half of a
    Pareto front: in a replay of 40 trainings it kept 2 of 6 networks of the final front, this
    one 4 of 6, at about the same cost. Candidate k belongs to bracket k modulo `brackets`, which
    starts to look at the bracket-th rung, so that slow starters live in some brackets.
    """

    def __init__(
        self,
        problem: SearchProblem,
        *,
        initial: int | None = None,
        brackets: int = 3,
        rivals: int = 2,
        margin: float = 0.2,
    ) -> None:
        if brackets < 1 or rivals < 1 or not 0 <= margin < 1:
            raise ConfigurationError(
                f"hyperband has brackets {brackets}, rivals {rivals} and margin {margin}; "
                "specify at least 1, 1 and a margin from 0 to below 1"
            )
        super().__init__(problem, initial=initial)
        self.brackets, self.rivals, self.margin = brackets, rivals, margin

    def _prepared(self, configuration: Configuration) -> Configuration:
        # Trainings are comparable at a rung only if they are on the same schedule.
        return configuration | {"epochs": self._epochs}

    @property
    def _epochs(self) -> int:
        return int(self.problem.space["epochs"].from_unit(1.0))

    def _parameters(self, configuration: Configuration) -> float:
        try:
            return self.problem.space.size(configuration).parameters
        except Exception:
            # What cannot be built will fail with its reason, and is no rival to anything.
            return math.inf

    def _rungs(self, number: int) -> list[int]:
        rungs, epoch = [], 1
        while epoch < self._epochs:
            rungs.append(epoch)
            epoch *= RUNG_BASE
        return rungs[min(number % self.brackets, max(len(rungs) - 1, 0)) :]

    def _stop_above(self, number: int, configuration: Configuration) -> Mapping[int, float]:
        parameters = self._parameters(configuration)
        no_larger = [
            outcome.rungs
            for outcome in self.outcomes.values()
            if outcome.rungs and self._parameters(outcome.configuration) <= parameters
        ]
        limits: dict[int, float] = {}
        for epoch in self._rungs(number):
            errors = sorted(rungs[epoch] for rungs in no_larger if epoch in rungs)
            if len(errors) >= self.rivals:
                limits[epoch] = errors[self.rivals - 1] / (1 - self.margin)
        return limits
