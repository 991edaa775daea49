"""Simulated peaks of many kinds, with their true positions, on which a network is tried.

They are no training data. They tell where a network errs, and by which quantities one sees it:
widths of 0.5 to 6 px FWHM, up to four times as long as wide, Gaussian to Lorentzian, 8 to 10⁵
counts, counting and readout noise with gains of 0.3 to 30 over backgrounds of 0 to 3,000 counts,
zeros below a threshold, and hidden neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, PATCH_SIZE
from edgexnas.frames import Truth
from edgexnas.host.data.peak_labels import acceptable
from edgexnas.host.data.pseudo_voigt import fit_pseudo_voigt
from edgexnas.simulate.spot_profile import expected_counts

__all__ = ["fitted_kinds", "simulated_kinds"]

FloatArray = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

REACH = 7
SIDE = 2 * REACH + 1
NEIGHBOURS, THRESHOLDED, COUNTING, DARK, READOUT = 0.1, 0.4, 0.5, 0.3, 0.5
"""Shares of peaks with a hidden neighbour, with zeros below a threshold, with a gain of 1, without
background, and with readout noise."""

MOST_FITTED = 2500
"""Fits of peaks of all kinds take longer than those of a detector's: a millisecond each."""

FEWEST_SIGMAS, LEAST_SNR, LEAST_PROMINENCE, FEWEST_PIXELS = 5.0, 5.0, 3.0, 3


