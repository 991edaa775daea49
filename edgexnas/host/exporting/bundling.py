"""The part of an export that differs between tasks: tensors, scores, baselines and gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE
from edgexnas.bundle import (
    AccuracyRow,
    AmplitudeGate,
    BraggPreprocessing,
    Gate,
    Precision,
    PtychoPreprocessing,
    Tensor,
)
from edgexnas.host.exporting.ptycho_baselines import baseline_rows
from edgexnas.host.exporting.scoring import classical_rows, distance_row, patch_row
from edgexnas.host.networks.bragg_models import middle_of
from edgexnas.ptycho import PATTERN_SIZE, patch_errors

if TYPE_CHECKING:
    from edgexnas.host.data.splitting import Split

__all__ = ["BraggBundling", "Bundling", "PtychoBundling"]

FloatArray = npt.NDArray[np.float32]

GATE_MARGIN = 2.0
"""An engine may stray this many times further than the host's own run of the same graph."""

GATE_FLOOR: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-3, "int8": 1e-2}
"""Below these distances in pixels, radians or shares of the amplitude, summation order alone
makes engines differ."""


class Bundling(Protocol):
    """What an export asks of a task.

    Outputs and targets are arrays of the network's output and of the dataset's targets.
    """

    measure: str
    """What `error` is, in words."""
    unit: Literal["px", "rad"]
    levels: tuple[float, ...]
    """Quantile levels of the output."""
    calibration_items: int
    """Most items that activation ranges are taken from."""
    references: int
    """Held-out items that travel with a bundle; a device proves its engine on them."""
    batch: int
    """Items that are run at once."""

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Describe the network's input and output."""

    def preprocessing(self, dataset: Any) -> BraggPreprocessing | PtychoPreprocessing:
        """Describe how the device makes the input."""

    def error(self, output: FloatArray, target: FloatArray) -> float:
        """Mean error that INT8 may raise only so far."""

    def row(
        self,
        name: str,
        output: FloatArray,
        target: FloatArray,
        *,
        against: Literal["fit", "iterative", "truth"],
        precision: Precision,
        parameters: int,
    ) -> AccuracyRow:
        """Score a model for the accuracy table."""

    def baselines(self, dataset: Any, split: Split) -> list[AccuracyRow]:
        """Score, on the test part, what no network may lose to unnoticed."""

    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        """Limits for an engine, from how far the host's own runs stray from float32's."""


class BraggBundling:
    """Positions of peaks, judged by their distance in pixels."""

    measure = "mean distance"
    unit: Literal["px", "rad"] = "px"
    calibration_items = 2048
    references = 256
    batch = 4096

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels = levels
        self._middle = middle_of(levels)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Patches to quantiles of offsets."""
        patches = Tensor(
            name="patches",
            shape=("n", 1, PATCH_SIZE, PATCH_SIZE),
            unit="1",
            axes=("patch", "channel", "row", "col"),
        )
        offsets = Tensor(
            name="offsets_px",
            shape=("n", 2, len(self.levels)),
            unit="px",
            axes=("patch", "(row, col)", "quantile"),
        )
        return patches, offsets

    def preprocessing(self, dataset: Any) -> BraggPreprocessing:
        """Keep the settings of the finder that cut the patches."""
        return BraggPreprocessing(finder=dataset.finder)

    def error(self, output: FloatArray, target: FloatArray) -> float:
        """Mean distance of the middle quantile in pixels."""
        return float(np.linalg.norm(output[:, :, self._middle] - target, axis=1).mean())

    def row(
        self,
        name: str,
        output: FloatArray,
        target: FloatArray,
        *,
        against: Literal["fit", "iterative", "truth"],
        precision: Precision,
        parameters: int,
    ) -> AccuracyRow:
        """Distances of the middle quantile."""
        return distance_row(
            name,
            output[:, :, self._middle],
            target,
            against=against,
            precision=precision,
            parameters=parameters,
        )

    def baselines(self, dataset: Any, split: Split) -> list[AccuracyRow]:
        """See `classical_rows`."""
        return classical_rows(dataset, split)

    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        """Mean distance over all quantiles."""
        reference = outputs["float32"]

        def limit(precision: Precision) -> float:
            mean = float(np.linalg.norm(outputs[precision] - reference, axis=1).mean())
            return _limit(mean, precision)

        return Gate(
            unit="px", float32=limit("float32"), float16=limit("float16"), int8=limit("int8")
        )


class PtychoBundling:
    """Amplitude and phase, judged as `edgexnas.ptycho.patch_errors` does."""

    measure = "mean phase error"
    unit: Literal["px", "rad"] = "rad"
    levels: tuple[float, ...] = ()
    # Every pixel of a pattern counts towards a range, so fewer items settle it.
    calibration_items = 64
    references = 32
    batch = 32

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Patterns to amplitude and phase."""
        patterns = Tensor(
            name="patterns",
            shape=("n", 1, PATTERN_SIZE, PATTERN_SIZE),
            unit="1",
            axes=("pattern", "channel", "row", "col"),
        )
        patches = Tensor(
            name="object",
            shape=("n", 2, PATTERN_SIZE, PATTERN_SIZE),
            unit="(1, rad)",
            axes=("pattern", "(amplitude, phase)", "row", "col"),
        )
        return patterns, patches

    def preprocessing(self, dataset: Any) -> PtychoPreprocessing:
        """Keep the counts that become 1."""
        return PtychoPreprocessing(intensity_scale=dataset.intensity_scale)

    def error(self, output: FloatArray, target: FloatArray) -> float:
        """Mean absolute phase error in radians."""
        return patch_errors(output, target).phase_rad

    def row(
        self,
        name: str,
        output: FloatArray,
        target: FloatArray,
        *,
        against: Literal["fit", "iterative", "truth"],
        precision: Precision,
        parameters: int,
    ) -> AccuracyRow:
        """Errors of phase and amplitude."""
        return patch_row(
            name, output, target, against=against, precision=precision, parameters=parameters
        )

    def baselines(self, dataset: Any, split: Split) -> list[AccuracyRow]:
        """See `baseline_rows`."""
        return baseline_rows(dataset, split)

    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        """Phase in radians, and amplitude as a share of its mean."""
        errors = {p: patch_errors(output, outputs["float32"]) for p, output in outputs.items()}
        phase = {p: _limit(error.phase_rad, p) for p, error in errors.items()}
        amplitude = {p: _limit(error.amplitude, p) for p, error in errors.items()}
        return Gate(unit="rad", **phase, amplitude=AmplitudeGate(**amplitude))


def _limit(strayed: float, precision: Precision) -> float:
    return max(GATE_MARGIN * strayed, GATE_FLOOR[precision])
