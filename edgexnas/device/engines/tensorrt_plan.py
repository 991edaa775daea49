"""Build TensorRT plans: the model states the arithmetic, INT8 by its explicit Q/DQ nodes.

Networks are strongly typed wherever the library has that. TensorRT 8 has not: there builder flags
allow the arithmetic that the model states, and TensorRT may still run a layer in a wider one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from edgexnas.bundle.opset import at_most_opset
from edgexnas.device.engines.tensorrt_layers import (
    PlanLayer,
    layers_from_inspector,
    layers_from_log,
)
from edgexnas.device.engines.tensorrt_library import (
    THE_LIBRARY,
    Progress,
    has_feature,
    import_tensorrt,
    journal,
    monitor,
    new_runtime,
    quote,
)
from edgexnas.errors import BundleError, ConfigurationError, EngineError

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = THE_LIBRARY

__all__ = ["Plan", "Profile", "build_options", "build_plan", "lengths"]

WEAKLY_TYPED_OPSET = 17
"""The newest operator set that the ONNX parsers of TensorRT 8.5 and 8.6 read. Newer operators they
would misread rather than reject: reductions at 18 take their axes from an input."""

# TensorRT keeps one logger for a process, so builds share it and take turns.
_BUILDING = threading.Lock()

Profile = tuple[int, int, int]
"""(least, best, most) batch sizes."""


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
    timing_cache
        Kernel timings that the builder measured, for the next build on this GPU; None where the
        library keeps none.
    """

    data: bytes = field(repr=False)
    layers: tuple[PlanLayer, ...] = field(repr=False)
    library: str
    version: str
    compute_capability: str
    profiles: tuple[Profile, ...]
    warnings: tuple[str, ...] = field(repr=False)
    seconds: float
    timing_cache: bytes | None = field(default=None, repr=False)

    @property
    def int8_layers(self) -> tuple[PlanLayer, ...]:
        """The layers that read INT8 values."""
        return tuple(layer for layer in self.layers if layer.int8)