@lru_cache(maxsize=1)
def simulated_kinds(tries: int, *, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Simulate peaks and keep those that detection would find.

    Returns
    -------
    Patches (n, 11, 11) in counts above background, and true offsets (n, 2) from the middle pixel
    in px, (row, col); n is about four fifths of `tries`. Both are kept for the next call and are
    not to be written to.
    """
    rng = np.random.default_rng(seed)
    spots = _spots(tries, rng)
    place = np.stack([spots.row, spots.col], axis=1)
    expected = expected_counts(spots, REACH).astype(np.float64)
    _add_neighbours(expected, spots, rng)
    gain = np.where(rng.random(tries) < COUNTING, 1.0, _log_uniform(rng, 0.3, 30, tries))
    background = np.where(rng.random(tries) < DARK, 0.0, _log_uniform(rng, 0.01, 3000, tries))
    readout = _log_uniform(rng, 0.1, 30, tries) * (rng.random(tries) < READOUT)
    gains, levels = gain[:, None, None], background[:, None, None]
    photons = rng.poisson((expected + levels) / gains)
    noise = rng.normal(size=expected.shape) * readout[:, None, None]
    counts = np.rint(photons * gains + noise) - levels
    highest = counts[:, REACH - 1 : REACH + 2, REACH - 1 : REACH + 2].max(axis=(1, 2))
    share = _log_uniform(rng, 0.02, 0.5, tries) * (rng.random(tries) < THRESHOLDED)
    counts[counts < (share * highest)[:, None, None]] = 0
    counts = np.maximum(counts, 0)
    patches, shift = _cut(counts)
    offsets = place - np.rint(place) - shift
    sigma = np.sqrt(background * gain + readout**2)
    kept = _found(patches, sigma) & (np.abs(shift).max(axis=1) < 2)
    result = patches[kept].astype(np.float32), offsets[kept].astype(np.float32)
    for array in result:
        array.flags.writeable = False
    return result


@lru_cache(maxsize=1)
def fitted_kinds(tries: int, *, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Simulate as `simulated_kinds` does, with the offsets of pseudo-Voigt fits for the true ones.

    A network that learned from fits errs as they do: of narrow peaks by hundredths of a pixel. Fits
    that could not be labels are left out.
    """
    patches, _ = simulated_kinds(tries, seed=seed)
    patches = patches[:MOST_FITTED]
    fit = fit_pseudo_voigt(patches)
    good = acceptable(fit)
    return patches[good], (fit.positions_px[good] - CENTRE).astype(np.float32)


def _log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> Wide:
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def _spots(number: int, rng: np.random.Generator) -> Truth:
    width = _log_uniform(rng, 0.5, 6, number)
    longer = np.clip(np.minimum(_log_uniform(rng, 1, 4, number), 6 / width), 1, None)
    place = rng.uniform(-0.5, 0.5, (number, 2)) + REACH
    never, zero = np.zeros(number, np.bool_), np.zeros(number, np.int32)
    return Truth(
        frame=zero,
        row=place[:, 0],
        col=place[:, 1],
        counts=_log_uniform(rng, 8, 1e5, number).astype(np.float32),
        fwhm_major_px=(width * np.sqrt(longer)).astype(np.float32),
        fwhm_minor_px=(width / np.sqrt(longer)).astype(np.float32),
        angle_rad=rng.uniform(-np.pi / 2, np.pi / 2, number).astype(np.float32),
        mixing=rng.uniform(0, 1, number).astype(np.float32),
        omega_deg=np.zeros(number),
        grain=zero,
        reflection=zero,
        overlap=never,
        saturated=never,
        masked=never,
        visible=~never,
    )


def _add_neighbours(expected: Wide, spots: Truth, rng: np.random.Generator) -> None:
    """Add a weaker peak beside some, near enough that no finder tells them apart."""
    chosen = np.flatnonzero(rng.random(len(expected)) < NEIGHBOURS)
    angle, length = rng.uniform(0, 2 * np.pi, len(chosen)), rng.uniform(1.5, 4.5, len(chosen))
    width = np.sqrt(spots.fwhm_major_px * spots.fwhm_minor_px)[chosen]
    step = (
        np.stack([np.sin(angle), np.cos(angle)], 1) * (length * np.maximum(1, width / 2))[:, None]
    )
    near = spots.select(chosen)
    weaker = _log_uniform(rng, 0.1, 1, len(chosen)).astype(np.float32)
    beside = replace(
        near, row=near.row + step[:, 0], col=near.col + step[:, 1], counts=near.counts * weaker
    )
    profiles = expected_counts(beside, REACH)
    moved = np.rint(np.stack([beside.row, beside.col], 1)) - np.rint(
        np.stack([near.row, near.col], 1)
    )
    for index, profile, (down, across) in zip(chosen, profiles, moved.astype(int), strict=True):
        if max(abs(down), abs(across)) < SIDE:
            there, here = zip(*(_overlap(int(by)) for by in (down, across)), strict=True)
            expected[index][there] += profile[here]


def _overlap(by: int) -> tuple[slice, slice]:
    """Where a window lies on another one that it is moved from, and which part of it."""
    return slice(max(0, by), SIDE + min(0, by)), slice(max(0, -by), SIDE + min(0, -by))


def _cut(counts: Wide) -> tuple[Wide, npt.NDArray[np.intp]]:
    """Cut patches around the brightest of the middle 5×5 pixels; tell how far that one is off."""
    number = len(counts)
    near = counts[:, REACH - 2 : REACH + 3, REACH - 2 : REACH + 3].reshape(number, -1)
    shift = np.stack(np.divmod(near.argmax(axis=1), 5), axis=1) - 2
    span = np.arange(PATCH_SIZE) - CENTRE + REACH
    row, col = (shift[:, axis, None] + span for axis in range(2))
    every = np.arange(number)[:, None, None]
    return counts[every, row[:, :, None], col[:, None, :]], shift


def _found(patches: Wide, sigma: Wide) -> npt.NDArray[np.bool_]:
    """Tell which patches a peak finder would give: see `edgexnas.peak_finding.PeakFinder`."""
    inner = slice(CENTRE - 1, CENTRE + 2)
    core = patches[:, inner, inner]
    mean = core.mean(axis=(1, 2))
    around = patches[:, CENTRE - 2 : CENTRE + 3, CENTRE - 2 : CENTRE + 3].sum(axis=(1, 2))
    rim = (around - core.sum(axis=(1, 2))) / 16
    variance = sigma**2 + np.maximum(mean, 0)
    prominence = (mean - rim) / np.sqrt(variance / 9 + (sigma**2 + rim) / 16 + 1e-9)
    found: npt.NDArray[np.bool_] = (
        (patches[:, CENTRE, CENTRE] > FEWEST_SIGMAS * sigma)
        & (mean / np.sqrt(variance / 9 + 1e-9) > LEAST_SNR)
        & (prominence > LEAST_PROMINENCE)
        & ((core > FEWEST_SIGMAS / 2 * sigma[:, None, None]).sum(axis=(1, 2)) >= FEWEST_PIXELS)
    )
    return found
