"""What earlier runs found good: where a search with a budget draws its first networks from.

`learned.json` beside this module holds, for each space, networks that ended on or near the front of
earlier runs, on simulated data alone, with the rates and batches that they were trained with, and
what a step took there. ``python host/learn_priors.py learn`` makes it of `host/learned_runs.json`.
"""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass
from importlib import resources
from typing import Any

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import Choice, Configuration
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.networks.spaces import SPACES

__all__ = ["Prior", "find_prior", "known_step_cost"]

FREE_SHARE = 0.25
"""Share of draws from the whole of a space, so that no prior shuts out what it has not seen."""

SPREAD = 0.07
"""Standard deviation around a good network, in units of each range's width on its own scale."""

OTHER_CHOICE = 0.2
"""Share of draws that take any value of a choice."""


@dataclass(frozen=True)
class Prior:
    """Good networks of a space, the best ones first, around which others are drawn."""

    points: tuple[Configuration, ...]

    def best(self, space: SearchSpace, count: int, rng: random.Random) -> list[Configuration]:
        """Give the best of the points themselves; what they do not say is drawn."""
        free = {p.name for p in space.free}
        return [
            space.sample(rng) | {name: value for name, value in point.items() if name in free}
            for point in self.points[:count]
        ]

    def sample(self, space: SearchSpace, rng: random.Random) -> Configuration:
        """Draw a configuration near one of the points, or anywhere."""
        drawn = space.sample(rng)
        if rng.random() < FREE_SHARE:
            return drawn
        point = rng.choice(self.points)
        for p in space.free:
            if p.name not in point:
                continue
            if isinstance(p, Choice):
                if rng.random() >= OTHER_CHOICE:
                    drawn[p.name] = point[p.name]
            else:
                unit = p.to_unit(point[p.name]) + rng.gauss(0, SPREAD)
                # Reflected at the ends, so that they do not collect what lies beyond.
                unit = abs(unit) if unit < 1 else 2 - unit
                drawn[p.name] = p.from_unit(min(max(unit, 0.0), 1 - 1e-9))
        return drawn


def find_prior(space: SearchSpace) -> Prior | None:
    """Return what is known of a space or of the one that it narrows; None if nothing is."""
    points = [
        point
        for name, known in _learned()["spaces"].items()
        if name in SPACES and SPACES[name].builder is space.builder
        for point in known
        if _fits(space, point)
    ]
    return Prior(tuple(points)) if points else None


def known_step_cost(device: str) -> tuple[float, ...] | None:
    """Coefficients of `StepCost` on a kind of device, "cpu" or "cuda"; None if it was not seen."""
    known = _learned()["step_seconds"].get(device)
    return None if known is None else tuple(known)


def _fits(space: SearchSpace, point: Configuration) -> bool:
    try:
        for name, value in point.items():
            space[name].validate(value)
    except ConfigurationError:
        return False
    return True


@functools.cache
def _learned() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("learned.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
