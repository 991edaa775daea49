"""Find Bragg peaks on a detector frame: one pass over the frame, then lit pixels only.

A numpy version is the reference: it is deterministic, ties go to the first pixel in raster order,
and every test is stated in `PeakFinder`. The twin that numba compiles gives the same peaks faster,
where numba is installed.
"""

from edgexnas.peak_finding.background import (
    Background,
    background_numbers,
    enough_background,
    estimate_background,
    refuse_nan,
)
from edgexnas.peak_finding.finder import (
    FinderReport,
    FoundPeaks,
    PeakFinder,
    SaturationOrigin,
)
from edgexnas.peak_finding.options import DetectionOptions
from edgexnas.peak_finding.settings import FinderSettings

__all__ = [
    "Background",
    "DetectionOptions",
    "FinderReport",
    "FinderSettings",
    "FoundPeaks",
    "PeakFinder",
    "SaturationOrigin",
    "background_numbers",
    "enough_background",
    "estimate_background",
    "refuse_nan",
]
