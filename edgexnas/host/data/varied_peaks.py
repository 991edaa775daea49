"""Peaks of detectors that differ in everything, as detection cuts them, with what is true of them.

Frames come from `edgexnas.simulate.varied_frames`, each taken under conditions of its own; peaks
are found and cut on each as on a detector's first frame, whose background is estimated from it
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE
from edgexnas.host.data.matching import match_peaks
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import TRUTH_RADIUS_PX, acceptable
from edgexnas.host.data.pseudo_voigt import fit_pseudo_voigt
from edgexnas.peak_finding import FinderSettings, PeakFinder, estimate_background
from edgexnas.simulate.varied_frames import (
    SIDE_PX,
    FrameConditions,
    Spots,
    draw_conditions,
    draw_spots,
    simulate_frame,
)

__all__ = ["VariedPeaks", "draw_varied_peaks", "varied_dataset"]

FrameSource = Callable[[np.random.Generator], tuple[FrameConditions, Spots]]


@dataclass(frozen=True, slots=True, eq=False)
class VariedPeaks:
    """Peaks that were found on simulated frames, in the order of `PeakDataset`.

    Attributes
    ----------
    counts
        (n, 11, 11) float32, patches as detection cuts them.
    true_px
        (n, 2) float32, true (row, col) offset from the patch's centre pixel; NaN where nothing was
        simulated.
    bounds_px
        (n, 2) float32, as of `VariedFrame`; NaN where nothing was simulated.
    snr
        (n,) float32, as of `VariedFrame`; NaN where nothing was simulated.
    maxima, flags, frame
        As of `PeakDataset`.
    """

    counts: npt.NDArray[np.float32]
    true_px: npt.NDArray[np.float32]
    bounds_px: npt.NDArray[np.float32]
    snr: npt.NDArray[np.float32]
    maxima: npt.NDArray[np.int32]
    flags: npt.NDArray[np.uint8]
    frame: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.frame)


def any_detector(rng: np.random.Generator) -> tuple[FrameConditions, Spots]:
    """Draw a frame of any detector."""
    conditions = draw_conditions(rng)
    return conditions, draw_spots(rng, conditions)


def draw_varied_peaks(
    frames: int, *, seed: int, first: int = 0, source: FrameSource = any_detector
) -> VariedPeaks:
    """Simulate frames and find the peaks of each.

    Parameters
    ----------
    frames
        How many, about 90 peaks each.
    seed, first
        Frame k of a seed is the same whichever frames are drawn with it; `first` is the number of
        the first one here.
    source
        Draws what a frame is taken with and what is on it; any detector's by default.
    """
    parts = [_peaks_of(number, seed, source) for number in range(first, first + frames)]
    return VariedPeaks(
        *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(VariedPeaks))
    )


def _peaks_of(number: int, seed: int, source: FrameSource) -> VariedPeaks:
    rng = np.random.default_rng([seed, number])
    conditions, spots = source(rng)
    taken = simulate_frame(conditions, spots, rng)
    background = estimate_background([taken.counts])
    finder = PeakFinder(shape=taken.counts.shape, background=background)
    found = finder.find(taken.counts)
    true = np.full((len(found), 2), np.nan, np.float32)
    bounds, snr = true.copy(), true[:, 0].copy()
    pairs = match_peaks(found.maxima, spots.positions_px, TRUTH_RADIUS_PX)
    mine, theirs = pairs[:, 0], pairs[:, 1]
    true[mine] = spots.positions_px[theirs] - found.maxima[mine]
    bounds[mine], snr[mine] = taken.bounds_px[theirs], taken.snr[theirs]
    frame = np.full(len(found), number, np.int32)
    return VariedPeaks(found.counts, true, bounds, snr, found.maxima, found.flags, frame)


def varied_dataset(
    peaks: VariedPeaks, frames: int, *, device: str = "cpu", threads: int = 1
) -> PeakDataset:
    """Make labelled peaks of drawn ones, scored against the truth, to search and calibrate with.

    Parameters
    ----------
    frames
        How many were drawn, from number 0.
    device, threads
        A torch device and CPU threads of the fits.
    """
    fit = fit_pseudo_voigt(peaks.counts, device=device, threads=threads)
    known = np.isfinite(peaks.true_px).all(axis=1)
    return PeakDataset(
        counts=peaks.counts,
        offsets_px=(fit.positions_px - CENTRE).astype(np.float32),
        maxima=peaks.maxima,
        frame=peaks.frame,
        flags=peaks.flags,
        r2=fit.r2.astype(np.float32),
        good=known & (peaks.flags == 0) & acceptable(fit),
        truth_px=peaks.true_px.astype(np.float64) + peaks.maxima,
        frames=frames,
        shape=(SIDE_PX, SIDE_PX),
        source=f"{frames} simulated frames of as many detectors",
        finder=FinderSettings(),
    )
