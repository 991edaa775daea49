"""Synthetic peaks without limit, resampled from the training part of labelled ones.

A network for Bragg peaks approximates a function of a patch, the fit, and a few hundred measured
patches show it too little of that function. A synthetic peak is a measured one elsewhere in its
pixel: its fitted profile, a little brighter, wider or turned, at a random place; on it what the
profile did not explain of the measured patch, in random strength; and fresh noise. Where the
detector saturates, so does the synthetic peak. Then it is suppressed as the measured ones are, and
**fitted anew**, so that its label is what the fit says of the synthetic counts and not the position
that was chosen. Where the true positions are known, as of a simulated series, the label is the
chosen position.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from edgexnas.bragg import CENTRE
from edgexnas.errors import ConfigurationError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import acceptable
from edgexnas.host.data.pseudo_voigt import FWHM_LIMITS_PX, PseudoVoigtFit, fit_pseudo_voigt

__all__ = ["draw_like", "with_drawn_peaks", "with_synthetic_peaks"]

SHIFT_PX = 0.6
"""Farthest place of a peak from its brightest pixel's centre, along each axis, before noise."""

NEAR_PX, NEAR_SHARE = 0.4, 0.5
"""Farthest move, along each axis, of a peak that stays about where it was measured, and the share
of draws that do: by a ridge, a neighbour or saturation the brightest pixel of some peaks is not the
nearest one, which is where networks err most, and elsewhere in the pixel detection seldom finds
them."""

ODD_TIMES, ODD_SHARE = 2.0, 0.25
"""Such peaks are drawn there beyond their own share of all peaks: so many times that share more, up
to this share of all draws. Where there are few of them each is drawn three times as often as
another peak, and not a quarter of the time."""

ODD_PX = 0.5
"""A peak farther than this from its brightest pixel's centre, along an axis, has a nearer one."""

NEAR_FULL = 0.97
"""Share of the largest count from where a pixel is saturated, if others of its peak are too."""

SATURATED_PEAKS = 0.005
"""Share of peaks with two pixels there from which on a detector is taken to saturate."""

BRIGHTER, WIDER, LONGER = 0.2, 0.05, 0.03
"""Standard deviations of the logarithms of height, of both widths, and of each width."""

TURNED_RAD, MIXED = 0.2, 0.05
"""Standard deviations of the angle and the Lorentzian fraction."""

CHUNK, FIRST_CHUNK = 1 << 15, 1 << 9
"""Draws at once at most, and the first where the time is limited."""

LEAST_KEPT = 0.02
"""Share of the draws of a round that must be usable, or the labels cannot be resampled."""

NOISE_BINS = 20

FloatArray = npt.NDArray[np.float64]


def with_synthetic_peaks(
    dataset: PeakDataset,
    count: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    seconds: float | None = None,
) -> PeakDataset:
    """Add synthetic peaks to labelled ones, for searches to train on.

    Each takes the place and frame of the peak of the training part that it comes from, so the
    split gives it to training, and the other parts neither change nor tell anything to it.

    Parameters
    ----------
    dataset
        Labelled peaks, from `edgexnas.host.label_frames`.
    count
        Peaks to add, 0.5 kB each.
    device
        A torch device for the fits.
    threads
        CPU threads of the fits.
    seconds
        After so long what has been drawn is enough; None draws all.

    Raises
    ------
    ConfigurationError
        If `count` is below 1, a part of the split is too small, or next to no draw is usable.
    """
    train = dataset.split().train
    added = draw_like(
        dataset, train, count, seed=seed, device=device, threads=threads, seconds=seconds
    )
    source = f"{dataset.source}; {len(added)} synthetic peaks, seed {seed}"
    return dataset.merge(added, source=source)


