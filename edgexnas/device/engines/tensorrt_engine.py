"""Build TensorRT plans: strongly typed networks, INT8 from the model's explicit Q/DQ nodes.

One code path serves TensorRT from 10.0 on and TensorRT-RTX: it asks the library for features, not
for its version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from edgexnas.device.engines.tensorrt_layers import (
    HEADING,
    PlanLayer,
    layers_from_inspector,
    layers_from_log,
)
from edgexnas.errors import ConfigurationError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["NOT_RUN_YET", "Plan", "build_plan", "installed_library", "why_not_runnable"]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Modules that build plans, in order of preference."""

NOT_RUN_YET = (
    "this version of edgexnas builds TensorRT plans (edgexnas.device.build_plan) "
    "and does not run them yet"
)

Progress = Callable[[str, int, int], None]

# TensorRT keeps the first logger of a process for good, so builds share it and take turns.
_BUILDING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Plan:
    """A TensorRT plan and what is known of it.

    A plan is executable code: run only one that was built on the device or checked since.

    Attributes
    ----------
    data
        The serialised engine.
    layers
        What it computes in which arithmetic; empty where TensorRT tells nothing.
    library
        "tensorrt" or "tensorrt_rtx".
    version
        Version of that library; a plan runs with no other.
    compute_capability
        The GPU it is for, such as "SM86", or "native".
    profiles
        (least, best, most) batch sizes of each optimisation profile, in order.
    warnings
        What TensorRT warned of while building.
    seconds
        Duration of the build.
    """

    data: bytes = field(repr=False)
    layers: tuple[PlanLayer, ...] = field(repr=False)
    library: str
    version: str
    compute_capability: str
    profiles: tuple[tuple[int, int, int], ...]
    warnings: tuple[str, ...] = field(repr=False)
    seconds: float

    @property
    def int8_layers(self) -> tuple[PlanLayer, ...]:
        """The layers that read INT8 values."""
        return tuple(layer for layer in self.layers if layer.int8)


def installed_library() -> str | None:
    """Name the TensorRT module that is installed, without importing it; None without one."""
    return next((name for name in LIBRARIES if _is_installed(name)), None)


def _is_installed(name: str) -> bool:
    """Whether a module is there; type stubs alone look like a package without an origin."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def why_not_runnable() -> str:
    """Say why no TensorRT engine runs here."""
    return NOT_RUN_YET if installed_library() else "TensorRT is not installed"


def build_plan(
    model: bytes,
    *,
    batch_sizes: Sequence[int | tuple[int, int, int]] = (1, 32),
    compute_capability: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Build a TensorRT plan from an ONNX model.

    The model decides the arithmetic: layers between Q/DQ nodes run in INT8, all others in the
    dtype that the graph states.

    Parameters
    ----------
    model
        ONNX file content with one input whose first axis alone is free.
    batch_sizes
        One optimisation profile for each: a number for exactly that batch size, or
        (least, best, most).
    compute_capability
        "SM86" and the like, to build for another GPU with no GPU in this machine; only
        TensorRT-RTX can. None leaves it to the library: TensorRT builds for this machine's GPU.
    progress
        Called with (phase, steps done, steps in all) while building, possibly from other threads.
        What it raises stops the build and is raised again.

    Raises
    ------
    ConfigurationError
        If a batch size or the compute capability is none.
    EngineError
        If TensorRT cannot do this, or refuses the model; the message quotes it.
    MissingDependencyError
        If neither TensorRT nor TensorRT-RTX is installed.
    """
    profiles = _profiles(batch_sizes)
    trt = _import_tensorrt()
    with _BUILDING:
        journal = _journal(trt.__name__)
        journal.clear()
        monitor = None if progress is None else _monitor(trt, progress)
        started = time.monotonic()
        data = _build(trt, journal, model, profiles, compute_capability, monitor)
        return Plan(
            data=data,
            layers=_layers(trt, journal, data, compute_capability),
            library=trt.__name__,
            version=str(trt.__version__),
            compute_capability=compute_capability or "native",
            profiles=profiles,
            warnings=tuple(journal.warnings),
            seconds=time.monotonic() - started,
        )


def _profiles(
    batch_sizes: Sequence[int | tuple[int, int, int]],
) -> tuple[tuple[int, int, int], ...]:
    if not batch_sizes:
        raise ConfigurationError("batch_sizes is empty; give at least one, such as (1, 32)")
    profiles = []
    for given in batch_sizes:
        sizes = (given,) * 3 if isinstance(given, int) else tuple(given)
        if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise ConfigurationError(
                f"batch size {given} is none; give a number from 1 or increasing "
                "(least, best, most)"
            )
        profiles.append(sizes)
    return tuple(profiles)


