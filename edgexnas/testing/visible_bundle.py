"""A ptychography bundle whose answers are known: the object is visible in the patterns.

One 1×1 convolution shows a pattern x, scaled, as the amplitude x and the phase 2·x - 1 rad.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bundle import (
    Gate,
    Manifest,
    Precision,
    PtychoPreprocessing,
    Tensor,
    describe_probe,
    write_bundle,
)
from edgexnas.scans import Scan
from edgexnas.testing.known_models import known_manifest, onnx_file, quantised

__all__ = [
    "visible_manifest",
    "visible_model",
    "visible_network",
    "visible_object",
    "visible_scan",
    "write_visible_bundle",
]

FloatArray = npt.NDArray[np.float32]

INTENSITY_SCALE = 10_000.0
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
WEIGHT = np.array([1.0, 2.0], np.float32).reshape(2, 1, 1, 1)
BIAS = np.array([0.0, -1.0], np.float32)


def visible_network(inputs: FloatArray) -> FloatArray:
    """(n, 1, 64, 64) scaled patterns → (n, 2, 64, 64), what the model computes."""
    return np.concatenate([inputs, 2 * inputs - 1], axis=1)


def visible_model(precision: Precision = "float32") -> bytes:
    """Write an ONNX file of `visible_network`."""
    half = np.float16 if precision == "float16" else np.float32
    constants: dict[str, Any] = {"weight": WEIGHT.astype(half), "bias": BIAS.astype(half)}
    prepare, inputs = "", "patterns, weight"
    if precision == "float16":
        prepare, inputs = "half = Cast<to=10>(patterns)", "half, weight"
    elif precision == "int8":
        for tensor, step in (("patterns", 1 / 127), ("weight", 2 / 126)):
            constants |= {f"{tensor}_scale": np.float32(step), f"{tensor}_zero": np.int8(0)}
        prepare = f"{quantised('patterns')}\n{quantised('weight')}"
        inputs = "patterns_dq, weight_dq"
    # TensorRT 8 needs the kernel's shape where weights are dequantised.
    graph = f"""
    visible (float[n, 1, 64, 64] patterns) => (float[n, 2, 64, 64] object) {{
        {prepare}
        answer = Conv<kernel_shape = [1, 1]>({inputs}, bias)
        object = Cast<to=1>(answer)
    }}"""
    return onnx_file(graph, constants)


def visible_manifest(**changes: Any) -> Manifest:
    """Describe the bundle; fields can be replaced."""
    axes = ("pattern", "channel", "row", "col")
    fields: dict[str, Any] = {
        "task": "ptycho",
        "model_id": "visible",
        "architecture": "visible",
        "parameters": 4,
        "inputs": (Tensor(name="patterns", shape=("n", 1, 64, 64), unit="1", axes=axes),),
        "outputs": (Tensor(name="object", shape=("n", 2, 64, 64), unit="1 and rad", axes=axes),),
        "preprocessing": PtychoPreprocessing(intensity_scale=INTENSITY_SCALE),
        "gate": Gate(unit="rad", float32=1e-4, float16=0.01, int8=0.02),
    }
    return known_manifest(**(fields | changes))


def write_visible_bundle(
    path: str | Path,
    *,
    signing_key: str | Path,
    probe: npt.NDArray[np.complex64] | None = None,
    **changes: Any,
) -> Path:
    """Write the bundle, signed; `changes` replace fields of its manifest.

    A `probe`, (modes, H, W) complex64, is described in the manifest.
    """
    if probe is not None:
        changes["probe"] = describe_probe(probe)
    inputs = np.random.default_rng(1).uniform(0.1, 0.9, (8, 1, 64, 64)).astype(np.float32)
    return write_bundle(
        path,
        manifest=visible_manifest(**changes),
        models={precision: visible_model(precision) for precision in PRECISIONS},
        reference={"input": inputs, "output": visible_network(inputs)},
        signing_key=signing_key,
        probe=probe,
    )


def visible_object(shape: tuple[int, int] = (100, 118)) -> npt.NDArray[np.complex64]:
    """(H, W) complex64 that the network shows: the phase is 2 · amplitude - 1 rad."""
    row, col = np.mgrid[: shape[0], : shape[1]]
    amplitude = 0.5 + 0.3 * np.sin(row / 9) * np.cos(col / 7)
    return np.asarray(amplitude * np.exp(1j * (2 * amplitude - 1)), np.complex64)


def visible_scan(*, step: int = 9) -> Scan:
    """Scan `visible_object` in a raster of `step` px: 35 float32 patterns at whole pixels."""
    seen = visible_object()
    rows, cols = (np.arange(0, length - 63, step) for length in seen.shape)
    positions = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    windows = [np.abs(seen[row : row + 64, col : col + 64]) for row, col in positions]
    patterns = INTENSITY_SCALE * np.square(np.stack(windows))
    return Scan(patterns=patterns, positions_px=positions.astype(np.float64), source="visible")
