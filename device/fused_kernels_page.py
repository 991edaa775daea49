"""What the fused engine's kernels take of an Orin and of a Hopper GPU, and what an Orin may need.

    python device/fused_kernels_page.py --output docs/results

Needs nvcc of the CUDA toolkit, torch and no GPU: kernels are compiled and not run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgexnas.device.engines.fused.engine import KERNEL, SOURCE
from edgexnas.device.engines.fused.graph import read_network
from edgexnas.device.engines.fused.program import write_program
from edgexnas.device.kernels.compilation import kernel_resources
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise
from edgexnas.host.measuring.cost_model import CostModel, NetworkCost, count_cost
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_mirrored, mlp_bragg_symmetric
from edgexnas.whole_files import write_whole

PATCH = (1, 11, 11)
BATCH = 32
GPUS = {"87": ("Jetson AGX Orin", 163 << 10, 164 << 10), "90": ("H200", 227 << 10, 228 << 10)}
"""Compute capability → name, shared memory of a block and of a multiprocessor in bytes."""

RESERVED_BYTES = 1024
REGISTERS = 65536

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "mlpBragg 50×5": lambda: MlpBragg(50, 5),
    "mlpBraggSymmetric 30×3": lambda: mlp_bragg_symmetric(30, 3),
    "mlpBraggMirrored 24×2": lambda: mlp_bragg_mirrored(24, 2),
    "cnnBragg 16×4": lambda: CnnBragg(16, 4),
    "BraggNN": BraggNN,
}

Row = dict[str, Any]


def rows() -> list[Row]:
    """Compile each network for each GPU."""
    found = []
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        network = make().eval()
        example = torch.rand(4, *PATCH)
        float32 = to_onnx(network, example)
        calibration = np.random.default_rng(0).random((64, *PATCH), np.float32)
        models = {
            "float16": to_onnx(network, example, half=True),
            "int8": quantise(float32, calibration, Recipe()).model,
        }
        for precision, model in models.items():
            for capability, (gpu, block, whole) in GPUS.items():
                program = write_program(read_network(model), block)
                (kernel,) = kernel_resources(
                    SOURCE, capability, program.definitions, appended=program.source
                )
                assert kernel.name == KERNEL
                blocks = min(
                    whole // (program.shared_bytes + RESERVED_BYTES),
                    REGISTERS // (kernel.registers * program.threads),
                )
                found.append(
                    {
                        "network": name, "precision": precision, "GPU": gpu, "SM": capability,
                        "registers": kernel.registers, "spilled bytes": kernel.spilled_bytes,
                        "shared bytes": program.shared_bytes, "threads": program.threads,
                        "items a block": program.items, "blocks a multiprocessor": blocks,
                    }
                )  # fmt: skip
    return found


def estimate_ms(cost: NetworkCost, model: CostModel) -> float:
    """Estimate one launch for a batch: activations stay on the chip, weights are read once."""
    arithmetic = cost.macs * BATCH / model.rate_macs_per_ms
    memory = sum(layer.weights for layer in cost.layers) / model.bandwidth_bytes_per_ms
    return model.overhead_ms + model.launch_ms + max(arithmetic, memory)


def estimates() -> list[Row]:
    """Estimate latencies on an Orin, layer by layer and fused."""
    model = CostModel()
    found = []
    for name, make in NETWORKS.items():
        cost = count_cost(make(), PATCH)
        found.append(
            {
                "network": name,
                "layer by layer ms": round(model.latency_ms(cost, BATCH), 4),
                "fused ms": round(estimate_ms(cost, model), 4),
                "of these host ms": model.overhead_ms,
            }
        )
    return found


def page(found: dict[str, list[Row]]) -> str:
    """Write the page."""
    lines = [
        "# Kernels of the fused engine",
        "",
        "`python device/fused_kernels_page.py --output docs/results`: compiled by nvcc, not run.",
        "",
        "| network | precision | GPU | registers | spilled | shared bytes | threads | patches a "
        "block | blocks a multiprocessor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['precision']} | {row['GPU']} | {row['registers']} | "
        f"{row['spilled bytes']} | {row['shared bytes']} | {row['threads']} | "
        f"{row['items a block']} | {row['blocks a multiprocessor']} |"
        for row in found["kernels"]
    ]
    lines += [
        "",
        "## What an Orin may need: an estimate",
        "",
        "INT8, batch 32, by the cost model, which is fitted to the paper's Table 2 (0.17 ms for "
        "its optimised network); no Orin was measured. Fused is one launch, with activations on "
        "the chip and weights read once, at the rate of the fit. Most of either is the host's "
        "share, which a CUDA graph and shared memory lower and the model does not know.",
        "",
        "| network | layer by layer, ms | fused, ms | of these the host, ms |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['layer by layer ms']:.3f} | {row['fused ms']:.3f} | "
        f"{row['of these host ms']:.3f} |"
        for row in found["estimates"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the page")
    options = parser.parse_args()
    found = {"kernels": rows(), "estimates": estimates()}
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    options.output.mkdir(parents=True, exist_ok=True)
    write_whole(options.output / "fused-kernels.json", text.encode())
    write_whole(options.output / "fused-kernels.md", page(found).encode())


if __name__ == "__main__":
    main()
