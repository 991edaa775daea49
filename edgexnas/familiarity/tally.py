"""Counts what is unlike the training data, by what makes it so, and says it in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgexnas.familiarity.quantities import reason_name

__all__ = ["FEWEST_TOLD", "FOREIGN_SHARE", "UnfamiliarTally"]

FOREIGN_SHARE = 0.2
"""Data of which more than this is unfamiliar is not what the network was trained on; of familiar
data it is 0.03 at most, and somewhat more where many peaks are saturated or overlap."""

FEWEST_TOLD = 10
"""Of fewer peaks or patterns nothing is said: three in ten are chance."""

FEWEST_PATTERNS = 4
"""But of so many patterns that nearly all are unfamiliar."""


class UnfamiliarTally:
    """Counts peaks, or patterns, and those that are unfamiliar.

    Parameters
    ----------
    what
        What is counted, in the plural.
    name
        Names the reasons.

    Attributes
    ----------
    total, unfamiliar
        How many were counted, and how many of them are unlike the training data.
    reasons
        How many of these by each reason, by its name.
    """

    def __init__(self, what: str = "peaks", name: Callable[[int], str] = reason_name) -> None:
        self.total = self.unfamiliar = 0
        self.reasons: Counter[str] = Counter()
        self._what, self._name = what, name

    def add(self, reasons: npt.NDArray[np.uint8] | None) -> None:
        """Count peaks or patterns by (n,) reasons, 0 for familiar ones; None where nobody knows."""
        if reasons is None:
            return
        self.total += len(reasons)
        for code, count in enumerate(np.bincount(reasons).tolist()):
            if code and count:
                self.unfamiliar += count
                self.reasons[self._name(code)] += count

    @property
    def share(self) -> float:
        """Share of what was counted that is unfamiliar; 0 of nothing."""
        return self.unfamiliar / self.total if self.total else 0.0

    @property
    def foreign(self) -> bool:
        """Whether the data is not what the network was trained on."""
        return self.total >= FEWEST_TOLD and self.share > FOREIGN_SHARE

    @property
    def foreign_scan(self) -> bool:
        """The same of patterns, which are foreign all together: the first few tell."""
        return (
            self.unfamiliar >= FEWEST_PATTERNS and self.share > 1 - FOREIGN_SHARE
        ) or self.foreign

    @property
    def sentence(self) -> str:
        """Say how much is unfamiliar, and by what."""
        most = ", ".join(f"{name} {count}" for name, count in self.reasons.most_common(3))
        by = f" (by {most})" if most else ""
        return (
            f"{self.unfamiliar} of {self.total} {self._what} ({self.share:.0%}) are unlike the "
            f"training data{by}"
        )
