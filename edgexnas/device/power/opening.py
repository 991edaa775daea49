"""Open the power meter of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgexnas.device.power.jetson_rails import JetsonRailMeter
from edgexnas.device.power.meter import PowerMeter
from edgexnas.device.power.nvml import NvmlMeter
from edgexnas.device.power.rapl import RaplMeter
from edgexnas.errors import ConfigurationError, EdgexnasError, SourceError

__all__ = ["METERS", "open_power_meter"]

METERS = ("auto", "jetson", "nvml", "rapl")
"""Names that `open_power_meter` knows."""


def open_power_meter(source: str = "auto", *, root: str | Path = "/", gpu: int = 0) -> PowerMeter:
    """Open the power meter of this machine.

    Parameters
    ----------
    source
        "jetson" (INA3221 rails), "nvml" (a desktop GPU), "rapl" (CPU packages), or "auto": the
        first of them, in this order, that works.
    root
        Folder that holds ``sys`` and ``proc``; another one for recorded or simulated trees, on
        which "auto" does not look for a GPU.
    gpu
        Index of the GPU for "nvml".

    Raises
    ------
    ConfigurationError
        If the source is unknown.
    SourceError
        If there is no such meter, or it cannot be read; the message says what was found.
    MissingDependencyError
        If "nvml" is requested and its package is not installed.
    """
    if source not in METERS:
        raise ConfigurationError(
            f"unknown power meter {source!r}; specify one of {', '.join(METERS)}"
        )
    folder = Path(root)
    openers: dict[str, Callable[[], PowerMeter]] = {
        "jetson": lambda: JetsonRailMeter(folder),
        "nvml": lambda: NvmlMeter(gpu),
        "rapl": lambda: RaplMeter(folder),
    }
    if source != "auto":
        return openers[source]()
    if folder != Path("/"):
        # NVML reads this machine's GPU, whatever tree is given.
        del openers["nvml"]
    obstacles = []
    for name, opener in openers.items():
        try:
            return opener()
        # Kept and told together: which obstacle matters, only the reader knows.
        except EdgexnasError as error:
            obstacles.append(f"{name}: {error}")
    raise SourceError(f"this machine has no power meter ({'; '.join(obstacles)})")
