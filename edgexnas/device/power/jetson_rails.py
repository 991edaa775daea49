"""Rails of a Jetson, read from the INA3221 monitors' files in sysfs, which need no library.

Monitors are found by their driver's name and rails by their label, because the number in
``hwmonN`` changes from boot to boot and between JetPack 5, 6 and 7. Only ``in*_input`` (mV) and
``curr*_input`` (mA) are read; limits that the files next to them would change are never written.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgexnas.device.power.jetson_modules import JetsonModule, find_module
from edgexnas.device.power.meter import PowerReading
from edgexnas.errors import SourceError

__all__ = ["JetsonRailMeter", "Rail", "find_rails"]

CHANNELS = (1, 2, 3)
"""Inputs of an INA3221; what the driver numbers beyond them are shunts and sums."""

UNUSED = ("", "NC")
"""Labels of inputs that lead nowhere."""

CURRENT_STEP_A = 0.020
"""40 µV, the smallest shunt voltage that an INA3221 resolves, over the modules' 2 mΩ shunts."""

CURRENT_OFFSET_A, VOLTAGE_OFFSET_V, GAIN_ERROR = 0.040, 0.016, 0.0025
"""Largest errors by the data sheet (TI SBOS576): 80 µV over 2 mΩ, 16 mV, 0.25 % each."""


@dataclass(frozen=True)
class Rail:
    """One input of a monitor: its label, and its files in mV and mA."""

    label: str
    voltage: Path
    current: Path

    def read(self) -> tuple[float, float]:
        """Read V and A.

        Raises
        ------
        SourceError
            If a file cannot be read, or holds no number.
        """
        # Power itself has no file. The two are of different conversions, some milliseconds apart.
        return _number(self.voltage, self.label) / 1e3, _number(self.current, self.label) / 1e3


