"""What a power meter is and what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["PowerMeter", "PowerReading"]


@dataclass(frozen=True, slots=True)
class PowerReading:
    """Power at one moment.

    Attributes
    ----------
    time_s
        CLOCK_MONOTONIC in the middle of the readout.
    rails_w
        Name of a rail or domain → W. Rails may contain each other: their sum means nothing.
    module_w
        Power of the whole module (GPU board, CPU package); None if it is not measured.
    source
        "jetson", "nvml" or "rapl".
    energy_j
        Reading of a cumulative counter of the module's energy; None where there is none.
    steps_w
        Rail that adds to `module_w` → smallest difference in W that its sensor resolves, where that
        is worth counting.
    systematic_w
        Half-width, about 95 %, of the error of `module_w` that all readings share: offset and
        gain of the sensors. None if the maker states none.
    gain_error
        Share of `systematic_w` that is proportional to power, as a fraction of the power: what is
        left of it in a difference of two powers. None if the maker states none.
    supply_v
        Supply voltage of the module; None if it is not measured.
    """

    time_s: float
    rails_w: Mapping[str, float]
    module_w: float | None
    source: str
    energy_j: float | None = None
    steps_w: Mapping[str, float] = field(default_factory=dict)
    systematic_w: float | None = None
    gain_error: float | None = None
    supply_v: float | None = None


class PowerMeter(Protocol):
    """Reads power now. Use it from one thread at a time."""

    @property
    def source(self) -> str:
        """Name of the kind: "jetson", "nvml" or "rapl"."""

    @property
    def description(self) -> str:
        """What is measured, in one line: module, board or package, and by which sensors."""

    def read(self) -> PowerReading:
        """Read all rails once.

        Raises
        ------
        SourceError
            If a rail that was there when the meter was opened cannot be read any more.
        """

    def close(self) -> None:
        """Release the sensors; closing again does nothing."""
