"""Objects to diffract: stars, circuits and cells, and a reconstructed object among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.simulate.ptychography_objects import OBJECT_KINDS, thickness_map

if TYPE_CHECKING:
    from edgexnas.host.data.phase_retrieval import Reconstruction

__all__ = ["ObjectVariety", "SeenObject", "draw_objects"]

ComplexArray = npt.NDArray[np.complex64]
FloatArray = npt.NDArray[np.float64]

CANVAS_PX = 384
"""Side of an object for patterns of up to 256 px."""
LIT_SHARE = 0.4
"""Share of the brightest illumination from which a reconstructed object is believed."""
EDGE_SIGMA_PX = 4.0
"""Width over which a reconstructed object gives way to a simulated one beside it."""


@dataclass(frozen=True, kw_only=True)
class ObjectVariety:
    """What simulated objects look like; ranges are drawn from uniformly.

    Attributes
    ----------
    kinds
        Names out of `edgexnas.simulate.ptychography_objects.OBJECT_KINDS`; a name given twice is
        drawn twice as often.
    phase_shift_rad
        Phase behind full thickness.
    transmission
        Amplitude behind full thickness, as a share of that beside it.
    amplitude
        Amplitude where there is nothing.
    zoom
        Magnification of a simulated object.
    drift_rad
        Standard deviation of a phase that varies slowly over the object, as in a support film.
    roughness
        Standard deviation of the amplitude from pixel to pixel, as a share.
    """

    kinds: tuple[str, ...] = ("siemens-star", "siemens-star", "circuit", "cells")
    phase_shift_rad: tuple[float, float] = (-1.3, -0.6)
    transmission: tuple[float, float] = (0.8, 1.0)
    amplitude: tuple[float, float] = (0.65, 0.85)
    zoom: tuple[float, float] = (0.8, 2.5)
    drift_rad: float = 0.12
    roughness: float = 0.03

    def __post_init__(self) -> None:
        """Reject what cannot be drawn.

        Raises
        ------
        ConfigurationError
            If a kind is unknown or a range is empty; it names the field.
        """
        unknown = [kind for kind in self.kinds if kind not in OBJECT_KINDS]
        if unknown or not self.kinds:
            raise ConfigurationError(
                f"kinds are {self.kinds}; specify at least one out of {OBJECT_KINDS}"
            )
        for name in ("phase_shift_rad", "transmission", "amplitude", "zoom"):
            low, high = getattr(self, name)
            if not low <= high or (name != "phase_shift_rad" and not low > 0):
                raise ConfigurationError(f"{name} is {(low, high)}; specify a low and a high of it")


class SeenObject(NamedTuple):
    """A reconstructed object (H, W) complex64 and the photons that fell on it, to draw from."""

    object: ComplexArray
    illumination: npt.NDArray[np.float32]


def draw_objects(
    count: int,
    *,
    side_px: int = CANVAS_PX,
    seed: int = 0,
    variety: ObjectVariety | None = None,
    seen: Reconstruction | SeenObject | None = None,
    seen_share: float = 0.5,
) -> ComplexArray:
    """Draw objects to diffract.

    Parameters
    ----------
    count
        How many.
    side_px
        Rows and columns of each.
    seed
        Equal arguments and seeds give equal objects.
    variety
        What they look like; None takes the defaults.
    seen
        Reconstruction of the training part of a scan. Of every draw `seen_share` are this object,
        turned by any angle, mirrored and zoomed, where it was lit, and simulated beside it.

    Returns
    -------
    (count, side_px, side_px) complex64.
    """
    variety = variety or ObjectVariety()
    objects = np.empty((count, side_px, side_px), np.complex64)
    for number in range(count):
        # Seeded by its number, so that asking for more objects leaves the first ones as they were.
        rng = np.random.default_rng([seed, number])
        objects[number] = _simulated(side_px, variety, rng)
        if seen is not None and rng.random() < seen_share:
            objects[number] = _with_seen(objects[number], seen, rng)
    return objects


def _simulated(side_px: int, variety: ObjectVariety, rng: np.random.Generator) -> ComplexArray:
    kind = variety.kinds[rng.integers(len(variety.kinds))]
    zoom = rng.uniform(*variety.zoom)
    side = side_px if zoom <= 1 else int(side_px * zoom)
    thickness = thickness_map(kind, (side, side), rng)  # type: ignore[arg-type]
    if zoom < 1:
        from scipy.ndimage import zoom as resize

        tiles = int(np.ceil(1 / zoom)) + 1
        small = resize(thickness, zoom, order=1)
        thickness = np.tile(small, (tiles, tiles))
    top, left = (int(rng.integers(0, n - side_px + 1)) for n in thickness.shape)
    thickness = thickness[top : top + side_px, left : left + side_px]
    amplitude = 1 - (1 - rng.uniform(*variety.transmission)) * thickness
    amplitude = amplitude * (1 + variety.roughness * rng.normal(size=thickness.shape))
    phase = rng.uniform(*variety.phase_shift_rad) * (thickness - thickness.mean())
    phase = phase + variety.drift_rad * _slow_field(thickness.shape, rng)
    drawn = rng.uniform(*variety.amplitude) * amplitude * np.exp(1j * phase)
    return np.asarray(drawn, np.complex64)


def _slow_field(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Noise of unit variance that varies over 20 to 80 px."""
    width = rng.uniform(20, 80)
    row, col = (np.fft.fftfreq(side) for side in shape)
    # Transfer function of a Gaussian blur of this width.
    transfer = np.exp(-2 * (np.pi * width) ** 2 * (row[:, None] ** 2 + col**2))
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * transfer).real
    scaled: FloatArray = field / field.std()
    return scaled


def _with_seen(
    canvas: ComplexArray, seen: Reconstruction | SeenObject, rng: np.random.Generator
) -> ComplexArray:
    """Lay the lit part of a reconstructed object over a simulated one."""
    from scipy.ndimage import affine_transform, gaussian_filter

    lit = (seen.illumination > LIT_SHARE * seen.illumination.max()).astype(np.float64)
    # Faded inwards, so that what was hardly lit stays out.
    weight = gaussian_filter(lit, EDGE_SIGMA_PX)
    weight = (2 * weight - 1).clip(0, 1)
    middle = np.argwhere(lit > 0).mean(axis=0)
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.2)
    # affine_transform maps output to input, hence the division by the zoom.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    if rng.random() < 0.5:
        turn = turn @ np.diag([1, -1])
    offset = middle - turn @ (np.array(canvas.shape) / 2 + rng.uniform(-30, 30, 2))

    def moved(image: npt.NDArray[np.floating]) -> FloatArray:
        result: FloatArray = affine_transform(
            image.astype(np.float64), turn, offset, canvas.shape, order=1
        )
        return result

    share = moved(weight)
    # By real and imaginary part, since a phase cannot be interpolated across ±π.
    theirs = moved(seen.object.real) + 1j * moved(seen.object.imag)
    mixed = share * theirs + (1 - share) * canvas
    return mixed.astype(np.complex64)
