"""Search strategies behind one ask-and-tell interface."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from edgexnas.errors import ConfigurationError
from edgexnas.host.search.strategies.bayesian import BayesianSearch
from edgexnas.host.search.strategies.evolution import RegularisedEvolution
from edgexnas.host.search.strategies.hyperband import Hyperband
from edgexnas.host.search.strategies.optuna_samplers import GaussianProcess, Nsga2, Tpe
from edgexnas.host.search.strategies.random_search import RandomSearch
from edgexnas.host.search.strategies.strategy import Outcome, Proposal, SearchProblem, Strategy

__all__ = ["STRATEGIES", "Outcome", "Proposal", "SearchProblem", "Strategy", "make_strategy"]

STRATEGIES: dict[str, type[Strategy]] = {
    "cbo": BayesianSearch,
    "random": RandomSearch,
    "evolution": RegularisedEvolution,
    "hyperband": Hyperband,
    "optuna-tpe": Tpe,
    "optuna-gp": GaussianProcess,
    "optuna-nsga2": Nsga2,
}
"""Strategies by the name that `optimize` knows them by."""


def make_strategy(
    name: str, problem: SearchProblem, options: Mapping[str, Any] | None = None
) -> Strategy:
    """Make a strategy by name.

    Raises
    ------
    ConfigurationError
        If the name or an option is unknown, or an option's value is out of range.
    MissingDependencyError
        If the library behind it is not installed.
    """
    if name not in STRATEGIES:
        raise ConfigurationError(f"search {name!r} is unknown; specify one of {list(STRATEGIES)}")
    strategy = STRATEGIES[name]
    known = list(inspect.signature(strategy).parameters)[1:]
    for option in options or {}:
        if option not in known:
            raise ConfigurationError(
                f"search {name!r} has no option {option!r}; specify one of {known}"
            )
    return strategy(problem, **dict(options or {}))
