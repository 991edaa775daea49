"""The accuracy table: a network beside the three estimates that it may not lose to unnoticed.

BraggNN's published evaluation crops at the integer part of the label, where a constant guess
already scores 0.385 px. Here patches come from detection, and every table carries the constant,
the intensity centroid and, where the truth is known, the pseudo-Voigt fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, centroid
from edgexnas.bundle import AccuracyRow, Coverage, Precision
from edgexnas.ptycho import patch_errors

if TYPE_CHECKING:
    from edgexnas.host.data.peak_dataset import PeakDataset, Split

__all__ = ["classical_rows", "distance_row", "patch_row"]

FloatArray = npt.NDArray[np.float32]


def distance_row(
    name: str,
    offsets_px: npt.NDArray[np.floating],
    target_px: npt.NDArray[np.floating],
    *,
    against: Literal["fit", "iterative", "truth", "reference"],
    precision: Precision | None = None,
    parameters: int | None = None,
    coverage: tuple[Coverage, ...] = (),
) -> AccuracyRow:
    """Summarise the distances between offsets (n, 2) and targets (n, 2), in pixels."""
    distance = np.linalg.norm(np.asarray(offsets_px) - target_px, axis=1)
    p50, p75, p95 = (float(value) for value in np.percentile(distance, [50, 75, 95]))
    return AccuracyRow(
        name=name,
        precision=precision,
        against=against,
        n=len(distance),
        mean_px=float(distance.mean()),
        p50_px=p50,
        p75_px=p75,
        p95_px=p95,
        parameters=parameters,
        coverage=coverage,
    )


def patch_row(name: str, patches: FloatArray, targets: FloatArray, **columns: Any) -> AccuracyRow:
    """Summarise the errors of patches (n, 2, 64, 64); see `edgexnas.ptycho.patch_errors`."""
    errors = patch_errors(patches, targets)
    return AccuracyRow(
        name=name,
        n=len(targets),
        phase_mae_rad=errors.phase_rad,
        amplitude_mae=errors.amplitude,
        **columns,
    )


def classical_rows(dataset: PeakDataset, split: Split) -> list[AccuracyRow]:
    """Rows of the constant, the centroid and, against a known truth, the fit; on the test part.

    The constant is the mean offset of the training part.
    """
    against = dataset.against
    targets = dataset.targets_px
    truth = targets[split.test]
    # Of the training part: the test part must not choose its own constant.
    constant = np.broadcast_to(targets[split.train].mean(axis=0), truth.shape)
    rows = [
        distance_row("constant", constant, truth, against=against),
        distance_row(
            "intensity centroid",
            centroid(dataset.counts[split.test]) - CENTRE,
            truth,
            against=against,
        ),
    ]
    if against == "truth":
        fitted = dataset.offsets_px[split.test]
        rows.append(distance_row("pseudo-Voigt fit", fitted, truth, against=against))
    return rows
