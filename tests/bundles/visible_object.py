"""A ptychography bundle whose answers are known: the object is visible in the patterns.

One 1×1 convolution shows a pattern x, scaled, as the amplitude x and the phase 2·x - 1 rad.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgexnas.bundle import (
    Gate,
    Manifest,
    Precision,
    Provenance,
    PtychoPreprocessing,
    Tensor,
    write_bundle,
)
from edgexnas.scans import Scan

FloatArray = npt.NDArray[np.float32]

INTENSITY_SCALE = 10_000.0
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
WEIGHT = np.array([1.0, 2.0], np.float32).reshape(2, 1, 1, 1)
BIAS = np.array([0.0, -1.0], np.float32)


def visible_network(inputs: FloatArray) -> FloatArray:
    """(n, 1, 64, 64) scaled patterns → (n, 2, 64, 64), what the model computes."""
    return np.concatenate([inputs, 2 * inputs - 1], axis=1)


def visible_model(precision: Precision = "float32") -> bytes:
    """ONNX file of `visible_network`."""
    constants: dict[str, Any] = {"weight": WEIGHT, "bias": BIAS}
    half = np.float16 if precision == "float16" else np.float32
    constants = {name: value.astype(half) for name, value in constants.items()}
    nodes, data, weight = [], "patterns", "weight"
    if precision == "float16":
        data = "half"
        nodes = [helper.make_node("Cast", ["patterns"], [data], to=TensorProto.FLOAT16)]
    elif precision == "int8":
        data, weight = "patterns_dq", "weight_dq"
        constants |= {"zero": np.int8(0)}
        for source, step in (("patterns", 1 / 127), ("weight", 2 / 126)):
            constants[f"{source}_step"] = np.float32(step)
            rounding = [f"{source}_step", "zero"]
            nodes += [
                helper.make_node("QuantizeLinear", [source, *rounding], [f"{source}_q"]),
                helper.make_node("DequantizeLinear", [f"{source}_q", *rounding], [f"{source}_dq"]),
            ]
    nodes += [
        helper.make_node("Conv", [data, weight, "bias"], ["answer"]),
        helper.make_node("Cast", ["answer"], ["object"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "visible",
        [helper.make_tensor_value_info("patterns", TensorProto.FLOAT, ["n", 1, 64, 64])],
        [helper.make_tensor_value_info("object", TensorProto.FLOAT, ["n", 2, 64, 64])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def visible_manifest(**changes: Any) -> Manifest:
    axes = ("pattern", "channel", "row", "col")
    fields: dict[str, Any] = {
        "task": "ptycho",
        "model_id": "visible",
        "sequence": 1,
        "created": datetime(2025, 1, 1, tzinfo=timezone.utc),
        "architecture": "visible",
        "parameters": 4,
        "inputs": (Tensor(name="patterns", shape=("n", 1, 64, 64), unit="1", axes=axes),),
        "outputs": (Tensor(name="object", shape=("n", 2, 64, 64), unit="1 and rad", axes=axes),),
        "preprocessing": PtychoPreprocessing(intensity_scale=INTENSITY_SCALE),
        "accuracy": (),
        "gate": Gate(unit="rad", float32=1e-4, float16=0.01, int8=0.02),
        "provenance": Provenance(
            seed=0, data_digest="0" * 64, data_source="tests", configuration={}, versions={}
        ),
    }
    return Manifest(**(fields | changes))


def write_visible_bundle(path: Path, *, signing_key: Path, **changes: Any) -> Path:
    """Write the bundle; fields of the manifest can be given."""
    inputs = np.random.default_rng(1).uniform(0.1, 0.9, (8, 1, 64, 64)).astype(np.float32)
    return write_bundle(
        path,
        manifest=visible_manifest(**changes),
        models={precision: visible_model(precision) for precision in PRECISIONS},
        reference={"input": inputs, "output": visible_network(inputs)},
        signing_key=signing_key,
    )


def visible_object(shape: tuple[int, int] = (100, 118)) -> npt.NDArray[np.complex64]:
    """(H, W) complex64 that the network shows: the phase is 2 · amplitude - 1 rad."""
    row, col = np.mgrid[: shape[0], : shape[1]]
    amplitude = 0.5 + 0.3 * np.sin(row / 9) * np.cos(col / 7)
    return (amplitude * np.exp(1j * (2 * amplitude - 1))).astype(np.complex64)


def visible_scan(*, step: int = 9) -> Scan:
    """Raster scan of `visible_object`: 35 float32 patterns at whole-pixel positions."""
    seen = visible_object()
    rows, cols = (np.arange(0, length - 63, step) for length in seen.shape)
    positions = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    windows = [np.abs(seen[row : row + 64, col : col + 64]) for row, col in positions]
    patterns = INTENSITY_SCALE * np.square(np.stack(windows))
    return Scan(patterns=patterns, positions_px=positions.astype(np.float64), source="visible")
