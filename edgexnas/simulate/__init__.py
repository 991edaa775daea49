"""Detectors with a known answer, for the demo, for tests and for pre-training."""

from edgexnas.frames import Truth, load_truth
from edgexnas.simulate.hedm import SimulatedSeries, simulate_hedm
from edgexnas.simulate.hedm_settings import HedmSettings
from edgexnas.simulate.saving import save_series

__all__ = [
    "HedmSettings",
    "SimulatedSeries",
    "Truth",
    "load_truth",
    "save_series",
    "simulate_hedm",
]
