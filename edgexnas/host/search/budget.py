"""A budget in time: how it is written, and what of it goes where."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import is_number

__all__ = ["SLOT_FACTOR", "TimeShares", "parse_budget"]

LEAST_S = 10.0
"""Starting worker processes alone takes seconds."""

UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

PART = re.compile(r"(\d+(?:\.\d*)?)\s*([a-z]*)\s*")

SLOT_FACTOR = 3
"""A training that goes on gets so many times as long as it had last."""

FIRST_SHARE, LONGEST_SHARE = 1 / 150, 1 / 15
"""Shares of the budget: a network's first training, and the longest one of the search."""

SHORTEST_S, FIRST_AT_MOST_S = 0.2, 60.0
"""With a longer budget the first trainings stay this long and there are more of them."""

SEARCH_SHARE = 0.5
"""Share of the budget after which the finalists have the rest."""

RESERVE_SHARE, RESERVE_AT_MOST_S = 0.02, 10.0
"""What is left for the last scores and for writing."""

PREPARATION_SHARE = 0.05
"""Share of the budget that drawing synthetic data may take."""


def parse_budget(
    budget: object, *, least_s: float = LEAST_S, because: str = "starting workers alone takes some"
) -> float:
    """Seconds of a budget: a number of them, or text such as "90s", "30min", "2h", "1h30min".

    Parameters
    ----------
    least_s, because
        Fewest seconds that it may be, and why, for the message.

    Raises
    ------
    ConfigurationError
        If it is neither, or below the fewest seconds.
    """
    seconds = _seconds(budget)
    if seconds is None or not math.isfinite(seconds):
        raise ConfigurationError(
            f"budget is {budget!r}; specify seconds, or text such as '90s', '30min', '2h' or "
            "'1h30min'"
        )
    if seconds < least_s:
        raise ConfigurationError(
            f"budget is {budget!r}, {seconds:g} s; specify at least {least_s:g} s, because "
            f"{because}"
        )
    return seconds


def _seconds(budget: object) -> float | None:
    if is_number(budget):
        return float(budget)
    if not isinstance(budget, str):
        return None
    text, total, at = budget.strip().lower(), 0.0, 0
    while at < len(text):
        part = PART.match(text, at)
        # A number without a unit is seconds, if it stands alone.
        if part is None or (part[2] not in UNITS and (part[2] or part[0] != text)):
            return None
        total += float(part[1]) * UNITS.get(part[2], 1.0)
        at = part.end()
    return total if text else None


@dataclass(frozen=True)
class TimeShares:
    """What of a budget goes where, in seconds from its beginning.

    Attributes
    ----------
    budget_s
        All of it.
    slots_s
        How long a training of the search takes, first and each time that it goes on.
    search_end_s
        When the search ends and the finalists begin.
    end_s
        When the last training ends.
    preparation_s
        How long drawing synthetic data may take.
    """

    budget_s: float
    slots_s: tuple[float, ...]
    search_end_s: float
    end_s: float
    preparation_s: float

    @classmethod
    def of(cls, budget_s: float) -> TimeShares:
        """Divide a budget."""
        slot = min(max(budget_s * FIRST_SHARE, SHORTEST_S), FIRST_AT_MOST_S)
        slots = [slot]
        while slots[-1] * SLOT_FACTOR <= budget_s * LONGEST_SHARE:
            slots.append(slots[-1] * SLOT_FACTOR)
        reserve = min(max(budget_s * RESERVE_SHARE, 1.0), RESERVE_AT_MOST_S)
        return cls(
            budget_s,
            tuple(round(slot, 3) for slot in slots),
            budget_s * SEARCH_SHARE,
            budget_s - reserve,
            budget_s * PREPARATION_SHARE,
        )
