"""Optuna's TPE, Gaussian process and NSGA-II, to compare with."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgexnas.errors import ConfigurationError, MissingDependencyError
from edgexnas.host.networks.hyperparameters import Choice, Configuration, Hyperparameter, Integer
from edgexnas.host.search.strategies.strategy import Outcome, SearchProblem, Strategy

if TYPE_CHECKING:
    import optuna

__all__ = ["GaussianProcess", "Nsga2", "Tpe"]

INFEASIBLE_TRIES = 50


class _OptunaStrategy(Strategy):
    """Asks one in-memory study, with a sampler seeded anew for every proposal."""

    def __init__(self, problem: SearchProblem, *, initial: int | None = None) -> None:
        _check_optuna()
        import optuna

        super().__init__(problem, initial=initial)
        with _quiet():
            storage = optuna.storages.InMemoryStorage()
            self._study = optuna.create_study(
                storage=storage, directions=["minimize"] * problem.objectives, study_name="search"
            )
        self._distributions = {p.name: _distribution(p) for p in problem.space.free}
        self._trials: dict[int, optuna.trial.Trial] = {}
        self._ready: tuple[Configuration, optuna.trial.Trial] | None = None

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        raise NotImplementedError

    def _propose(self, number: int, rng: random.Random) -> Configuration:
        if not self._distributions:
            return self.problem.draw(rng)
        for _ in range(INFEASIBLE_TRIES):
            trial = self._ask(rng.randrange(2**31))
            # Fixed hyperparameters are no dimension of the study.
            configuration = self.problem.space.smallest | trial.params
            configuration = self.problem.space.validate(configuration)
            if self.problem.feasible(configuration) and configuration not in self.asked:
                self._ready = configuration, trial
                return configuration
            self._discard(trial)
        return self.problem.draw(rng)

    def _accepted(self, number: int, configuration: Configuration) -> None:
        ready, self._ready = self._ready, None
        if ready is not None and ready[0] == configuration:
            self._trials[number] = ready[1]
            return
        if ready is not None:
            self._discard(ready[1])
        with _quiet():
            # A point that the study did not propose, initial or replayed: hand it in, then ask.
            self._study.enqueue_trial({name: configuration[name] for name in self._distributions})
        self._trials[number] = self._ask(number)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Report what came of proposal `number`."""
        super().tell(number, outcome)
        # A study takes one result of a trial: its first rung, which all trials have.
        if number in self._trials:
            with _quiet():
                self._study.tell(self._trials.pop(number), list(outcome.values))

    def _ask(self, seed: int) -> optuna.trial.Trial:
        with _quiet():
            self._study.sampler = self._sampler(seed)
            return self._study.ask(self._distributions)

    def _discard(self, trial: optuna.trial.Trial) -> None:
        import optuna

        with _quiet():
            # Left open it would count as running, and `constant_liar` would avoid its place.
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


class Tpe(_OptunaStrategy):
    """Tree-structured Parzen estimator; `multivariate` models hyperparameters jointly."""

    def __init__(
        self, problem: SearchProblem, *, initial: int | None = None, multivariate: bool = False
    ) -> None:
        self.multivariate = multivariate
        super().__init__(problem, initial=initial)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=len(self.initial),
            multivariate=self.multivariate,
            constant_liar=True,
        )


class GaussianProcess(_OptunaStrategy):
    """Optuna's Gaussian process, with expected hypervolume improvement for several objectives."""

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=len(self.initial))


class Nsga2(_OptunaStrategy):
    """NSGA-II; a `population` of 50 is Optuna's own default and more than half of 100 trials."""

    def __init__(
        self, problem: SearchProblem, *, initial: int | None = None, population: int = 20
    ) -> None:
        if population < 2:
            raise ConfigurationError(f"population is {population}; specify at least 2")
        self.population = population
        super().__init__(problem, initial=initial)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)


def _distribution(parameter: Hyperparameter) -> optuna.distributions.BaseDistribution:
    import optuna

    if isinstance(parameter, Choice):
        return optuna.distributions.CategoricalDistribution(parameter.values)
    log = parameter.prior == "log-uniform"
    if isinstance(parameter, Integer):
        return optuna.distributions.IntDistribution(parameter.low, parameter.high, log=log)
    return optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=log)


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.of(
            "optuna", extra="host", purpose="search='optuna-…'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log and what it calls experimental; nothing of ours runs inside."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
