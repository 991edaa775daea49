"""Run a model on the CPU with onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import EngineError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

    from edgexnas.bundle import Precision

__all__ = ["OnnxEngine"]

FloatArray = npt.NDArray[np.float32]

ERRORS_ONLY = 3
"""Severity from which onnxruntime writes to standard error; failures are raised anyway."""


class OnnxEngine:
    """One ONNX model in onnxruntime, on the CPU. An `Engine`.

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

    Raises
    ------
    EngineError
        If onnxruntime refuses the model or its tensors are other ones.
    MissingDependencyError
        If onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        *,
        precision: Precision,
        batch: int = 32,
        threads: int | None = None,
        reason: str = "onnxruntime was asked for",
    ) -> None:
        self.precision = precision
        self.batch = batch
        self.threads = threads or 1
        self.reason = reason
        runtime = _import_onnxruntime()
        self.version = str(runtime.__version__)
        try:
            session = runtime.InferenceSession(
                model, _options(runtime, self.threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise EngineError(
                f"onnxruntime {self.version} refuses the {precision} model: {_first_line(error)}"
            ) from error
        self._session: Any = session
        self._binding: Any = session.io_binding()
        self._input_name, item_shape = _sole_tensor(session.get_inputs(), "input")
        self._output_name, result_shape = _sole_tensor(session.get_outputs(), "output")
        self._inputs = np.zeros((batch, *item_shape), np.float32)
        self._outputs = np.zeros((batch, *result_shape), np.float32)
        self._bound = 0

    def run(self, inputs: FloatArray) -> FloatArray:
        """Run the model on (n, ...) float32 items, 1 ≤ n ≤ `batch`; see `Engine.run`."""
        if self._session is None:
            raise EngineError("this onnxruntime engine is closed; open a new one")
        count = len(inputs)
        if inputs.shape[1:] != self._inputs.shape[1:] or not 1 <= count <= self.batch:
            raise InputError(
                f"the engine got an array of shape {inputs.shape}; "
                f"give (n, {', '.join(map(str, self._inputs.shape[1:]))}), n from 1 to {self.batch}"
            )
        if inputs.dtype != np.float32:
            raise InputError(f"the engine got dtype {inputs.dtype}; give float32")
        if count != self._bound:
            self._bind(count)
        self._inputs[:count] = inputs
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {count} items: {_first_line(error)}"
            ) from error
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
        """Release the model; closing again does nothing."""
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


def _options(runtime: ModuleType, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    # A memory pattern is kept for each batch length; without them the arena alone bounds memory.
    options.enable_mem_pattern = False
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