def _import_tensorrt() -> ModuleType:
    failures = []
    for name in LIBRARIES:
        try:
            library = import_module(name)
        # On Jetson a missing system library shows as OSError.
        except (ImportError, OSError) as error:
            if _is_installed(name):
                failures.append(f"{name} does not load ({error})")
        else:
            if hasattr(library, "Builder"):
                return library
    if failures:
        raise EngineError(f"{'; '.join(failures)}: repair that installation of TensorRT")
    raise MissingDependencyError(
        "building a plan needs TensorRT, which is not installed: install JetPack's TensorRT on a "
        "Jetson, or run pip install tensorrt-rtx-cu13 on an x86-64 host"
    )


def _build(
    trt: Any,
    journal: Any,
    model: bytes,
    profiles: tuple[tuple[int, int, int], ...],
    compute_capability: str | None,
    monitor: Any,
) -> bytes:
    """Parse and build; every TensorRT object lives until the plan is there."""
    try:
        builder = trt.Builder(journal)
        config = builder.create_builder_config()
    except Exception as error:
        raise EngineError(_quote(trt, journal, "cannot build here", str(error))) from error
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, journal)
    if not parser.parse(model):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(_quote(trt, journal, "cannot read the model", said))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _target(trt, config, compute_capability)
    tensor = _batched_input(network)
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in sizes))
        config.add_optimization_profile(profile)
    if monitor is not None:
        config.progress_monitor = monitor
    data = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.failure is not None:
        raise monitor.failure
    if data is None:
        raise EngineError(_quote(trt, journal, "cannot build the model", ""))
    return bytes(data)


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if not hasattr(flags, "STRONGLY_TYPED"):
        raise EngineError(
            f"{trt.__name__} {trt.__version__} builds no strongly typed networks; "
            "use TensorRT 10 or newer"
        )
    return 1 << int(flags.STRONGLY_TYPED)


def _target(trt: Any, config: Any, compute_capability: str | None) -> None:
    """Choose the GPU to build for."""
    if compute_capability is None:
        return
    if not hasattr(config, "set_compute_capability"):
        raise EngineError(
            f"{trt.__name__} {trt.__version__} builds for this machine's GPU only, not for "
            f"{compute_capability}; build on the device, or use TensorRT-RTX"
        )
    known = trt.ComputeCapability.__members__
    targets = [name for name in known if name.startswith("SM")]
    if compute_capability not in targets:
        raise ConfigurationError(
            f"{trt.__name__} {trt.__version__} knows no compute capability "
            f"{compute_capability!r}; give one of {', '.join(targets)}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[compute_capability], 0)


def _batched_input(network: Any) -> Any:
    """Give the model's one input, whose first axis alone may be free."""
    shapes = [tuple(network.get_input(index).shape) for index in range(network.num_inputs)]
    if len(shapes) != 1 or shapes[0][:1] != (-1,) or -1 in shapes[0][1:]:
        raise EngineError(
            f"the model has inputs of shapes {shapes}, -1 for a free axis; export it with one "
            "input whose first axis alone is free"
        )
    return network.get_input(0)


def _layers(
    trt: Any, journal: Any, data: bytes, compute_capability: str | None
) -> tuple[PlanLayer, ...]:
    """Report the layers, from the builder's log or else from the loaded plan."""
    if journal.layers or compute_capability is not None:
        return layers_from_log(journal.layers)
    engine = trt.Runtime(journal).deserialize_cuda_engine(data)
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _quote(trt: Any, journal: Any, what: str, said: str) -> str:
    """Make one sentence of what TensorRT said."""
    words = " ".join((said or "; ".join(journal.errors) or "it gave no reason").split())
    return f"{trt.__name__} {trt.__version__} {what}: {words[:600]}"


@cache
def _journal(library: str) -> Any:
    """Make the process's one logger for a TensorRT library; it keeps what a build says."""
    trt: Any = import_module(library)

    class Journal(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)
            elif message.startswith(f"{HEADING}\n"):
                self.layers = message

    return Journal()


def _monitor(trt: Any, progress: Progress) -> Any:
    """Pass TensorRT's progress on; an exception of the callback stops the build."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
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
                # Into C++ nothing may be raised; `build_plan` raises it again.
                except BaseException as error:
                    self.failure = error

    return Monitor()
