"""A part of a scan, and a scan in other axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgexnas.ptycho import Orientation, oriented
from edgexnas.scans import Scan

__all__ = ["oriented_scan", "part_of_scan"]


def part_of_scan(scan: Scan, numbers: npt.NDArray[np.intp]) -> Scan:
    """Keep some patterns of a scan, by their numbers, and nothing that the others could tell."""
    return replace(
        scan, patterns=scan.patterns[numbers], positions_px=scan.positions_px[numbers], truth=None
    )


def oriented_scan(scan: Scan, orientation: Orientation) -> Scan:
    """Bring the patterns of a scan into the axes of its positions."""
    if orientation == "as-is":
        return scan
    mask = None if scan.mask is None else np.ascontiguousarray(oriented(scan.mask, orientation))
    patterns = np.ascontiguousarray(oriented(scan.patterns, orientation))
    return replace(scan, patterns=patterns, mask=mask)
