"""The Jetson modules: how each is recognised, and which of its rails add up to its power."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["AGX_ORIN_RAILS", "MODULES", "SMALL_ORIN_RAILS", "JetsonModule", "find_module"]


@dataclass(frozen=True)
class ModuleRails:
    """Rails of a module.

    Attributes
    ----------
    total
        Rails whose sum is the power of the module.
    inside
        Rail → the rail of `total` that contains it, so that it must not be added.
    supply
        Rail that is sensed at the module's supply, whose voltage is the supply voltage.
    """

    total: tuple[str, ...]
    inside: Mapping[str, str]
    supply: str


AGX_ORIN_RAILS = ModuleRails(
    total=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    # NVIDIA's developer guide r36.4: "VDDQ_VDD2_1V8AO power is also included in VIN_SYS_5V0".
    inside=MappingProxyType({"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}),
    supply="VDD_GPU_SOC",
)
"""Jetson AGX Orin has no rail for the whole module: three supplies add up to it."""

SMALL_ORIN_RAILS = ModuleRails(
    total=("VDD_IN",),
    inside=MappingProxyType({"VDD_CPU_GPU_CV": "VDD_IN", "VDD_SOC": "VDD_IN"}),
    supply="VDD_IN",
)
"""Jetson Orin NX and Orin Nano measure the whole module at its input."""


@dataclass(frozen=True)
class JetsonModule:
    """A module: its name, and its rails."""

    name: str
    rails: ModuleRails


MODULES: Mapping[str, JetsonModule] = MappingProxyType(
    {
        "p3701-0000": JetsonModule("Jetson AGX Orin 32 GB (developer kit)", AGX_ORIN_RAILS),
        "p3701-0004": JetsonModule("Jetson AGX Orin 32 GB", AGX_ORIN_RAILS),
        "p3701-0005": JetsonModule("Jetson AGX Orin 64 GB", AGX_ORIN_RAILS),
        "p3701-0008": JetsonModule("Jetson AGX Orin Industrial 64 GB", AGX_ORIN_RAILS),
        "p3767-0000": JetsonModule("Jetson Orin NX 16 GB", SMALL_ORIN_RAILS),
        "p3767-0001": JetsonModule("Jetson Orin NX 8 GB", SMALL_ORIN_RAILS),
        "p3767-0003": JetsonModule("Jetson Orin Nano 8 GB", SMALL_ORIN_RAILS),
        "p3767-0004": JetsonModule("Jetson Orin Nano 4 GB", SMALL_ORIN_RAILS),
        "p3767-0005": JetsonModule("Jetson Orin Nano 8 GB (developer kit)", SMALL_ORIN_RAILS),
    }
)
"""By NVIDIA's part number, as the device tree's ``compatible`` gives it."""


def find_module(root: Path, labels: Collection[str]) -> JetsonModule | None:
    """Recognise the module by its device tree, or else by its rails.

    Parameters
    ----------
    root
        Folder that holds ``proc``.
    labels
        Names of the rails that were found.

    Returns
    -------
    None if neither says which module this is.
    """
    for entry in _device_tree(root, "compatible").split("\0"):
        for part, module in MODULES.items():
            # Contained, because entries read "nvidia,p3737-0000+p3701-0000".
            if part in entry:
                return module
    name = _device_tree(root, "model").rstrip("\0") or "unknown Jetson"
    # Containers may hide the device tree; the labels of the rails are the next best witness.
    for rails in (AGX_ORIN_RAILS, SMALL_ORIN_RAILS):
        if set(rails.total) <= set(labels):
            return JetsonModule(name, rails)
    return None


def _device_tree(root: Path, name: str) -> str:
    try:
        return (root / "proc" / "device-tree" / name).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
