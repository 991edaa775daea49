"""What is said, before the first result, of frames unlike those that the network was trained on."""

from __future__ import annotations

import logging
from operator import attrgetter
from typing import TYPE_CHECKING

from edgexnas.device.announcement import Announcement
from edgexnas.familiarity import UnfamiliarTally

if TYPE_CHECKING:
    from edgexnas.bundle import Distribution
    from edgexnas.peak_finding import FinderReport

__all__ = ["compare_noise", "peak_announcement"]

ENOUGH = 500
"""Peaks after which data that was familiar so far is looked at no more, for the announcement."""

_log = logging.getLogger(__name__)


def peak_announcement(source: str) -> Announcement:
    """Make what announces foreign peaks of a source."""
    return Announcement(
        source,
        UnfamiliarTally(),
        foreign=attrgetter("foreign"),
        advice="their intervals are widened: export a bundle from frames like these",
        enough=ENOUGH,
    )


def compare_noise(source: str, report: FinderReport | None, known: Distribution | None) -> None:
    """Log that the background noise is another than that of the training data."""
    if report is None or known is None or known.low is None or known.high is None:
        return
    if not known.low <= report.noise_counts <= known.high:
        _log.warning(
            "%s: the background noise is %.3g counts, and was %.3g in the training data: "
            "look at the share of unfamiliar peaks",
            source,
            report.noise_counts,
            known.quantiles[len(known.quantiles) // 2],
        )
