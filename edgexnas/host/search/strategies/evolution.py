"""Regularised evolution for several objectives."""

from __future__ import annotations

import random

import numpy as np

from edgexnas.errors import ConfigurationError
from edgexnas.host.measuring.objectives import pareto_front
from edgexnas.host.networks.hyperparameters import Choice, Configuration
from edgexnas.host.search.strategies.strategy import Outcome, SearchProblem, Strategy

__all__ = ["RegularisedEvolution"]

MUTATION_STEP = 0.15
"""Standard deviation of a numeric mutation, as a share of the hyperparameter's range."""


class RegularisedEvolution(Strategy):
    """Ageing evolution (Real et al., AAAI 33, 4780 (2019)) with tournaments on Pareto rank.

    The `population` youngest outcomes live. A tournament draws `tournament` of them; the one on
    the lowest front wins, and of several the one in the emptiest neighbourhood (crowding distance
    of NSGA-II). Its child differs in one hyperparameter, sometimes in more.
    """

    def __init__(
        self,
        problem: SearchProblem,
        *,
        initial: int | None = None,
        population: int = 24,
        tournament: int = 6,
    ) -> None:
        if not 1 <= tournament <= population:
            raise ConfigurationError(
                f"tournament is {tournament} and population is {population}; "
                "specify 1 ≤ tournament ≤ population"
            )
        super().__init__(problem, initial=initial)
        self.population, self.tournament = population, tournament

    def _propose(self, number: int, rng: random.Random) -> Configuration:
        # The last of a dictionary that keeps the order of telling: the youngest.
        alive = list(self.outcomes.values())[-self.population :]
        if not alive or not self.problem.space.free:
            return self.problem.draw(rng)
        parent = self._winner(alive, rng).configuration
        child = parent
        for _ in range(100):
            child = self._mutate(parent, rng)
            if child not in self.asked and self.problem.feasible(child):
                break
        return child

    def _winner(self, alive: list[Outcome], rng: random.Random) -> Outcome:
        values = np.array([outcome.values for outcome in alive])
        ranks, crowding = front_ranks(values), crowding_distance(values)
        drawn = rng.sample(range(len(alive)), min(self.tournament, len(alive)))
        return alive[min(drawn, key=lambda index: (ranks[index], -crowding[index], index))]

    def _mutate(self, parent: Configuration, rng: random.Random) -> Configuration:
        child = dict(parent)
        changing = True
        while changing:
            parameter = rng.choice(self.problem.space.free)
            if isinstance(parameter, Choice):
                others = [v for v in parameter.values if v != child[parameter.name]]
                child[parameter.name] = rng.choice(others)
            else:
                unit = parameter.to_unit(child[parameter.name]) + rng.gauss(0, MUTATION_STEP)
                # Reflect at both ends, so that borders are not favoured.
                child[parameter.name] = parameter.from_unit(1 - abs(1 - abs(unit) % 2))
            # Mostly one change, so that a child tells what that change does.
            changing = rng.random() < 0.2
        return child


def front_ranks(values: np.ndarray) -> list[int]:
    """Rank each row by the front that it is on, 0 for the Pareto front."""
    ranks = np.zeros(len(values), np.intp)
    left = np.arange(len(values))
    rank = 0
    while len(left):
        front = pareto_front(values[left])
        ranks[left[front]] = rank
        left, rank = left[~front], rank + 1
    return [int(rank) for rank in ranks]


def crowding_distance(values: np.ndarray) -> list[float]:
    """Crowding distance (Deb et al., IEEE Trans. Evol. Comput. 6, 182 (2002)) over all rows."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        # Ends of a front have no neighbour on one side and are always kept.
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return [float(value) for value in distance]
