"""Frames with spots, for checks and timings of what finds them."""

from __future__ import annotations

from typing import Any

import numpy as np


def spotty_frame(
    shape: tuple[int, int], spots: int, seed: int, *, overlapping: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Make a frame as the design study did: uint16, and the (n, 2) positions of its spots.

    A Poisson background of 3 counts with pseudo-Voigt spots of 60 to 20,000; of overlapping ones
    30 % are pairs, 3 to 8 px apart.
    """
    random = np.random.default_rng(seed)
    frame = random.poisson(3, shape).astype(np.float64)
    last = np.array(shape) - 9
    positions = random.uniform(8, last, (spots, 2))
    if overlapping:
        pairs = int(0.15 * spots)
        angle, distance = random.uniform(0, 2 * np.pi, pairs), random.uniform(3, 8, pairs)
        offset = np.stack([np.sin(angle), np.cos(angle)], axis=1) * distance[:, None]
        positions[pairs : 2 * pairs] = np.clip(positions[:pairs] + offset, 8, last)
    for row, col in positions:
        height = 10 ** random.uniform(np.log10(60), np.log10(20_000))
        fwhm = random.uniform(1.6, 3.6)
        top, left = int(row) - 7, int(col) - 7
        rows, cols = np.ogrid[top : top + 15, left : left + 15]
        square = ((rows - row) ** 2 + (cols - col) ** 2) / (fwhm / 2) ** 2
        profile = 0.5 / (1 + square) + 0.5 * np.exp(-square * np.log(2))
        frame[top : top + 15, left : left + 15] += random.poisson(height * profile)
    return np.minimum(frame, 65535).astype(np.uint16), positions


def crowded_frame(seed: int, shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """Make a frame of few different values with spots on a slope: ties and overlaps abound."""
    random = np.random.default_rng(seed)
    frame = random.poisson(np.linspace(2, 30, shape[1]), shape).astype(dtype)
    spots = random.random(shape) < 0.01
    frame[spots] += random.integers(1, 10, int(spots.sum())).astype(dtype) * 10
    return frame
