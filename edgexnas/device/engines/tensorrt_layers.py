"""What a built TensorRT plan computes in which arithmetic, read from TensorRT's own reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["PlanLayer", "layers_from_inspector", "layers_from_log"]

HEADING = "Layers:"
"""First line of the message in which a builder lists the layers of the plan it built."""

_DTYPES = {
    "int8": "int8",
    "half": "float16",
    "fp16": "float16",
    "float": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp8": "float8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_DTYPE_WORD = re.compile(rf"\b({'|'.join(_DTYPES)})\b", re.IGNORECASE)
_LOG_DTYPE = re.compile(r"Datatype: (\w+)")
_LOG_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)")
_LOG_SECTION = re.compile(r"(?:^|, )(Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(r" \[profile \d+\]$")


@dataclass(frozen=True, slots=True)
class PlanLayer:
    """One layer of a plan, as TensorRT fused it.

    Attributes
    ----------
    name
        TensorRT's name of the layer; it tells the optimisation profile beyond the first.
    kind
        TensorRT's word for it: "gemm", "conv", "kgen" (a generated kernel), ...
    inputs
        dtype of each input, such as "int8" or "float32".
    outputs
        dtype of each output.
    nodes
        Names of the ONNX nodes that the layer computes, as far as TensorRT tells.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def int8(self) -> bool:
        """Whether the layer reads INT8 values."""
        return "int8" in self.inputs


def layers_from_inspector(report: str) -> tuple[PlanLayer, ...]:
    """Read the JSON of TensorRT's engine inspector, as TensorRT 8 to 11 write it.

    Layers that a plan without detailed profiling gives by name only are left out. A report that
    is not such JSON gives no layers.
    """
    try:
        # TensorRT 8.6 leaves control characters in its strings as they are.
        content = json.loads(report, strict=False)
    except ValueError:
        return ()
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        return ()
    return tuple(_inspected(layer) for layer in layers if isinstance(layer, dict))


def _inspected(layer: Mapping[str, object]) -> PlanLayer:
    name = str(layer.get("Name", ""))
    if "Metadata" in layer:
        nodes = _ONNX_NODE.findall(str(layer["Metadata"]))
    else:
        # TensorRT 8.5 tells the nodes by the layer's name alone: "dense.0.weight + /fc/Gemm".
        nodes = _PROFILE.sub("", name).split(" + ")
    return PlanLayer(
        name=name,
        kind=str(layer.get("LayerType", "")),
        inputs=_tensor_dtypes(layer.get("Inputs")),
        outputs=_tensor_dtypes(layer.get("Outputs")),
        nodes=tuple(nodes),
    )


def _tensor_dtypes(tensors: object) -> tuple[str, ...]:
    """Dtype of each tensor: up to TensorRT 10 "Format/Datatype", in TensorRT 11 "Datatype"."""
    if not isinstance(tensors, list):
        return ()
    described = (tensor for tensor in tensors if isinstance(tensor, dict))
    return _dtypes(
        str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))) for tensor in described
    )


def layers_from_log(message: str) -> tuple[PlanLayer, ...]:
    """Read the builder's own list of layers, a message that starts with "Layers:".

    It serves where no inspector can: a plan for another GPU cannot be loaded to be inspected.
    Lines of another form are left out, and any other message gives no layers.
    """
    heading, _, body = message.partition("\n")
    if heading.strip() != HEADING:
        return ()
    return tuple(_logged(match) for line in body.splitlines() if (match := _LOG_LAYER.match(line)))


def _logged(match: re.Match[str]) -> PlanLayer:
    # Splitting at a group gives: what precedes, then heading and content by turns.
    parts = _LOG_SECTION.split(match["rest"])
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return PlanLayer(
        name=match["name"],
        kind=match["kind"],
        inputs=_dtypes(_LOG_DTYPE.findall(sections.get("Inputs", ""))),
        outputs=_dtypes(_LOG_DTYPE.findall(sections.get("Outputs", ""))),
        nodes=tuple(_ONNX_NODE.findall(sections.get("Metadata", ""))),
    )


def _dtypes(descriptions: Iterable[str]) -> tuple[str, ...]:
    found = (_DTYPE_WORD.search(text) for text in descriptions)
    # Not an error: a new TensorRT may have new names, and a report must not cost the engine.
    return tuple(_DTYPES[match[1].lower()] if match else "unknown" for match in found)
