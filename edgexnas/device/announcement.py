"""Says once, as soon as it shows, that data is unlike that which the network was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgexnas.familiarity import UnfamiliarTally

__all__ = ["Announcement"]

_log = logging.getLogger(__name__)


class Announcement:
    """Logs once that too much of what is counted is unlike the training data.

    Parameters
    ----------
    source
        What the data is of.
    tally
        Counts it.
    foreign
        Tells of a tally whether it is too much.
    advice
        What to do about it.
    enough
        After how many nothing more is looked at; None looks at all.

    Attributes
    ----------
    tally
        What was counted.
    done
        Whether it was said, or there is nothing to say.
    """

    def __init__(
        self,
        source: str,
        tally: UnfamiliarTally,
        *,
        foreign: Callable[[UnfamiliarTally], bool],
        advice: str,
        enough: int | None = None,
    ) -> None:
        self.tally = tally
        self.done = False
        self._source, self._foreign, self._advice = source, foreign, advice
        self._enough = enough

    def add(self, reasons: npt.NDArray[np.uint8] | None) -> None:
        """Count peaks or patterns by (n,) reasons, and log if too many are unfamiliar."""
        if not self.done:
            self.tally.add(reasons)
            self.look()

    def look(self) -> None:
        """Log if too many of what was counted are unfamiliar."""
        if self.done:
            return
        self.done = self._foreign(self.tally)
        if self.done:
            _log.warning("%s: %s; %s", self._source, self.tally.sentence, self._advice)
        elif self._enough is not None:
            self.done = self.tally.total >= self._enough
