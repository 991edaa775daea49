"""A bundle for Bragg peaks whose network is known: the intensity centroid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, PATCH_SIZE, centroid, scale_patches
from edgexnas.bundle import BraggPreprocessing, Gate, Manifest, Precision, Tensor, write_bundle
from edgexnas.testing.known_models import known_manifest, onnx_file, quantised

__all__ = [
    "SPOTS_PX",
    "centroid_manifest",
    "centroid_model",
    "gaussian_patches",
    "spot_frame",
    "write_centroid_bundle",
]

FloatArray = npt.NDArray[np.float32]

LEVELS = (0.05, 0.5, 0.95)
SPREAD_PX = np.array([-0.1, 0.0, 0.1], np.float32)
SHAPE = (96, 128)
SPOTS_PX = np.array([[20.3, 30.6], [40.8, 100.2], [70.4, 60.4]])
"""(3, 2), (row, col) in px of the spots that `spot_frame` draws unless told otherwise."""


def centroid_model(precision: Precision = "float32", *, batch: int | str = "n") -> bytes:
    """Write an ONNX file that predicts a scaled patch's centroid minus, plus and at 0.1 px.

    Parameters
    ----------
    precision
        Of the weights: "float32", "float16", or "int8" with explicit Q/DQ.
    batch
        First axis of its tensors: a name, or a fixed number.
    """
    row, col = np.mgrid[:PATCH_SIZE, :PATCH_SIZE].astype(np.float32) - CENTRE
    weight = np.stack([np.ones_like(row), row, col]).reshape(3, -1)
    constants: dict[str, Any] = {
        "weight": weight,
        "axis": np.array([2]),
        "sizes": np.array([1, 2]),
        "least": np.float32(1e-6),
        "spread": SPREAD_PX,
    }
    prepare, inputs = "", "flat, weight"
    if precision == "int8":
        scales = np.abs(weight).max(axis=1) / np.float32(127)
        constants |= {"flat_scale": np.float32(1 / 127), "flat_zero": np.int8(0)}
        constants |= {"weight_scale": scales, "weight_zero": np.zeros(3, np.int8)}
        prepare, inputs = f"{quantised('flat')}\n{quantised('weight')}", "flat_dq, weight_dq"
    elif precision == "float16":
        constants["weight"] = weight.astype(np.float16)
        prepare, inputs = "half = Cast<to=10>(flat)", "half, weight"
    graph = f"""
    centroid (float[{batch}, 1, 11, 11] patches) => (float[{batch}, 2, 3] offsets_px) {{
        flat = Flatten<axis=1>(patches)
        {prepare}
        [moments] moments_any = Gemm<transB=1>({inputs})
        moments = Cast<to=1>(moments_any)
        total, firsts = Split<axis=1>(moments, sizes)
        divisor = Max(total, least)
        centroid = Div(firsts, divisor)
        column = Unsqueeze(centroid, axis)
        offsets_px = Add(column, spread)
    }}"""
    return onnx_file(graph, constants)


def gaussian_patches(count: int, *, seed: int = 0) -> FloatArray:
    """(n, 11, 11) float32 counts of round spots within 0.5 px of the patch's centre."""
    rng = np.random.default_rng(seed)
    row, col = rng.uniform(-0.5, 0.5, (2, count, 1, 1)) + CENTRE
    rows, cols = np.mgrid[:PATCH_SIZE, :PATCH_SIZE]
    spots = rng.uniform(50, 5000, (count, 1, 1)) * np.exp(-((rows - row) ** 2) / 2.5)
    return np.asarray(spots * np.exp(-((cols - col) ** 2) / 2.5), np.float32)


def spot_frame(
    positions: npt.ArrayLike = SPOTS_PX, *, level: float = 5.0, seed: int = 0
) -> npt.NDArray[np.uint16]:
    """(96, 128) uint16 counts: Poisson background and round spots of 2000 counts."""
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    frame = np.full(SHAPE, float(level))
    for row, col in np.asarray(positions).reshape(-1, 2):
        frame += 2000 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 2.5)
    return np.random.default_rng(seed).poisson(frame).astype(np.uint16)


def centroid_manifest(**changes: Any) -> Manifest:
    """Describe the bundle; fields can be replaced."""
    fields: dict[str, Any] = {
        "task": "bragg",
        "model_id": "centroid",
        "architecture": "centroid",
        "parameters": 363,
        "quantile_levels": LEVELS,
        "inputs": (
            Tensor(name="patches", shape=("n", 1, 11, 11), unit="1", axes=("n", "1", "row", "col")),
        ),
        "outputs": (
            Tensor(name="offsets_px", shape=("n", 2, 3), unit="px", axes=("n", "row, col", "q")),
        ),
        "preprocessing": BraggPreprocessing(),
        "gate": Gate(unit="px", float32=1e-3, float16=0.02, int8=0.05),
    }
    return known_manifest(**(fields | changes))


def write_centroid_bundle(
    path: str | Path,
    *,
    signing_key: str | Path,
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8"),
    **changes: Any,
) -> Path:
    """Write the bundle, signed; `changes` replace fields of its manifest.

    Parameters
    ----------
    path
        The file, ``*.edgex``.
    signing_key
        Private key file, as `edgexnas.bundle.generate_keys` writes it.
    precisions
        Models that the bundle has.
    """
    inputs = scale_patches(gaussian_patches(64, seed=1))
    return write_bundle(
        path,
        manifest=centroid_manifest(precisions=precisions, **changes),
        models={precision: centroid_model(precision) for precision in precisions},
        reference={
            "input": inputs[:, None],
            "output": (centroid(inputs) - CENTRE)[:, :, None] + SPREAD_PX,
        },
        signing_key=signing_key,
    )