def draw_like(
    dataset: PeakDataset,
    train: npt.NDArray[np.intp],
    count: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    seconds: float | None = None,
) -> PeakDataset:
    """Draw synthetic peaks like those of a part of a dataset, and give them alone.

    Parameters
    ----------
    train
        Indices of the peaks that they are like.
    count, seed, device, threads, seconds
        As of `with_synthetic_peaks`.

    Raises
    ------
    ConfigurationError
        If `count` is below 1, or next to no draw is usable.
    """
    if count < 1:
        raise ConfigurationError(f"count is {count}; specify 1 synthetic peak or more")
    began = time.monotonic()
    chunk = CHUNK if seconds is None else FIRST_CHUNK
    tried = 0
    generator = _PeakGenerator(dataset, train, {"device": device, "threads": threads})
    rng = np.random.default_rng(seed)
    parts: list[tuple[npt.NDArray[np.float32], ...]] = []
    # Draws that detection would not find are thrown away, so more are made than wanted.
    while (missing := count - sum(len(part[0]) for part in parts)) > 0:
        tries = min(max(2 * missing, 256), chunk)
        part = generator.draw(tries, rng)
        if len(part[0]) < LEAST_KEPT * tries:
            raise ConfigurationError(
                f"{len(part[0])} of {tries} synthetic peaks like those of {dataset.source} can be "
                "found and fitted; check the labels, or do without synthetic peaks"
            )
        parts.append(part)
        if seconds is None:
            continue
        tried += tries
        taken = time.monotonic() - began
        if taken > seconds:
            count = min(count, sum(len(part[0]) for part in parts))
            break
        # Half of what the time seems to allow: the first ones take longest.
        chunk = max(FIRST_CHUNK, min(CHUNK, int(tried / taken * (seconds - taken) / 2)))
    counts, offsets, r2, placed, parent = (
        np.concatenate(column)[:count] for column in zip(*parts, strict=True)
    )
    index = train[parent.astype(np.intp)]
    maxima = dataset.maxima[index]
    return replace(
        dataset,
        counts=counts,
        offsets_px=offsets,
        maxima=maxima,
        frame=dataset.frame[index],
        flags=np.zeros(count, np.uint8),
        r2=r2,
        good=np.ones(count, np.bool_),
        truth_px=None if dataset.truth_px is None else placed.astype(np.float64) + maxima,
    )


def with_drawn_peaks(*arguments: Any, **options: Any) -> PeakDataset:
    """Call `with_synthetic_peaks`: its name until the next release."""
    warnings.warn("with_drawn_peaks is now with_synthetic_peaks", DeprecationWarning, stacklevel=2)
    return with_synthetic_peaks(*arguments, **options)


