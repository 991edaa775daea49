"""Find Bragg peaks on a detector frame: one pass over the frame, then lit pixels only.

This numpy version is the reference that faster kernels must equal: it is deterministic, ties go to
the first pixel in raster order, and every test is stated in `PeakFinder`. numpy only.
"""

from edgexnas.peak_finding.background import Background, estimate_background
from edgexnas.peak_finding.finder import FinderSettings, FoundPeaks, PeakFinder

__all__ = ["Background", "FinderSettings", "FoundPeaks", "PeakFinder", "estimate_background"]
