"""Pictures of a result for the web page: a frame with its peaks, or an object.

Pictures are images of palette indices. The last two colours of each palette are `BLANK`, for
pixels without a value, and `MARK`, for what is drawn over the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.device.pictures.png import encode_png
from edgexnas.ptycho import ObjectImage, align_phase

__all__ = [
    "BLANK",
    "MARK",
    "MAX_SIDE",
    "Picture",
    "amplitude_picture",
    "frame_picture",
    "phase_picture",
    "refinement_picture",
    "shrink",
]

MAX_SIDE = 1024
"""Pictures are at most this many pixels wide and high."""

MIN_SIDE = 512
"""Smaller images are enlarged to about this, in whole steps, so that marks stay thin."""

BLANK, MARK = 254, 255

# Two of 256 palette entries are `BLANK` and `MARK`.
DIFFERENCE_RAD = np.pi / 4
"""Largest difference of phase that a picture of a refinement tells apart."""

_SHADES = 254
# Enough for percentiles to 0.2 per cent; sorting all pixels would take longer than the rest.
_SAMPLE = 65_536
# Outside of an 11×11 patch, so that the peak itself stays visible.
_RING_PX = (7.0, 8.6)

# matplotlib's inferno and viridis (CC0) at equal steps, and a cyclic scale for phases.
_INFERNO = "000004 1f0c48 550f6d 88226a ba3655 e35933 f98c0a f9c932 fcffa4"
_VIRIDIS = "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725"
_CYCLE = "2b2a5e 3f6fb0 8fc1d9 f3ede4 e0a27c b04a4a 5a2350 2b2a5e"


class Picture(NamedTuple):
    """A picture and what its colours mean.

    Attributes
    ----------
    png
        The file.
    caption
        What the darkest and the brightest colour stand for.
    """

    png: bytes
    caption: str


def _palette(stops: str, mark: str = "40e0ff") -> npt.NDArray[np.uint8]:
    """(256, 3): shades between the stops, then the colours of blank pixels and of marks."""
    colours = np.array([list(bytes.fromhex(stop)) for stop in stops.split()], np.float64)
    known = np.arange(len(colours))
    at = np.linspace(0, len(colours) - 1, _SHADES)
    shades = np.stack([np.interp(at, known, colours[:, i]) for i in range(3)], 1)
    extra = [list(bytes.fromhex("6b7280")), list(bytes.fromhex(mark))]
    return np.concatenate([np.rint(shades), extra]).astype(np.uint8)


FRAME_PALETTE = _palette(_INFERNO)
AMPLITUDE_PALETTE = _palette(_VIRIDIS)
PHASE_PALETTE = _palette(_CYCLE)


def shrink(pixels: npt.NDArray[Any], max_side: int = MAX_SIDE) -> tuple[npt.NDArray[Any], int]:
    """Shrink an image by a whole factor, each pixel the maximum of those it replaces.

    The maximum, because a peak of three pixels would vanish in a mean.

    Parameters
    ----------
    pixels
        (H, W) counts.
    max_side
        Longest side of the answer.

    Returns
    -------
    tuple
        The image and the factor; the same image where it is small enough.
    """
    factor = -(-max(pixels.shape) // max_side)
    if factor <= 1:
        return pixels, 1
    # Passes over every factor-th row, then column: a reduction over so few is many times slower.
    return _strided_maximum(_strided_maximum(pixels, factor).T, factor).T, factor


def _strided_maximum(pixels: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Take the maximum of each `factor` rows, and of what rows are left at the end."""
    best = pixels[::factor].copy(order="K")
    for offset in range(1, factor):
        others = pixels[offset::factor]
        np.maximum(best[: len(others)], others, out=best[: len(others)])
    return best


def frame_picture(
    pixels: npt.NDArray[Any], positions_px: npt.NDArray[np.floating[Any]] | None
) -> Picture:
    """Draw a frame on a logarithmic scale, with a ring around each peak.

    Parameters
    ----------
    pixels
        (H, W) counts. The largest value of an unsigned type means that a pixel is masked, as in
        DECTRIS' streams, and is drawn grey.
    positions_px
        (n, 2), (row, col) of the peaks; None draws none.

    Returns
    -------
    Picture
        At most `MAX_SIDE` pixels wide and high.
    """
    masked = None
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize > 1:
        limit = np.iinfo(pixels.dtype).max
        masked = pixels == limit
        if masked.any():
            pixels = np.where(masked, 0, pixels)
        else:
            masked = None
    small, factor = shrink(pixels)
    low, high = _above_noise(small[small > 0] if masked is not None else small)
    indices = _log_shades(small, low, high)
    if masked is not None:
        # A block is blank where every pixel of it is masked.
        free, _ = shrink(~masked)
        indices[~free] = BLANK
    indices, zoom = _enlarge(indices)
    if positions_px is not None and len(positions_px):
        # The centre of the first pixel is (0, 0), so its edge is at -0.5.
        _draw_rings(indices, (np.asarray(positions_px) + 0.5) / factor * zoom - 0.5)
    return Picture(
        encode_png(indices, FRAME_PALETTE), f"counts {low:.4g} to {high:.4g}, logarithmic scale"
    )


def amplitude_picture(image: ObjectImage) -> Picture:
    """Draw the amplitude of an object, where it was measured."""
    values, covered = _covered(image)
    amplitude = np.abs(values)
    low, high = _limits(amplitude[covered], 1, 99)
    indices = _linear_shades(amplitude, covered, low, high)
    return Picture(encode_png(indices, AMPLITUDE_PALETTE), f"amplitude {low:.3g} to {high:.3g}")


