"""What is said of a scan unlike those that the network was trained on."""

from __future__ import annotations

from operator import attrgetter

from edgexnas.device.announcement import Announcement
from edgexnas.familiarity import UnfamiliarTally, pattern_reason_name

__all__ = ["scan_announcement"]


def scan_announcement(source: str) -> Announcement:
    """Make what announces foreign patterns of a scan."""
    return Announcement(
        source,
        UnfamiliarTally("patterns", pattern_reason_name),
        foreign=attrgetter("foreign_scan"),
        advice="do not trust the object; label a scan like this one, and search anew",
    )
