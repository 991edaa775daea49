"""Simulated Jetsons under load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgexnas.device.benchmark import EnergyReport, Load
from edgexnas.device.power import JetsonRailMeter
from edgexnas.testing import JetsonTree

MeasureEnergy = Callable[..., EnergyReport]


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Any]:
    """`tree(module=..., jetpack=...)` builds a sysfs tree in a folder of its own."""
    return lambda **options: JetsonTree(tmp_path / "tree", **options)


@pytest.fixture(scope="session")
def on_stepped_time(clocks: ModuleType) -> Callable[[MeasureEnergy, Path], MeasureEnergy]:
    """`on_stepped_time(measure_energy, root)` goes by a clock on which each run takes 10 ms.

    What else a machine does makes readings late, and a measurement that lacks some is void.
    """

    def stepped(measure: MeasureEnergy, root: Path) -> MeasureEnergy:
        def measured(loads: Sequence[Load], meter: Any, *rest: Any, **options: Any) -> EnergyReport:
            clock = clocks.SteppedClock()

            def timed(load: Load) -> Load:
                def run() -> None:
                    load.run()
                    clock.advance_to(clock.now() + 0.01)

                return replace(load, run=run)

            followed = clock.follow(JetsonRailMeter(root, now=clock.now))
            return measure([timed(load) for load in loads], followed, *rest, clock=clock, **options)

        return measured

    return stepped
