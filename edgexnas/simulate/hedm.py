"""A far-field high-energy diffraction microscope with a known answer.

A polycrystal turns in the beam and its grains reflect onto a flat detector. Each spot's place
and rotation angle follow from Bragg geometry (`edgexnas.simulate.crystal`), its shape from a
pseudo-Voigt profile averaged over each pixel (`spot_profile`), and its counts from photon
statistics, readout noise, saturation and the defects of the detector. Brightness and size of a
reflection are drawn at random; they do not follow from structure factors or grain volumes.

Frames are made when they are asked for; frame k depends on the settings, the seed and k alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.frames import LazyFrames, Truth
from edgexnas.simulate.background_noise import BackgroundNoise
from edgexnas.simulate.hedm_settings import HedmSettings
from edgexnas.simulate.hedm_truth import draw_grains, predict_spots
from edgexnas.simulate.pixel_defects import PixelDefects
from edgexnas.simulate.spot_profile import (
    HALF_WINDOWS_PX,
    brightest_pixels,
    expected_counts,
    half_windows,
)

__all__ = ["HedmSettings", "SimulatedSeries", "simulate_hedm"]

_DEFECTS, _SPOTS, _FRAMES = range(3)
"""Keys of independent random streams."""

_SUPPRESSED_SIGMAS = 8.0
"""Background this far below the suppression threshold is never drawn: it never survives."""


def simulate_hedm(settings: HedmSettings | None = None, *, seed: int = 0) -> SimulatedSeries:
    """Simulate a rotation series.

    Parameters
    ----------
    settings
        The experiment; None takes the defaults of `HedmSettings`.
    seed
        Equal settings and seeds give equal frames.
    """
    return SimulatedSeries(settings or HedmSettings(), seed)


class SimulatedSeries(LazyFrames):
    """A `FrameSeries` of simulated frames, uint16, with their `truth` and its `grains`."""

    truth: Truth

    def __init__(self, settings: HedmSettings, seed: int) -> None:
        defects = PixelDefects.draw(settings, _stream(seed, _DEFECTS))
        self._noise = BackgroundNoise(
            _background(settings),
            counts_per_photon=settings.counts_per_photon,
            readout_noise=settings.readout_noise,
        )
        spots = _stream(seed, _SPOTS)
        self.grains = draw_grains(settings, spots)
        start = settings.omega_start_deg + settings.omega_step_deg * np.arange(settings.frames)
        super().__init__(
            count=settings.frames,
            shape=settings.shape,
            dtype=np.dtype(np.uint16),
            source=f"simulate_hedm(seed={seed})",
            omega_deg=np.stack([start, start + settings.omega_step_deg], axis=1),
            mask=defects.mask if defects.mask.any() else None,
            truth=predict_spots(settings, self.grains, spots, defects.mask, self._noise.expected),
        )
        self.settings = settings
        self.seed = seed
        self._defects = defects

    @property
    def background(self) -> npt.NDArray[np.float32]:
        """(H, W) float32, expected counts of each pixel where there is no spot."""
        return self._noise.expected

    def _frame(self, index: int) -> npt.NDArray[Any]:
        rng = _stream(self.seed, _FRAMES, index)
        counts = np.zeros(self.shape, np.int32)
        self._add_spots(counts, self.truth.of_frame(index), rng)
        flat = counts.reshape(-1)
        self._add_strays(flat, rng)
        threshold = self.settings.sparse_threshold
        if threshold is None or self._reaches(threshold):
            flat += self._noise.draw(rng)
        else:
            # Elsewhere the background stays below the threshold and is recorded as 0.
            lit = np.flatnonzero(flat)
            flat[lit] += self._noise.draw(rng, lit)
        np.clip(counts, 0, self.settings.saturation, out=counts)
        self._defects.apply(counts, self.settings.saturation)
        if threshold is not None:
            counts[counts <= threshold] = 0
        return counts.astype(np.uint16)

    def _add_strays(self, flat: npt.NDArray[np.int32], rng: np.random.Generator) -> None:
        count = rng.poisson(self.settings.stray_events)
        pixels = rng.integers(0, len(flat), count)
        energy = np.rint(rng.exponential(self.settings.stray_counts, count)).astype(np.int32)
        np.add.at(flat, pixels, energy)

    def _reaches(self, threshold: float) -> bool:
        highest = float(self._noise.expected.max()) + _SUPPRESSED_SIGMAS * self._noise.sigma
        return highest >= threshold

    def _add_spots(
        self, counts: npt.NDArray[np.int32], spots: Truth, rng: np.random.Generator
    ) -> None:
        gain = self.settings.counts_per_photon
        window = half_windows(spots)
        for number, half in enumerate(HALF_WINDOWS_PX):
            chosen = spots.select(window == number)
            # Photons of a sum are the sum of photons, so spots may be drawn one by one.
            photons = rng.poisson(expected_counts(chosen, half) / gain)
            drawn = photons if gain == 1 else np.rint(photons * gain)
            for (row, col), patch in zip(
                brightest_pixels(chosen).tolist(), drawn.astype(np.int32), strict=True
            ):
                _add_window(counts, patch, row - half, col - half)


def _add_window(
    counts: npt.NDArray[np.int32], patch: npt.NDArray[np.int32], row: int, col: int
) -> None:
    """Add a patch whose first pixel is at (row, col), as far as it lies on the frame."""
    top, left = max(0, -row), max(0, -col)
    height = min(len(patch), counts.shape[0] - row)
    width = min(len(patch), counts.shape[1] - col)
    counts[row + top : row + height, col + left : col + width] += patch[top:height, left:width]


def _background(settings: HedmSettings) -> npt.NDArray[np.float64]:
    """(H, W) expected counts: a level, a slope along the rows, and a halo around the beam."""
    rows, columns = settings.shape
    centre_row, centre_col = settings.centre_px
    slope = settings.background_slope * (np.arange(rows) / max(rows - 1, 1) - 0.5)
    width = max(rows, columns) / 3
    row = np.exp(-0.5 * ((np.arange(rows) - centre_row) / width) ** 2)
    col = np.exp(-0.5 * ((np.arange(columns) - centre_col) / width) ** 2)
    relative = 1 + slope[:, None] + settings.background_halo * row[:, None] * col[None, :]
    expected: npt.NDArray[np.float64] = settings.background_counts * relative
    return expected


def _stream(seed: int, *key: int) -> np.random.Generator:
    # Keyed, so that a frame does not depend on which were made before.
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))
