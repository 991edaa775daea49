"""Latency and energy of inference, measured by protocols that others can repeat.

`run_bench` measures bundles as `edgexnas bench` does; `measure_latency` and `measure_energy`
measure whatever a `Load` runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.device.benchmark.bench import BenchReport, BenchSettings, run_bench
    from edgexnas.device.benchmark.energy import EnergyReport, measure_energy
    from edgexnas.device.benchmark.energy_protocol import EnergyProtocol
    from edgexnas.device.benchmark.latency import LatencyResult, measure_latency
    from edgexnas.device.benchmark.load import Load

__all__ = [
    "BenchReport",
    "BenchSettings",
    "EnergyProtocol",
    "EnergyReport",
    "LatencyResult",
    "Load",
    "measure_energy",
    "measure_latency",
    "run_bench",
]

_MODULES = {
    "BenchReport": "bench",
    "BenchSettings": "bench",
    "EnergyProtocol": "energy_protocol",
    "EnergyReport": "energy",
    "LatencyResult": "latency",
    "Load": "load",
    "measure_energy": "energy",
    "measure_latency": "latency",
    "run_bench": "bench",
}


def __getattr__(name: str) -> object:
    """Import the module that defines a public name when the name is first asked for."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
