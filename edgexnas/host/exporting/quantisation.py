"""INT8 as explicit Q/DQ in the ONNX graph, made by onnxruntime.

Weighted layers get quantised inputs (symmetric, per tensor) and weights (symmetric, per output
channel); outputs stay as they are, so that a runtime can fuse what follows. The last layer of each
head stays float, because a quantised output leaves a few dozen distinct values. What else stays
float, and how activations are calibrated, is a `Recipe`, chosen on the validation part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgexnas.errors import QuantisationError
from edgexnas.host.exporting.equalisation import equalise
from edgexnas.host.exporting.quiet import quiet

__all__ = ["QuantisedModel", "Recipe", "quantise", "run_onnx", "weighted_layers"]

FloatArray = npt.NDArray[np.float32]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to quantise.

    Attributes
    ----------
    calibration
        "minmax", or a percentile of the absolute activations, such as "percentile-99.99".
    float_layers
        How many of the last weighted layers of each head stay float; at least 1.
    float_first
        Whether the layers that read the input stay float, so that it is not rounded to 8 bits.
    equalised
        Whether channels are brought to like ranges first; see `equalise`.
    float_attention
        Whether the layers of attention stay float: those that feed a product of two activations,
        and those that read its result.
    float_dense
        Whether dense layers stay float, where convolutions are there for INT8.
    int8_resize
        Whether what is resized in front of an INT8 layer is rounded before as well, so that it
        moves as INT8 and needs no rounding of its own.
    """

    calibration: str = "minmax"
    float_layers: int = 1
    float_first: bool = False
    equalised: bool = False
    float_attention: bool = False
    float_dense: bool = False
    int8_resize: bool = False

    def __str__(self) -> str:
        words = [self.calibration, f"last {self.float_layers} in float"]
        for part in ("first", "attention", "dense"):
            words += [f"{part} in float"] * getattr(self, f"float_{part}")
        words += ["channels equalised"] * self.equalised + ["resizing in INT8"] * self.int8_resize
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """An INT8 graph with the names of its quantised and its float weighted layers."""

    model: bytes
    recipe: Recipe
    quantised: tuple[str, ...]
    left_float: tuple[str, ...]


def weighted_layers(model: ModelProto) -> list[NodeProto]:
    """Nodes that multiply by stored weights, in graph order.

    A product of two activations, as in attention, has no weights and is not among them.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in stored
    ]


def layers_behind(model: ModelProto) -> dict[str, int]:
    """Count the weighted layers between each one, by name in graph order, and its furthest output.

    0 is the last layer of a head; a network with two heads has two of them.
    """
    weighted = {node.name for node in weighted_layers(model)}
    counts: dict[str, int] = {}
    behind: dict[str, int] = {}
    # Graphs are sorted, so from the end every consumer is seen before its producer.
    for node in reversed(model.graph.node):
        count = max((behind.get(name, 0) for name in node.output), default=0)
        if node.name in weighted:
            counts[node.name] = count
            count += 1
        for name in node.input:
            behind[name] = max(behind.get(name, 0), count)
    return dict(reversed(counts.items()))


def first_layers(model: ModelProto) -> set[str]:
    """Names of the weighted layers that read the input and nothing of another weighted layer."""
    weighted = {node.name for node in weighted_layers(model)}
    behind_one: set[str] = set()
    first = set()
    for node in model.graph.node:
        later = bool(behind_one & set(node.input))
        if node.name in weighted and not later:
            first.add(node.name)
        if node.name in weighted or later:
            behind_one.update(node.output)
    return first


def attention_layers(model: ModelProto) -> set[str]:
    """Names of the weighted layers that feed a product of two activations, or read its result."""
    weighted = {node.name for node in weighted_layers(model)}
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.name not in weighted]
    feeding = {name for node in products for name in node.input}
    chosen = set()
    for node in reversed(model.graph.node):
        if feeding & set(node.output):
            feeding.update(node.input)
            chosen |= {node.name} & weighted
    # Forwards, up to the first weighted layer on each way.
    reading = {name for node in products for name in node.output}
    for node in model.graph.node:
        if reading & set(node.input):
            if node.name in weighted:
                chosen.add(node.name)
            else:
                reading.update(node.output)
    return chosen


def quantise(model: bytes, calibration: FloatArray, recipe: Recipe) -> QuantisedModel:
    """Quantise a float32 graph after training.

    Parameters
    ----------
    model
        ONNX with one input, float32 throughout.
    calibration
        Inputs that the activations' ranges are taken from; not used for validation or testing.

    Raises
    ------
    QuantisationError
        If nothing is left to quantise, or a layer that should be INT8 is not.
    """
    if calibration.size == 0 or calibration.max() == calibration.min():
        raise QuantisationError(
            f"the {len(calibration)} calibration items hold no contrast; specify real data"
        )
    proto = onnx.load_from_string(equalise(model, calibration) if recipe.equalised else model)
    behind = layers_behind(proto)
    left = [name for name, count in behind.items() if count < recipe.float_layers]
    further: set[str] = set()
    if recipe.float_first:
        further |= first_layers(proto)
    if recipe.float_attention:
        further |= attention_layers(proto)
    if recipe.float_dense:
        further |= {n.name for n in weighted_layers(proto) if n.op_type in ("Gemm", "MatMul")}
    left += sorted(further - set(left), key=list(behind).index)
    chosen = [name for name in behind if name not in left]
    if not chosen:
        raise QuantisationError(
            f"the network has {len(behind)} weighted layers and {len(left)} stay float, "
            "so none is left for INT8; export it with a hidden layer more"
        )
    result = _quantize_static(proto, calibration, recipe, chosen)
    _check_quantised(onnx.load_from_string(result), chosen)
    return QuantisedModel(result, recipe, tuple(chosen), tuple(left))


def _quantize_static(
    proto: ModelProto, calibration: FloatArray, recipe: Recipe, chosen: Sequence[str]
) -> bytes:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    method = CalibrationMethod.MinMax
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        # TensorRT takes no quantised bias.
        "QuantizeBias": False,
        "DedicatedQDQPair": True,
        # Float weights with Q and DQ behind them: one graph for TensorRT 8 to 11.
        "AddQDQPairToWeight": True,
        "OpTypesToExcludeOutputQuantization": sorted(WEIGHTED),
    }
    if recipe.calibration.startswith("percentile-"):
        method = CalibrationMethod.Percentile
        options["CalibPercentile"] = float(recipe.calibration.removeprefix("percentile-"))
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        # quantize_static reads and writes files only.
        source.write_bytes(proto.SerializeToString())
        quantize_static(
            source,
            target,
            _CalibrationReader(proto.graph.input[0].name, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            op_types_to_quantize=sorted(WEIGHTED),
            nodes_to_quantize=list(chosen),
            extra_options=options,
        )
        quantised = onnx.load(str(target), load_external_data=False)
    _keep_input_for_others(quantised, chosen)
    if recipe.int8_resize:
        _round_before_resize(quantised)
    quantised.ClearField("metadata_props")
    return bytes(quantised.SerializeToString(deterministic=True))


def _keep_input_for_others(proto: ModelProto, chosen: Sequence[str]) -> None:
    """Let layers that stay float read the graph's input itself, where others read it in INT8."""
    name = proto.graph.input[0].name
    readers = [node for node in proto.graph.node if name in node.input]
    integers = {node.output[0] for node in readers if node.op_type == "QuantizeLinear"}
    rounded = {n.output[0] for n in proto.graph.node if integers & set(n.input)}
    for node in proto.graph.node:
        if node.name not in chosen:
            for slot, source in enumerate(node.input):
                if source in rounded:
                    node.input[slot] = name


