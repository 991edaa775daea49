"""Signed bundles of the networks that GPU benchmarks time, with random weights.

    python device/gpu_bundles.py --output bundles
    python device/gpu_bundles.py --output bundles --networks PtychoNN --rewrites taps-first

Writes `NAME.edgex` or `NAME--REWRITE.edgex` for each network and a key to trust in the folder
`keys`. Arithmetic and time do not depend on the weights; these are float16 numbers in every
precision, so that the folder packs well.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from edgexnas.bragg import scale_patches
from edgexnas.bundle import (
    BraggPreprocessing,
    Manifest,
    Precision,
    Provenance,
    PtychoPreprocessing,
    generate_keys,
    write_bundle,
)
from edgexnas.host.exporting.rewrites import REWRITES, rewritten
from edgexnas.host.networks.bragg_models import (
    LEVELS,
    BraggNN,
    CnnBragg,
    MlpBragg,
    count_parameters,
)
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_mirrored, mlp_bragg_symmetric
from edgexnas.testing import gaussian_patches

NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "mlpBragg-50x5": ("bragg", lambda: MlpBragg(50, 5)),
    "mlpBraggSymmetric-23x3": ("bragg", lambda: mlp_bragg_symmetric(23, 3)),
    "mlpBraggMirrored-24x2": ("bragg", lambda: mlp_bragg_mirrored(24, 2)),
    "cnnBragg-16x4": ("bragg", lambda: CnnBragg(16, 4)),
    "cnnBragg-16x12": ("bragg", lambda: CnnBragg(16, 12)),
    "BraggNN": ("bragg", BraggNN),
    "mlpPtycho-256x2": ("ptycho", lambda: MlpPtycho(256, 2)),
    "cnnPtycho-32x6-4-4": ("ptycho", lambda: CnnPtycho(32, 6, 4, 4)),
    "PtychoNN": ("ptycho", PtychoNN),
}
"""Those of docs/results/int8-plans.md and one more; each with its application."""


NAMES = {"bragg": ("patches", "offsets_px"), "ptycho": ("patterns", "object")}
"""Of the tensors, by application."""

SHAPES = {"bragg": (1, 11, 11), "ptycho": (1, 64, 64)}
"""Of one item of the input, by application."""


def build_network(name: str) -> nn.Module:
    """Build a network with the weights that its bundle has."""
    torch.manual_seed(0)
    network = NETWORKS[name][1]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    return network


def write(name: str, folder: Path, signing_key: Path, change: str | None = None) -> Path:
    """Export one network in three precisions; the gate is that of `edgexnas export`."""
    # Imported late: who only builds the networks needs no quantiser.
    from edgexnas.host.exporting.bundling import make_bundling
    from edgexnas.host.exporting.onnx_export import to_onnx
    from edgexnas.host.exporting.quantisation import Recipe, quantise, run_onnx

    task, network = NETWORKS[name][0], rewritten(build_network(name), change)
    stem = name if change is None else f"{name}--{change}"
    inputs = example_inputs(task)
    first, last = NAMES[task]
    example = torch.from_numpy(inputs)
    single = to_onnx(network, example, input_name=first, output_name=last)
    models: dict[Precision, bytes] = {
        "float32": single,
        "float16": to_onnx(network, example, half=True, input_name=first, output_name=last),
        "int8": quantise(single, inputs, Recipe()).model,
    }
    bundling = make_bundling(task, LEVELS if task == "bragg" else ())
    outputs = {precision: run_onnx(model, inputs, 64) for precision, model in models.items()}
    tensors = bundling.tensors()
    preprocessing: dict[str, BraggPreprocessing | PtychoPreprocessing] = {
        "bragg": BraggPreprocessing(),
        "ptycho": PtychoPreprocessing(intensity_scale=10_000.0),
    }
    manifest = Manifest(
        task=bundling.task,
        model_id=stem,
        architecture=name.partition("-")[0],
        parameters=count_parameters(network),
        quantile_levels=bundling.levels,
        sequence=1,
        created=datetime.now(timezone.utc),
        inputs=tensors[:1],
        outputs=tensors[1:],
        preprocessing=preprocessing[task],
        gate=bundling.gate(outputs),
        accuracy=(),
        provenance=Provenance(
            seed=0, data_digest="0" * 64, data_source="none", configuration={}, versions={}
        ),
    )  # fmt: skip
    reference = {"input": inputs, "output": outputs["float32"]}
    path = folder / f"{stem}.edgex"
    return write_bundle(
        path, manifest=manifest, models=models, reference=reference, signing_key=signing_key
    )


def example_inputs(task: str) -> np.ndarray:
    """Spots, or smooth patterns of few different values, as float32."""
    if task == "bragg":
        return np.asarray(scale_patches(gaussian_patches(256))[:, None], np.float32)
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:64, :64].astype(np.float32) - 31.5
    widths = random.uniform(3, 20, (16, 1, 1)).astype(np.float32)
    spots = np.exp(-(rows**2 + cols**2) / (2 * widths**2))
    speckle = random.integers(1, 17, (16, 64, 64)).astype(np.float32) / 16
    return np.ascontiguousarray((spots * speckle)[:, None], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rewrites", nargs="+", choices=REWRITES, default=[None])
    options = parser.parse_args()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    keys = options.output / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as private:
        # The private key is gone afterwards: these bundles are for one benchmark.
        signing_key, _ = generate_keys(keys, name="benchmark", private=Path(private))
        for name, change in itertools.product(options.networks, options.rewrites):
            path = write(name, options.output, signing_key, change)
            print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