def build_plan(
    model: bytes,
    *,
    batch_sizes: Sequence[int | tuple[int, int, int]] = (1, 32),
    compute_capability: str | None = None,
    timing_cache: bytes | None = None,
    level: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Build a TensorRT plan from an ONNX model.

    The model decides the arithmetic: layers between Q/DQ nodes run in INT8, all others in the
    dtype that the graph states. Without strongly typed networks (TensorRT 8) it decides what is
    allowed: INT8 where it has Q/DQ nodes, float16 where it has float16 tensors. There the model
    is also converted to opset 17, in memory, after whatever check of its bytes came before.

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
    timing_cache
        `Plan.timing_cache` of an earlier build on this GPU, which makes this one quicker. One from
        another GPU or version is left out.
    level
        TensorRT's builder optimisation level, 0 to 5: lower ones build faster and run slower; None
        for the library's own.
    progress
        Called with (phase, steps done, steps in all) while building, possibly from other threads.
        What it raises stops the build and is raised again.

    Raises
    ------
    ConfigurationError
        If a batch size or the compute capability is invalid.
    EngineError
        If TensorRT cannot do this, or rejects the model; the message quotes it.
    MissingDependencyError
        If neither TensorRT nor TensorRT-RTX is installed.
    """
    profiles = _profiles(batch_sizes)
    library = import_tensorrt()
    with _BUILDING:
        said = journal()
        # What an earlier build complained of must not be quoted as this one's reason.
        said.clear()
        watcher = None if progress is None else monitor(progress)
        started = time.monotonic()
        data, timings = _build(model, profiles, compute_capability, timing_cache, level, watcher)
        return Plan(
            data=data,
            layers=_layers(data, compute_capability),
            library=library.__name__,
            version=str(library.__version__),
            compute_capability=compute_capability or "native",
            profiles=profiles,
            warnings=tuple(said.warnings),
            seconds=time.monotonic() - started,
            timing_cache=timings,
        )


def _profiles(batch_sizes: Sequence[int | tuple[int, int, int]]) -> tuple[Profile, ...]:
    if not batch_sizes:
        raise ConfigurationError("batch_sizes is empty; specify at least one, such as (1, 32)")
    profiles = []
    for given in batch_sizes:
        sizes = (given,) * 3 if isinstance(given, int) else tuple(given)
        if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise ConfigurationError(
                f"batch size {given} is invalid; specify a number from 1 or increasing "
                "(least, best, most)"
            )
        profiles.append(sizes)
    return tuple(profiles)


def _build(
    model: bytes,
    profiles: tuple[Profile, ...],
    compute_capability: str | None,
    timing_cache: bytes | None,
    level: int | None,
    watcher: Any,
) -> tuple[bytes, bytes | None]:
    """Parse and build; every TensorRT object lives until the plan is there."""
    logger = journal().logger
    try:
        # Without a GPU TensorRT fails here (CUDA error 35); TensorRT-RTX does not need one.
        builder = trt.Builder(logger)
        config = builder.create_builder_config()
    except Exception as error:
        # TensorRT 8 says why as a warning, and its exception names a factory function alone.
        said = journal()
        reasons = dict.fromkeys(said.errors or said.warnings)
        raise EngineError(quote("cannot build here", "; ".join(reasons) or str(error))) from error
    network = builder.create_network(1 << int(_typing()))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model if _strongly_typed() else _older(model)):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(quote("cannot read the model", said))
    # Only a detailed plan tells the inspector and the log which layers run in INT8.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _target(config, compute_capability)
    if not _strongly_typed():
        _allow_arithmetic(config, model)
    if level is not None:
        _set_level(config, level)
    tensor = _batched_input(network)
    # One profile for each size, so that kernels are chosen for it and not for the largest.
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, *(_shape(size, tensor) for size in sizes))
        config.add_optimization_profile(profile)
    timings = _attach_timings(config, timing_cache)
    if watcher is not None:
        config.progress_monitor = watcher
    data = builder.build_serialized_network(network, config)
    # Before the plan is looked at: a build that a callback stopped has none, for that reason.
    if watcher is not None and watcher.failure is not None:
        raise watcher.failure
    # The stubs leave out that TensorRT gives None for a build that failed.
    if cast("object | None", data) is None:
        raise EngineError(quote("cannot build the model"))
    return bytes(data), None if timings is None else bytes(timings.serialize())


def _shape(size: int, tensor: trt.ITensor) -> trt.Dims:
    # TensorRT takes a tuple wherever it takes Dims.
    return cast("trt.Dims", (size, *lengths(tensor.shape)[1:]))


def lengths(shape: trt.Dims) -> tuple[int, ...]:
    """Return the lengths of TensorRT's axes, -1 for a free one."""
    # The stubs do not say that Dims iterate.
    return tuple(cast("Sequence[int]", shape))


def build_options(level: int | None = None) -> dict[str, object]:
    """Name what `build_plan` asks of this library, for keys of plans that are kept."""
    options: dict[str, object] = {
        "format": 1,
        "strongly_typed": _strongly_typed(),
        "verbosity": "detailed",
    }
    if not _strongly_typed():
        options["opset"] = WEAKLY_TYPED_OPSET
    if level is not None:
        options["level"] = level
    return options


def _strongly_typed() -> bool:
    """Whether this TensorRT takes each layer's arithmetic from the graph; 8.x does not."""
    return has_feature(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _typing() -> trt.NetworkDefinitionCreationFlag:
    flags = trt.NetworkDefinitionCreationFlag
    # TensorRT 11 has no weakly typed networks any more.
    return flags.STRONGLY_TYPED if _strongly_typed() else flags.EXPLICIT_BATCH


def _older(model: bytes) -> bytes:
    """Convert a model for the parser of a TensorRT without strongly typed networks."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return at_most_opset(model, WEAKLY_TYPED_OPSET)
    except BundleError as error:
        raise EngineError(quote("cannot read the model", str(error))) from error
    except DecodeError:
        # The parser says itself what it cannot read.
        return model


def _allow_arithmetic(config: trt.IBuilderConfig, model: bytes) -> None:
    """Allow what the model states: INT8 for Q/DQ nodes, float16 for float16 tensors."""
    import onnx

    graph = onnx.load_from_string(model).graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        config.set_flag(trt.BuilderFlag.INT8)
    half = onnx.TensorProto.FLOAT16
    casts = (a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute)
    # Without the flag a network with float16 tensors is rejected.
    if half in casts or any(tensor.data_type == half for tensor in graph.initializer):
        config.set_flag(trt.BuilderFlag.FP16)


def _set_level(config: trt.IBuilderConfig, level: int) -> None:
    library = import_tensorrt()
    if not has_feature(config, "builder_optimization_level"):
        raise EngineError(
            f"{library.__name__} {library.__version__} has no optimisation levels; specify "
            "level=None"
        )
    if not 0 <= level <= 5:
        raise ConfigurationError(f"level is {level}; specify 0 to 5, or None")
    config.builder_optimization_level = level


def _target(config: Any, compute_capability: str | None) -> None:
    """Choose the GPU to build for; TensorRT-RTX alone can, and the stubs do not know it."""
    if compute_capability is None:
        return
    library: Any = import_tensorrt()
    if not has_feature(config, "set_compute_capability"):
        raise EngineError(
            f"{library.__name__} {library.__version__} builds for this machine's GPU only, not for "
            f"{compute_capability}; build on the device, or use TensorRT-RTX"
        )
    known = library.ComputeCapability.__members__
    targets = [name for name in known if name.startswith("SM")]
    if compute_capability not in targets:
        raise ConfigurationError(
            f"{library.__name__} {library.__version__} knows no compute capability "
            f"{compute_capability!r}; specify one of {', '.join(targets)}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[compute_capability], 0)


def _attach_timings(
    config: trt.IBuilderConfig, timing_cache: bytes | None
) -> trt.ITimingCache | None:
    """Let the builder read and extend a timing cache; None where this library keeps none."""
    # TensorRT-RTX compiles kernels when it runs, and keeps those instead of timings.
    if has_feature(trt, "IRuntimeCache"):
        return None
    for content in (timing_cache, b""):
        if content is None:
            continue
        cache = cast("trt.ITimingCache | None", config.create_timing_cache(content))
        # A cache of another GPU or version is rejected, and then an empty one takes its place.
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _batched_input(network: trt.INetworkDefinition) -> trt.ITensor:
    """Return the model's one input, whose first axis alone may be free."""
    shapes = [lengths(network.get_input(index).shape) for index in range(network.num_inputs)]
    if len(shapes) != 1 or shapes[0][:1] != (-1,) or -1 in shapes[0][1:]:
        raise EngineError(
            f"the model has inputs of shapes {shapes}, -1 for a free axis; export it with one "
            "input whose first axis alone is free"
        )
    return network.get_input(0)


def _layers(data: bytes, compute_capability: str | None) -> tuple[PlanLayer, ...]:
    """Report the layers, from the builder's log or else from the loaded plan."""
    said = journal()
    # A plan for another GPU cannot be loaded here, so that the log is all there is.
    if said.layers or compute_capability is not None:
        return layers_from_log(said.layers)
    engine = cast("trt.ICudaEngine | None", new_runtime().deserialize_cuda_engine(data))
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
