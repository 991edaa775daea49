"""Random search: the baseline that every other strategy must beat."""

from __future__ import annotations

import random

from edgexnas.host.networks.hyperparameters import Configuration
from edgexnas.host.search.strategies.strategy import Strategy

__all__ = ["RandomSearch"]


class RandomSearch(Strategy):
    """Independent draws from the priors."""

    def _propose(self, number: int, rng: random.Random) -> Configuration:
        return self.problem.draw(rng)
