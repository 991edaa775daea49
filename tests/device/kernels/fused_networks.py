"""Networks with weights that all matter, as ONNX, and what they compute in whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgexnas.device.engines.fused.network import Attention, Layer, Network, Pool
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise


def patches(count: int, seed: int = 0) -> np.ndarray:
    """(n, 1, 11, 11) float32: peaks on noise, scaled as the product scales them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:11, :11]
    centres, widths = (
        rng.uniform(3.5, 6.5, (count, 2, 1, 1)),
        rng.uniform(0.7, 1.8, (count, 2, 1, 1)),
    )
    shapes = ((rows - centres[:, 0]) / widths[:, 0]) ** 2
    shapes = shapes + ((columns - centres[:, 1]) / widths[:, 1]) ** 2
    values = np.exp(-shapes / 2) + 0.05 * rng.random((count, 11, 11))
    values -= values.min((1, 2), keepdims=True)
    values /= values.max((1, 2), keepdims=True)
    return values[:, None].astype(np.float32)


def lively(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every bias and every gain a value, so that leaving one out shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("gain"):
                parameter.fill_(0.4)
    return network.eval()


def exported(network: torch.nn.Module, precision: str, float32: bytes | None = None) -> bytes:
    """ONNX of a network in float32, float16, or INT8, which is made of the float32 model."""
    example = torch.rand(4, 1, 11, 11)
    if precision != "int8":
        return to_onnx(network, example, half=precision == "float16")
    return quantise(float32 or exported(network, "float32"), patches(128, seed=9), Recipe()).model


def run_integers(network: Network, given: np.ndarray) -> dict[str, np.ndarray]:
    """Compute a quantised network layer by layer, sums in whole numbers: name → (n, c, h, w).

    Layers in float read float16, as the kernel keeps them.
    """
    values: dict[str, np.ndarray] = {"patches": given}
    if network.images > 1:
        both = np.concatenate([given, given.transpose(0, 1, 3, 2)], axis=1)
        mirrored = [both, both[..., ::-1], both[:, :, ::-1], both[:, :, ::-1, ::-1]]
        images = np.stack(mirrored[: network.images // 2], axis=1)
        values["patches"] = images.reshape(-1, 1, 11, 11)
    for step in network.steps:
        assert not isinstance(step, Attention)
        source = values[step.source]
        if isinstance(step, Pool):
            side = source.shape[2] // 2 * 2
            cut = source[:, :, :side, :side]
            values[step.name] = cut.reshape(*cut.shape[:2], side // 2, 2, side // 2, 2).max((3, 5))
            continue
        values[step.name] = _layer(step, source, values)
    return values


def _rounded(value: np.ndarray, scale: float) -> np.ndarray:
    inverse = np.float32(1) / np.float32(scale)
    return np.clip(np.rint(value * inverse), -128, 127)


def _layer(step: Layer, source: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    weights = step.weights.astype(np.float64)
    if step.source == "patches" and weights.shape[1] == 121:
        source = source.reshape(len(source), 121, 1, 1)
    if step.input_scale is not None:
        operand = _rounded(source, step.input_scale).astype(np.float64)
    else:
        operand, weights = source.astype(np.float16), weights.astype(np.float16)
    pad = step.padding
    operand = np.pad(operand.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(operand, weights.shape[2:], axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, weights.astype(np.float64)).astype(np.float32)
    along: Any = (slice(None), None, None)
    if step.scales is not None and step.input_scale is not None:
        sums = sums * (step.scales * np.float32(step.input_scale))[along]
    value = _activated(sums + step.bias[along], step.activation, step.slope)
    if step.added is not None:
        added = values[step.added]
        if step.added_scale is not None:
            added = _rounded(added, step.added_scale).astype(np.float32) * np.float32(
                step.added_scale
            )
        value = added + np.float32(step.gain) * value
        value = _activated(value, step.then, step.slope)
    return value


def _activated(value: np.ndarray, kind: str, slope: float) -> np.ndarray:
    if kind == "relu":
        return np.maximum(value, np.float32(0))
    if kind == "leaky":
        return np.where(value > 0, value, np.float32(slope) * value)
    return value
