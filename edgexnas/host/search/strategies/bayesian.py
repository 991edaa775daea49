"""DeepHyper's centralised Bayesian optimisation (CBO), asked and told from outside.

DeepHyper's own search loop is not used: an exception or a dead worker ends it, its time-out kills
nothing, and its results file loses good rows when it is resumed after a failure. Only its model
and its acquisition are, rebuilt for every proposal from the outcomes so far, which costs
milliseconds beside the fit and leaves no state to lose.
"""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from edgexnas.errors import ConfigurationError, MissingDependencyError
from edgexnas.host.networks.hyperparameters import Choice, Configuration, Hyperparameter
from edgexnas.host.search.strategies.strategy import Outcome, SearchProblem, Strategy

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

__all__ = ["BayesianSearch"]

SURROGATES = ("GP", "ET", "RF")
SCALARIZATIONS = ("Chebyshev", "AugChebyshev", "Linear", "PBI", "Quadratic")
KAPPA_LAST, KAPPA_PERIOD = 0.01, 10
"""DeepHyper's defaults: exploration decays to KAPPA_LAST over KAPPA_PERIOD proposals, again and
again."""

FIDELITY = "ladder"
"""The model's dimension for how long a training was."""

SLOW_CANDIDATES = 500
"""Candidates an acquisition where a size has to be measured on the meta device."""


