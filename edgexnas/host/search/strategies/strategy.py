"""What every search strategy is: ask for a configuration, tell how it did.

A proposal depends only on the seed, its number and what was told before, never on hidden state.
So a search that was killed continues, by replaying its journal, exactly as if it had not been.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import Configuration, is_whole
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.search.priors import Prior

__all__ = ["Outcome", "Proposal", "SearchProblem", "Strategy"]

FEASIBLE_TRIES, SHRINKING, MOST_SHRUNK = 100, 0.9, 60
"""Draws from the priors before sampling moves towards the smallest configuration, how far each of
the further draws moves, and how many there are. Building a network to know its size takes up to
0.03 s."""


@dataclass(frozen=True)
class SearchProblem:
    """What a strategy may know.

    Attributes
    ----------
    space
        Where to search.
    objectives
        How many numbers are minimised.
    seed
        Fixes every proposal.
    feasible
        Whether a configuration keeps the hard constraints that are known without building it.
    prior
        What earlier runs found good, to draw around; None draws from the space's own priors.
    """

    space: SearchSpace
    objectives: int
    seed: int
    feasible: Callable[[Configuration], bool] = lambda _: True
    prior: Prior | None = None

    def generator(self, *purpose: object) -> random.Random:
        """Random numbers for one purpose, independent of those for any other."""
        return random.Random("/".join(map(str, (self.seed, self.space.name, *purpose))))

    def draw(self, rng: random.Random) -> Configuration:
        """Draw a feasible configuration from the priors.

        Where the feasible part is too small to hit, draws are pulled towards the smallest
        configuration until one fits.

        Raises
        ------
        ConfigurationError
            If not even the smallest configuration is feasible.
        """
        for _ in range(FEASIBLE_TRIES):
            configuration = (
                self.space.sample(rng) if self.prior is None else self.prior.sample(self.space, rng)
            )
            if self.feasible(configuration):
                return configuration
        # The smallest configuration is the likeliest to keep bounds on size.
        for shrink in range(1, MOST_SHRUNK):
            factor = SHRINKING**shrink
            pulled = {
                p.name: p.from_unit(rng.random() * factor) for p in self.space.hyperparameters
            }
            if self.feasible(pulled):
                return pulled
        if self.feasible(self.space.smallest):
            return self.space.smallest
        raise ConfigurationError(
            f"space {self.space.name} has no point within the constraints; relax them or widen "
            "the space"
        )

    def initial_points(self, count: int) -> list[Configuration]:
        """Where every strategy of one seed starts, whatever it is.

        Half of them are the best of earlier runs themselves, where there is a prior.
        """
        rng = self.generator("initial")
        known = [] if self.prior is None else self.prior.best(self.space, count // 2, rng)
        known = [configuration for configuration in known if self.feasible(configuration)]
        return known + [self.draw(rng) for _ in range(count - len(known))]


@dataclass(frozen=True)
class Proposal:
    """A configuration to evaluate.

    Attributes
    ----------
    number
        Counts the proposals of one strategy from 0; `Strategy.tell` wants it back.
    stop_above
        Epoch → validation error; a training that is not below it then is stopped.
    """

    number: int
    configuration: Configuration
    stop_above: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a proposal.

    Attributes
    ----------
    values
        One number an objective on its logarithmic scale, smaller is better, all finite; 1 where
        the evaluation failed and the objective is unknown.
    rungs
        Epoch → best validation error so far, at powers of 3.
    fidelity
        How far up the ladder of times the training was, from 0 to 1; 1 where there is no ladder.
    """

    configuration: Configuration
    values: tuple[float, ...]
    rungs: Mapping[int, float] = field(default_factory=dict)
    fidelity: float = 1.0


class Strategy(ABC):
    """One way to choose the next configuration.

    Parameters
    ----------
    problem
        What to search.
    initial
        How many random points come first; None takes twice the number of free hyperparameters
        plus one. The same seed gives every strategy the same ones.
    """

    def __init__(self, problem: SearchProblem, *, initial: int | None = None) -> None:
        self.problem = problem
        if initial is not None and (not is_whole(initial) or initial < 1):
            raise ConfigurationError(f"initial is {initial!r}; specify a whole number above 0")
        count = 2 * len(problem.space.free) + 1 if initial is None else initial
        self.initial = problem.initial_points(count)
        self.outcomes: dict[int, Outcome] = {}
        self.asked: list[Configuration] = []

    @property
    def pending(self) -> list[Configuration]:
        """Configurations that were proposed and not told yet."""
        return [c for number, c in enumerate(self.asked) if number not in self.outcomes]

    def ask(self) -> Proposal:
        """Propose a configuration that was not proposed before, where there is one."""
        number = len(self.asked)
        # Counted by what was asked, replayed proposals too, so a resumed run goes on from there.
        known = number < len(self.initial)
        configuration = self.initial[number] if known else self._unseen(number)
        return self.replay(self._prepared(configuration))

    def replay(self, configuration: Configuration) -> Proposal:
        """Take the place of `ask` for a configuration that an earlier run has proposed."""
        number = len(self.asked)
        self.asked.append(configuration)
        self._accepted(number, configuration)
        return Proposal(number, configuration, self._stop_above(number, configuration))

    def tell(self, number: int, outcome: Outcome) -> None:
        """Report what came of proposal `number`; again for each time that its training went on."""
        self.outcomes[number] = outcome

    def _unseen(self, number: int) -> Configuration:
        rng = self.problem.generator("proposal", number)
        configuration = self._propose(number, rng)
        # A space of few points runs out of new ones; a known one is then evaluated once more.
        for _ in range(20):
            if configuration not in self.asked and self.problem.feasible(configuration):
                return configuration
            configuration = self.problem.draw(rng)
        return configuration

    @abstractmethod
    def _propose(self, number: int, rng: random.Random) -> Configuration:
        """Choose proposal `number`; an infeasible or known one is replaced by a random one."""

    def _prepared(self, configuration: Configuration) -> Configuration:
        """Adapt a chosen configuration to the strategy before it is proposed."""
        return configuration

    def _accepted(self, number: int, configuration: Configuration) -> None:  # noqa: B027
        """Handle a proposal that was made; most strategies need not."""

    def _stop_above(self, number: int, configuration: Configuration) -> Mapping[int, float]:
        """Errors at or above which the training is stopped, by epoch."""
        return {}
