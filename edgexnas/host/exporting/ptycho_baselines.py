"""What a network for ptychography may not lose to unnoticed: the mean and a ridge regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.host.exporting.scoring import patch_row
from edgexnas.ptycho import PATTERN_SIZE, patch_errors

if TYPE_CHECKING:
    from edgexnas.bundle import AccuracyRow
    from edgexnas.host.data.ptycho_dataset import PtychoDataset
    from edgexnas.host.data.splitting import Split

__all__ = ["baseline_rows", "mean_prediction", "ridge_prediction"]

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]

RIDGE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""In units of the mean eigenvalue of the inputs' covariance."""


def baseline_rows(dataset: PtychoDataset, split: Split) -> list[AccuracyRow]:
    """Rows of the mean predictor and the ridge regression on the test part.

    Both are fitted to all that a network sees before its test: training, calibration and
    validation. The strength of the ridge is chosen by the validation part before.
    """
    truth = dataset.targets[split.test]
    predictions = {
        "mean predictor": mean_prediction(dataset, split),
        "ridge regression": ridge_prediction(dataset, split),
    }
    return [
        patch_row(name, patches, truth, against=dataset.against)
        for name, patches in predictions.items()
    ]


def mean_prediction(dataset: PtychoDataset, split: Split) -> FloatArray:
    """(len(split.test), 2, 64, 64): the mean amplitude and phase, whatever the pattern."""
    mean = _decoded(_coded(dataset.targets[_seen(split)]).mean(axis=0, keepdims=True))
    return np.broadcast_to(mean, (len(split.test), *mean.shape[1:]))


def ridge_prediction(dataset: PtychoDataset, split: Split) -> FloatArray:
    """(len(split.test), 2, 64, 64): a linear map of the scaled pattern, the best of 4 strengths.

    Amplitude, cosine and sine of the phase are regressed, so that a phase near ±π does no harm.
    """
    truth = dataset.targets[split.validation]
    first = _Ridge(dataset, split.train)
    errors = [
        patch_errors(first.predict(split.validation, strength), truth).phase_rad
        for strength in RIDGE_STRENGTHS
    ]
    best = RIDGE_STRENGTHS[int(np.argmin(errors))]
    return _Ridge(dataset, _seen(split)).predict(split.test, best)


class _Ridge:
    """Ridge regressions of all strengths, in the basis of the inputs' inner products."""

    def __init__(self, dataset: PtychoDataset, train: IndexArray) -> None:
        self._inputs = dataset.inputs().reshape(len(dataset), -1).astype(np.float64)
        self._mean = self._inputs[train].mean(axis=0)
        self._known = self._inputs[train] - self._mean
        coded = _coded(dataset.targets[train])
        self._centre = coded.mean(axis=0)
        # n × n for n patterns, not 4,096 × 4,096 for pixels; each strength then costs a product.
        values, self._axes = np.linalg.eigh(self._known @ self._known.T)
        self._values = values.clip(0)
        self._aimed = self._axes.T @ (coded - self._centre)

    def predict(self, where: IndexArray, strength: float) -> FloatArray:
        damped = self._aimed / (self._values + strength * self._values.mean())[:, None]
        products = (self._inputs[where] - self._mean) @ self._known.T
        return _decoded(products @ (self._axes @ damped) + self._centre)


def _seen(split: Split) -> IndexArray:
    return np.sort(np.concatenate([split.train, split.calibration, split.validation]))


def _coded(targets: FloatArray) -> npt.NDArray[np.float64]:
    """(n, 3 · 64²) float64: amplitude, cosine and sine of the phase."""
    amplitude, phase = targets[:, 0], targets[:, 1]
    # A mean of phases is wrong where they lie on both sides of ±π; one of sines is not.
    parts = np.stack([amplitude, np.cos(phase), np.sin(phase)], axis=1)
    return parts.reshape(len(targets), -1).astype(np.float64)


def _decoded(coded: npt.NDArray[np.float64]) -> FloatArray:
    parts = coded.reshape(len(coded), 3, PATTERN_SIZE, PATTERN_SIZE)
    patches = np.stack([parts[:, 0], np.arctan2(parts[:, 2], parts[:, 1])], axis=1)
    return patches.astype(np.float32)
