"""Durations of an energy measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgexnas.errors import ConfigurationError

__all__ = ["EnergyProtocol"]


@dataclass(frozen=True, kw_only=True)
class EnergyProtocol:
    """Durations, in seconds.

    Attributes
    ----------
    idle_s, load_s
        Of each window. Below 30 s of load the interval grows; below 5 s it says little.
    blocks
        Windows of each load. From three on their spread gives the interval, which then holds
        whatever changes from window to window: clocks, temperature, other processes.
    warm_up_s
        Load before the first window, so that the device is warm.
    lead_s
        Load before each window, so that sensors that average see nothing else in it.
    settle_s
        Waiting before each idle window, for the same reason.
    period_s
        Between power readings.
    """

    idle_s: float = 60.0
    load_s: float = 60.0
    blocks: int = 3
    warm_up_s: float = 5.0
    # Drivers average over up to a second; see `NvmlMeter`.
    lead_s: float = 1.5
    settle_s: float = 3.0
    period_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("idle_s", "load_s", "period_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}; specify a number of seconds above 0"
                )
        if min(self.idle_s, self.load_s) < 10 * self.period_s:
            raise ConfigurationError(
                f"idle_s is {self.idle_s} and load_s {self.load_s} with a reading each "
                f"{self.period_s} s; specify windows of ten readings at least"
            )
        if self.blocks < 1:
            raise ConfigurationError(f"blocks is {self.blocks!r}; specify a whole number from 1")

    @classmethod
    def of_windows(
        cls, load_s: float, idle_s: float | None = None, *, blocks: int = 3, period_s: float = 0.1
    ) -> EnergyProtocol:
        """Make a protocol of shorter windows, with what surrounds them shrunk along.

        Parameters
        ----------
        load_s, idle_s
            Of each window; idle as long as load if not given.
        """
        idle = load_s if idle_s is None else idle_s
        return cls(
            idle_s=idle,
            load_s=load_s,
            blocks=blocks,
            warm_up_s=min(5.0, load_s),
            lead_s=min(1.5, load_s / 4),
            settle_s=min(3.0, idle / 4),
            period_s=period_s,
        )

    def seconds(self, loads: int) -> float:
        """Duration of the whole measurement of so many loads."""
        blocks = loads * self.blocks
        one = self.lead_s + self.load_s + self.settle_s + self.idle_s
        return loads * self.warm_up_s + self.settle_s + self.idle_s + blocks * one
