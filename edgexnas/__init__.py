"""Searched, verified, INT8 neural networks next to an X-ray detector.

`edgexnas.host` searches, trains and exports; `edgexnas.device` verifies and serves. Both are
imported on first use, so that a device needs no training library and a host no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgexnas.errors import EdgexnasError

if TYPE_CHECKING:
    from edgexnas import bundle, device, host, simulate

__version__ = "0.2.0"

__all__ = ["EdgexnasError", "__version__", "bundle", "device", "host", "simulate"]

_LAZY = frozenset({"bundle", "device", "host", "simulate"})


def __getattr__(name: str) -> object:
    """Import a subpackage when it is first asked for."""
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