class _PeakGenerator:
    """What peaks are drawn from: the fits of measured ones, and what these do not explain."""

    def __init__(self, dataset: PeakDataset, train: npt.NDArray[np.intp], fit_options: Any) -> None:
        self._fit_options = fit_options
        counts = dataset.counts[train].astype(np.float64)
        self._fit = fit_pseudo_voigt(counts, **fit_options)
        model = self._fit.profiles()
        lit = counts > 0
        self._readout, self._gain = _noise(model[lit], (counts - model)[lit])
        self._least, self._most = counts[lit].min(), counts.max()
        # A patch with fewer lit pixels than any measured one is none that detection gives.
        self._fewest = lit.sum(axis=(1, 2)).min()
        full = counts > NEAR_FULL * self._most
        saturates = (full.sum(axis=(1, 2)) > 1).mean() > SATURATED_PEAKS
        # What pixels hold that are full: they differ by their dark counts.
        self._full = counts[full] if saturates else None
        offsets = self._fit.positions_px - CENTRE
        odd = (np.abs(offsets).max(axis=1) > ODD_PX) | (saturates & (full.sum(axis=(1, 2)) > 1))
        self._odd = np.flatnonzero(odd)
        self._odd_share = min(ODD_TIMES * odd.mean(), ODD_SHARE)
        # The profile does not know that counts end.
        kept = lit & ~full if saturates else lit
        self._unexplained = np.where(kept, counts - model, 0.0) / self._fit.amplitude[:, None, None]
        # Detection clears what belongs to a neighbouring peak. A pixel without counts where the
        # profile is far above the least that is recorded has been cleared.
        far = self._least + 5 * np.sqrt(self._variance(model))
        self._cleared = ~lit & (model > far)

    def _variance(self, counts: FloatArray) -> FloatArray:
        variance: FloatArray = self._readout + self._gain * np.maximum(counts, 0)
        return variance

    def draw(self, tries: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], ...]:
        """Draw peaks and keep the usable ones.

        Returns
        -------
        Counts (n, 11, 11), fitted offsets (n, 2), R² (n,), drawn offsets (n, 2) and the measured
        peak (n,) that each comes from.
        """
        parent = rng.integers(0, len(self._fit), tries)
        near = rng.random(tries) < NEAR_SHARE
        if len(self._odd):
            # Of those that stay where they are.
            chosen = near & (rng.random(tries) < self._odd_share / NEAR_SHARE)
            parent[chosen] = rng.choice(self._odd, chosen.sum())
        moved = self._fit.positions_px[parent] - CENTRE + rng.uniform(-NEAR_PX, NEAR_PX, (tries, 2))
        elsewhere = rng.uniform(-SHIFT_PX, SHIFT_PX, (tries, 2))
        placed = np.where(near[:, None], moved, elsewhere)
        profile = self._vary(parent, placed, rng)
        strength = profile.amplitude * rng.uniform(0, 1, tries)
        expected = profile.profiles() + self._unexplained[parent] * strength[:, None, None]
        expected = np.maximum(expected, 0)
        noise = rng.normal(size=expected.shape) * np.sqrt(self._variance(expected))
        counts = np.rint(expected + noise)
        if self._full is not None:
            counts = np.minimum(counts, rng.choice(self._full, counts.shape))
        counts[(counts < self._least) | self._cleared[parent]] = 0
        # Detection cuts around the brightest pixel, so it must have stayed in the middle.
        found = counts.max(axis=(1, 2)) == counts[:, CENTRE, CENTRE]
        found &= (counts > 0).sum(axis=(1, 2)) >= self._fewest
        found &= counts[:, CENTRE, CENTRE] <= self._most
        counts, parent, placed = counts[found], parent[found], placed[found]
        fit = fit_pseudo_voigt(counts, **self._fit_options)
        good = acceptable(fit)
        return tuple(
            column[good].astype(np.float32)
            for column in (counts, fit.positions_px - CENTRE, fit.r2, placed, parent)
        )

    def _vary(
        self, parent: npt.NDArray[np.intp], placed: FloatArray, rng: np.random.Generator
    ) -> PseudoVoigtFit:
        fit, count = self._fit, len(parent)
        widths = fit.fwhm_px[parent] * np.exp(rng.normal(0, WIDER, (count, 1)))
        widths *= np.exp(rng.normal(0, LONGER, (count, 2)))
        return replace(
            fit,
            positions_px=CENTRE + placed,
            amplitude=fit.amplitude[parent] * np.exp(rng.normal(0, BRIGHTER, count)),
            background=fit.background[parent],
            fwhm_px=np.clip(widths, *FWHM_LIMITS_PX),
            angle_rad=fit.angle_rad[parent] + rng.normal(0, TURNED_RAD, count),
            mixing=np.clip(fit.mixing[parent] + rng.normal(0, MIXED, count), 0, 1),
        )


def _noise(model: FloatArray, residual: FloatArray) -> tuple[float, float]:
    """Variance of the noise without counts, and by how much it grows with each count.

    Fitted to the spread of the residuals in bins of the model, together with a term in the square
    of the counts, which is the profile's own misfit and no noise.
    """
    order = np.array_split(np.argsort(model), NOISE_BINS)
    level = np.array([model[part].mean() for part in order]).clip(min=0)
    # 1.4826 turns a median absolute deviation into a standard deviation (Gaussian noise).
    spread = np.array([1.4826 * np.median(np.abs(residual[part])) for part in order]) ** 2
    spread = spread.clip(min=1e-12)
    # Relative to the spread, or the bright bins alone would decide.
    terms = np.stack([np.ones_like(level), level, level**2], axis=1) / spread[:, None]
    # Not negative: a variance is not, whatever few residuals say.
    (readout, gain, _), _ = nnls(terms, np.ones_like(spread))
    return float(readout), float(gain)
