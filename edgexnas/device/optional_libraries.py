"""Libraries that only some streams need; who lacks one is told which extra brings it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edgexnas.errors import MissingDependencyError

__all__ = ["pvaccess_module", "tiled_client_module", "zmq_module"]


def pvaccess_module(purpose: str) -> Any:
    """Import pvapy's module.

    Raises
    ------
    MissingDependencyError
        If pvapy is not installed; it says what it is needed for.
    """
    return _imported("pvaccess", package="pvapy", extra="pva", purpose=purpose)


def tiled_client_module(purpose: str) -> Any:
    """Import `tiled.client`.

    Raises
    ------
    MissingDependencyError
        If tiled, or what its client needs, is not installed.
    """
    return _imported("tiled.client", package="tiled", extra="tiled", purpose=purpose)


def zmq_module(purpose: str) -> Any:
    """Import pyzmq.

    Raises
    ------
    MissingDependencyError
        If it is not installed; it says what it is needed for.
    """
    return _imported("zmq", package="pyzmq", extra="zmq", purpose=purpose)


def _imported(module: str, *, package: str, extra: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingDependencyError.of(package, extra=extra, purpose=purpose) from None
