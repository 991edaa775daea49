"""What a bundle knows of its own limits, applied: calibrated intervals, and data unlike training.

numpy, and numba where it is installed; CPU, GPU and host do the same to the last bit.
"""

from edgexnas.familiarity.checks import JudgedPeaks, PeakChecks, measure_peaks
from edgexnas.familiarity.quantities import PEAK_QUANTITIES, reason_name

__all__ = ["PEAK_QUANTITIES", "JudgedPeaks", "PeakChecks", "measure_peaks", "reason_name"]
