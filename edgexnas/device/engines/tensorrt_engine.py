"""Run a TensorRT plan on device memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from edgexnas.device.engines.device_engine import HostRuns, OnSession
from edgexnas.device.engines.tensorrt_library import (
    THE_LIBRARY,
    has_feature,
    journal,
    new_runtime,
    quote,
)
from edgexnas.device.engines.tensorrt_plan import Plan, lengths
from edgexnas.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

    from edgexnas.bundle import Precision
    from edgexnas.device.cuda import CudaSession
else:
    trt = THE_LIBRARY

__all__ = ["PlanUnusableError", "TensorRTEngine"]


class PlanUnusableError(EngineError):
    """A plan does not load on this GPU with this library; building it again may help."""


class TensorRTEngine(OnSession):
    """One model as a TensorRT plan, on a GPU. A `DeviceEngine`.

    Each batch size has an execution context of its own, because a CUDA graph holds the shapes and
    the addresses of the context that it recorded.

    Parameters
    ----------
    plan
        A plan that was built on this device, with one float32 input and one float32 output. It is
        executable code: pass none that was not checked.
    session
        The session to run in.
    precision
        Arithmetic of the model, for `describe`.
    reason
        Why this engine was chosen, for `describe`.
    graph
        Whether `run` records CUDA graphs.
    kernels
        `compiled_kernels` of an earlier start, for TensorRT-RTX, which compiles kernels when it
        runs; it takes no others than its own.

    Attributes
    ----------
    device_memory_bytes
        Device memory that activations and buffers take, and the weights at the size of the plan.

    Raises
    ------
    PlanUnusableError
        If the plan does not load.
    EngineError
        If its tensors are other ones, or the GPU fails or has not enough memory.
    """

    any_count = False

    def __init__(
        self,
        plan: Plan,
        *,
        session: CudaSession,
        precision: Precision,
        reason: str = "tensorrt was requested",
        graph: bool = True,
        kernels: bytes | None = None,
    ) -> None:
        super().__init__()
        self.session = session
        self.precision = precision
        self.reason = reason
        self.plan = plan
        self.name = plan.library
        self.sizes = tuple(best for _, best, _ in plan.profiles)
        # Profiles are in increasing order; `least_size` relies on it.
        self.batch = self.sizes[-1]
        self._contexts: dict[int, trt.IExecutionContext] = {}
        self._addresses: dict[int, tuple[int, int]] = {}
        self._settings: Any = None
        self._kernels: Any = None
        journal().clear()
        with session.current():
            # What made an engine must outlive it.
            self._runtime: Any = new_runtime()
            self._engine = self._deserialised(self._runtime, plan.data)
            self._input, self.input_shape = self._sole_tensor(trt.TensorIOMode.INPUT)
            self._output, self.output_shape = self._sole_tensor(trt.TensorIOMode.OUTPUT)
            self._settings, self._kernels = self._runtime_settings(kernels)
            try:
                for index, size in enumerate(self.sizes):
                    self._contexts[size] = self._context(index, size)
                session.compute.synchronize()
                self._runs = HostRuns(self, graph=graph)
            except BaseException:
                self._release()
                raise
        self.device_memory_bytes = self._memory_bytes(self._runs.buffer_bytes)

    @staticmethod
    def _deserialised(runtime: trt.Runtime, data: bytes) -> trt.ICudaEngine:
        # The stubs leave out that TensorRT gives None for a plan that it rejects.
        engine = cast("trt.ICudaEngine | None", runtime.deserialize_cuda_engine(data))
        if engine is None:
            raise PlanUnusableError(quote("does not load the plan"))
        return engine

    def _sole_tensor(self, mode: trt.TensorIOMode) -> tuple[str, tuple[int, ...]]:
        """Name and item shape of the plan's only input or output."""
        engine = self._engine
        every = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        names = [name for name in every if engine.get_tensor_mode(name) == mode]
        shapes = [lengths(engine.get_tensor_shape(name)) for name in names]
        floats = all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
        # TensorRT 8.6 may tell the first size in place of a free axis. Whether the axis follows the
        # size is looked at again in each context.
        batches = {(-1,), self.sizes[:1]}
        if len(names) != 1 or not floats or shapes[0][:1] not in batches or -1 in shapes[0][1:]:
            raise EngineError(
                f"the plan has {mode.name} tensors {dict(zip(names, shapes, strict=True))}; export "
                "the model with one of float32 whose first axis alone is free"
            )
        return names[0], shapes[0][1:]

    def _runtime_settings(self, kernels: bytes | None) -> tuple[Any, Any]:
        """Make TensorRT-RTX's settings with its cache of kernels; TensorRT has neither."""
        if not has_feature(trt, "IRuntimeCache"):
            return None, None
        settings: Any = self._engine.create_runtime_config()
        cache = settings.create_runtime_cache()
        if kernels is not None:
            # Nothing is checked here: TensorRT-RTX takes no others than its own.
            cache.deserialize(kernels)
        settings.set_runtime_cache(cache)
        return settings, cache

    def compiled_kernels(self) -> bytes | None:
        """Return what TensorRT-RTX compiled at this start, for the next one; None of TensorRT."""
        return None if self._kernels is None else bytes(self._kernels.serialize())

    def _context(self, index: int, size: int) -> trt.IExecutionContext:
        """Make the context of one batch size: its profile, its shape, its memory."""
        engine: Any = self._engine
        made = (
            engine.create_execution_context()
            if self._settings is None
            else engine.create_execution_context(self._settings)
        )
        context = cast("trt.IExecutionContext | None", made)
        if context is None:
            raise EngineError(quote(f"makes no context for batches of {size}"))
        shape = (size, *self.input_shape)
        # The profile is copied to the GPU in this stream, which the caller synchronises.
        stream: int = self.session.compute.handle
        taken = context.set_optimization_profile_async(index, stream)
        if not all((taken, context.set_input_shape(self._input, shape))):
            raise EngineError(quote(f"takes no batches of {size}"))
        # It names the tensors that still lack a shape or a value.
        if missing := context.infer_shapes():
            raise EngineError(quote(f"needs more than the input, {missing}"))
        given = lengths(context.get_tensor_shape(self._output))
        if given != (size, *self.output_shape):
            raise EngineError(quote(f"gives shape {given} for batches of {size}"))
        return context

    def enqueue(self, inputs: int, outputs: int, count: int, stream: Any, *, kept: int = 0) -> None:
        """Put one run into a stream; see `DeviceEngine.enqueue`."""
        size = self.size_of(count)
        context = self._contexts.get(size)
        if context is None:
            raise EngineError(f"this {self.name} engine is closed; open a new one")
        with self.session.current():
            # Most callers keep their buffers; the same pair needs no second call.
            if self._addresses.get(size) != (inputs, outputs):
                taken = context.set_tensor_address(self._input, inputs)
                if not all((taken, context.set_tensor_address(self._output, outputs))):
                    raise EngineError(quote(f"takes no buffers at {inputs:#x} and {outputs:#x}"))
                self._addresses[size] = (inputs, outputs)
            # TensorRT tells failure by its answer alone; why is in the journal.
            if not context.execute_async_v3(stream.handle):
                raise EngineError(quote(f"failed on {count} items"))

    def describe(self) -> dict[str, str | int]:
        """Say what runs: library, version, GPU, precision, batch, memory, and why."""
        return {
            "engine": self.name,
            "version": self.plan.version,
            "precision": self.precision,
            "batch": self.batch,
            "sizes": ", ".join(map(str, self.sizes)),
            "gpu": f"{self.session.name}, {self.session.capability}",
            "cuda": self.session.driver,
            "int8_layers": len(self.plan.int8_layers),
            "cuda_graph": "yes" if self._runs is not None and self._runs.recorded else "no",
            "device_memory_bytes": self.device_memory_bytes,
            "reason": self.reason,
        }

    def _memory_bytes(self, buffer_bytes: int) -> int:
        engine: Any = self._engine
        # TensorRT 11 has the second name alone, 10.0 the first.
        each = next(
            (
                int(getattr(engine, name))
                for name in ("device_memory_size_v2", "device_memory_size")
                if has_feature(engine, name)
            ),
            0,
        )
        # Each context has activations of its own; weights are shared, and about the plan's size.
        return each * len(self._contexts) + len(self.plan.data) + buffer_bytes

    def _release(self) -> None:
        super()._release()
        with self.session.releasing():
            # In this order: contexts belong to the engine, the engine to the runtime.
            self._contexts.clear()
            self._settings = self._kernels = None
            self._engine = cast("trt.ICudaEngine", None)
            self._runtime = None
