"""Peaks of one reflection on successive frames become one spot; see `SpotMerger`."""

from edgexnas.merging.merger import SpotMerger, merge_peaks
from edgexnas.merging.rotation import Rotation
from edgexnas.merging.settings import MergeSettings

__all__ = ["MergeSettings", "Rotation", "SpotMerger", "merge_peaks"]
