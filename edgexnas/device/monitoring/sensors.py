"""Power and temperatures of the machine that the service runs on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgexnas.device.power import PowerMeter, open_power_meter
from edgexnas.device.power.device_state import read_temperatures
from edgexnas.errors import EdgexnasError

__all__ = ["SensorReading", "Sensors"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SensorReading:
    """Power and temperatures at one moment.

    Attributes
    ----------
    rails_w
        Rail → watts; empty where the machine has no sensor.
    module_w
        Power of the whole module; None where it cannot be told.
    power_source
        Where the power was read, or why it was not.
    temperatures_c
        Thermal zone → degrees Celsius.
    """

    rails_w: Mapping[str, float] = field(default_factory=dict)
    module_w: float | None = None
    power_source: str = ""
    temperatures_c: Mapping[str, float] = field(default_factory=dict)


class Sensors:
    """Reads power and temperatures; the newest reading is kept for whoever asks.

    Parameters
    ----------
    open_meter
        Opens the power meter; raises an `EdgexnasError` where there is none.
    root
        Folder that holds ``sys``.
    """

    def __init__(
        self,
        open_meter: Callable[[], PowerMeter] = open_power_meter,
        root: str | Path = "/",
    ) -> None:
        self._open_meter = open_meter
        self._root = root
        self._meter: PowerMeter | None = None
        self._asked = False
        self._why_not = ""
        self._latest = SensorReading()

    def latest(self) -> SensorReading:
        """Return the newest reading; empty before the first."""
        return self._latest

    def read(self) -> SensorReading:
        """Read all sensors. Takes tens of milliseconds on a Jetson; one thread at a time."""
        temperatures = read_temperatures(self._root)
        # Once: looking for a meter that is not there takes as long each time.
        if not self._asked:
            self._asked = True
            try:
                self._meter = self._open_meter()
            except EdgexnasError as error:
                self._why_not = str(error)
        rails: dict[str, float] = {}
        module, source = None, self._why_not
        if self._meter is not None:
            try:
                power = self._meter.read()
                rails, module, source = dict(power.rails_w), power.module_w, power.source
            except (EdgexnasError, OSError) as error:
                _logger.warning("power cannot be read: %s", error)
                source = str(error)
        # Replaced as a whole, so that readers need no lock.
        self._latest = SensorReading(rails, module, source, temperatures)
        return self._latest

    def close(self) -> None:
        """Close the power meter; closing again does nothing."""
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()
