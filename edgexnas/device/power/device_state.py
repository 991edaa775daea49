"""State of this device: model, power mode, clocks, temperatures and throttling.

The one reader of the kernel's thermal zones and clocks, for the monitoring, `edgexnas power` and
benchmark reports.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from edgexnas import __version__
from edgexnas.device.power.nvml import board_of
from edgexnas.errors import SourceError

__all__ = [
    "DeviceState",
    "GpuState",
    "device_name",
    "observe_device",
    "read_clocks",
    "read_temperatures",
    "throttling",
]

PACKAGES = ("numpy", "onnxruntime", "tensorrt", "pycuda", "cuda-bindings", "torch")

# The command talks to a daemon, and hangs with it.
NVPMODEL_LIMIT_S = 10.0

COLDEST_C = -200.0
"""The Orin's driver reports -256 °C for a zone whose part is powered down."""

SLOWING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of NVML's reasons for lower clocks that mean throttling, and not idleness or settings."""


@dataclass(frozen=True)
class GpuState:
    """A GPU that NVML knows."""

    name: str
    driver: str
    clocks_mhz: Mapping[str, int]
    temperature_c: int
    power_limit_w: float | None
    slowed_by: tuple[str, ...]


@dataclass(frozen=True)
class DeviceState:
    """State of a device at one moment.

    Attributes
    ----------
    name
        Model of the device or of its processor.
    system
        Kernel and architecture; on a Jetson its L4T release too.
    power_mode
        What ``nvpmodel -q`` says; "" where there is no such command.
    clocks_mhz
        Present frequencies: cores, GPU, memory.
    clock_limits_mhz
        Highest frequencies that are allowed now; a device that throttles lowers them.
    temperatures_c
        Thermal zone → temperature.
    throttle_counts
        Counter of throttling events → its value.
    supply_v
        Supply voltage of a Jetson module; None elsewhere.
    gpu
        None without NVML.
    versions
        Package → version.
    """

    name: str
    system: str
    cores: int
    power_mode: str
    clocks_mhz: Mapping[str, float]
    clock_limits_mhz: Mapping[str, float]
    temperatures_c: Mapping[str, float]
    throttle_counts: Mapping[str, int]
    supply_v: float | None = None
    gpu: GpuState | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def observe_device(
    root: str | Path = "/", *, supply_v: float | None = None, nvml: bool = False
) -> DeviceState:
    """Read the state of this device; what a device does not tell is left out.

    Parameters
    ----------
    root
        Folder that holds ``sys``, ``proc`` and ``etc``.
    supply_v
        From a power reading.
    nvml
        Ask NVML for the first GPU.
    """
    folder = Path(root)
    own = folder == Path("/")
    return DeviceState(
        name=device_name(folder),
        system=_system(folder),
        # Of this process: what an engine can use, and not what the board has.
        cores=len(os.sched_getaffinity(0)),
        power_mode=_power_mode() if own else "",
        clocks_mhz=read_clocks(folder),
        clock_limits_mhz=read_clocks(folder, limits=True),
        temperatures_c=read_temperatures(folder),
        throttle_counts=_throttle_counts(folder),
        supply_v=supply_v,
        gpu=_gpu() if nvml and own else None,
        versions=_versions(),
    )


def read_clocks(root: str | Path = "/", *, limits: bool = False) -> dict[str, float]:
    """Read the frequency in MHz of each core and of each device with scaled clocks, by name.

    Parameters
    ----------
    root
        Folder that holds ``sys``.
    limits
        Read the highest frequencies that are allowed now instead of the present ones.
    """
    name = "max_freq" if limits else "cur_freq"
    cores = Path(root).glob(f"sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_{name}")
    devices = Path(root).glob(f"sys/class/devfreq/*/{name}")
    clocks = {}
    # cpufreq counts in kHz, devfreq in Hz.
    for path in sorted(cores):
        with suppress(ValueError):
            clocks[path.parents[1].name] = int(_text(path)) / 1e3
    for path in sorted(devices):
        with suppress(ValueError):
            clocks[path.parent.name] = int(_text(path)) / 1e6
    return clocks


