"""The TensorRT that is installed: loaded at its first use, quoted in one sentence.

TensorRT from 8.5 on and TensorRT-RTX are asked for features, not for their version. Modules that
call TensorRT write ::

    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = THE_LIBRARY

so that mypy checks the calls against TensorRT's type stubs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from edgexnas.device.engines.tensorrt_layers import HEADING
from edgexnas.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "THE_LIBRARY",
    "Journal",
    "Progress",
    "has_feature",
    "import_tensorrt",
    "installed_library",
    "journal",
    "monitor",
    "new_runtime",
    "quote",
    "why_not_runnable",
]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Modules that build and run plans, in order of preference."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all), possibly from other threads."""


def installed_library() -> str | None:
    """Name the TensorRT module that is installed, without importing it; None without one."""
    return next((name for name in LIBRARIES if _is_installed(name)), None)


def _is_installed(name: str) -> bool:
    """Whether a module is there; type stubs alone look like a package without an origin."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def why_not_runnable() -> str | None:
    """Say in a clause why no TensorRT engine can run here; None if one should."""
    if installed_library() is None:
        return "TensorRT is not installed"
    from edgexnas.device.cuda import why_no_cuda

    obstacle = why_no_cuda()
    return None if obstacle is None else f"TensorRT has no GPU to run on: {obstacle}"


def import_tensorrt() -> ModuleType:
    """Import TensorRT, or else TensorRT-RTX.

    Raises
    ------
    EngineError
        If one is installed and does not load.
    MissingDependencyError
        If neither is installed.
    """
    failures = []
    for name in LIBRARIES:
        try:
            library = import_module(name)
        # On Jetson a missing system library shows as OSError.
        except (ImportError, OSError) as error:
            if _is_installed(name):
                failures.append(f"{name} does not load ({error})")
        else:
            # Stubs, or a folder that a removed installation left, import as an empty package.
            if hasattr(library, "Builder"):
                return library
    if failures:
        raise EngineError(f"{'; '.join(failures)}: repair that installation of TensorRT")
    raise MissingDependencyError(
        "building a plan needs TensorRT, which is not installed: install JetPack's TensorRT on a "
        "Jetson, or run pip install tensorrt-rtx-cu13 on an x86-64 host"
    )


class _Library:
    """TensorRT's names, each looked up when it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_tensorrt(), name)


THE_LIBRARY = _Library()

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = THE_LIBRARY


def has_feature(thing: object, name: str) -> bool:
    """Whether this version has a method or a name; asked where versions differ."""
    return hasattr(thing, name)


class Journal:
    """What TensorRT said since the last `clear`; TensorRT's logger writes here.

    Attributes
    ----------
    errors, warnings
        Messages in their order.
    layers
        The builder's list of layers; empty if it gave none.
    """

    def __init__(self) -> None:
        self.logger: Any = None
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""


def journal() -> Journal:
    """Return the journal of the one TensorRT logger; TensorRT keeps the first of a process."""
    return _journal_of(import_tensorrt().__name__)


# TensorRT keeps the first logger of a process and ignores any later one.
@cache
def _journal_of(library: str) -> Journal:
    kept = Journal()

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                kept.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                kept.warnings.append(message)
            elif message.startswith(f"{HEADING}\n"):
                kept.layers = message

    kept.logger = Logger()
    return kept


def quote(what: str, said: str = "") -> str:
    """Make one sentence of what TensorRT said: its name, what it did, its words."""
    library = import_tensorrt()
    # On one line and cut: TensorRT's messages run over many lines, with file names of its sources.
    words = " ".join((said or "; ".join(journal().errors) or "it gave no reason").split())
    return f"{library.__name__} {library.__version__} {what}: {words[:600]}"


def new_runtime() -> trt.Runtime:
    """Make what loads plans.

    Raises
    ------
    EngineError
        If TensorRT cannot use the GPU.
    """
    try:
        return trt.Runtime(journal().logger)
    except Exception as error:
        raise EngineError(
            quote("cannot run here", "; ".join(journal().errors) or str(error))
        ) from error


def monitor(progress: Progress) -> Any:
    """Pass TensorRT's progress on; an exception of the callback stops the build.

    None where this version reports no progress. The object keeps the exception as `failure`.
    """
    if not has_feature(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self.tell(phase, 0)

        def phase_finish(self, phase: str) -> None:
            self.tell(phase, self.steps.pop(phase, 0))

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell(phase, step + 1)
            return self.failure is None

        def tell(self, phase: str, done: int) -> None:
            if self.failure is None:
                try:
                    progress(phase, done, max(done, self.steps.get(phase, done)))
                # Into C++ nothing may be raised; the builder raises it again.
                except BaseException as error:
                    self.failure = error

    return Monitor()
