"""Run a model with onnxruntime: on the CPU, or through its CUDA or TensorRT provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.engines.engine import check_inputs
from edgexnas.device.process_bound import ProcessBound
from edgexnas.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

    from edgexnas.bundle import Precision

__all__ = ["OnnxEngine"]

FloatArray = npt.NDArray[np.float32]

ERRORS_ONLY = 3
"""Severity from which onnxruntime writes to standard error; failures are raised anyway."""


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxEngine(ProcessBound):
    """One ONNX model in onnxruntime, on the CPU unless another provider is requested. An `Engine`.

    Memory is taken once: input and output buffers for `batch` items, and an arena that one run of
    `batch` items fills. Runs of fewer items reuse them.

    An INT8 model is computed as its Q/DQ nodes say: values are rounded to the INT8 grid and the
    arithmetic between them is float32. So its outputs are those that the host measured, up to
    float32 rounding, on every processor; integer kernels overflow on x86 CPUs without VNNI, and
    are slower than this for networks this small. A float16 model is computed in float32 with
    its float16 weights, because the CPU has few float16 operators.

    Parameters
    ----------
    model
        ONNX file content with one float32 input and one float32 output, batch axis first and of
        free length, all other axes fixed.
    precision
        Arithmetic of the model, for `describe`.
    batch
        Largest number of items of one run.
    threads
        CPU threads of a run; None for 1.
    reason
        Why this engine was chosen, for `describe`.
    provider
        "cpu", or "cuda" or "tensorrt" where onnxruntime has them; these copy inputs and outputs
        to the GPU and back at each run.

    Raises
    ------
    EngineError
        If onnxruntime rejects the model, its tensors are other ones, or it lacks the provider.
    MissingDependencyError
        If onnxruntime is not installed.
    """

    what = "this onnxruntime engine"

    def __init__(
        self,
        model: bytes,
        *,
        precision: Precision,
        batch: int = 32,
        threads: int | None = None,
        reason: str = "onnxruntime was requested",
        provider: str = "cpu",
    ) -> None:
        self.name = "onnxruntime" if provider == "cpu" else f"onnxruntime-{provider}"
        self.precision = precision
        self.batch = batch
        self.threads = threads or 1
        self.reason = reason
        runtime = _import_onnxruntime()
        self.version = str(runtime.__version__)
        _check_provider(runtime, provider)
        try:
            session = runtime.InferenceSession(
                model, _options(runtime, self.threads), providers=_providers(provider, precision)
            )
        except Exception as error:
            raise EngineError(
                f"onnxruntime {self.version} rejects the {precision} model: {_first_line(error)}"
            ) from error
        # onnxruntime takes the next provider where one does not start, without an error.
        if session.get_providers()[0] != PROVIDERS[provider]:
            raise EngineError(
                f"onnxruntime {self.version} does not start its {PROVIDERS[provider]} here; check "
                "the GPU's driver and the CUDA libraries, or specify engine='onnxruntime'"
            )
        self._session: Any = session
        self._binding: Any = session.io_binding()
        self._input_name, item_shape = _sole_tensor(session.get_inputs(), "input")
        self._output_name, result_shape = _sole_tensor(session.get_outputs(), "output")
        # Bound once for each count: without a binding each run allocates its output anew.
        self._inputs = np.zeros((batch, *item_shape), np.float32)
        self._outputs = np.zeros((batch, *result_shape), np.float32)
        self._bound = 0

    def run(self, inputs: FloatArray) -> FloatArray:
        """Run the model on (n, ...) float32 items, 1 ≤ n ≤ `batch`; see `Engine.run`."""
        self.require_own_process()
        if self._session is None:
            raise EngineError("this onnxruntime engine is closed; open a new one")
        check_inputs(inputs, self._inputs.shape[1:], self.batch)
        count = len(inputs)
        # Most runs have the same count, and need no other binding.
        if count != self._bound:
            self._bind(count)
        self._inputs[:count] = inputs
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {count} items: {_first_line(error)}"
            ) from error
        # A copy, because the next run writes to the same buffer.
        return self._outputs[:count].copy()

    def _bind(self, count: int) -> None:
        """Point the session at the first `count` rows of the buffers."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for bind, name, buffer in (
            (self._binding.bind_input, self._input_name, self._inputs),
            (self._binding.bind_output, self._output_name, self._outputs),
        ):
            shape = [count, *buffer.shape[1:]]
            bind(name, "cpu", 0, np.float32, shape, buffer.ctypes.data)
        self._bound = count

    def describe(self) -> dict[str, str | int]:
        """Say what runs: library, version, precision, batch, threads, and why."""
        return {
            "engine": self.name,
            "version": self.version,
            "precision": self.precision,
            "batch": self.batch,
            "threads": self.threads,
            "reason": self.reason,
        }

    def close(self) -> None:
        """Release the model; closing again does nothing, and neither does it in a forked child."""
        if self.elsewhere:
            return
        self._binding = None
        self._session = None


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError.of(
            "onnxruntime", extra="device", purpose="Running a bundle on the CPU"
        ) from error
    return onnxruntime  # type: ignore[no-any-return,unused-ignore]


def _check_provider(runtime: ModuleType, provider: str) -> None:
    present = runtime.get_available_providers()
    if PROVIDERS[provider] not in present:
        raise EngineError(
            f"onnxruntime {runtime.__version__} has no {PROVIDERS[provider]}, only "
            f"{', '.join(present)}; install onnxruntime-gpu, or specify engine='onnxruntime'"
        )


def _providers(provider: str, precision: Precision) -> list[Any]:
    """List the provider, and behind it those that take what it leaves."""
    chain: list[Any] = ["CPUExecutionProvider"]
    if provider in ("cuda", "tensorrt"):
        chain.insert(0, "CUDAExecutionProvider")
    if provider == "tensorrt":
        # Its own cache of engines stays off: nothing checks what it reads from there.
        flags = {
            # The provider's networks are weakly typed, so that the flags must allow what the model
            # has.
            "trt_fp16_enable": precision == "float16",
            "trt_int8_enable": precision == "int8",
            "trt_engine_cache_enable": False,
        }
        chain.insert(0, ("TensorrtExecutionProvider", flags))
    return chain


def _options(runtime: ModuleType, threads: int) -> Any:
    options = runtime.SessionOptions()
    # With one thread between operators, `threads` bounds all that it uses.
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    # A memory pattern is kept for each batch length; without them the arena alone bounds memory.
    options.enable_mem_pattern = False
    # Keeps Q/DQ nodes as they are: no integer kernels, whose results depend on the processor.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _sole_tensor(tensors: list[Any], role: str) -> tuple[str, tuple[int, ...]]:
    """Name and item shape of the model's only input or output."""
    shapes = [f"{tensor.name} {tensor.shape} {tensor.type}" for tensor in tensors]
    fits = len(tensors) == 1 and tensors[0].type == "tensor(float)"
    free, *item = tensors[0].shape if fits else (1, None)
    if isinstance(free, int) or not all(isinstance(length, int) for length in item):
        raise EngineError(
            f"the model has {role} {'; '.join(shapes)}; export it with one float32 {role} "
            "whose first axis alone is free"
        )
    return tensors[0].name, tuple(item)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
