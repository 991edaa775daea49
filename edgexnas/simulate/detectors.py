"""Kinds of detectors that differ in what they make of the same photons, and frames that each takes.

A pixel that expects x photons of background and spots reads, in this order: a Poisson number of
them times `gain`, plus its own offset and read noise; 0 below `lowest`; at most `highest`; and what
the detector writes where there is no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.frames import Truth
from edgexnas.simulate.spot_profile import HALF_WINDOWS_PX, brightest_pixels, expected_counts

__all__ = ["DETECTOR_KINDS", "DetectorFrames", "DetectorKind", "simulate_detector"]

FloatArray = npt.NDArray[np.float64]

SMALLEST_SNR = 7.0
FEWEST_LIT_PIXELS = 3
LIT_SIGMAS = 3.0


@dataclass(frozen=True, slots=True)
class DetectorKind:
    """What a detector makes of photons.

    Attributes
    ----------
    background
        Photons a pixel and frame.
    brightest
        Photons at the peak of the brightest spots; the peaks spread evenly over its logarithm.
    gain
        Counts a photon.
    offset, offset_spread
        Counts without a photon: mean, and standard deviation from pixel to pixel.
    read_noise
        Standard deviation in counts, from frame to frame.
    lowest, highest
        Counts below which a pixel reads 0, and at which it saturates.
    gap, dead
        What pixels in gaps between modules and dead ones read; None for no such pixels.
    hot_fraction
        Fraction of pixels that fire by themselves in half of the frames.
    fwhm_px
        Narrowest and widest spots.
    dtype
        Of the frames.
    """

    background: float = 1.0
    brightest: float = 4000.0
    gain: float = 1.0
    offset: float = 0.0
    offset_spread: float = 0.0
    read_noise: float = 0.0
    lowest: float = 0.0
    highest: float | None = None
    gap: int | None = None
    dead: int | None = None
    hot_fraction: float = 0.0
    fwhm_px: tuple[float, float] = (1.4, 3.5)
    dtype: Any = np.uint16


DETECTOR_KINDS: dict[str, DetectorKind] = {
    "counting with gaps": DetectorKind(gap=65535, dead=65535, hot_fraction=2e-5),
    "integrating with offset": DetectorKind(
        offset=350, offset_spread=3, read_noise=6, gain=2, background=4, hot_fraction=2e-5
    ),
    "thresholded at 5 counts": DetectorKind(lowest=5),
    "saturating at 14,000": DetectorKind(highest=14_000, brightest=100_000, background=8),
    "32-bit with sentinels": DetectorKind(gap=-1, dead=-2, brightest=200_000, dtype=np.int32),
}


@dataclass(frozen=True, slots=True)
class DetectorFrames:
    """Frames of one detector, and what is on them.

    Attributes
    ----------
    frames
        (k, H, W) counts.
    mask
        (H, W) bool, True in gaps and where a pixel is dead.
    hot
        (H, W) bool, True where a pixel fires by itself.
    positions_px
        For each frame (n, 2) float64: the spots that can be seen, the peak SNR at least 7 and at
        least three pixels 3 standard deviations above background, away from edges and gaps.
    other_px
        For each frame (n, 2) float64: all other spots.
    saturated
        For each frame (n,) bool: which of the spots that can be seen saturate a pixel.
    """

    frames: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    hot: npt.NDArray[np.bool_]
    positions_px: list[FloatArray]
    other_px: list[FloatArray]
    saturated: list[npt.NDArray[np.bool_]]


def simulate_detector(
    kind: DetectorKind,
    *,
    shape: tuple[int, int],
    frames: int,
    spots: int,
    seed: int,
    static: bool = False,
) -> DetectorFrames:
    """Simulate frames with spots at random places, no two of them within 12 px.

    Parameters
    ----------
    kind
        The detector.
    shape
        (H, W) of a frame.
    frames
        How many.
    spots
        Spots a frame, as far as they find room.
    seed
        Of all that is random.
    static
        Whether all frames show the same spots.
    """
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, np.bool_)
    taken = np.empty((frames, *shape), kind.dtype)
    if kind.gap is not None:
        mask[shape[0] // 2 - 4 : shape[0] // 2 + 4] = mask[:, shape[1] // 3 : shape[1] // 3 + 6] = (
            True
        )
    dead = np.zeros(shape, np.bool_) if kind.dead is None else random.random(shape) < 2e-4
    hot = (random.random(shape) < kind.hot_fraction) & ~mask & ~dead
    offsets = kind.offset + kind.offset_spread * random.standard_normal(shape)
    noise = np.sqrt(kind.background * kind.gain**2 + kind.offset_spread**2 + kind.read_noise**2)
    seen, other, saturated = [], [], []
    truth = None
    for number in range(frames):
        if truth is None or not static:
            truth = _spots(kind, shape, spots, random)
        expected = np.full(shape, kind.background, np.float64)
        half = HALF_WINDOWS_PX[-1]
        centres, windows = brightest_pixels(truth), expected_counts(truth, half)
        for (row, col), window in zip(centres, windows, strict=True):
            expected[row - half : row + half + 1, col - half : col + half + 1] += window
        counts = random.poisson(expected) * kind.gain + offsets
        counts += kind.read_noise * random.standard_normal(shape)
        fires = hot & (random.random(shape) < 0.5)
        counts[fires] += random.uniform(20, 200, int(fires.sum())) * noise
        counts[counts < kind.lowest] = 0
        limit = np.iinfo(kind.dtype).max if kind.highest is None else kind.highest
        full = np.rint(counts) >= limit
        counts = np.clip(np.rint(counts), 0, limit)
        for hidden, value in ((mask, kind.gap), (dead, kind.dead)):
            if value is not None:
                counts[hidden] = value
        taken[number] = counts
        visible = np.zeros(len(truth.positions_px), np.bool_)
        over = np.zeros(len(visible), np.bool_)
        for spot, ((row, col), window) in enumerate(zip(centres, windows, strict=True)):
            near = (slice(row - 5, row + 6), slice(col - 5, col + 6))
            signal = kind.gain * window[half - 5 : half + 6, half - 5 : half + 6]
            snr = signal.max() / np.sqrt(noise**2 + kind.gain * signal.max())
            lit = signal > max(LIT_SIGMAS * noise, kind.lowest)
            clear = not (mask[near] | dead[near] | hot[near]).any()
            visible[spot] = snr >= SMALLEST_SNR and lit.sum() >= FEWEST_LIT_PIXELS and clear
            over[spot] = full[near].any()
        seen.append(truth.positions_px[visible])
        other.append(truth.positions_px[~visible])
        saturated.append(over[visible])
    return DetectorFrames(taken, mask | dead, hot, seen, other, saturated)


def _spots(
    kind: DetectorKind, shape: tuple[int, int], number: int, random: np.random.Generator
) -> Truth:
    """Draw spots one after the other, each at least 12 px from those before it."""
    margin = HALF_WINDOWS_PX[-1] + 1
    tries = random.uniform(margin, np.array(shape) - margin, (4 * number, 2))
    places: list[FloatArray] = []
    for place in tries:
        if len(places) == number:
            break
        if not places or np.abs(np.array(places) - place).max(axis=1).min() > 12:
            places.append(place)
    count = len(places)
    major = random.uniform(*kind.fwhm_px, count)
    placed, zeros = np.array(places).reshape(-1, 2), np.zeros(count)
    drawn = {
        "row": placed[:, 0],
        "col": placed[:, 1],
        "counts": 10 ** random.uniform(1, np.log10(kind.brightest), count),
        "fwhm_major_px": major,
        "fwhm_minor_px": major * random.uniform(0.7, 1, count),
        "angle_rad": random.uniform(0, np.pi, count),
        "mixing": random.uniform(0, 1, count),
    }
    return Truth.from_columns({field.name: drawn.get(field.name, zeros) for field in fields(Truth)})
