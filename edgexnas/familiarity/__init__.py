"""What a bundle knows of its own limits, applied: calibrated intervals, and data unlike training.

numpy, and numba where it is installed; CPU, GPU and host do the same to the last bit.
"""

from edgexnas.familiarity.checks import JudgedPeaks, PeakChecks, measure_peaks
from edgexnas.familiarity.pattern_checks import (
    PATTERN_QUANTITIES,
    PatternChecks,
    measure_patterns,
    pattern_reason_name,
)
from edgexnas.familiarity.quantities import PEAK_QUANTITIES, reason_name
from edgexnas.familiarity.tally import UnfamiliarTally

__all__ = [
    "PATTERN_QUANTITIES",
    "PEAK_QUANTITIES",
    "JudgedPeaks",
    "PatternChecks",
    "PeakChecks",
    "UnfamiliarTally",
    "measure_patterns",
    "measure_peaks",
    "pattern_reason_name",
    "reason_name",
]
