"""Label the peaks of a series: detection as on the device, then a pseudo-Voigt fit of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE
from edgexnas.detector_mask import checked_mask, merged_masks
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.frames.series import existing_frames, existing_numbers
from edgexnas.host.data.matching import match_peaks
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.pseudo_voigt import PseudoVoigtFit, fit_pseudo_voigt
from edgexnas.peak_finding import (
    Background,
    DetectionOptions,
    FinderSettings,
    FoundPeaks,
    PeakFinder,
    background_numbers,
    estimate_background,
    refuse_nan,
)

if TYPE_CHECKING:
    from edgexnas.frames import FrameSeries, Truth

__all__ = ["label_frames"]

MINIMUM_R2 = 0.9
MAXIMUM_OFFSET_PX = 2.0
TRUTH_RADIUS_PX = 2.0
"""How far a true peak may lie from the brightest pixel that is taken to be its own."""


def label_frames(
    series: FrameSeries,
    *,
    finder: FinderSettings | None = None,
    mask: npt.ArrayLike | None = None,
    saturation: float | None = None,
    minimum_counts: float | None = None,
    threshold: float | None = None,
    mask_hot: bool | None = None,
    background: Background | None = None,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> PeakDataset:
    """Detect the peaks of all frames and fit each one.

    A label is good if the peak carries no flag, the fit converged with R² > 0.9, and its position
    lies within 2 px of the patch's centre; of a simulated series also if a true peak matches.

    Parameters
    ----------
    series
        Frames; the `truth` of a simulated series fills `truth_px`.
    finder
        What counts as a peak; None means the defaults of `FinderSettings`.
    mask
        (H, W) bool, True where a pixel must not be used, beside the series' own.
    saturation
        Counts from which a pixel is saturated; None for those of `finder`, else what the series
        states, else a plateau that the background frames show, else the largest value of an
        unsigned integer dtype.
    minimum_counts, threshold
        Least height of a peak above background, in counts and in standard deviations of the
        background noise; None for those of `finder`. The larger of the two applies.
    mask_hot
        Whether pixels are masked that fire by themselves in the background frames; None means yes.
        A background that is given has its own.
    background
        Level and noise; None estimates them from frames spread over the series, the same
        ones as on the device.
    progress
        Called with (frames done, frames in all) after each frame.
    limit
        Label only the first so many frames.
    device
        A torch device for the fits.
    threads
        CPU threads of the fits.

    Raises
    ------
    ConfigurationError
        If `limit` or `threads` is below 1, or another option is out of range.
    InputError, SourceError
        If a frame cannot be used or read, or the mask is no (H, W) bool of the series' shape.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}; specify at least 1 frame, or None for all")
    finder = finder or FinderSettings()
    options = DetectionOptions(
        finder.saturation if saturation is None else saturation,
        minimum_counts,
        threshold,
        mask_hot,
    )
    finder, origin = options.applied_to(
        finder, detector_saturation=getattr(series, "saturation", None)
    )
    unusable = merged_masks(None if mask is None else checked_mask(mask), series.mask)
    total = len(series) if limit is None else min(limit, len(series))
    if background is None:
        # A series may lack some of its frames.
        there = existing_numbers(series)
        there = there[there < total]
        spread = there[background_numbers(len(there), series.shape, series.dtype)]
        shown = []
        for number, frame in existing_frames(series, spread.tolist(), quiet=True):
            with _naming(number, series):
                shown.append(frame)
                refuse_nan(frame, unusable)
        background = estimate_background(shown, mask=unusable, find_hot=options.finds_hot)
    detector = PeakFinder(
        finder,
        shape=series.shape,
        background=background,
        mask=unusable,
        saturation_from=origin,
    )
    empty = detector.find(np.zeros(series.shape, series.dtype))
    # Frames that are missing stay empty, so a peak keeps the number of its frame.
    found = [empty] * total
    for number, frame in existing_frames(series, range(total)):
        with _naming(number, series):
            found[number] = detector.find(frame)
        if progress is not None:
            progress(number + 1, total)
    report = detector.used(series.dtype)
    return replace(_dataset(series, found, finder, device, threads), finder_report=report)


@contextmanager
def _naming(number: int, series: FrameSeries) -> Iterator[None]:
    """Name the frame in errors about it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"frame {number} of {series.source}: {error}") from error


def _dataset(
    series: FrameSeries,
    found: list[FoundPeaks],
    finder: FinderSettings,
    device: str,
    threads: int,
) -> PeakDataset:
    counts = np.concatenate([peaks.counts for peaks in found])
    maxima = np.concatenate([peaks.maxima for peaks in found])
    flags = np.concatenate([peaks.flags for peaks in found])
    frame = np.repeat(np.arange(len(found), dtype=np.int32), [len(peaks) for peaks in found])
    fit = fit_pseudo_voigt(counts, device=device, threads=threads)
    offsets = fit.positions_px - CENTRE
    good = (flags == 0) & acceptable(fit)
    truth_px = None
    if series.truth is not None:
        truth_px = _true_positions(series.truth, maxima, frame)
        # Found where nothing was simulated: noise, which no network should learn.
        good &= np.isfinite(truth_px).all(axis=1)
    omega = series.omega_deg
    return PeakDataset(
        counts=counts,
        offsets_px=offsets.astype(np.float32),
        maxima=maxima,
        frame=frame,
        flags=flags,
        r2=fit.r2.astype(np.float32),
        good=good,
        truth_px=truth_px,
        omega_deg=None if omega is None else omega[: len(found)],
        frames=len(found),
        shape=series.shape,
        source=series.source,
        finder=finder,
    )


def acceptable(fit: PseudoVoigtFit) -> npt.NDArray[np.bool_]:
    """(n,) bool, which fits may serve as labels: converged, R² > 0.9, near the patch's centre."""
    near = np.linalg.norm(fit.positions_px - CENTRE, axis=1) < MAXIMUM_OFFSET_PX
    usable: npt.NDArray[np.bool_] = fit.converged & (fit.r2 > MINIMUM_R2) & near
    return usable


def _true_positions(
    truth: Truth, maxima: npt.NDArray[np.int32], frame: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """(n, 2) true (row, col) of each peak, NaN where none lies near enough."""
    result = np.full(maxima.shape, np.nan)
    # Frame by frame, because positions on different frames must not pair.
    for number in np.unique(frame):
        here = np.flatnonzero(frame == number)
        known = truth.of_frame(int(number)).positions_px
        pairs = match_peaks(maxima[here], known, TRUTH_RADIUS_PX)
        result[here[pairs[:, 0]]] = known[pairs[:, 1]]
    return result
