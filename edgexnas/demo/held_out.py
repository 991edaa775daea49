"""Label-free prediction of held-out frames through the bundle, as on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import Peaks
from edgexnas.bundle import AccuracyRow, Precision
from edgexnas.device import PeakPredictor
from edgexnas.device.bragg.predictor import interval_coverage
from edgexnas.host import PeakDataset, distance_row, match_peaks
from edgexnas.host.exporting.coverage import coverage_of
from edgexnas.peak_finding import background_numbers

if TYPE_CHECKING:
    from edgexnas.frames import FrameSeries

__all__ = ["Detection", "HeldOut", "predict_held_out", "score_detection", "score_positions"]

MATCH_PX = 1.5
"""A prediction belongs to a label if the brightest pixels are at most diagonal neighbours."""

DETECTION_PX = 3.0
"""A found peak is a listed spot if it lies within this distance."""


class SpotList(Protocol):
    """An independent list of the spots of each frame."""

    def __call__(self, frame: int) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
        """(m, 2) positions (row, col) in pixels, and (m,) whether the spot should be found."""


@dataclass(frozen=True)
class HeldOut:
    """Peaks of the held-out frames in one precision, and what their intervals are to hold."""

    precision: Precision
    frames: tuple[int, ...]
    peaks: tuple[Peaks, ...]
    level: float


@dataclass(frozen=True)
class Detection:
    """Peak finding against an independent list of spots.

    Attributes
    ----------
    listed, wanted, found
        Numbers of spots in the list, of those that should be found, and of peaks found.
    recall
        Share of the wanted spots that were found.
    recall_listed
        Share of all listed spots that were found.
    precision
        Share of the found peaks that are listed.
    """

    listed: int
    wanted: int
    found: int
    recall: float
    recall_listed: float
    precision: float


def predict_held_out(
    bundle: Path,
    *,
    trust: Path,
    series: FrameSeries,
    frames: Sequence[int],
    precision: Precision,
    step: Callable[[int, int], None],
) -> HeldOut:
    """Stream the given frames through a predictor; no label is looked at."""
    with PeakPredictor(
        bundle, trust=trust, engine="onnxruntime", precision=precision, mask=series.mask
    ) as predictor:
        # From the held-out frames alone, as a device knows no others.
        spread = background_numbers(len(frames), series.shape, series.dtype)
        predictor.calibrate_background([series[frames[index]] for index in spread])

        def pictures() -> Iterator[npt.NDArray[np.generic]]:
            for done, number in enumerate(frames, start=1):
                yield series[number]
                step(done, len(frames))

        peaks = tuple(predictor.stream(pictures()))
        level = interval_coverage(predictor.manifest)
    return HeldOut(precision, tuple(frames), peaks, level)


def score_positions(
    held_out: HeldOut,
    dataset: PeakDataset,
    test: npt.NDArray[np.intp],
    *,
    name: str,
    parameters: int,
) -> AccuracyRow:
    """Distances between predictions and the targets of the test part, found again by position.

    A labelled peak that the device did not find is not scored; `AccuracyRow.n` tells how many are.
    """
    predicted, targets, quantiles = [], [], []
    label_px = dataset.maxima + dataset.targets_px
    for number, peaks in zip(held_out.frames, held_out.peaks, strict=True):
        here = test[dataset.frame[test] == number]
        # By brightest pixels: positions are what is scored, and must not choose their labels.
        pairs = match_peaks(peaks.maxima, dataset.maxima[here], MATCH_PX)
        predicted.append(peaks.positions_px[pairs[:, 0]])
        quantiles.append(peaks.quantiles_px[pairs[:, 0]])
        targets.append(label_px[here[pairs[:, 1]]])
    truth = np.concatenate(targets)
    return distance_row(
        name,
        np.concatenate(predicted),
        truth,
        against=dataset.against,
        precision=held_out.precision,
        parameters=parameters,
        coverage=(coverage_of("all", np.concatenate(quantiles), truth, held_out.level),),
    )


def score_detection(held_out: HeldOut, spots: SpotList) -> Detection:
    """Compare found peaks with an independent list of spots, frame by frame."""
    listed = wanted = found = matched = matched_wanted = 0
    for number, peaks in zip(held_out.frames, held_out.peaks, strict=True):
        positions, should = spots(number)
        pairs = match_peaks(peaks.positions_px, positions, DETECTION_PX)
        listed += len(positions)
        wanted += int(should.sum())
        found += len(peaks)
        matched += len(pairs)
        matched_wanted += int(should[pairs[:, 1]].sum())
    return Detection(
        listed,
        wanted,
        found,
        matched_wanted / max(1, wanted),
        matched / max(1, listed),
        matched / max(1, found),
    )
