"""What runs in INT8 in a TensorRT plan of each network: docs/results/int8-plans.md.

    python host/bench_plans.py > docs/results/int8-plans.md

Exports every network with random weights, quantises it, and builds float16 and INT8 plans for SM86
(close to the Orin's SM87) with TensorRT-RTX, which needs no GPU for it. x86-64 only.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from edgexnas.device import Plan, build_plan
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg, count_parameters
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_symmetric

PATCH, PATTERN = (1, 11, 11), (1, 64, 64)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlpBragg 50×5": (lambda: MlpBragg(50, 5), PATCH),
    "mlpBraggSymmetric 23×3": (lambda: mlp_bragg_symmetric(23, 3), PATCH),
    "cnnBragg 16×12": (lambda: CnnBragg(16, 12), PATCH),
    "BraggNN": (BraggNN, PATCH),
    "mlpPtycho 256×2": (lambda: MlpPtycho(256, 2), PATTERN),
    "cnnPtycho 32×6+4+4": (lambda: CnnPtycho(32, 6, 4, 4), PATTERN),
    "PtychoNN": (PtychoNN, PATTERN),
}


def products(plan: Plan, names: set[str]) -> Counter[str]:
    """Count the weighted layers by what they multiply: of TensorRT's layers, "kgen" is the rest."""
    counts: Counter[str] = Counter()
    for name in names:
        inputs = {
            dtype
            for layer in plan.layers
            if layer.kind != "kgen" and name in layer.nodes
            for dtype in layer.inputs
        }
        counts["+".join(sorted(inputs)) or "in a generated kernel"] += 1
    return counts


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    logging.disable()
    rows = []
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        network: nn.Module = build().eval()
        inputs = torch.rand(16, *shape)
        int8 = quantise(to_onnx(network, inputs), inputs.numpy(), Recipe())
        models = {"float16": to_onnx(network, inputs, half=True), "int8": int8.model}
        plans = {
            precision: build_plan(model, batch_sizes=[32], compute_capability="SM86")
            for precision, model in models.items()
        }
        chosen, left = (
            products(plans["int8"], set(names)) for names in (int8.quantised, int8.left_float)
        )
        sizes = " / ".join(f"{len(plan.data) / 2**20:.1f}" for plan in plans.values())
        rows.append(
            f"| {name} | {count_parameters(network):,} | {said(chosen)} | {said(left)} "
            f"| {len(plans['float16'].int8_layers)} | {sizes} |"
        )
    version = f"{plans['int8'].library} {plans['int8'].version}"
    lines = [
        "# What multiplies INT8 in a plan",
        "",
        f"`python host/bench_plans.py > docs/results/int8-plans.md`: {version} builds for SM86 on "
        "an x86-64 CPU, batch 32; **nothing of this has run on a GPU**. Weights are random: which "
        "layer runs in which arithmetic does not depend on them. The report is the builder's own "
        "list of layers; a layer counts for what its inputs are.",
        "",
        "| network | parameters | layers that should be INT8 | heads, float by design "
        "| INT8 layers of the float16 plan | plan, MiB (float16 / INT8) |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "The smallest heads are computed inside a generated kernel, in float32. The INT8 plan is "
        "the larger one for every network here; whether it is the faster one is what "
        '`precision="auto"` measures on the device.',
        "",
    ]
    print("\n".join(lines), end="")


if __name__ == "__main__":
    main()
