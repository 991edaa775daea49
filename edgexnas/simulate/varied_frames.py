"""Frames of detectors that differ in everything: what a network for any detector learns from.

Every frame has conditions of its own, drawn over the range of real ones: a counting or an
integrating detector, its gain, noise and point spread, background, zero suppression, saturation,
and spots of drawn widths, shapes and brightness. A pixel reads, in this order: a Poisson number of
the photons that it expects, times the gain, spread to its neighbours, plus offset and read noise;
0 up to the suppression's threshold; at most the saturation.

A spot's profile is that of `edgexnas.simulate.spot_profile`, with two more freedoms: the share of
the pixel over which it is averaged, from its centre alone (0) to all of it (1), and an exponent
that makes its flanks steeper or flatter than a pseudo-Voigt's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, PATCH_SIZE

__all__ = ["FrameConditions", "VariedFrame", "draw_conditions", "draw_spots", "simulate_frame"]

FloatArray = npt.NDArray[np.floating[Any]]

SIDE_PX = 320
"""Rows and columns of a frame: enough tiles of 32×32 pixels for a background."""

HALF_PX = 11
"""Half side of the window in which a spot is drawn."""

WIDTHS_PX = (0.45, 6.5)
"""Full widths at half maximum, the mean of both axes, before a pixel averages over its area."""

MOST_ELONGATED = 3.0

BRIGHTEST = 4e6
"""Photons; signal-to-noise rises with their root."""

NARROW_PX = 1.6
"""Spots narrower than this bend so much within a pixel that their average takes 5×5 points."""

TAPER = 0.72
"""Share of the window's radius from which tails fall to 0: outside a patch of 11×11."""

