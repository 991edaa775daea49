"""What a device must know to tell peaks unlike the training data, and to widen their intervals.

Three things are learned at export, none of them from the test part:

* **Limits of single quantities**: what hardly any peak of the training, calibration and validation
  parts exceeds.
* **A score of all together**: the network is run on simulated peaks of many kinds, whose truth is
  known, and which are also fitted where the labels are fits; a quadratic logistic regression tells
  those that it places wrongly by more than twice its calibrated half width from peaks of the
  training part. Its limit is what few of the calibration and validation parts exceed.
* **The widening**: the squared error on the same simulated peaks as a sum of terms with
  coefficients that are not negative, raised until it holds for `WIDENING_LEVEL` of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from edgexnas.bragg import CENTRE, scale_patches
from edgexnas.bundle import Distribution, Familiarity, TrainingData, Widening
from edgexnas.familiarity import measure_peaks
from edgexnas.familiarity.quantities import (
    ALONE,
    COUNTED,
    LARGEST_Z,
    LEAST_INTERVAL_PX,
    NARROW_PX2,
    PEAK_QUANTITIES,
    UNITS,
    score_terms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MeasuredPart", "familiar_data", "frame_share_of", "widening_of"]

FloatArray = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

FALSE_ALONE, FALSE_TOGETHER = 0.008, 0.012
"""Shares of familiar peaks that limits, and that the score, may call unfamiliar: 2 % in all, to
keep within 3 % on data that neither has seen."""
PADDING = 0.02
"""Limits lie so much further from the median, as a share: the ends of a distribution are not known
well."""
LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)
FRAME_SHARE, FRAME_LEAST = 0.15, 3
"""Seven times the share of false alarms, and more than chance makes of a frame of few peaks."""
FRAME_TIMES = 3.0
"""... or so many times the share of all peaks that are found on held-out frames, where many are
saturated or overlap: these are unfamiliar more often."""
MOST_FRAME_SHARE = 0.6
FEWEST_PEAKS = 50
"""With fewer peaks of either kind there is no score."""
RIDGE = 1e-4
WIDENING_LEVEL = 0.925
"""More than the level of the intervals: real detectors are none of the simulated kinds."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredPart:
    """Peaks as a network sees them.

    Attributes
    ----------
    values
        (n, 11) quantities, in the order of `PEAK_QUANTITIES`.
    own
        (n, 2, 3), as of `measure_peaks`.
    half_px
        (n, 2), half the network's own interval.
    """

    values: FloatArray
    own: FloatArray
    half_px: FloatArray

    @classmethod
    def of(cls, counts: FloatArray, outputs: FloatArray, middle: int) -> MeasuredPart:
        """Measure patches (n, 11, 11) in counts with the network's outputs (n, 2, q)."""
        heights = np.ascontiguousarray(counts[:, CENTRE, CENTRE])
        values, own = measure_peaks(scale_patches(counts), heights, outputs, middle)
        half = np.maximum((outputs[:, :, -1] - outputs[:, :, 0]) / 2, LEAST_INTERVAL_PX / 2)
        return cls(values, own, half)

    def select(self, chosen: npt.NDArray[np.bool_]) -> MeasuredPart:
        """Keep some of the peaks."""
        return MeasuredPart(self.values[chosen], self.own[chosen], self.half_px[chosen])


def familiar_data(
    train: MeasuredPart,
    held_out: Sequence[MeasuredPart],
    wrong: MeasuredPart,
) -> TrainingData:
    """Describe what is familiar.

    Parameters
    ----------
    train
        The training part.
    held_out
        Calibration and validation part, as each precision sees them.
    wrong
        Simulated peaks that the network places wrongly.
    """
    tail = FALSE_ALONE / len(PEAK_QUANTITIES) / 2
    known = np.concatenate([train.values, *(part.values for part in held_out)])
    lowest, highest = np.quantile(known, [tail, 1 - tail], axis=0)
    middle = np.median(known, axis=0)
    lowest, highest = lowest - PADDING * (middle - lowest), highest + PADDING * (highest - middle)
    quantiles = np.quantile(train.values, LEVELS, axis=0)
    quantities = tuple(
        Distribution(
            name=name,
            unit=UNITS[name],
            levels=LEVELS,
            quantiles=tuple(quantiles[:, index].tolist()),
            n=len(train.values),
            low=float(lowest[index]),
            high=float(highest[index]),
        )
        for index, name in enumerate(PEAK_QUANTITIES)
    )
    scores = [_score(names, train, held_out, wrong) for names in (COUNTED, ALONE)]
    return TrainingData(
        n=len(train.values),
        quantities=quantities,
        familiarity=tuple(score for score in scores if score is not None),
        frame_least=FRAME_LEAST,
    )


