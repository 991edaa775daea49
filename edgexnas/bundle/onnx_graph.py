"""What an ONNX file in a bundle may be: one plain graph that holds all its numbers itself.

Parsing is from bytes, so nothing beside the file is ever opened, here or by a runtime.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgexnas.bundle.manifest import Manifest, Precision, Tensor
from edgexnas.errors import BundleError
from edgexnas.printing import printable

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

__all__ = ["ALLOWED_OPERATORS", "check_onnx"]

MOST_MODEL_BYTES = 128 * 1024 * 1024
"""Size of an ONNX file; the largest network of the search spaces has 85 MB in float32."""

MOST_NODES = 10_000
MOST_INITIALISERS = 10_000
# Parsed messages take many times their bytes: a small file must not fill the memory.
MOST_MESSAGES = 500_000
"""Parts of any kind: nodes, attributes, tensors, shapes, metadata."""

ELEMENT_BYTES = {
    "FLOAT": 4, "FLOAT16": 2, "DOUBLE": 8, "INT8": 1, "UINT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1
}  # fmt: skip
"""Size of each element type that a tensor may have, by its ONNX name."""

OPSETS = range(13, 24)
"""From the first with per-axis QuantizeLinear."""

# fmt: off
ALLOWED_OPERATORS = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant",
    "Conv", "ConvTranspose", "CumSum", "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf",
    "Exp", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "Greater",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Less", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool",
    "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Selu", "Shape",
    "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh",
    "Transpose", "Unsqueeze", "Where",
})
# fmt: on
"""Operators of the default domain without control flow, state, randomness or strings."""


def check_onnx(raw: bytes, *, precision: Precision, manifest: Manifest, what: str) -> None:
    """Reject an ONNX file that is more than arithmetic, or other than its manifest says.

    Parameters
    ----------
    raw
        Content of the file.
    precision
        Arithmetic that the model claims.
    manifest
        Manifest with the tensors that the graph must have.
    what
        What is checked, for messages.

    Raises
    ------
    BundleError
        If the file is malformed or too large, refers to data outside, uses other operators,
        domains, functions, subgraphs or training information, or disagrees with the manifest.
    """
    if len(raw) > MOST_MODEL_BYTES:
        raise BundleError(f"{what} has {len(raw)} bytes, where {MOST_MODEL_BYTES} are allowed")
    model = _parse(raw, what)
    # In this order: nothing is computed from a part that an earlier check has not seen, and the
    # library's own checker, which trusts most, comes last.
    fault = (
        _external_fault(model)
        or _extent_fault(model)
        or _operator_fault(model)
        or _interface_fault(model, manifest)
        or _tensor_fault(model)
        or _precision_fault(model, precision)
        or _schema_fault(model)
    )
    if fault:
        raise BundleError(f"{what} {fault}")


def _parse(raw: bytes, what: str) -> ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError:
        raise BundleError(f"{what} is not an ONNX model: export the bundle again") from None
    return model


def _messages(model: ModelProto) -> Iterator[Any]:
    """Walk a model and all messages inside, wherever the format has or will have them."""
    # A list and not recursion: a stranger's file may be nested deeper than the stack.
    waiting: list[Any] = [model]
    for count in itertools.count(1):
        if not waiting:
            return
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                # A single message is the only kind of value here that is not a container.
                waiting += [value] if hasattr(value, "ListFields") else value
        if count + len(waiting) > MOST_MESSAGES:
            raise BundleError(f"an ONNX model has more than {MOST_MESSAGES} parts: simplify it")


def _external_fault(model: ModelProto) -> str | None:
    from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
    from onnx import TensorProto

    for message in _messages(model):
        # A runtime with a newer ONNX would see what this scan cannot.
        if len(UnknownFieldSet(message)):
            return "has fields that ONNX does not define: export it again"
        if isinstance(message, TensorProto) and (
            message.external_data or message.data_location != TensorProto.DEFAULT
        ):
            return (
                f"keeps tensor {message.name[:80]!r} in another file: export with the data inside"
            )
    return None


def _extent_fault(model: ModelProto) -> str | None:
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        return "has functions, training information or sparse tensors: export a plain graph"
    if len(graph.node) > MOST_NODES or len(graph.initializer) > MOST_INITIALISERS:
        return (
            f"has {len(graph.node)} nodes and {len(graph.initializer)} initialisers, where "
            f"{MOST_NODES} and {MOST_INITIALISERS} are allowed"
        )
    # Another domain names operators that a plug-in would bring.
    versions = {item.domain: item.version for item in model.opset_import}
    # "" and "ai.onnx" are one domain; two versions of it would leave the choice to the runtime.
    if set(versions) - {"", "ai.onnx"} or len(versions) != 1 or len(model.opset_import) != 1:
        return f"imports operator sets {sorted(versions)}, where the default one is allowed"
    version = next(iter(versions.values()))
    if version not in OPSETS:
        return f"has opset {version}, where {OPSETS.start} to {OPSETS.stop - 1} are allowed"
    return None


def _operator_fault(model: ModelProto) -> str | None:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED_OPERATORS:
            name = f"{node.domain}:{node.op_type}".removeprefix(":")
            return f"uses operator {name[:80]!r}, which is not among the allowed ones"
        if any(_nests_graph(node)):
            return f"nests a graph in operator {node.op_type}: export a plain graph"
    return None


def _nests_graph(node: NodeProto) -> Iterator[bool]:
    for attribute in node.attribute:
        # Loops and branches keep graphs in attributes, and with them time without bound.
        yield attribute.HasField("g") or bool(attribute.graphs)


def _interface_fault(model: ModelProto, manifest: Manifest) -> str | None:
    for kind, values, tensors in (
        ("inputs", model.graph.input, manifest.inputs),
        ("outputs", model.graph.output, manifest.outputs),
    ):
        # Names and order too: engines find tensors by them.
        found = [_describe(value) for value in values]
        if found != [(tensor.name, "FLOAT", _free_batch(tensor)) for tensor in tensors]:
            shown = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors)
            return f"has {kind} {str(found)[:300]}, where the manifest says float32 {shown}"
    return None


def _free_batch(tensor: Tensor) -> tuple[int | None, ...]:
    return tuple(None if length == "n" else length for length in tensor.shape)


def _describe(value: ValueInfoProto) -> tuple[str, str, tuple[int | None, ...]]:
    """Return name, element type, and shape, with None for a free axis, of an input or output."""
    from onnx import TensorProto

    kind = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim)
    known = kind.elem_type in TensorProto.DataType.values()
    element = TensorProto.DataType.Name(kind.elem_type) if known else str(kind.elem_type)
    return value.name, element, shape


def _tensor_fault(model: ModelProto) -> str | None:
    from onnx import TensorProto

    sizes = {getattr(TensorProto, name): size for name, size in ELEMENT_BYTES.items()}
    for tensor in _messages(model):
        if not isinstance(tensor, TensorProto):
            continue
        if tensor.data_type not in sizes:
            return (
                f"has tensor {tensor.name[:80]!r} of a type other than {', '.join(ELEMENT_BYTES)}"
            )
        length = len(tensor.raw_data) // sizes[tensor.data_type]
        if not tensor.HasField("raw_data"):
            typed = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)
            length = sum(len(values) for values in typed)
        # Runtimes allocate by the shape and copy by the data; they must be one.
        if min(tensor.dims, default=1) < 0 or math.prod(tensor.dims) != length:
            return f"has tensor {tensor.name[:80]!r}, whose data does not fill its shape"
    return None


def _precision_fault(model: ModelProto, precision: Precision) -> str | None:
    from onnx import TensorProto

    # Some exporters drop quantisation without a word and succeed.
    used = {node.op_type for node in model.graph.node}
    if precision == "int8" and not used >= {"QuantizeLinear", "DequantizeLinear"}:
        return "is to be the int8 model but quantises nothing: quantise it before exporting"
    if precision == "float16" and not any(
        isinstance(item, TensorProto) and item.data_type == TensorProto.FLOAT16
        for item in _messages(model)
    ):
        return "is to be the float16 model but holds no float16: convert it before exporting"
    return None


def _schema_fault(model: ModelProto) -> str | None:
    """Let onnx check what it knows better: attributes, arity, order and single assignment."""
    from onnx import checker

    try:
        # Alone it would not do: it accepts external data with a negative offset (onnx 1.23).
        checker.check_model(model)
    except (checker.ValidationError, ValueError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        return f"is not a valid ONNX model ({reason}): export it again"
    return None
