"""Says, as soon as it shows, that frames are unlike those that the network was trained on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgexnas.familiarity import UnfamiliarTally

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks
    from edgexnas.bundle import Distribution
    from edgexnas.peak_finding import FinderReport

__all__ = ["Announcement"]

ENOUGH = 500
"""Peaks after which data that was familiar so far is looked at no more, for the announcement."""

_log = logging.getLogger(__name__)


class Announcement:
    """Logs once that the peaks of frames are unlike the training data.

    Parameters
    ----------
    source
        What the frames are of.

    Attributes
    ----------
    done
        Whether it was said, or there is nothing to say.
    """

    def __init__(self, source: str) -> None:
        self.done = False
        self._source = source
        self._tally = UnfamiliarTally()

    def compare_noise(self, report: FinderReport | None, known: Distribution | None) -> None:
        """Log that the background noise is another than that of the training data."""
        if report is None or known is None or known.low is None or known.high is None:
            return
        if not known.low <= report.noise_counts <= known.high:
            _log.warning(
                "%s: the background noise is %.3g counts, and was %.3g in the training data: "
                "look at the share of unfamiliar peaks",
                self._source,
                report.noise_counts,
                known.quantiles[len(known.quantiles) // 2],
            )

    def add(self, peaks: Peaks) -> None:
        """Count the peaks of a frame, and log if too many are unfamiliar."""
        if self.done:
            return
        self._tally.add(peaks.reasons)
        if self._tally.foreign:
            _log.warning(
                "%s: %s; their intervals are widened: export a bundle from frames like these",
                self._source,
                self._tally.sentence,
            )
        self.done = self._tally.foreign or self._tally.total >= ENOUGH