def frame_share_of(unfamiliar: float) -> float:
    """Say of how many unfamiliar peaks a frame is foreign.

    Parameters
    ----------
    unfamiliar
        Share of all peaks on held-out frames that are unfamiliar by themselves, flagged ones too.
    """
    return min(max(FRAME_SHARE, FRAME_TIMES * unfamiliar), MOST_FRAME_SHARE)


def _score(
    names: tuple[str, ...],
    train: MeasuredPart,
    held_out: Sequence[MeasuredPart],
    wrong: MeasuredPart,
) -> Familiarity | None:
    if min(len(train.values), len(wrong.values)) < FEWEST_PEAKS:
        return None
    terms = {"train": train, "wrong": wrong} | {str(i): part for i, part in enumerate(held_out)}
    rows = {name: score_terms(part.values)[:, : len(names)] for name, part in terms.items()}
    centre = rows["train"].mean(axis=0)
    scale = np.maximum(rows["train"].std(axis=0), 1e-6)
    forms = {
        name: _quadratic(np.clip((row - centre) / scale, -LARGEST_Z, LARGEST_Z))
        for name, row in rows.items()
    }
    coefficients = _logistic(forms["train"], forms["wrong"])
    # The largest over the precisions, whose rounding moves the network's opinion a little.
    limit = max(
        float(np.quantile(forms[str(index)] @ coefficients, 1 - FALSE_TOGETHER))
        for index in range(len(held_out))
    )
    return Familiarity(
        quantities=names,
        centre=tuple(centre.tolist()),
        scale=tuple(scale.tolist()),
        score=tuple(coefficients.tolist()),
        limit=limit,
    )


def _quadratic(z: Wide) -> Wide:
    """(n, 1 + k + k·(k + 1) / 2): 1, z, and the products of each two, as `Familiarity` has them."""
    first, second = np.triu_indices(z.shape[1])
    return np.concatenate([np.ones((len(z), 1)), z, z[:, first] * z[:, second]], axis=1)


def _logistic(familiar: Wide, wrong: Wide) -> Wide:
    """Coefficients of a ridged logistic regression in which both kinds weigh the same."""
    rows = np.concatenate([familiar, wrong])
    is_wrong = np.concatenate([np.zeros(len(familiar)), np.ones(len(wrong))])
    weight = np.where(is_wrong > 0, 0.5 / len(wrong), 0.5 / len(familiar))
    coefficients = np.zeros(rows.shape[1])
    ridge = RIDGE * np.eye(rows.shape[1])
    for _ in range(60):
        chance = 1 / (1 + np.exp(-np.clip(rows @ coefficients, -30, 30)))
        slope = rows.T @ (weight * (chance - is_wrong)) + ridge @ coefficients
        curvature = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows + ridge
        step = np.linalg.solve(curvature, slope)
        coefficients = coefficients - step
        if np.abs(step).max() < 1e-6:
            break
    return coefficients


def widening_of(peaks: MeasuredPart, error_px: FloatArray) -> Widening:
    """Fit the half width of unfamiliar peaks to the errors (n, 2) on simulated ones."""
    far, noise, variance = (peaks.own[:, :, part] for part in range(3))
    narrow = NARROW_PX2 / (NARROW_PX2 + variance)
    terms = [
        peaks.half_px,
        far * np.sqrt(1 - narrow),
        far * np.sqrt(narrow),
        noise,
        0.01 / variance,
        np.full_like(far, 0.01),
    ]
    rows = np.stack([np.square(term, dtype=np.float64).reshape(-1) for term in terms], axis=1)
    squared = np.square(error_px, dtype=np.float64).reshape(-1)
    weight = 1 / np.maximum(rows.sum(axis=1), 1e-8)
    for _ in range(12):
        # Relative to what is expected, or the worst peaks alone would decide; and no peak counts
        # for more than three standard deviations.
        found, _ = nnls(rows * weight[:, None], np.minimum(squared * weight, 9))
        weight = 1 / np.maximum(rows @ found, 1e-8)
    ratio = np.sqrt(squared / np.maximum(rows @ found, 1e-12))
    interval, disagreement, narrow_disagreement, noisy, narrowness, floor = (
        found * float(np.quantile(ratio, WIDENING_LEVEL)) ** 2
    ).tolist()
    return Widening(
        interval=interval,
        disagreement=disagreement,
        narrow_disagreement=narrow_disagreement,
        noise=noisy,
        narrowness=narrowness,
        floor_px=0.01 * floor**0.5,
    )
