"""Latency and energy of inference, measured by protocols that others can repeat.

`run_bench` measures bundles as `edgexnas bench` does; `measure_latency` and `measure_energy`
measure whatever a `Load` runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgexnas.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgexnas.device.benchmark.bench import BenchReport as BenchReport
    from edgexnas.device.benchmark.bench import BenchSettings as BenchSettings
    from edgexnas.device.benchmark.bench import run_bench as run_bench
    from edgexnas.device.benchmark.energy import EnergyReport as EnergyReport
    from edgexnas.device.benchmark.energy import measure_energy as measure_energy
    from edgexnas.device.benchmark.energy_protocol import EnergyProtocol as EnergyProtocol
    from edgexnas.device.benchmark.latency import LatencyResult as LatencyResult
    from edgexnas.device.benchmark.latency import measure_latency as measure_latency
    from edgexnas.device.benchmark.load import Load as Load

__getattr__, __dir__, __all__ = lazy_names(__name__)
