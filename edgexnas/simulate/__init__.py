"""Detectors with a known answer, for the demo, for tests and for pre-training."""

from edgexnas.frames import Truth, load_truth
from edgexnas.simulate.hedm import SimulatedSeries, simulate_hedm
from edgexnas.simulate.hedm_settings import HedmSettings
from edgexnas.simulate.ptychography import PtychographySettings, diffract, simulate_scan
from edgexnas.simulate.saving import save_scan, save_series

__all__ = [
    "HedmSettings",
    "PtychographySettings",
    "SimulatedSeries",
    "Truth",
    "diffract",
    "load_truth",
    "save_scan",
    "save_series",
    "simulate_hedm",
    "simulate_scan",
]
