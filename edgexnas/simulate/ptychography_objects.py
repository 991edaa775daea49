"""Objects to scan: a Siemens star, an etched circuit, a layer of cells.

Each is a map of thickness from 0 to 1, smoothed to the resolution of a real edge.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["OBJECT_KINDS", "ObjectKind", "thickness_map"]

ObjectKind = Literal["siemens-star", "circuit", "cells"]
OBJECT_KINDS: tuple[ObjectKind, ...] = get_args(ObjectKind)

FloatArray = npt.NDArray[np.float64]

EDGE_SIGMA_PX = 0.7
SPOKES = 36
RINGS = 4
RING_GAP = 0.06
TRACE_WIDTHS_PX = (3, 10)
CELL_RADII_PX = (6.0, 30.0)


def thickness_map(kind: ObjectKind, shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """Draw an object.

    Parameters
    ----------
    kind
        One of `OBJECT_KINDS`.
    shape
        (H, W) in pixels.
    rng
        Source of its place, rotation and details.

    Returns
    -------
    (H, W) float64 in [0, 1].
    """
    draw = {"siemens-star": _siemens_star, "circuit": _circuit, "cells": _cells}[kind]
    return _smoothed(draw(shape, rng)).clip(0, 1)


def _siemens_star(shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """Spokes cut by rings; the centre and the rotation vary."""
    middle = np.array(shape) / 2 + rng.uniform(-0.1, 0.1, 2) * shape
    rows, cols = (axis - place for axis, place in zip(np.indices(shape), middle, strict=True))
    radius, angle = np.hypot(rows, cols), np.arctan2(rows, cols)
    spokes = np.sin(SPOKES * angle + rng.uniform(0, 2 * np.pi)) > 0
    ring = radius / (0.5 * min(shape)) * RINGS
    solid = (ring % 1 > RING_GAP * RINGS / 2) & (ring < RINGS)
    star: FloatArray = (spokes & solid).astype(np.float64)
    return star


def _circuit(shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """Two layers of traces, one along each axis, and pads where they meet."""
    circuit = np.zeros(shape)
    for axis, height in ((0, 0.5), (1, 0.5)):
        layer = np.zeros(shape).swapaxes(0, axis)
        place = int(rng.integers(0, 8))
        while place < layer.shape[0]:
            width = int(rng.integers(*TRACE_WIDTHS_PX))
            start, end = np.sort(rng.integers(-layer.shape[1] // 4, layer.shape[1] * 5 // 4, 2))
            layer[place : place + width, max(start, 0) : max(end, 0)] = height
            place += width + int(rng.integers(*TRACE_WIDTHS_PX))
        circuit += layer.swapaxes(0, axis)
    for row, col in rng.integers(0, shape, (shape[0] * shape[1] // 1500, 2)):
        side = int(rng.integers(5, 16))
        circuit[row : row + side, col : col + side] = 1.0
    return circuit


def _cells(shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """Overlapping ellipsoids with a nucleus each, projected."""
    cells = np.zeros(shape)
    for place in rng.uniform(0, shape, (shape[0] * shape[1] // 900, 2)):
        radii = rng.uniform(*CELL_RADII_PX, 2)
        angle = rng.uniform(0, np.pi)
        _add_ellipsoid(cells, place, radii, angle, 0.5)
        nucleus = place + rng.uniform(-0.3, 0.3, 2) * radii.min()
        _add_ellipsoid(cells, nucleus, radii / 3, angle, 0.4)
    return cells


def _add_ellipsoid(
    image: FloatArray, place: FloatArray, radii: FloatArray, angle: float, height: float
) -> None:
    reach = int(np.ceil(radii.max()))
    first = np.maximum(place.astype(int) - reach, 0)
    last = np.minimum(place.astype(int) + reach + 1, image.shape)
    rows, cols = np.mgrid[first[0] : last[0], first[1] : last[1]] - place[:, None, None]
    along = (rows * np.cos(angle) + cols * np.sin(angle)) / radii[0]
    across = (cols * np.cos(angle) - rows * np.sin(angle)) / radii[1]
    depth = np.sqrt(np.maximum(1 - along**2 - across**2, 0))
    image[first[0] : last[0], first[1] : last[1]] += height * depth


def _smoothed(image: FloatArray) -> FloatArray:
    """Blur by a Gaussian, in Fourier space."""
    row, col = (np.fft.fftfreq(side) for side in image.shape)
    transfer = np.exp(-2 * (np.pi * EDGE_SIGMA_PX) ** 2 * (row[:, None] ** 2 + col[None, :] ** 2))
    blurred: FloatArray = np.fft.ifft2(np.fft.fft2(image) * transfer).real
    return blurred