class JetsonRailMeter:
    """Rails of a Jetson module, and their right sum. A `PowerMeter`.

    `module_w` is VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 on AGX Orin and VDD_IN on Orin NX and Nano;
    VDDQ_VDD2_1V8AO is inside VIN_SYS_5V0 and never added. The carrier board is not included.

    Parameters
    ----------
    root
        Folder that holds ``sys`` and ``proc``.
    now
        Clock, in seconds; CLOCK_MONOTONIC unless a test replaces it.

    Raises
    ------
    SourceError
        If there is no monitor, none of its rails is enabled, or one cannot be read.

    Attributes
    ----------
    module
        The module; None if it is unknown.
    rails
        The rails that are enabled.
    missing
        Rails that the module's power needs and that are not there; if any, `module_w` is None.
    """

    source = "jetson"

    def __init__(
        self, root: str | Path = "/", *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self.rails = find_rails(Path(root))
        labels = [rail.label for rail in self.rails]
        self.module: JetsonModule | None = find_module(Path(root), labels)
        total = self.module.rails.total if self.module else ()
        # No sum rather than one that lacks a rail and looks like less power.
        self.missing = tuple(label for label in total if label not in labels)

    @property
    def description(self) -> str:
        """Module and rails in one line."""
        name = self.module.name if self.module else "unknown Jetson"
        if self.module is None or self.missing:
            return f"{name}: rails {', '.join(rail.label for rail in self.rails)}"
        return f"{name}: INA3221 rails, module = {' + '.join(self.module.rails.total)}"

    def read(self) -> PowerReading:
        """Read all rails once; see `PowerMeter.read`."""
        # The driver waits for a conversion at each file: all rails take up to 40 ms.
        before = self._now()
        values = {rail.label: rail.read() for rail in self.rails}
        after = self._now()
        rails = {label: volts * amperes for label, (volts, amperes) in values.items()}
        total = self.module.rails.total if self.module and not self.missing else ()
        supply = values.get(self.module.rails.supply) if self.module else None
        return PowerReading(
            time_s=(before + after) / 2,
            rails_w=rails,
            module_w=sum(rails[label] for label in total) if total else None,
            source=self.source,
            # One step is 0.4 W at a supply of 20 V: the rail's voltage decides what can be
            # resolved.
            steps_w={label: values[label][0] * CURRENT_STEP_A for label in total},
            systematic_w=math.hypot(*(_error_w(*values[t]) for t in total)) if total else None,
            # Power is a product: the gains of voltage and current add up as squares.
            gain_error=math.hypot(GAIN_ERROR, GAIN_ERROR) if total else None,
            supply_v=supply[0] if supply else None,
        )

    def close(self) -> None:
        """Do nothing: no file stays open between readings."""


def find_rails(root: Path) -> tuple[Rail, ...]:
    """Find the enabled rails of all INA3221 monitors, sorted by monitor and input.

    Raises
    ------
    SourceError
        If there is none, or one is there and cannot be read.
    """
    monitors = _monitors(root)
    if not monitors:
        raise SourceError(
            f"{root / 'sys/class/hwmon'} has no ina3221 power monitor; run this on a Jetson"
        )
    rails = [rail for monitor in monitors for rail in _rails_of(monitor)]
    if not rails:
        raise SourceError(
            f"all inputs of the power monitor {monitors[0]} are disabled; enable one by its "
            "in1_enable file"
        )
    labels = [rail.label for rail in rails]
    # Of two rails of one label the second would replace the first, and power be lost unseen.
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise SourceError(f"two power rails are labelled {twice}; specify a tree of one Jetson")
    return tuple(rails)


def _monitors(root: Path) -> list[Path]:
    """Folders of the monitors, each once, whichever way sysfs shows them."""
    sys = root / "sys"
    candidates = [
        *sys.glob("class/hwmon/hwmon*"),
        # Some containers hide the class; the driver's own folder is the same place.
        *sys.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*"),
    ]
    found: dict[Path, Path] = {}
    for folder in candidates:
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        if name == "ina3221":
            found.setdefault(folder.resolve(), folder)
    # By address: in the order of hwmonN rails would change places from boot to boot.
    return sorted(found.values(), key=_address)


def _address(monitor: Path) -> str:
    """Bus and address of a monitor, such as ``1-0040``, which unlike ``hwmonN`` stay the same."""
    parts = monitor.resolve().parts
    return parts[-3] if len(parts) > 2 else str(monitor)


def _rails_of(monitor: Path) -> list[Rail]:
    rails = []
    for channel in CHANNELS:
        label = _label(monitor, channel)
        if label in UNUSED:
            continue
        rail = Rail(label, monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
        if _enabled(rail, monitor / f"in{channel}_enable"):
            rails.append(rail)
    return rails


def _label(monitor: Path, channel: int) -> str:
    path = monitor / f"in{channel}_label"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SourceError(_unreadable(path, error)) from error


def _enabled(rail: Rail, switch: Path) -> bool:
    """Whether an input is switched on; the driver answers ENODATA for one that is off."""
    try:
        if switch.read_text().strip() == "0":
            return False
        rail.current.read_text()
    except FileNotFoundError:
        if not rail.current.exists():
            return False
    except OSError as error:
        if error.errno == errno.ENODATA:
            return False
        raise SourceError(_unreadable(rail.current, error)) from error
    rail.read()
    return True


def _number(path: Path, label: str) -> float:
    try:
        text = path.read_text()
    except OSError as error:
        raise SourceError(f"power rail {label}: {_unreadable(path, error)}") from error
    try:
        # By int, which takes neither "nan" nor "1e3": the driver writes whole numbers.
        return float(int(text))
    except ValueError:
        raise SourceError(
            f"power rail {label}: {path} holds {text.strip()[:40]!r}, which is not a whole number; "
            "reload the ina3221 driver"
        ) from None


def _unreadable(path: Path, error: OSError) -> str:
    hints = {
        errno.EACCES: "run as a user who may read it",
        errno.ENOENT: "the monitor has gone; reload the ina3221 driver",
    }
    hint = hints.get(error.errno or 0, "look at the kernel's log and reload the ina3221 driver")
    return f"{path} cannot be read ({error.strerror}); {hint}"


def _error_w(volts: float, amperes: float) -> float:
    """Largest error of one rail that does not change from reading to reading, in W."""
    power = abs(volts * amperes)
    return math.hypot(
        CURRENT_OFFSET_A * volts,
        VOLTAGE_OFFSET_V * amperes,
        GAIN_ERROR * power,
        GAIN_ERROR * power,
    )
