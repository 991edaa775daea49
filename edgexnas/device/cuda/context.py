"""What buffers, graphs and pinned memory need of the session that makes and frees them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Closable", "CudaContext"]


class Closable(Protocol):
    """Anything that a session frees when it closes."""

    def close(self) -> None:
        """Free it; closing again does nothing."""


# A protocol, because buffers must not import the session that makes them.
class CudaContext(Protocol):
    """One GPU's context and its accounts; a `CudaSession` is one, and says what each part does."""

    driver_module: Any
    integrated: bool
    compute: Any

    def current(self) -> AbstractContextManager[None]:
        """Make the context current in this thread for a with-block."""

    def releasing(self) -> AbstractContextManager[None]:
        """Make the context current for freeing; a GPU that failed raises nothing."""

    def keep(self, resource: Closable, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        """Count a resource, to be closed with the session unless it closes before."""

    def forget(self, resource: Closable, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        """Count a resource as freed."""
