"""The smallest model that fits a bundle: one linear layer in three precisions.

`make_committed.py` and the tests of the bundle build with it; it needs numpy and onnx alone.
"""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgexnas.bundle import (
    AccuracyRow,
    BraggPreprocessing,
    Distribution,
    Gate,
    IntervalCalibration,
    Manifest,
    MeasuredLatency,
    ModelCard,
    PeakDetection,
    Precision,
    Provenance,
    Quantisation,
    QuantisationRecipe,
    Tensor,
    TrainingData,
)

WEIGHT = np.random.default_rng(0).normal(0, 0.02, (6, 121)).astype(np.float32)
BIAS = np.array([-0.1, 0.0, 0.1, -0.1, 0.0, 0.1], np.float32)


def tiny_graph(
    nodes: list[NodeProto], initialisers: dict[str, npt.NDArray[np.generic]]
) -> ModelProto:
    """Wrap nodes from "flat" (n, 121) to "answer" (n, 6) as a model of patches to offsets."""
    constants = {"shape": np.array([-1, 2, 3], np.int64), **initialisers}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["patches"], ["flat"]),
            *nodes,
            helper.make_node("Reshape", ["answer", "shape"], ["offsets_px"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["n", 1, 11, 11])],
        [helper.make_tensor_value_info("offsets_px", TensorProto.FLOAT, ["n", 2, 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9, producer_name="tiny")


def float32_model() -> ModelProto:
    gemm = helper.make_node("Gemm", ["flat", "weight", "bias"], ["answer"], transB=1)
    return tiny_graph([gemm], {"weight": WEIGHT, "bias": BIAS})


def float16_model() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["flat"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", ["half", "weight", "bias"], ["half_answer"], transB=1),
        helper.make_node("Cast", ["half_answer"], ["answer"], to=TensorProto.FLOAT),
    ]
    return tiny_graph(nodes, {"weight": WEIGHT.astype("f2"), "bias": BIAS.astype("f2")})


def int8_model() -> ModelProto:
    scale = {"x_scale": np.float32(1 / 127), "w_scale": np.float32(np.abs(WEIGHT).max() / 127)}
    nodes = []
    for source, kind in (("flat", "x"), ("weight", "w")):
        rounding = [f"{kind}_scale", "zero"]
        nodes += [
            helper.make_node("QuantizeLinear", [source, *rounding], [f"{kind}_q"]),
            helper.make_node("DequantizeLinear", [f"{kind}_q", *rounding], [f"{kind}_dq"]),
        ]
    nodes.append(helper.make_node("Gemm", ["x_dq", "w_dq", "bias"], ["answer"], transB=1))
    arrays = {name: np.array(value) for name, value in scale.items()}
    zero = np.array(0, np.int8)
    return tiny_graph(nodes, {"weight": WEIGHT, "bias": BIAS, "zero": zero, **arrays})


def tiny_models() -> dict[Precision, bytes]:
    """Build the three ONNX files."""
    return {
        "float32": float32_model().SerializeToString(),
        "float16": float16_model().SerializeToString(),
        "int8": int8_model().SerializeToString(),
    }


def tiny_reference() -> dict[str, npt.NDArray[np.float32]]:
    """Compute 8 reference inputs in [0, 1] and the float32 outputs."""
    patches = np.random.default_rng(1).random((8, 1, 11, 11), np.float32)
    offsets = patches.reshape(8, 121) @ WEIGHT.T + BIAS
    return {"input": patches, "output": offsets.reshape(8, 2, 3)}


def tiny_manifest() -> Manifest:
    """Describe the tiny model with every field filled in."""
    return Manifest(
        task="bragg",
        model_id="tiny-bragg",
        sequence=3,
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        expires=datetime(2100, 1, 1, tzinfo=timezone.utc),
        architecture="linear",
        parameters=732,
        quantile_levels=(0.05, 0.5, 0.95),
        inputs=(
            Tensor(
                name="patches",
                shape=("n", 1, 11, 11),
                unit="1",
                axes=("patch", "channel", "row", "col"),
            ),
        ),
        outputs=(
            Tensor(
                name="offsets_px",
                shape=("n", 2, 3),
                unit="px",
                axes=("patch", "row or col", "quantile"),
            ),
        ),
        preprocessing=BraggPreprocessing(),
        accuracy=(
            AccuracyRow(name="model", precision="float32", against="fit", n=100, mean_px=0.2),
            AccuracyRow(name="constant", against="fit", n=100, mean_px=0.4, p95_px=0.6),
        ),
        quantisation=Quantisation(
            method="ptq",
            calibration_method="minmax",
            float_layers=(),
            quantised_layers=("Gemm",),
            calibration_items=8,
            calibration_digest="0" * 64,
            loss_fraction=0.05,
        ),
        gate=Gate(unit="px", float32=0.001, float16=0.01, int8=0.05),
        provenance=Provenance(
            search="cbo",
            trial=7,
            seed=0,
            data_digest="1" * 64,
            data_source="random numbers",
            configuration={"layers": 1, "activation": None, "learning_rate": 1e-3},
            versions={"edgexnas": "0.1.0"},
        ),
        detection=PeakDetection(saturation=65000.0, minimum_counts=12.0, threshold_sigma=6.0),
        interval_calibration=IntervalCalibration(
            level=0.9,
            snr_edges=(10.0, 30.0),
            width_edges_px=(2.0,),
            factors=((1.5, 1.4), (1.2, 1.1), (1.0, 0.9)),
            counts=((200, 300), (400, 500), (600, 0)),
        ),
        training_data=TrainingData(
            n=2000,
            quantities=(
                Distribution(
                    name="width", unit="px", levels=(0.01, 0.5, 0.99), quantiles=(1, 2, 4), n=1990
                ),
            ),
        ),
        quantisation_recipe=QuantisationRecipe(
            placement="weights-and-activations",
            per_channel=True,
            float_first_layer=True,
            float_last_layer=True,
            latencies=(
                MeasuredLatency(
                    precision="int8", batch=32, median_ms=0.12, engine="trt 10.3", device="Orin"
                ),
            ),
        ),
        model_card=ModelCard(
            intended_use="Tests.", limits="Everything else.", licence="MIT", contact="nobody"
        ),
    )