def read_temperatures(root: str | Path = "/") -> dict[str, float]:
    """Read each thermal zone, such as "cpu" or "tj", in °C.

    A zone whose part is powered down fails to be read, or reads below what any device survives;
    both are left out. A second zone of one name goes by the name of its folder.
    """
    found: dict[str, float] = {}
    for zone in sorted(Path(root).glob("sys/class/thermal/thermal_zone*")):
        name = _text(zone / "type").removesuffix("-thermal")
        with suppress(ValueError):
            celsius = int(_text(zone / "temp")) / 1e3
            if celsius > COLDEST_C:
                found[zone.name if name in ("", *found) else name] = celsius
    return found


def throttling(before: DeviceState, after: DeviceState) -> list[str]:
    """Say in sentences what shows that a device throttled between two moments."""
    found = [
        f"the device throttled: {name} rose by {count - before.throttle_counts[name]}"
        for name, count in after.throttle_counts.items()
        if count > before.throttle_counts.get(name, count)
    ]
    found += [
        f"the device throttled: the limit of {name} fell from "
        f"{before.clock_limits_mhz[name]:.0f} to {limit:.0f} MHz"
        for name, limit in after.clock_limits_mhz.items()
        if limit < before.clock_limits_mhz.get(name, limit)
    ]
    if before.power_mode != after.power_mode:
        found.append(f"the power mode changed from {before.power_mode!r} to {after.power_mode!r}")
    if after.gpu is not None:
        # NVML tells the present moment only, so that this is asked right after each load.
        found += [f"the GPU throttled: {reason}" for reason in after.gpu.slowed_by]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def device_name(root: Path) -> str:
    """Read the model of the device or of its processor under a folder that holds ``proc``."""
    model = _text(root / "proc/device-tree/model")
    if model:
        return model
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _system(root: Path) -> str:
    parts = [f"{platform.system()} {platform.release()} {platform.machine()}"]
    release = _text(root / "etc/nv_tegra_release").splitlines()
    if release:
        parts.append(f"L4T {release[0].lstrip('# ')}")
    return ", ".join(parts)


def _power_mode() -> str:
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=NVPMODEL_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""


def _throttle_counts(root: Path) -> dict[str, int]:
    """Counters of over-current events on a Jetson and of throttling on x86 cores."""
    patterns = (
        "sys/class/hwmon/hwmon*/oc*_event_cnt",
        "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
    )
    counts = {}
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            with suppress(ValueError):
                owner = "" if "hwmon" in pattern else f"{path.parents[1].name} "
                counts[f"{owner}{path.name}"] = int(_text(path))
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind = _text(device / "type")
        # Cooling devices that slow the processor; fans are among the others.
        if kind.startswith(("cpufreq", "devfreq", "Processor", "thermal-cpufreq", "gpu")):
            with suppress(ValueError):
                counts[f"{device.name} {kind}"] = int(_text(device / "cur_state"))
    return counts


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "edgexnas": __version__}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _gpu() -> GpuState | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _gpu_state(pynvml, board_of(pynvml))
    except SourceError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _gpu_state(nvml: Any, handle: Any) -> GpuState:
    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except nvml.NVMLError:
            return None

    kinds = {"sm": nvml.NVML_CLOCK_SM, "memory": nvml.NVML_CLOCK_MEM}
    clocks = {name: ask(nvml.nvmlDeviceGetClockInfo, kind) for name, kind in kinds.items()}
    limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
    # Old name on purpose: newer NVML calls them event reasons and keeps this one.
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    return GpuState(
        name=str(nvml.nvmlDeviceGetName(handle)),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        clocks_mhz={name: int(value) for name, value in clocks.items() if value is not None},
        temperature_c=int(ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU) or 0),
        power_limit_w=None if limit is None else limit / 1e3,
        slowed_by=tuple(name for bit, name in SLOWING.items() if reasons & bit),
    )
