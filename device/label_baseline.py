"""What one would write without edgexnas: connected components, and a network in torch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from edgexnas.peak_finding import PeakFinder


def label_pipelines(
    frames: list[np.ndarray], finder: PeakFinder, network: Any
) -> dict[str, Callable[[], None]]:
    """Give what processes the next frame: labels by cupy or scipy, and the network on the GPU."""
    import cupy
    import torch
    from cupyx.scipy import ndimage as gpu_ndimage
    from scipy import ndimage

    assert finder.background is not None
    network = deepcopy(network).eval().to("cuda", torch.float16)
    window = np.arange(-5, 6)
    step = 0

    def pipeline(xp: Any, label: Any, frame: Any, limit: Any, level: Any) -> np.ndarray:
        labels, count = label(frame > limit)
        lit = xp.flatnonzero(labels)
        of = labels.ravel()[lit]
        weight = frame.ravel()[lit].astype(np.float64)
        total = xp.bincount(of, weight, count + 1)[1:]
        rows = xp.bincount(of, weight * (lit // frame.shape[1]), count + 1)[1:] / total
        cols = xp.bincount(of, weight * (lit % frame.shape[1]), count + 1)[1:] / total
        span = xp.asarray(window)
        row = xp.clip(xp.rint(rows).astype(np.int64)[:, None] + span, 0, frame.shape[0] - 1)
        col = xp.clip(xp.rint(cols).astype(np.int64)[:, None] + span, 0, frame.shape[1] - 1)
        place = (row[:, :, None], col[:, None, :])
        patches = xp.maximum(frame[place].astype(np.float32) - level[place], 0)
        low = patches.min(axis=(1, 2), keepdims=True)
        patches = (patches - low) / xp.maximum(patches.max(axis=(1, 2), keepdims=True) - low, 1)
        with torch.inference_mode():
            given = torch.as_tensor(patches, device="cuda").to(torch.float16)[:, None]
            return np.asarray(network(given).float().cpu())

    level = finder.background.level
    limit = finder.thresholds(np.uint16)
    on_gpu = cupy.asarray(limit), cupy.asarray(level)

    def by_cupy() -> None:
        nonlocal step
        step += 1
        frame = cupy.asarray(frames[step % len(frames)])
        pipeline(cupy, gpu_ndimage.label, frame, *on_gpu)

    def by_scipy() -> None:
        nonlocal step
        step += 1
        pipeline(np, ndimage.label, frames[step % len(frames)], limit, level)

    return {
        "cupy label + torch on the GPU": by_cupy,
        "scipy label + torch on the GPU": by_scipy,
    }