class BayesianSearch(Strategy):
    """Bayesian optimisation with a new random scalarisation of the objectives each time.

    Objectives arrive on logarithmic scales, which a Gaussian process with few points needs. Where
    trainings climb a ladder of times, each rung is a point of the model with its place on the
    ladder as one more dimension, and proposals are judged at the top: so short trainings tell of
    long ones as far as the learning curves seen allow.

    Parameters
    ----------
    surrogate
        "GP" (Gaussian process), "ET" (extra trees), "RF" (random forest), or "auto": a Gaussian
        process up to `switch_at` outcomes and extra trees beyond, where its cubic cost is felt.
    scalarization
        How several objectives become one, as DeepHyper names it.
    kappa
        Weight of the uncertainty in the upper confidence bound, before its decay.
    candidates
        Random feasible points among which the acquisition's best is proposed.
    """

    def __init__(
        self,
        problem: SearchProblem,
        *,
        initial: int | None = None,
        surrogate: str = "auto",
        scalarization: str = "Chebyshev",
        kappa: float = 1.96,
        candidates: int = 4_000,
        switch_at: int = 150,
    ) -> None:
        _check_choice("surrogate", surrogate, ("auto", *SURROGATES))
        _check_choice("scalarization", scalarization, SCALARIZATIONS)
        if not kappa > 0 or candidates < 1:
            raise ConfigurationError(
                f"kappa is {kappa} and candidates is {candidates}; specify both above 0"
            )
        _import_deephyper()
        super().__init__(problem, initial=initial)
        self.surrogate, self.scalarization, self.kappa = surrogate, scalarization, kappa
        quick = problem.space.sizer is not None
        self.candidates = candidates if quick else min(candidates, SLOW_CANDIDATES)
        self.switch_at = switch_at
        self._told_rungs: list[Outcome] = []

    def tell(self, number: int, outcome: Outcome) -> None:
        """Report what came of proposal `number`; each time that its training went on counts."""
        super().tell(number, outcome)
        self._told_rungs.append(outcome)

    @property
    def _on_ladder(self) -> bool:
        return len({outcome.fidelity for outcome in self._told_rungs}) > 1

    def _propose(self, number: int, rng: random.Random) -> Configuration:
        if not self.outcomes or not self.problem.space.free:
            return self.problem.draw(rng)
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # On matrices this small more BLAS threads cost several times what they save.
        limits = threadpool_limits(1)
        with limits, _quiet(), tempfile.TemporaryDirectory() as scratch:
            search = self._search(number, rng, scratch)
            search.tell(self._history())
            asked = search.ask(1)[0]
        # DeepHyper hands numpy scalars back; the space's own values are what the journal keeps.
        values = {p.name: _chosen(p, _plain(asked[p.name])) for p in self.problem.space.free}
        return self.problem.space.validate(self.problem.space.smallest | values)

    def _search(self, number: int, rng: random.Random, scratch: str) -> Any:
        from deephyper.hpo import CBO

        surrogate = self.surrogate
        if surrogate == "auto":
            surrogate = "GP" if len(self._told_rungs) <= self.switch_at else "ET"
        # Follows from the number, because the strategy keeps nothing between proposals.
        phase = (number - 1 - len(self.initial)) % KAPPA_PERIOD
        decay = math.log(KAPPA_LAST / self.kappa) / KAPPA_PERIOD
        return CBO(
            self._deephyper_problem(rng),
            random_state=rng.randrange(2**31),
            log_dir=scratch,
            verbose=0,
            checkpoint_history_to_csv=False,
            surrogate_model=surrogate,
            # The variance-splitting UCBd exists for forests only.
            acq_func="UCB" if surrogate == "GP" else "UCBd",
            acq_func_kwargs={
                "kappa": self.kappa * math.exp(decay * phase),
                "scheduler": {"type": "constant"},
            },
            acq_optimizer="sampling",
            acq_optimizer_kwargs={"n_points": self.candidates},
            # "identity" would scalarise without subtracting the best point, which is wrong.
            objective_scaler="minmax",
            moo_scalarization_strategy=self.scalarization,
            n_initial_points=1,
        )

    def _history(self) -> list[tuple[Configuration, float | tuple[float, ...]]]:
        """Outcomes, and pending points with the mean outcome so that none is proposed twice."""
        rows = [(self._told(o.configuration, o.fidelity), o.values) for o in self._told_rungs]
        mean = tuple(float(v) for v in np.mean([values for _, values in rows], axis=0))
        lowest = min(outcome.fidelity for outcome in self._told_rungs)
        rows += [(self._told(configuration, lowest), mean) for configuration in self.pending]
        # DeepHyper maximises, and wants a bare number when there is one objective.
        return [
            (
                told,
                -values[0] if len(values) == 1 else tuple(-v for v in values),
            )
            for told, values in rows
        ]

    def _deephyper_problem(self, rng: random.Random) -> HpProblem:
        from deephyper.hpo import HpProblem

        problem = HpProblem()
        for p in self.problem.space.free:
            if isinstance(p, Choice):
                names = [str(number) for number in range(len(p.values))]
                problem.add_hyperparameter(names if _is_mixed(p) else list(p.values), p.name)
            else:
                problem.add_hyperparameter((p.low, p.high, p.prior), p.name)
        if self._on_ladder:
            problem.add_hyperparameter((0.0, 1.0), FIDELITY)

        def sample(count: int) -> list[Configuration]:
            return [self._told(self.problem.draw(rng), 1.0) for _ in range(count)]

        # Candidates from our own priors keep the constraints and the priors in one place.
        problem.set_sampling_fn(sample)
        return problem

    def _told(self, configuration: Configuration, fidelity: float) -> Configuration:
        """Give the free values of a configuration as DeepHyper knows them."""
        told: Configuration = {}
        for p in self.problem.space.free:
            value = configuration[p.name]
            told[p.name] = str(p.values.index(value)) if _is_mixed(p) else value
        if self._on_ladder:
            told[FIDELITY] = fidelity
        return told


def _is_mixed(parameter: Hyperparameter) -> TypeGuard[Choice]:
    """Tell a choice among values of several types, which scikit-optimize would bring to one."""
    return isinstance(parameter, Choice) and len({type(value) for value in parameter.values}) > 1


def _chosen(parameter: Hyperparameter, asked: Any) -> Any:
    return parameter.values[int(asked)] if _is_mixed(parameter) else asked


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name} is {value!r}; specify one of {list(known)}")


def _import_deephyper() -> None:
    try:
        with _quiet():
            import deephyper.hpo  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.of(
            "deephyper", extra="host", purpose="search='cbo'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what DeepHyper's dependencies deprecate; nothing of ours runs inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        # A point that was evaluated before is replaced by a random one.
        warnings.filterwarnings("ignore", message="The objective has been evaluated")
        yield
