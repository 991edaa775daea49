"""The sysfs tree of a Jetson, as files: rails, decoys, and power that changes over time.

Numbers are rounded as an INA3221 rounds them: steps of 8 mV and 20 mA, in mV and mA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["JetsonTree"]

INPUT_V, FIVE_V = 19.9, 5.0
AGX_ORIN = {
    "1-0040": (("VDD_GPU_SOC", INPUT_V), ("VDD_CPU_CV", INPUT_V), ("VIN_SYS_5V0", FIVE_V)),
    "1-0041": (("NC", 0.0), ("VDDQ_VDD2_1V8AO", FIVE_V), ("NC", 0.0)),
}
SMALL_ORIN = {"1-0040": (("VDD_IN", FIVE_V), ("VDD_CPU_GPU_CV", FIVE_V), ("VDD_SOC", FIVE_V))}
MODULES = {
    "p3701-0000": AGX_ORIN,
    "p3701-0004": AGX_ORIN,
    "p3701-0005": AGX_ORIN,
    "p3767-0000": SMALL_ORIN,
    "p3767-0003": SMALL_ORIN,
}
BUS = {
    5: "sys/devices/c240000.i2c/i2c-1",
    6: "sys/devices/platform/bus@0/c240000.i2c/i2c-1",
    7: "sys/devices/platform/bus@0/c240000.i2c/i2c-1",
}
FIRST_HWMON = {5: 2, 6: 1, 7: 4}


class JetsonTree:
    """The power sensors of a Jetson under a folder, to be read with ``root=tree.root``.

    Parameters
    ----------
    root
        Folder to write ``proc`` and ``sys`` into.
    module
        NVIDIA's part number: p3701-0000, -0004 or -0005 for an AGX Orin, p3767-0000 for an Orin NX,
        p3767-0003 for an Orin Nano.
    jetpack
        5, 6 or 7: where its kernel puts the I2C bus.
    first_hwmon
        Number of the first monitor, which differs between starts; None for the JetPack's usual.
    disabled
        Rails that are switched off, as the mainline driver shows it.
    missing
        Rails that are not connected.
    noise_a
        Standard deviation of the currents, in A.
    seed
        Of the noise.
    """

    def __init__(
        self,
        root: Path,
        *,
        module: str = "p3701-0005",
        jetpack: int = 6,
        first_hwmon: int | None = None,
        disabled: tuple[str, ...] = (),
        missing: tuple[str, ...] = (),
        noise_a: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.root, self._noise_a = root, noise_a
        self._random = np.random.default_rng(seed)
        self._rails: dict[str, tuple[Path, int, float]] = {}
        self._write("proc/device-tree/compatible", f"nvidia,p3737-0000+{module}\0nvidia,tegra234")
        self._write("proc/device-tree/model", "NVIDIA Jetson (simulated)\0")
        number = FIRST_HWMON[jetpack] if first_hwmon is None else first_hwmon
        self._decoys(number)
        for address, inputs in MODULES[module].items():
            kept = tuple(("NC", 0.0) if label in missing else (label, v) for label, v in inputs)
            self._monitor(f"{BUS[jetpack]}/{address}", f"hwmon{number}", kept, disabled)
            number += 1
        self.set_power(dict.fromkeys(self._rails, 1.0))

    def set_power(self, rails_w: Mapping[str, float]) -> None:
        """Write what the monitors show at these powers in W; other rails keep theirs."""
        for label, watts in rails_w.items():
            folder, channel, volts = self._rails[label]
            amperes = watts / volts + self._random.normal(0, self._noise_a)
            (folder / f"in{channel}_input").write_text(f"{round(volts / 0.008) * 8}\n")
            (folder / f"curr{channel}_input").write_text(f"{round(amperes / 0.020) * 20}\n")

    def files(self, label: str) -> tuple[Path, Path]:
        """Voltage and current file of a rail."""
        folder, channel, _ = self._rails[label]
        return folder / f"in{channel}_input", folder / f"curr{channel}_input"

    def _monitor(
        self,
        device: str,
        name: str,
        inputs: tuple[tuple[str, float], ...],
        disabled: tuple[str, ...],
    ) -> None:
        folder = self.root / device / "hwmon" / name
        self._write(f"{device}/hwmon/{name}/name", "ina3221\n")
        for channel, (label, volts) in enumerate(inputs, start=1):
            off = label in disabled
            self._write(f"{device}/hwmon/{name}/in{channel}_label", f"{label}\n")
            self._write(f"{device}/hwmon/{name}/in{channel}_enable", f"{int(not off)}\n")
            self._write(f"{device}/hwmon/{name}/in{channel}_input", "0\n")
            self._write(f"{device}/hwmon/{name}/curr{channel}_input", "0\n")
            if label != "NC":
                self._rails[label] = (folder, channel, volts)
        # What the driver numbers beyond the inputs: shunts and their sum.
        self._write(f"{device}/hwmon/{name}/in7_label", "sum of shunt voltages\n")
        self._write(f"{device}/hwmon/{name}/in7_input", "4096\n")
        self._write(f"{device}/hwmon/{name}/curr4_input", "2048\n")
        self._link(f"sys/class/hwmon/{name}", folder)
        self._link(f"sys/bus/i2c/drivers/ina3221/{Path(device).name}", self.root / device)

    def _decoys(self, before: int) -> None:
        """Write monitors of other things, and a USB supply that looks like a rail."""
        names = ["soctherm_oc", "ucsi_source_psy_ucsi_ccg01", "pwmfan", "nvme"]
        for number, name in enumerate(names[:before]):
            folder = f"sys/devices/virtual/hwmon/hwmon{number}"
            self._write(f"{folder}/name", f"{name}\n")
            self._write(f"{folder}/in1_label", "VIN_SYS_5V0\n")
            self._write(f"{folder}/in1_input", "5000\n")
            self._write(f"{folder}/curr1_input", "3000\n")
            self._link(f"sys/class/hwmon/hwmon{number}", self.root / folder)

    def _write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def _link(self, path: str, target: Path) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).symlink_to(target)