_LN2 = float(np.log(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameConditions:
    """What a frame is taken with.

    Attributes
    ----------
    photons
        Expected photons of background a pixel.
    slope
        Relative change of the background over the frame along (row, col).
    gain
        Counts a photon.
    offset, read_noise
        Counts without a photon, and their standard deviation.
    spread
        Share of what a pixel takes that it gives to its eight neighbours.
    correlated
        Whether this happens to counted photons, as in a scintillator, and not to expected ones.
    threshold
        Counts above the offset and background up to which a pixel reads 0; None without zero
        suppression.
    saturation
        Largest count.
    aperture
        Side of the square of a pixel over which spots are averaged, 0 to 1.
    """

    photons: float
    slope: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0
    offset: float = 0.0
    read_noise: float = 0.0
    spread: float = 0.0
    correlated: bool = False
    threshold: float | None = None
    saturation: float = 2.0**31 - 1
    aperture: float = 1.0

    @property
    def noise_counts(self) -> float:
        """Standard deviation of the background in counts."""
        return float(np.sqrt(self.gain**2 * self.photons + self.read_noise**2))


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """Spots of one frame.

    Attributes
    ----------
    positions_px
        (n, 2) float64, (row, col).
    photons
        (n,) height of the profile at its centre.
    fwhm_px
        (n, 2) along the long and the short axis.
    angle_rad, mixing, exponent
        (n,) of the long axis from +col towards +row; the Lorentzian fraction; 1 for a pseudo-Voigt.
    """

    positions_px: FloatArray
    photons: FloatArray
    fwhm_px: FloatArray
    angle_rad: FloatArray
    mixing: FloatArray
    exponent: FloatArray

    def __len__(self) -> int:
        return len(self.photons)

    def select(self, chosen: npt.NDArray[np.bool_]) -> Spots:
        """Give some of them."""
        return Spots(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class VariedFrame:
    """A frame, what is on it, and how well the place of each spot can be known.

    Attributes
    ----------
    counts
        (H, W) uint16, or int32 where counts reach its end.
    spots
        What is on it.
    bounds_px
        (n, 2) float64: the Cramér-Rao bound of a spot's row and column from photons and read noise
        in 11×11 pixels, all else known, without neighbours, suppression and saturation.
    snr
        (n,) float64: photons that the pixel nearest to a spot expects of it, in standard deviations
        of what that pixel counts.
    """

    counts: npt.NDArray[np.uint16 | np.int32]
    conditions: FrameConditions
    spots: Spots
    bounds_px: FloatArray
    snr: FloatArray


def draw_conditions(rng: np.random.Generator) -> FrameConditions:
    """Draw what a frame is taken with."""
    counting = rng.random() < 0.45
    gain = 1.0 if counting else float(10 ** rng.uniform(-0.7, 1.7))
    read = 0.0 if counting else float(10 ** rng.uniform(-0.3, 1.5)) * max(1.0, gain) ** 0.5
    photons = float(10 ** rng.uniform(-2.5, 1.5 if counting else 2.5))
    noise = float(np.sqrt(gain**2 * photons + read**2))
    threshold = None
    if rng.random() < 0.4:
        # From what just hides the noise to what cuts deep into the peaks.
        threshold = float(np.ceil(10 ** rng.uniform(0.3, 1.6) * max(noise, 0.3)))
    saturation = 2.0**31 - 1
    if rng.random() < 0.3:
        saturation = float(np.ceil(noise * 10 ** rng.uniform(1.5, 4.5)))
    return FrameConditions(
        photons=photons,
        slope=(float(rng.normal(0, 0.2)), float(rng.normal(0, 0.2))),
        gain=gain,
        offset=0.0 if counting else float(rng.integers(0, 2000)),
        read_noise=read,
        spread=float(rng.choice([0.0, rng.uniform(0, 0.3)])),
        correlated=not counting and bool(rng.random() < 0.6),
        threshold=threshold,
        saturation=saturation,
        aperture=float(rng.choice([1.0, 0.0, rng.random()], p=[0.6, 0.2, 0.2])),
    )


def draw_spots(
    rng: np.random.Generator, conditions: FrameConditions, *, side: int = SIDE_PX
) -> Spots:
    """Draw the spots of a frame of `side`×`side` pixels; their number and shapes vary with it."""
    count = int(rng.integers(40, 240))
    margin = HALF_PX + 1
    places = rng.uniform(margin, side - margin - 1, (count, 2))
    usual = 10 ** rng.uniform(*np.log10(WIDTHS_PX))
    mean = np.clip(usual * np.exp(rng.normal(0, 0.25, count)), *WIDTHS_PX)
    long = np.minimum(np.exp(np.abs(rng.normal(0, rng.uniform(0, 0.5), count))), MOST_ELONGATED)
    # From what the noise just hides upwards over some decades; a frame may hold bright ones alone.
    noise = max(conditions.noise_counts / conditions.gain, 0.3)
    low = rng.uniform(0.5, 2.5) if rng.random() < 0.75 else rng.uniform(2.5, 5.5)
    height = noise * 10 ** rng.uniform(low, low + rng.uniform(0.5, 3.5), count)
    usual_mixing = rng.uniform(-0.2, 1.2)
    mixing = np.clip(usual_mixing + rng.normal(0, 0.15, count), 0, 1)
    odd = rng.random(count) < 0.2
    exponent = np.where(odd, np.exp(rng.normal(0, 0.12, count)), 1.0)
    spots = Spots(
        places,
        np.minimum(height, BRIGHTEST),
        mean[:, None] * np.stack([np.sqrt(long), 1 / np.sqrt(long)], axis=1),
        rng.uniform(-np.pi / 2, np.pi / 2, count),
        mixing,
        exponent,
    )
    return _apart(spots)


def _apart(spots: Spots) -> Spots:
    """Leave out spots that would merge with one before them."""
    near = np.linalg.norm(spots.positions_px[:, None] - spots.positions_px[None], axis=2)
    wide = spots.fwhm_px[:, 0]
    reach = np.maximum(2.2, 0.9 * np.maximum(wide[:, None], wide[None]))
    clash = np.tril(near < reach, -1).any(axis=1)
    return spots.select(~clash)


def simulate_frame(
    conditions: FrameConditions, spots: Spots, rng: np.random.Generator, *, side: int = SIDE_PX
) -> VariedFrame:
    """Take a frame of `side`×`side` pixels."""
    ramp = np.linspace(-0.5, 0.5, side)
    slope_row, slope_col = conditions.slope
    background = conditions.photons * (1 + slope_row * ramp[:, None] + slope_col * ramp[None, :])
    expected = np.maximum(background, 0)
    windows, down, across = expected_windows(spots, conditions.aperture)
    centres = np.rint(spots.positions_px).astype(np.int64)
    span = 2 * HALF_PX + 1
    for (row, col), window in zip(centres - HALF_PX, windows, strict=True):
        expected[row : row + span, col : col + span] += window
    quiet = conditions.photons + (conditions.read_noise / conditions.gain) ** 2
    bounds = _bounds(windows, down, across, quiet)
    peak = windows[:, HALF_PX, HALF_PX].astype(np.float64)
    snr = peak / np.sqrt(np.maximum(peak + quiet, 1e-9))
    if not conditions.correlated:
        expected = _spread(expected, conditions.spread)
    counts = _poisson(expected, rng) * conditions.gain
    if conditions.correlated:
        counts = _spread(counts, conditions.spread)
    if conditions.read_noise:
        counts += rng.normal(0, conditions.read_noise, counts.shape)
    counts = np.rint(counts)
    if conditions.threshold is None:
        counts += conditions.offset
    else:
        # What is suppressed lies below a limit above the background, which stays in what is not.
        counts[counts <= conditions.threshold + conditions.gain * conditions.photons] = 0
    np.clip(counts, 0, conditions.saturation, out=counts)
    small = counts.max() < np.iinfo(np.uint16).max
    return VariedFrame(
        counts.astype(np.uint16 if small else np.int32), conditions, spots, bounds, snr
    )


def expected_windows(spots: Spots, aperture: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute expected photons around each spot, and their derivatives by its row and column.

    Returns
    -------
    (n, 23, 23) photons and twice (n, 11, 11), around the pixel nearest to the spot.
    """
    offset = (spots.positions_px - np.rint(spots.positions_px)).astype(np.float32)
    span = np.arange(-HALF_PX, HALF_PX + 1, dtype=np.float32)
    window = _profile(spots, span - offset[:, :1], span - offset[:, 1:])[0]
    inner = slice(HALF_PX - CENTRE, HALF_PX + CENTRE + 1)
    core, slopes = span[inner], np.empty((2, len(spots), PATCH_SIZE, PATCH_SIZE), np.float32)
    narrow = spots.fwhm_px[:, 1] < NARROW_PX
    for chosen, order in ((narrow, 5), (~narrow, 2)):
        if not chosen.any():
            continue
        nodes, weights = np.polynomial.legendre.leggauss(order if aperture else 1)
        nodes, weights = (part.astype(np.float32) / 2 for part in (nodes, weights))
        fine = (core[:, None] + np.float32(aperture) * nodes).reshape(-1)
        part, moved = spots.select(chosen), offset[chosen]
        averaged = [
            np.einsum("nrasb,a,b->nrs", cells, weights, weights)
            for cells in (
                values.reshape(-1, PATCH_SIZE, len(nodes), PATCH_SIZE, len(nodes))
                for values in _profile(part, fine - moved[:, :1], fine - moved[:, 1:], slopes=True)
            )
        ]
        window[chosen, inner, inner] = averaged[0]
        slopes[:, chosen] = averaged[1:]
    radius = np.hypot(span[:, None], span[None, :])
    fade = np.clip((HALF_PX - radius) / (HALF_PX * (1 - TAPER)), 0, 1)
    height = spots.photons[:, None, None].astype(np.float32)
    window *= height * (fade * fade * (3 - 2 * fade))
    return window, slopes[0] * height, slopes[1] * height


def _profile(
    spots: Spots, row: FloatArray, col: FloatArray, *, slopes: bool = False
) -> list[FloatArray]:
    """Profile of unit height at (n, r) rows and (n, c) columns, and its two derivatives."""
    cos, sin = np.cos(spots.angle_rad)[:, None], np.sin(spots.angle_rad)[:, None]
    long, short = (spots.fwhm_px[:, axis, None] for axis in (0, 1))
    a = 4 * ((sin / long) ** 2 + (cos / short) ** 2).astype(np.float32)[:, :, None]
    b = 4 * (sin * cos * (1 / long**2 - 1 / short**2)).astype(np.float32)[:, :, None]
    c = 4 * ((cos / long) ** 2 + (sin / short) ** 2).astype(np.float32)[:, :, None]
    r, s = row[:, :, None], col[:, None, :]
    q = a * (r * r) + c * (s * s) + (2 * b * r) * s
    odd = np.flatnonzero(spots.exponent != 1)
    exponent = spots.exponent[odd, None, None].astype(np.float32)
    growth = None
    if len(odd):
        plain = np.maximum(q[odd], np.float32(1e-6))
        q[odd] = plain**exponent
        growth = exponent * q[odd] / plain
    mixing = spots.mixing.astype(np.float32)[:, None, None]
    lorentz, gauss = 1 / (1 + q), (1 - mixing) * np.exp(np.float32(-_LN2) * q)
    shape = mixing * lorentz + gauss
    if not slopes:
        return [shape]
    slope = (mixing * lorentz) * lorentz + np.float32(_LN2) * gauss
    if growth is not None:
        slope[odd] *= growth
    return [shape, slope * (2 * (a * r + b * s)), slope * (2 * (b * r + c * s))]


def _bounds(windows: FloatArray, down: FloatArray, across: FloatArray, quiet: float) -> FloatArray:
    """Bound rows and columns, where a pixel without signal has a variance of `quiet` photons²."""
    inner = slice(HALF_PX - CENTRE, HALF_PX + CENTRE + 1)
    signal, rows, cols = windows[:, inner, inner], down, across
    variance = np.maximum(signal + quiet, 1e-9)
    rr = (rows * rows / variance).sum(axis=(1, 2))
    cc = (cols * cols / variance).sum(axis=(1, 2))
    rc = (rows * cols / variance).sum(axis=(1, 2))
    determinant = np.maximum(rr * cc - rc * rc, 1e-12)
    bounds: FloatArray = np.sqrt(np.stack([cc, rr], axis=1) / determinant[:, None])
    return bounds


def _poisson(expected: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.poisson(expected).astype(np.float64)


def _spread(image: FloatArray, share: float) -> FloatArray:
    """Give a share of each pixel to its neighbours, those along rows and columns most."""
    if not share:
        return image
    edge = share / 2
    for axis in (0, 1):
        before, after = np.roll(image, 1, axis), np.roll(image, -1, axis)
        image = (1 - edge) * image + edge / 2 * (before + after)
    return image