def _round_before_resize(proto: ModelProto) -> None:
    """Put the Q/DQ pair behind a resize in front of it too: its range is no larger there."""
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        behind = readers.get(node.output[0], [])
        if node.op_type == "Resize" and [n.op_type for n in behind] == ["QuantizeLinear"]:
            # Of one tensor and for one reader, so that a runtime can fuse it with what is before.
            integer, rounded = (f"{node.input[0]}_{node.name}_{n}" for n in ("integer", "rounded"))
            grid = behind[0].input[1:]
            nodes += [
                helper.make_node("QuantizeLinear", [node.input[0], *grid], [integer]),
                helper.make_node("DequantizeLinear", [integer, *grid], [rounded]),
            ]
            node.input[0] = rounded
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


class _CalibrationReader:
    """Feeds the items to onnxruntime's calibrator, which asks through `get_next`.

    In one batch: its percentile calibration fails where the last batch is shorter.
    """

    def __init__(self, name: str, items: FloatArray) -> None:
        self._name = name
        self._batches = iter([items])

    def get_next(self) -> Mapping[str, FloatArray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _check_quantised(proto: ModelProto, chosen: Sequence[str]) -> None:
    """Fail when a layer lacks a Q/DQ pair on its data or weight, or is not symmetric."""
    producer = {name: node for node in proto.graph.node for name in node.output}
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    for name in chosen:
        for slot in (0, 1):
            source = producer.get(nodes[name].input[slot]) if name in nodes else None
            if source is None or source.op_type != "DequantizeLinear":
                raise QuantisationError(
                    f"layer {name} is not INT8 at its input {slot}: the quantiser left it float; "
                    "leave it float on purpose or report this network"
                )
            scale, zero = constants[source.input[1]], constants[source.input[2]]
            if np.any(zero != 0) or not np.all(np.isfinite(scale) & (scale > 0)):
                raise QuantisationError(
                    f"layer {name} has a scale that is not positive or a zero point that is not "
                    "0 at its input; report this network"
                )


def run_onnx(model: bytes, items: FloatArray, batch: int = 4096) -> FloatArray:
    """Run a graph as written, with every optimisation off.

    For Q/DQ this is pure fake quantisation: the reference that an INT8 engine is checked against.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # 3 is ERROR.
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: items[at : at + batch]})[0] for at in range(0, len(items), batch)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 0, 0), np.float32)


def recipes(**kind: bool) -> Iterator[Recipe]:
    """Yield the recipes of one kind that `export` tries, those with more INT8 first."""
    for float_layers in (1, 2):
        for calibration in ("minmax", "percentile-99.99", "percentile-99.9"):
            yield Recipe(calibration, float_layers, **kind)
