"""Every network of the search spaces and both baselines, exported and built for an Orin-like GPU.

TensorRT-RTX builds for SM86 without a GPU; its layer report shows what runs in which arithmetic.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache

import onnx
import pytest
import torch

from edgexnas.device import Plan, PlanLayer, build_plan
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise, weighted_layers
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_mirrored, mlp_bragg_symmetric

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX exists for x86-64 only"
)

PATCH, PATTERN = (1, 11, 11), (1, 64, 64)

NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "mlpBragg": (lambda: MlpBragg(24, 3), PATCH),
    "mlpBraggSymmetric": (lambda: mlp_bragg_symmetric(24, 3), PATCH),
    "mlpBraggMirrored": (lambda: mlp_bragg_mirrored(24, 3), PATCH),
    # From 9 layers on with skips.
    "cnnBragg": (lambda: CnnBragg(8, 9), PATCH),
    "BraggNN": (BraggNN, PATCH),
    "mlpPtycho": (lambda: MlpPtycho(16, 2), PATTERN),
    "cnnPtycho": (lambda: CnnPtycho(8, 3, 2, 2), PATTERN),
    "PtychoNN": (lambda: PtychoNN(8), PATTERN),
}

QUICK = ("mlpBragg", "mlpBraggSymmetric", "cnnPtycho")


@cache
def network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return build().eval(), torch.rand(8, *shape)


def plan_of(model: bytes) -> Plan:
    return build_plan(model, batch_sizes=[32], compute_capability="SM86")


def multiplied(model: bytes) -> set[str]:
    """Names of the layers that multiply by weights; a weight may be behind Q/DQ or a cast."""
    proto = onnx.load_from_string(model)
    return {node.name for node in weighted_layers(proto)}


def products(plan: Plan) -> list[PlanLayer]:
    """Layers of TensorRT's that multiply: "gemm", "correlation", ...; "kgen" ones are the rest."""
    return [layer for layer in plan.layers if layer.kind != "kgen"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_that_should_be_int8_multiplies_int8_and_no_head_does(name: str) -> None:
    model, inputs = network(name)
    exported = to_onnx(model, inputs)
    int8 = quantise(exported, inputs.numpy(), Recipe())
    assert set(int8.quantised) | set(int8.left_float) == multiplied(exported)
    plan = plan_of(int8.model)
    in_int8 = {node for layer in products(plan) if layer.int8 for node in layer.nodes}
    in_float = {node for layer in products(plan) if not layer.int8 for node in layer.nodes}
    assert set(int8.quantised) <= in_int8 - in_float
    assert not set(int8.left_float) & {node for layer in plan.int8_layers for node in layer.nodes}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in NETWORKS],
)
def test_a_float16_model_multiplies_in_float16_alone(name: str) -> None:
    model, inputs = network(name)
    half = to_onnx(model, inputs, half=True)
    plan = plan_of(half)
    assert multiplied(half) <= {node for layer in plan.layers for node in layer.nodes}
    multiplying = [layer for layer in products(plan) if multiplied(half) & set(layer.nodes)]
    assert {dtype for layer in multiplying for dtype in layer.inputs} == {"float16"}
    assert not plan.int8_layers
