"""Channels of a float graph brought to like ranges before INT8, without a change of function.

ReLU, LeakyReLU, max-pooling and resizing commute with a positive factor for each channel, so a
layer's channel may shrink if the next layer's weights for it grow (Nagel et al. 2019, "Data-free
quantization through weight equalization and bias correction"). One INT8 scale then serves every
channel of an activation; without it a single large channel leaves few levels to the others. The
factors are those of SmoothQuant (Xiao et al. 2023): the square root of range by weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

__all__ = ["equalise"]

FloatArray = npt.NDArray[np.float32]

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "Resize"})
"""f(c · x) = c · f(x) for c > 0, channel by channel."""


def equalise(model: bytes, calibration: FloatArray) -> bytes:
    """Rescale channels between Conv or Gemm layers that follow each other.

    Parameters
    ----------
    model
        ONNX with one input, float32 throughout.
    calibration
        Inputs that the channels' ranges are taken from.

    Returns
    -------
    A graph of the same nodes that computes the same; only weights and biases differ.
    """
    proto = onnx.load_from_string(model)
    pairs = list(_pairs(proto))
    if not pairs:
        return model
    largest = _largest(proto, [read for _, _, read in pairs], calibration)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for before, after, read in pairs:
        weight = numpy_helper.to_array(stored[after.input[1]])
        reach = np.abs(weight).max(axis=(0, *range(2, weight.ndim)))
        # A channel that is dark, or that nobody reads, has no range to bring into line.
        alive = (largest[read] > 0) & (reach > 0)
        factor = np.ones_like(reach)
        factor[alive] = np.sqrt(largest[read][alive] / reach[alive])
        for name in before.input[1:]:
            _multiply(stored[name], 1 / factor, axis=0)
        _multiply(stored[after.input[1]], factor, axis=1)
    return bytes(proto.SerializeToString(deterministic=True))


def _pairs(proto: ModelProto) -> Iterator[tuple[NodeProto, NodeProto, str]]:
    """Yield each layer, the only one that reads it, and the name of what that one reads."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    uses = Counter(name for node in proto.graph.node for name in node.input)
    uses.update(value.name for value in proto.graph.output)
    readers = {name: node for node in proto.graph.node for name in node.input}

    def is_layer(node: NodeProto) -> bool:
        # Shared weights would change for their other layer too.
        own = all(uses[name] == 1 for name in node.input[1:])
        return own and {*node.input[1:]} <= stored and _is_plain(node)

    for node in proto.graph.node:
        if not is_layer(node):
            continue
        name, reader = node.output[0], node
        while uses[name] == 1 and name in readers:
            reader = readers[name]
            if reader.op_type not in HOMOGENEOUS:
                break
            name = reader.output[0]
        if reader is not node and is_layer(reader) and reader.input[0] == name:
            yield node, reader, name


def _is_plain(node: NodeProto) -> bool:
    """Whether a layer's weight is (output channel, input channel, ...) as it stands."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        return bool(attributes.get("group", 1) == 1)
    factors = (attributes.get("alpha", 1), attributes.get("beta", 1), attributes.get("transB"))
    return node.op_type == "Gemm" and factors == (1, 1, 1) and not attributes.get("transA")


def _largest(proto: ModelProto, names: list[str], items: FloatArray) -> dict[str, FloatArray]:
    """Largest absolute value of each channel of the named tensors over the items."""
    import onnxruntime as ort

    watched = ModelProto()
    watched.CopyFrom(proto)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    # 3 is ERROR.
    options.log_severity_level = 3
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(names, {proto.graph.input[0].name: items})
    return {
        name: np.abs(value).max(axis=(0, *range(2, value.ndim)))
        for name, value in zip(names, values, strict=True)
    }


def _multiply(tensor: onnx.TensorProto, factor: FloatArray, axis: int) -> None:
    array = numpy_helper.to_array(tensor)
    shape = [1] * array.ndim
    shape[axis] = -1
    tensor.CopyFrom(numpy_helper.from_array(array * factor.reshape(shape), tensor.name))