def phase_picture(image: ObjectImage) -> Picture:
    """Draw the phase of an object on a cyclic scale, where it was measured.

    A phase is known up to a constant: the mean is shown as 0.
    """
    values, covered = _covered(image)
    total = complex(values[covered].sum()) if covered.any() else 0j
    # The angle of the sum: a mean of angles is wrong across ±π.
    turned = values * np.exp(-1j * np.angle(total)).astype(np.complex64)
    indices = _linear_shades(np.angle(turned), covered, -np.pi, np.pi)
    return Picture(encode_png(indices, PHASE_PALETTE), "phase −π to π rad, mean at 0")


def refinement_picture(network: ObjectImage, refined: ObjectImage) -> Picture:
    """Draw three phases side by side: the network's, the refined one, and their difference.

    Parameters
    ----------
    network, refined
        The object before and after, of one shape and origin.
    """
    values, covered = _covered(refined)
    before, _ = _covered(network)
    if covered.any():
        turn = np.angle(values[covered].sum())
        values = values * np.exp(-1j * turn).astype(np.complex64)
        before = align_phase(before * covered, values * covered)
    difference = np.angle(values * before.conj())
    shades = [
        _linear_shades(np.angle(before), covered, -np.pi, np.pi, enlarge=False),
        _linear_shades(np.angle(values), covered, -np.pi, np.pi, enlarge=False),
        _linear_shades(difference, covered, -DIFFERENCE_RAD, DIFFERENCE_RAD, enlarge=False),
    ]
    gap = np.full((covered.shape[0], 4), BLANK, np.uint8)
    panels = np.concatenate([shades[0], gap, shades[1], gap, shades[2]], axis=1)
    return Picture(
        encode_png(_enlarge(panels)[0], PHASE_PALETTE),
        "network and refined, phase −π to π rad; then their difference, −π/4 to π/4 rad",
    )


def _covered(image: ObjectImage) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.bool_]]:
    """Cut out what was measured, thinned to the size of a picture."""
    covered = image.coverage > 0
    values = image.values
    if covered.any():
        rows, cols = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        window = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        covered, values = covered[window], values[window]
    step = -(-max(values.shape) // MAX_SIDE)
    return values[::step, ::step], covered[::step, ::step]


def _above_noise(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Black where the noise of the background ends, so that a dark frame looks dark."""
    bottom, top = _limits(values, 25, 99.9)
    middle, upper = _limits(values, 50, 84)
    # In noise 84 % lie below one standard deviation above the median; peaks hardly move either.
    noise = middle + 3 * (upper - middle)
    return (noise, top) if noise < top else (bottom, top)


def _limits(values: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Percentiles of a sample; the upper one is always above the lower one."""
    sample = values.reshape(-1)
    if len(sample) > _SAMPLE:
        # An odd step, so that the sample does not keep to some columns of the image.
        sample = sample[:: len(sample) // _SAMPLE | 1]
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return 0.0, 1.0
    bottom, top = np.percentile(sample, (low, high)).tolist()
    return bottom, top if top > bottom else bottom + 1.0


def _log_shades(pixels: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Logarithmic shades; a table of all values where the type has few of them."""
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        values = np.arange(np.iinfo(pixels.dtype).max + 1, dtype=np.float32)
        # 65,536 logarithms instead of one for each pixel.
        table = _log_shades(values, low, high)
        return np.take(table, pixels)
    known = np.nan_to_num(pixels.astype(np.float32), nan=low, posinf=high, neginf=low)
    # log1p, because counts of 0 are common.
    above = np.log1p(np.clip(known - np.float32(low), 0, high - low))
    shades: npt.NDArray[np.uint8] = np.empty(known.shape, np.uint8)
    shades[...] = above * ((_SHADES - 1) / np.log1p(high - low))
    return shades


def _linear_shades(
    values: npt.NDArray[np.float32],
    covered: npt.NDArray[np.bool_],
    low: float,
    high: float,
    *,
    enlarge: bool = True,
) -> npt.NDArray[np.uint8]:
    scaled = np.clip((values - low) / (high - low), 0, 1) * (_SHADES - 1)
    shades = np.where(covered, np.nan_to_num(scaled), BLANK).astype(np.uint8)
    return _enlarge(shades)[0] if enlarge else shades


def _enlarge(indices: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int]:
    zoom = max(1, MIN_SIDE // max(indices.shape))
    return (indices.repeat(zoom, 0).repeat(zoom, 1) if zoom > 1 else indices), zoom


def _draw_rings(indices: npt.NDArray[np.uint8], centres: npt.NDArray[np.floating[Any]]) -> None:
    """Draw a ring around each (row, col) into the image."""
    reach = int(_RING_PX[1]) + 1
    rows, cols = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(rows, cols)
    ring = (distance >= _RING_PX[0]) & (distance <= _RING_PX[1])
    centres = np.rint(centres[np.isfinite(centres).all(1)]).astype(np.intp)
    at_row = (centres[:, :1] + rows[ring]).reshape(-1)
    at_col = (centres[:, 1:] + cols[ring]).reshape(-1)
    height, width = indices.shape
    inside = (at_row >= 0) & (at_row < height) & (at_col >= 0) & (at_col < width)
    indices[at_row[inside], at_col[inside]] = MARK
