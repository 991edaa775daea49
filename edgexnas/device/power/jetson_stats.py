"""Power mode, memory clock and fans from jetson-stats, if its service runs.

Clocks of cores and GPU and temperatures come from the kernel, as everywhere here.
jetson-stats is AGPL-3.0 and not a dependency: it is imported here, when requested, and nowhere
else. Rails are not taken from it, because its total counts VDDQ_VDD2_1V8AO twice on AGX
Orin (jetson-stats 7.2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgexnas.device.power.device_state import read_clocks, read_temperatures
from edgexnas.errors import MissingDependencyError, SourceError

__all__ = ["JetsonStats", "read_jetson_stats"]


@dataclass(frozen=True)
class JetsonStats:
    """State of a Jetson.

    Attributes
    ----------
    mode
        Name of the power mode, such as "MAXN"; "" if unknown.
    jetson_clocks
        Whether clocks are pinned to the mode's maximum; None if unknown.
    clocks_mhz
        Name → present frequency: cores, GPU, memory.
    temperatures_c
        Sensor → temperature; sensors that are off are left out.
    fans_percent
        Fan → speed.
    """

    mode: str
    jetson_clocks: bool | None
    clocks_mhz: Mapping[str, float]
    temperatures_c: Mapping[str, float]
    fans_percent: Mapping[str, float]

    def pairs(self) -> list[tuple[str, str]]:
        """Names and values to print."""
        known = {True: "on", False: "off", None: "unknown"}
        return [
            ("mode", self.mode or "unknown"),
            ("jetson_clocks", known[self.jetson_clocks]),
            ("clocks", ", ".join(f"{k} {v:.0f} MHz" for k, v in self.clocks_mhz.items())),
            ("temperatures", ", ".join(f"{k} {v:.1f} °C" for k, v in self.temperatures_c.items())),
            ("fans", ", ".join(f"{k} {v:.0f} %" for k, v in self.fans_percent.items())),
        ]


def read_jetson_stats(root: str | Path = "/") -> JetsonStats:
    """Ask the jtop service once.

    Parameters
    ----------
    root
        Folder that holds ``sys``.

    Raises
    ------
    MissingDependencyError
        If jetson-stats is not installed.
    SourceError
        If its service does not run or does not answer.
    """
    try:
        # Here and nowhere else, because of its licence (see above).
        from jtop import JtopException, jtop
    except ImportError as error:
        raise MissingDependencyError.of(
            "jetson-stats", extra="monitor", purpose="Reading mode, clocks and fan"
        ) from error
    try:
        # Seconds; where another client came first, the service keeps that one's interval.
        with jtop(interval=0.5) as service:
            if not service.ok():
                raise SourceError(
                    "the jtop service sends nothing; restart it by systemctl restart jtop"
                )
            return _state_of(service, root)
    except JtopException as error:
        # Its own message advises over several lines; what it says first is what happened.
        said = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise SourceError(
            f"jetson-stats gives no state ({said}); start its service by systemctl start jtop"
        ) from error


def _state_of(service: Any, root: str | Path) -> JetsonStats:
    mode = getattr(service, "nvpmodel", None)
    pinned = getattr(service, "jetson_clocks", None)
    clocks = read_clocks(root)
    # The memory's clock is in debugfs, which root alone may read; the service runs as root.
    memory = service.memory.get("EMC", {})
    if "cur" in memory:
        clocks["EMC"] = memory["cur"] / 1e3
    return JetsonStats(
        mode=str(getattr(mode, "name", mode) or ""),
        jetson_clocks=None if pinned is None else bool(pinned),
        clocks_mhz=clocks,
        temperatures_c=read_temperatures(root),
        fans_percent={
            f"{name}{number}": float(speed)
            for name, fan in service.fan.items()
            for number, speed in enumerate(fan.get("speed", ()))
        },
    )
