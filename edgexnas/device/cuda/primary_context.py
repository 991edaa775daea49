"""The primary context of a GPU, held once a process and shared with every other CUDA library."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from edgexnas.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from edgexnas.device.cuda.context import Closable

__all__ = ["HeldContext", "hold_context", "why_no_cuda"]


@dataclass(slots=True)
class HeldContext:
    """A GPU's primary context, retained until the process ends.

    Attributes
    ----------
    driver
        The module `pycuda.driver`.
    device, context
        pycuda's objects.
    failure
        What the GPU said when it failed for good; None while it works. A context that failed
        stays unusable as long as its process lives.
    sessions
        The sessions that use it; those still open are closed when the interpreter ends.
    """

    driver: Any
    device: Any
    context: Any
    failure: str | None = None
    sessions: WeakSet[Closable] = field(default_factory=WeakSet)


_HELD: dict[int, HeldContext] = {}
_LOCK = threading.Lock()
# Id of the process that used CUDA first: a context does not survive fork.
_PROCESS: list[int] = []


def hold_context(ordinal: int) -> HeldContext:
    """Retain the primary context of a GPU, once; later calls get the same one.

    Raises
    ------
    EngineError
        If there is no such GPU, it failed before in this process, or the process was forked from
        one that used CUDA.
    MissingDependencyError
        If pycuda is not installed.
    """
    with _LOCK:
        # CUDA in a forked child hangs or fails in odd places; here it is still known why.
        if _PROCESS and _PROCESS[0] != os.getpid():
            raise EngineError(
                f"process {os.getpid()} was forked from one that used CUDA, which CUDA does not "
                "survive; start it with the multiprocessing method 'spawn'"
            )
        held = _HELD.get(ordinal)
        if held is None:
            held = _HELD[ordinal] = _retain(ordinal)
            if not _PROCESS:
                _PROCESS.append(os.getpid())
                # Not left to destructors: at the end modules are torn down in no certain order.
                atexit.register(_release_all)
        # Errors such as an illegal address stay with the process; no new session is rid of them.
        if held.failure is not None:
            raise EngineError(
                f"GPU {ordinal} failed earlier in this process ({held.failure}); start the "
                "process again"
            )
        return held


def why_no_cuda(ordinal: int = 0) -> str | None:
    """Say in a clause why no CUDA session opens here; None if one should."""
    held = _HELD.get(ordinal)
    if held is not None:
        return None if held.failure is None else f"GPU {ordinal} failed ({held.failure})"
    try:
        driver = _import_driver()
        _initialised(driver, ordinal)
    except (EngineError, MissingDependencyError) as error:
        return str(error)
    return None


def _retain(ordinal: int) -> HeldContext:
    driver = _import_driver()
    device = _initialised(driver, ordinal)
    try:
        # Not a context of our own: torch, cupy and TensorRT use the primary one, and share its
        # memory.
        return HeldContext(driver, device, device.retain_primary_context())
    except driver.Error as error:
        raise EngineError(
            f"GPU {ordinal} gives no context ({error}); look with nvidia-smi or tegrastats "
            "whether another process holds it"
        ) from error


def _import_driver() -> Any:
    try:
        return import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "using a GPU needs pycuda, which is not installed: run device/setup.sh on a Jetson, "
            "or pip install pycuda where the CUDA toolkit is"
        ) from error
    # A driver library that is missing or too old for pycuda shows as an import that fails.
    except (ImportError, OSError) as error:
        raise EngineError(
            f"pycuda does not load ({error}); install an NVIDIA driver that fits it"
        ) from error


def _initialised(driver: Any, ordinal: int) -> Any:
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise EngineError(
            f"there is no usable GPU ({error}); check the driver with nvidia-smi"
        ) from error
    if not 0 <= ordinal < count:
        raise EngineError(f"there is no GPU {ordinal}; this machine has {count}, counted from 0")
    return driver.Device(ordinal)


def _release_all() -> None:
    """Close what is open and let go of the contexts before the interpreter takes pycuda down."""
    # A forked child has none of this on its GPU.
    if _PROCESS[:1] == [os.getpid()]:
        for held in _HELD.values():
            for session in list(held.sessions):
                session.close()
            # Left to its destructor, pycuda would detach it as if it were no primary context, which
            # CUDA rejects, and the memory of the context would never be checked for leaks.
            with contextlib.suppress(held.driver.Error):
                held.context.detach()
    _HELD.clear()
