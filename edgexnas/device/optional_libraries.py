"""Libraries that only some streams need; who lacks one is told which extra brings it."""

from __future__ import annotations

from typing import Any

from edgexnas.errors import MissingDependencyError

__all__ = ["pvaccess_module", "zmq_module"]


def pvaccess_module(purpose: str) -> Any:
    """Import pvapy's module.

    Raises
    ------
    MissingDependencyError
        If pvapy is not installed; it says what it is needed for.
    """
    try:
        import pvaccess
    except ImportError:
        raise MissingDependencyError.of("pvapy", extra="pva", purpose=purpose) from None
    return pvaccess


def zmq_module(purpose: str) -> Any:
    """Import pyzmq.

    Raises
    ------
    MissingDependencyError
        If it is not installed; it says what it is needed for.
    """
    try:
        import zmq
    except ImportError:
        raise MissingDependencyError.of("pyzmq", extra="zmq", purpose=purpose) from None
    return zmq
