"""Read a Bragg network's layers from its ONNX, for a kernel that computes them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgexnas.bragg import CENTRE, PATCH_SIZE
from edgexnas.device.engines.fused.images import IMAGES, averaged, image_places
from edgexnas.device.engines.fused.network import (
    PATCHES,
    Activation,
    Array,
    Attention,
    Head,
    Layer,
    Network,
    Pool,
    UnsuitableNetworkError,
)

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["read_network"]


def read_network(model: bytes) -> Network:
    """Read mlpBragg, a symmetric or mirrored mlpBragg, cnnBragg or BraggNN.

    Parameters
    ----------
    model
        ONNX file content from a verified bundle: float32, float16, or INT8 with Q/DQ.

    Raises
    ------
    UnsuitableNetworkError
        If it is another network; the message names what is not known.
    """
    import onnx

    return _Reader(onnx.load_from_string(model).graph).network()


@dataclass
class _Value:
    """What a name in the graph stands for.

    `kind` is "value" for an output of a step or the patches, "rows" for it with all but the first
    axis made one, "transposed" for a map's pixels first, "scores" and "shares" for attention's
    products, "both" for patches beside their transposes, "images" for their eight images.
    """

    kind: str
    name: str
    scale: float | None = None
    parts: tuple[_Value, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class _Weights:
    """Stored weights; `axis` is that of the scales, None where one scale serves all."""

    values: Array
    scales: Array | None
    axis: int | None = None


class _Reader:
    """Goes through the nodes once; each operation has a method."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._graph = graph
        # Held, because protobuf makes other objects for the same nodes at each look.
        self._nodes: list[NodeProto] = list(graph.node)
        self._constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._quantised: dict[str, tuple[Array, Array]] = {}
        self._weights: dict[str, _Weights] = {}
        self._values: dict[str, _Value] = {}
        self._steps: dict[str, Layer | Attention | Pool] = {}
        self._widths: dict[str, int] = {}
        self._uses = Counter(name for node in graph.node for name in node.input)
        self._images, self._averages = 1, False
        # The head, read from the end, is not looked at again.
        self._done: set[int] = set()

    def network(self) -> Network:
        inputs = [value.name for value in self._graph.input if value.name not in self._constants]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise UnsuitableNetworkError(
                "the fused engine takes networks of one input and one output; this one has inputs "
                f"{inputs}; specify engine='tensorrt' or 'auto'"
            )
        self._values[inputs[0]] = _Value("value", PATCHES)
        self._widths[PATCHES] = PATCH_SIZE
        raw, levels, middle, centroid = self._head_from_the_end()
        handlers: Mapping[str, Callable[[NodeProto], None]] = {
            "Cast": self._alias,
            "Identity": self._alias,
            "Constant": self._constant,
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            "Reshape": self._reshape,
            "Flatten": self._reshape,
            "Transpose": self._transpose,
            "Concat": self._concat,
            "Gather": self._gather,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "Conv": self._conv,
            "Relu": self._activate,
            "LeakyRelu": self._activate,
            "Sigmoid": self._sigmoid,
            "MaxPool": self._pool,
            "Softmax": self._softmax,
            "Mul": self._multiply,
            "Add": self._add,
        }
        for node in self._nodes:
            if id(node) in self._done:
                continue
            handler = handlers.get(node.op_type)
            if handler is None:
                raise self._unknown(node)
            handler(node)
        source = self._values[raw]
        self._check(source.kind == "value", "its last layer is none")
        layer = self._steps.get(source.name)
        outputs = 2 * levels if self._images == 1 else levels
        self._check(
            isinstance(layer, Layer) and layer.outputs == outputs,
            f"its last layer has not {outputs} outputs",
        )
        self._check(
            self._averages == (self._images == IMAGES),
            "it reads mirror images of patches and averages nothing, or the other way round",
        )
        lost = [s.name for s in self._steps.values() if isinstance(s, Layer) and _gain_alone(s)]
        self._check(not lost, f"what {', '.join(lost)} is multiplied by is added to nothing")
        head = Head(source.name, levels, middle, centroid)
        return Network(tuple(self._steps.values()), head, self._images)

    # The end of the graph: quantiles from the last layer, and the centroid.

    def _head_from_the_end(self) -> tuple[str, int, int, float | None]:
        """Return the last layer's output, the levels, the middle one and the centroid's least sum.

        The sums in between are not followed: the accuracy gate compares what comes out.
        """
        producers = {name: node for node in self._nodes for name in node.output}
        cut: list[NodeProto] = []

        def producer(name: str) -> NodeProto | None:
            node = producers.get(name)
            while node is not None and node.op_type in ("Cast", "Identity"):
                cut.append(node)
                node = producers.get(node.input[0])
            return node

        end = producer(self._graph.output[0].name)
        centroid = None
        if end is not None and end.op_type == "Add":
            added = [producer(name) for name in end.input]
            unsqueezed = [
                node for node in added if node is not None and node.op_type == "Unsqueeze"
            ]
            if len(unsqueezed) == 1:
                centroid = self._centroid(unsqueezed[0], producers)
                cut.append(end)
                rest = next(name for name in end.input if unsqueezed[0].output[0] != name)
                end = producer(rest)
        within = None if end is None else averaged(end, producer, self._constants, cut)
        if within is not None:
            self._averages, end = True, within
        choices = (
            [end] if end is None or end.op_type != "Concat" else [producer(n) for n in end.input]
        )
        if end is not None and end.op_type == "Concat":
            cut.append(end)
        # The middle quantile is a slice of what the layer predicts; its neighbours are sums.
        slices = [
            (index, node)
            for index, node in enumerate(choices)
            if node is not None and node.op_type in ("Slice", "Reshape")
        ]
        if len(slices) != 1:
            raise UnsuitableNetworkError(
                "the fused engine does not know this network: its output is no row of quantiles; "
                "specify engine='tensorrt' or 'auto'"
            )
        middle, node = slices[0]
        while node.op_type == "Slice":
            cut.append(node)
            following = producer(node.input[0])
            if following is None:
                raise self._unknown(node)
            node = following
        if node.op_type != "Reshape":
            raise self._unknown(node)
        cut.append(node)
        self._skip_behind(node.output[0])
        self._done.update(map(id, cut))
        return node.input[0], len(choices), middle, centroid

    def _skip_behind(self, name: str) -> None:
        """Leave out all nodes that follow from one value."""
        reached = {name}
        for node in self._nodes:
            if reached & set(node.input):
                reached.update(node.output)
                self._done.add(id(node))

    def _centroid(self, end: NodeProto, producers: Mapping[str, NodeProto]) -> float:
        """Leave out the nodes of the centroid, once they are what the kernel computes."""
        reached, order = {end.output[0]}, []
        for node in reversed(self._nodes):
            if reached & set(node.output):
                order.append(node)
                reached.update(node.input)
        operations = Counter(node.op_type for node in order)
        moments = [a for n, a in self._constants.items() if n in reached and a.shape == (25, 3)]
        least = [
            float(self._constants[name].reshape(()))
            for node in order
            if node.op_type == "Add"
            for name in node.input
            if name in self._constants and self._constants[name].size == 1
        ]
        along = np.arange(5) - 2
        row, column = np.meshgrid(along, along, indexing="ij")
        expected = np.stack([row, column, np.ones_like(row)], axis=2).reshape(25, 3)
        kinds = ("MatMul", "Mul", "Div")
        self._check(
            all(operations[kind] == 1 for kind in kinds)
            and len(moments) == 1
            and np.array_equal(moments[0], expected)
            and len(least) == 1
            and self._window_of(order) == (CENTRE - 2, CENTRE + 3),
            "what it adds to its output is no centroid of the inner 5×5 pixels",
        )
        # Casts are shared with the network itself; each belongs to the one that reads it.
        self._done.update(id(n) for n in order if n.op_type not in ("Cast", "Identity"))
        return least[0]

    def _window_of(self, order: list[NodeProto]) -> tuple[int, int] | None:
        """Find from where to where the centroid reads rows and columns, if these are alike."""
        windows = set()
        for node in order:
            if node.op_type == "Slice" and any(
                other.op_type == "Gather" for other in self._before(node, order)
            ):
                begin, end = (self._constants.get(name) for name in node.input[1:3])
                if begin is None or end is None:
                    return None
                windows.add((int(begin.reshape(-1)[0]), int(end.reshape(-1)[0])))
        return windows.pop() if len(windows) == 1 else None

    @staticmethod
    def _before(node: NodeProto, order: list[NodeProto]) -> list[NodeProto]:
        reached, found = set(node.input), []
        for other in order[order.index(node) + 1 :]:
            if reached & set(other.output):
                found.append(other)
                # Products of moments are behind the window, not before it.
                reached.update(other.input)
        return [] if any(other.op_type == "MatMul" for other in found) else found

    # Names that stand for what is there already.

    def _alias(self, node: NodeProto) -> None:
        source = node.input[0]
        if source in self._constants:
            self._constants[node.output[0]] = self._constants[source]
        else:
            self._values[node.output[0]] = self._value(node, source)

    def _constant(self, node: NodeProto) -> None:
        from onnx import numpy_helper

        (attribute,) = node.attribute
        tensor = attribute.name == "value"
        given = numpy_helper.to_array(attribute.t) if tensor else _attributes(node)[attribute.name]
        self._constants[node.output[0]] = np.asarray(given)

    def _quantize(self, node: NodeProto) -> None:
        source, scale = node.input[0], self._constants[node.input[1]].astype(np.float32)
        if len(node.input) > 2 and np.any(self._constants[node.input[2]]):
            raise UnsuitableNetworkError(
                "the fused engine takes INT8 with zero points of 0 only; export the bundle again"
            )
        if source in self._constants:
            values = self._constants[source].astype(np.float32)
            shape = [1] * values.ndim
            if scale.size > 1:
                shape[_attributes(node).get("axis", 1)] = -1
            rounded = np.clip(np.rint(values / scale.reshape(shape)), -128, 127).astype(np.int8)
            self._quantised[node.output[0]] = (rounded, scale)
            return
        value = self._value(node, source)
        self._values[node.output[0]] = replace(value, scale=float(scale.reshape(())))

    def _dequantize(self, node: NodeProto) -> None:
        source = node.input[0]
        if source in self._quantised or source in self._constants:
            scale = self._constants[node.input[1]].astype(np.float32)
            values = (
                self._quantised[source][0] if source in self._quantised else self._constants[source]
            )
            axis = (
                _attributes(node).get("axis", 1) % max(1, values.ndim) if scale.size > 1 else None
            )
            self._weights[node.output[0]] = _Weights(values, np.atleast_1d(scale), axis)
        else:
            self._values[node.output[0]] = self._value(node, source)

    def _reshape(self, node: NodeProto) -> None:
        value = self._value(node, node.input[0])
        if value.kind in ("value", "both"):
            value = replace(value, kind="rows" if value.kind == "value" else "both")
        # A reshape among attention's products gives a map its two axes back, or takes them.
        self._values[node.output[0]] = (
            replace(value, kind="value") if value.kind == "mixed" else value
        )

    def _transpose(self, node: NodeProto) -> None:
        value = self._value(node, node.input[0])
        order = list(_attributes(node).get("perm", ()))
        if value.name == PATCHES and order == [0, 1, 3, 2]:
            self._values[node.output[0]] = replace(value, kind="exchanged")
        elif order == [0, 2, 1]:
            kinds = {"rows": "transposed", "mixed": "mixed"}
            self._check(value.kind in kinds, f"{node.output[0]} transposes what is no map")
            self._values[node.output[0]] = replace(value, kind=kinds[value.kind])
        else:
            raise self._unknown(node)

    def _concat(self, node: NodeProto) -> None:
        kinds = [self._value(node, name) for name in node.input]
        self._check(
            [(value.kind, value.name) for value in kinds]
            == [("value", PATCHES), ("exchanged", PATCHES)]
            and _attributes(node).get("axis") == 1,
            f"{node.output[0]} joins other things than patches and their transposes",
        )
        self._images = 2
        self._values[node.output[0]] = replace(kinds[0], kind="both")

    def _gather(self, node: NodeProto) -> None:
        value = self._value(node, node.input[0])
        places = self._constants.get(node.input[1], np.zeros(0))
        self._check(
            (value.name, value.kind) == (PATCHES, "rows")
            and _attributes(node).get("axis", 0) == 1
            and np.array_equal(places, image_places()),
            f"{node.output[0]} gathers other things than the eight images of patches",
        )
        self._images = IMAGES
        self._values[node.output[0]] = replace(value, kind="images")

    # Steps.

    def _gemm(self, node: NodeProto) -> None:
        settings = _attributes(node)
        usual = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
        self._check(usual and not settings.get("transA", 0), f"{node.output[0]} is no plain layer")
        transposed = bool(settings.get("transB", 0))
        weights = self._weights_of(node, node.input[1], outputs=0 if transposed else 1)
        if not transposed:
            weights = _Weights(weights.values.T, weights.scales)
        self._dense(node, weights, self._bias_of(node, len(weights.values)))

    def _matmul(self, node: NodeProto) -> None:
        if node.input[1] in self._constants or node.input[1] in self._weights:
            weights = self._weights_of(node, node.input[1], outputs=1)
            weights = _Weights(weights.values.T, weights.scales)
            self._dense(node, weights, np.zeros(len(weights.values), np.float32))
            return
        first, second = (self._value(node, name) for name in node.input)
        if (first.kind, second.kind) == ("transposed", "rows"):
            parts = (first, second)
            self._values[node.output[0]] = _Value("scores", node.output[0], parts=parts)
            return
        self._check(
            (first.kind, second.kind) == ("shares", "transposed"),
            f"{node.output[0]} multiplies two values that are no attention",
        )
        self._attend(node, (*first.parts, second))

    def _softmax(self, node: NodeProto) -> None:
        value = self._value(node, node.input[0])
        last = _attributes(node).get("axis", -1) in (-1, 2)
        self._check(value.kind == "scores" and last, f"{node.output[0]} is no attention's softmax")
        self._values[node.output[0]] = replace(value, kind="shares")

    def _attend(self, node: NodeProto, parts: tuple[_Value, ...]) -> None:
        """Join the three layers that attention reads into one, and add the step."""
        layers = [self._steps.get(part.name) for part in parts]
        three = [layer for layer in layers if isinstance(layer, Layer)]
        alike = {(x.source, x.input_scale, x.outputs, x.weights.shape, x.quantised) for x in three}
        plain = all(x.activation == "none" and x.added is None and not x.padding for x in three)
        self._check(
            len({x.name for x in three}) == 3
            and len(alike) == 1
            and plain
            and three[0].outputs % 32 == 0,
            f"{node.output[0]} is no attention of three equal layers of 32 channels or a multiple",
        )
        scales = [layer.scales for layer in three if layer.scales is not None]
        joined = replace(
            three[0],
            weights=np.concatenate([layer.weights for layer in three]),
            bias=np.concatenate([layer.bias for layer in three]),
            scales=np.concatenate(scales) if scales else None,
        )
        for layer in three:
            del self._steps[layer.name]
        self._steps[joined.name] = joined
        attention = Attention(node.output[0], joined.name, three[0].outputs)
        self._put(node, attention, self._widths[joined.name], kind="mixed")

    def _dense(self, node: NodeProto, weights: _Weights, bias: Array) -> None:
        value = self._value(node, node.input[0])
        self._check(
            value.kind in ("rows", "both", "images", "value"), f"{node.output[0]} reads no rows"
        )
        values, width = weights.values, self._widths[value.name]
        if value.name == PATCHES:
            self._check(values.shape[1] == PATCH_SIZE**2, f"{node.output[0]} reads no patches")
            if value.kind == "both":
                self._images = 2
            shaped = values.reshape(*values.shape, 1, 1)
        else:
            # Flattened maps have their channels first; a kernel as large as the map reads them.
            self._check(
                values.shape[1] % width**2 == 0, f"{node.output[0]} does not fit what it reads"
            )
            shaped = values.reshape(len(values), -1, width, width)
        layer = Layer(
            node.output[0], value.name, shaped, bias, weights.scales, self._scale(value, weights)
        )
        self._put(node, layer, 1)

    def _conv(self, node: NodeProto) -> None:
        settings = _attributes(node)
        value = self._value(node, node.input[0])
        weights = self._weights_of(node, node.input[1], outputs=0)
        pads = set(settings.get("pads", [0]))
        kernel = weights.values.shape[2:]
        plain = (
            settings.get("group", 1) == 1
            and set(settings.get("strides", [1])) == set(settings.get("dilations", [1])) == {1}
            and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
            and value.kind == "value"
            and kernel in ((1, 1), (3, 3))
            and pads in ({0}, {(kernel[0] - 1) // 2})
        )
        self._check(plain, f"{node.output[0]} is no convolution of 1×1 or 3×3 with stride 1")
        padding = pads.pop()
        layer = Layer(
            node.output[0], value.name, weights.values, self._bias_of(node, len(weights.values)),
            weights.scales, self._scale(value, weights), padding,
        )  # fmt: skip
        self._put(node, layer, self._widths[value.name] + 2 * padding - kernel[0] + 1)

    def _pool(self, node: NodeProto) -> None:
        settings = _attributes(node)
        value = self._value(node, node.input[0])
        plain = (
            list(settings["kernel_shape"]) == list(settings.get("strides", [1, 1])) == [2, 2]
            and not any(settings.get("pads", [0]))
            and not settings.get("ceil_mode", 0)
            and value.kind == "value"
        )
        self._check(plain, f"{node.output[0]} is no pooling of 2×2")
        self._put(node, Pool(node.output[0], value.name), self._widths[value.name] // 2)

    # What changes the step before it.

    def _activate(self, node: NodeProto) -> None:
        relu = node.op_type == "Relu"
        activation: Activation = "relu" if relu else "leaky"
        slope = 0.0 if relu else float(_attributes(node).get("alpha", 0.01))
        layer = self._sole_layer(node, node.input[0])
        other_slope = layer.activation == "leaky" and layer.slope != slope
        # A gain behind an activation is kept apart from one before it by what is added.
        first = layer.activation == "none" and layer.gain == 1.0
        free = layer.then == "none" if layer.added else first
        self._check(free and not other_slope, f"{node.output[0]} is a second activation")
        changed = {"then" if layer.added else "activation": activation}
        # One slope for both places: that of whichever is leaky.
        changed_layer = replace(layer, **changed, slope=slope or layer.slope)  # type: ignore[arg-type]
        self._change(node, changed_layer)

    def _sigmoid(self, node: NodeProto) -> None:
        """Note the sigmoid of a layer, which its product with the layer makes SiLU."""
        self._sole_layer(node, node.input[0], uses=2)
        self._values[node.output[0]] = _Value("sigmoid", node.input[0])

    def _multiply(self, node: NodeProto) -> None:
        kinds = {name: self._values[name] for name in node.input if name in self._values}
        sigmoids = [value.name for value in kinds.values() if value.kind == "sigmoid"]
        if len(sigmoids) == 1 and sigmoids[0] in node.input:
            layer = self._sole_layer(node, sigmoids[0], uses=2)
            free = layer.added is None and layer.activation == "none" and layer.gain == 1.0
            self._check(free, f"{node.output[0]} is a second activation")
            self._change(node, replace(layer, activation="silu"))
            return
        gains = [name for name in node.input if name in self._constants]
        values = [name for name in node.input if name not in self._constants]
        self._check(
            len(gains) == 1 and self._constants[gains[0]].size == 1,
            f"{node.output[0]} multiplies by more than a number",
        )
        layer = self._sole_layer(node, values[0])
        self._check(layer.added is None and layer.gain == 1.0, f"{node.output[0]} is a second gain")
        gain = float(self._constants[gains[0]].astype(np.float32).reshape(()))
        self._change(node, replace(layer, gain=gain))

    def _add(self, node: NodeProto) -> None:
        constants = [name for name in node.input if name in self._constants]
        if constants:
            # The bias of a dense layer that the exporter wrote as a product and a sum.
            name = next(name for name in node.input if name not in self._constants)
            layer = self._sole_layer(node, name)
            bias = self._constants[constants[0]].astype(np.float32).reshape(-1)
            early = layer.activation == "none" and layer.added is None and layer.gain == 1.0
            self._check(early and bias.shape == layer.bias.shape, f"{node.output[0]} adds no bias")
            self._change(node, replace(layer, bias=layer.bias + bias))
            return
        order = list(self._steps)
        pair = sorted(
            (self._value(node, name) for name in node.input),
            key=lambda value: order.index(value.name) if value.name in order else -1,
        )
        first, last = pair
        name = next(name for name in node.input if self._values[name] is last)
        layer = self._sole_layer(node, name)
        same = self._sizes_of(first.name) == self._sizes_of(layer.name)
        self._check(
            layer.added is None and same and first.kind == "value" and first.name != PATCHES,
            f"{node.output[0]} adds what does not fit",
        )
        self._change(node, replace(layer, added=first.name, added_scale=first.scale))

    def _sizes_of(self, name: str) -> tuple[int, int] | None:
        """Give channels and width of a value."""
        step = self._steps.get(name)
        while isinstance(step, Pool):
            step = self._steps.get(step.source)
        if step is None:
            return None
        channels = step.inner if isinstance(step, Attention) else step.outputs
        return channels, self._widths[name]

    def _sole_layer(self, node: NodeProto, name: str, *, uses: int = 1) -> Layer:
        """Return a layer whose output is read so often and no more: it can be changed."""
        value = self._value(node, name)
        layer = self._steps.get(value.name)
        if not isinstance(layer, Layer) or value.kind != "value" or self._uses[name] != uses:
            raise self._unknown(node)
        return layer

    def _change(self, node: NodeProto, layer: Layer) -> None:
        self._steps[layer.name] = layer
        self._values[node.output[0]] = _Value("value", layer.name)

    def _put(
        self, node: NodeProto, step: Layer | Attention | Pool, width: int, *, kind: str = "value"
    ) -> None:
        self._steps[step.name] = step
        self._widths[step.name] = width
        self._values[node.output[0]] = _Value(kind, step.name)

    # Parts of nodes.

    def _value(self, node: NodeProto, name: str) -> _Value:
        value = self._values.get(name)
        if value is None:
            raise self._unknown(node)
        return value

    def _weights_of(self, node: NodeProto, name: str, *, outputs: int) -> _Weights:
        """Return stored weights, whose scales must be those of the axis of outputs."""
        if name in self._weights:
            found = self._weights[name]
            self._check(found.axis in (None, outputs), f"scales of {name} are none of its outputs")
            return found
        if name not in self._constants:
            raise self._unknown(node)
        return _Weights(self._constants[name].astype(np.float32), None)

    def _bias_of(self, node: NodeProto, outputs: int) -> Array:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(outputs, np.float32)
        if node.input[2] not in self._constants:
            raise self._unknown(node)
        bias: Array = np.broadcast_to(self._constants[node.input[2]], outputs).astype(np.float32)
        return bias

    def _scale(self, value: _Value, weights: _Weights) -> float | None:
        """Return the input's scale; None for a layer in float."""
        if weights.scales is not None and value.scale is not None:
            return value.scale
        self._check(
            weights.scales is None and value.scale is None,
            f"a layer that reads {value.name} has only its input or only its weights in INT8",
        )
        return None

    def _check(self, good: object, complaint: str) -> None:
        if not good:
            raise UnsuitableNetworkError(
                f"the fused engine does not know this network: {complaint}; specify "
                "engine='tensorrt' or 'auto'"
            )

    @staticmethod
    def _unknown(node: NodeProto) -> UnsuitableNetworkError:
        return UnsuitableNetworkError(
            f"the fused engine does not know this network: it has no {node.op_type} as in "
            f"{node.output[0]}; specify engine='tensorrt' or 'auto'"
        )


def _gain_alone(layer: Layer) -> bool:
    return layer.gain != 1.0 and layer.added is None


def _attributes(node: NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
