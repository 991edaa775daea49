"""Labels of as many frames as a time allows, and their split: what `adapt` begins with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.frames import LazyFrames, open_frames
from edgexnas.host.data.peak_labels import label_frames
from edgexnas.host.data.splitting import DROPPED, Split, split_frames, split_of

if TYPE_CHECKING:
    from edgexnas.frames import FrameSeries
    from edgexnas.host.data.peak_dataset import PeakDataset

__all__ = ["label_in_time", "split_labels"]

ENOUGH_PEAKS = 20_000
"""Fits beyond these tell nothing new of one detector."""

FEWEST_PEAKS = 400
"""Fewer are seldom enough for each part of the split, whatever time they take."""

RUNS, TIMED_FRAMES, REFLECTION_FRAMES = 24, 12, 2
"""Runs of frames of a long series, frames that are timed, and how long a reflection may last."""

STRIP_PX, FEWEST_STRIPS, GUARD_PX = 40, 5, 10
"""Least width of a strip of the detector and their number, and how far from another part's strip a
peak must lie."""

FEWEST_FRAMES = 48
"""Series of fewer frames are split by strips of the detector: blocks of frames would be few."""


class _Runs(LazyFrames):
    """Runs of successive frames, spread over a long series."""

    def __init__(self, series: FrameSeries, numbers: npt.NDArray[np.intp]) -> None:
        self._series, self._numbers = series, numbers
        super().__init__(
            count=len(numbers), shape=series.shape, dtype=series.dtype, source=series.source,
            mask=series.mask, saturation=series.saturation,
        )  # fmt: skip

    def _frame(self, index: int) -> npt.NDArray[Any]:
        return self._series[int(self._numbers[index])]


def label_in_time(
    frames: str | Path | FrameSeries,
    dataset: str | None,
    seconds: float,
    threads: int,
    say: Callable[[str], None],
    detection: dict[str, Any],
) -> tuple[PeakDataset, int]:
    """Label as many frames as the time allows, spread over the series.

    Parameters
    ----------
    frames, dataset
        What `open_frames` reads, or a series.
    seconds
        How long it may take, about.
    threads, detection
        As of `label_frames`.
    say
        Called with a line about what is done.

    Returns
    -------
    The labels, and how many frames are to be dropped between parts of their split.
    """
    if not isinstance(frames, str | Path):
        return _label_some(frames, seconds, threads, say, detection)
    with open_frames(frames, dataset=dataset) as series:
        return _label_some(series, seconds, threads, say, detection)


def _label_some(
    series: FrameSeries,
    seconds: float,
    threads: int,
    say: Callable[[str], None],
    detection: dict[str, Any],
) -> tuple[PeakDataset, int]:
    total = len(series)
    chosen: FrameSeries = series
    guard = REFLECTION_FRAMES
    if total > FEWEST_FRAMES:
        most = _affordable(series, seconds, threads, detection)
        if most < total:
            numbers, apart = _spread_runs(total, max(most, FEWEST_FRAMES))
            chosen = _Runs(series, numbers)
            # A block of the split is a run, and no reflection lasts from one to the next.
            guard = 0 if apart >= guard else guard
    say(f"fitting the peaks of {len(chosen)} of {total} frames")
    labels = label_frames(chosen, threads=threads, **detection)
    say(f"{len(labels)} peaks, of which {int(labels.good.sum())} have a good fit")
    return labels, guard


def _affordable(
    series: FrameSeries, seconds: float, threads: int, detection: dict[str, Any]
) -> int:
    """Say how many frames can be labelled in a time, or are enough, from what a few take."""
    numbers = np.linspace(0, len(series) - 1, TIMED_FRAMES).astype(np.intp)
    # What is compiled, or loaded, takes seconds once and says nothing of a frame.
    label_frames(_Runs(series, numbers[:1]), threads=threads, **detection)
    began = time.monotonic()
    found: list[float] = []
    labels = label_frames(
        _Runs(series, numbers), threads=threads,
        progress=lambda done, total: found.append(time.monotonic()), **detection,
    )  # fmt: skip
    # Background and set-up come before the first frame, and fits after the last.
    finding = (found[-1] - found[0]) / max(len(found) - 1, 1)
    each = finding + (time.monotonic() - found[-1]) / TIMED_FRAMES
    left = seconds - (time.monotonic() - began)
    frames_a_peak = TIMED_FRAMES / max(len(labels), 1)
    least = max(FEWEST_PEAKS * frames_a_peak, FEWEST_FRAMES)
    most = max(ENOUGH_PEAKS * frames_a_peak, FEWEST_FRAMES)
    return int(min(max(left / max(each, 1e-6), least), most))


def _spread_runs(total: int, count: int) -> tuple[npt.NDArray[np.intp], int]:
    """Numbers of `count` frames in 24 runs that begin evenly, and frames between two of them."""
    length = max(1, min(count, total) // RUNS)
    starts = np.linspace(0, total - length, RUNS).astype(np.intp)
    apart = int(np.diff(starts).min()) - length
    return np.unique(starts[:, None] + np.arange(length)), apart


def split_labels(labels: PeakDataset, guard: int) -> Split:
    """Split by blocks of frames; a short series by strips along the longer side of the detector.

    Raises
    ------
    ConfigurationError
        If frames or good peaks are too few.
    """
    if labels.frames >= FEWEST_FRAMES:
        try:
            return labels.split(blocks=RUNS, guard=guard)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}: specify a larger budget or more frames") from None
    axis = int(np.argmax(labels.shape))
    length = labels.shape[axis]
    strips = min(RUNS, length // STRIP_PX)
    if strips < FEWEST_STRIPS:
        raise ConfigurationError(
            f"{labels.source} has {labels.frames} frames of {labels.shape}, too few to hold some "
            f"back; specify {FEWEST_FRAMES} frames or more"
        )
    part = split_frames(strips, blocks=strips, guard=0)
    place = labels.maxima[:, axis].astype(np.int64)
    here = part[place * strips // length]
    # A peak within reach of another part's shares pixels with it.
    for shift in (-GUARD_PX, GUARD_PX):
        there = part[np.clip(place + shift, 0, length - 1) * strips // length]
        here = np.where(there == here, here, DROPPED)
    return split_of(
        here,
        good=labels.good,
        what=f"{labels.source} has {int(labels.good.sum())} good peaks in {strips} strips",
        remedy="specify more frames",
    )
