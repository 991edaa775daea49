"""The part of an export that differs between tasks: tensors, scores, baselines and gate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE
from edgexnas.bundle import (
    AccuracyRow,
    AmplitudeGate,
    BraggPreprocessing,
    Coverage,
    Gate,
    IntervalCalibration,
    PeakDetection,
    Precision,
    Probe,
    PtychoPreprocessing,
    Tensor,
    TrainingData,
    describe_probe,
)
from edgexnas.errors import BundleError
from edgexnas.host.exporting.coverage import coverage_rows
from edgexnas.host.exporting.familiar_patterns import familiar_patterns
from edgexnas.host.exporting.peak_trust import calibrate_peaks
from edgexnas.host.exporting.ptycho_baselines import baseline_rows
from edgexnas.host.exporting.scoring import classical_rows, distance_row, patch_row
from edgexnas.host.networks.bragg_models import middle_of
from edgexnas.ptycho import PATTERN_SIZE, patch_errors

if TYPE_CHECKING:
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.peak_trust import Run

__all__ = ["Bundling", "make_bundling"]

FloatArray = npt.NDArray[np.float32]
ComplexArray = npt.NDArray[np.complex64]

GATE_MARGIN = 2.0
"""An engine may deviate this many times further than the host's own run of the same graph."""

GATE_FLOOR: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-3, "int8": 1e-2}
"""Below these distances in pixels, radians or shares of the amplitude, summation order alone
makes engines differ."""


class Bundling(ABC):
    """What an export asks of a task.

    Outputs and targets are arrays of the network's output and of the dataset's targets.

    Attributes
    ----------
    measure
        What `error` is, in words.
    levels
        Quantile levels of the output.
    calibration_items
        Most items that activation ranges are taken from.
    references
        Held-out items that travel with a bundle; a device checks its engine with them.
    batch
        Items that are run at once.
    negligible
        What INT8 may add to the error however small that is, in its unit.
    """

    task: ClassVar[Literal["bragg", "ptycho"]]
    measure: ClassVar[str]
    unit: ClassVar[Literal["px", "rad"]]
    calibration_items: ClassVar[int]
    references: ClassVar[int]
    batch: ClassVar[int]
    negligible: ClassVar[float] = 0.0

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels = levels

    def to_calibrate(self, part: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Choose the items of a calibration part that activation ranges are taken from."""
        # Spread over the part: neighbours on a series or scan are nearly alike.
        spread = np.linspace(0, len(part) - 1, self.calibration_items)
        # Each once, where there are fewer items than are wanted.
        return part[np.unique(spread.astype(np.intp))]

    @abstractmethod
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Describe the network's input and output."""

    @abstractmethod
    def preprocessing(self, dataset: Any) -> BraggPreprocessing | PtychoPreprocessing:
        """Describe how the device makes the input."""

    def detection(self, dataset: Any) -> PeakDetection | None:
        """Say where a device begins to adapt peak finding; None where there are no peaks."""
        return None

    def probe(self, dataset: Any) -> tuple[ComplexArray | None, Probe | None]:
        """Give the probe that travels with the network, and its record; None for none."""
        return None, None

    def trust(
        self, dataset: Any, split: Split, run: Run
    ) -> tuple[IntervalCalibration | None, TrainingData | None]:
        """Calibrate intervals, and describe what data is familiar; the test part is left alone."""
        return None, None

    def coverage(
        self, dataset: Any, split: Split, output: FloatArray, precision: Precision,
        calibration: IntervalCalibration | None, data: TrainingData | None,
    ) -> tuple[Coverage, ...]:  # fmt: skip
        """Tell how often calibrated intervals hold on the test part."""
        return ()

    @abstractmethod
    def error(self, output: FloatArray, target: FloatArray) -> float:
        """Mean error that INT8 may raise only so far."""

    @abstractmethod
    def row(self, name: str, output: FloatArray, target: FloatArray, **columns: Any) -> AccuracyRow:
        """Score a model for the accuracy table; `columns` are the other ones of the row."""

    @abstractmethod
    def baselines(self, dataset: Any, split: Split) -> list[AccuracyRow]:
        """Score, on the test part, what no network may lose to unnoticed."""

    @abstractmethod
    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        """Limits for an engine, from how far the host's own runs deviate from float32's."""


class _BraggBundling(Bundling):
    """Positions of peaks, judged by their distance in pixels."""

    task = "bragg"
    measure = "mean distance"
    unit = "px"
    calibration_items = 2048
    references = 256
    batch = 4096
    # A tenth of what noise leaves of the fits that networks learn from: 0.03 px, see
    # docs/results/accuracy-simulated.md.
    negligible = 0.003

    def tensors(self) -> tuple[Tensor, Tensor]:
        return _images("patches", PATCH_SIZE, "patch"), Tensor(
            name="offsets_px",
            shape=("n", 2, len(self.levels)),
            unit="px",
            axes=("patch", "(row, col)", "quantile"),
        )

    def preprocessing(self, dataset: Any) -> BraggPreprocessing:
        return BraggPreprocessing(finder=dataset.finder)

    def detection(self, dataset: Any) -> PeakDetection:
        finder = dataset.finder
        return PeakDetection(
            saturation=finder.saturation,
            minimum_counts=finder.minimum_counts,
            threshold_sigma=finder.noise_sigmas,
        )

    def trust(
        self, dataset: Any, split: Split, run: Run
    ) -> tuple[IntervalCalibration | None, TrainingData | None]:
        return calibrate_peaks(dataset, split, self.levels, run)

    def coverage(
        self, dataset: Any, split: Split, output: FloatArray, precision: Precision,
        calibration: IntervalCalibration | None, data: TrainingData | None,
    ) -> tuple[Coverage, ...]:  # fmt: skip
        if calibration is None:
            return ()
        return coverage_rows(
            dataset.counts[split.test], output, dataset.targets_px[split.test],
            calibration=calibration, data=data, levels=self.levels, precision=precision,
        )  # fmt: skip

    def _offsets_px(self, output: FloatArray) -> FloatArray:
        return output[:, :, middle_of(self.levels)]

    def error(self, output: FloatArray, target: FloatArray) -> float:
        return float(np.linalg.norm(self._offsets_px(output) - target, axis=1).mean())

    def row(self, name: str, output: FloatArray, target: FloatArray, **columns: Any) -> AccuracyRow:
        return distance_row(name, self._offsets_px(output), target, **columns)

    def baselines(self, dataset: Any, split: Split) -> list[AccuracyRow]:
        return classical_rows(dataset, split)

    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        # Over all quantiles: an engine that shifts only the interval deviates as well.
        reference = outputs["float32"]
        limits = {
            precision: _limit(float(np.linalg.norm(output - reference, axis=1).mean()), precision)
            for precision, output in outputs.items()
        }
        return Gate(unit=self.unit, **limits, amplitude=None)


class _PtychoBundling(Bundling):
    """Amplitude and phase, judged as `edgexnas.ptycho.patch_errors` does."""

    task = "ptycho"
    measure = "mean phase error"
    unit = "rad"
    # Every pixel of a pattern counts towards a range, so fewer items settle it.
    calibration_items = 64
    references = 32
    batch = 32

    def __init__(self, levels: tuple[float, ...]) -> None:
        # Amplitude and phase have no quantiles.
        super().__init__(())

    def tensors(self) -> tuple[Tensor, Tensor]:
        return _images("patterns", PATTERN_SIZE, "pattern"), Tensor(
            name="object",
            shape=("n", 2, PATTERN_SIZE, PATTERN_SIZE),
            unit="(1, rad)",
            axes=("pattern", "(amplitude, phase)", "row", "col"),
        )

    def preprocessing(self, dataset: Any) -> PtychoPreprocessing:
        return PtychoPreprocessing(intensity_scale=dataset.intensity_scale)

    def probe(self, dataset: Any) -> tuple[ComplexArray | None, Probe | None]:
        probe: ComplexArray | None = dataset.probe
        # Modes come by falling power; one that no bundle holds is no reason to go without.
        while probe is not None:
            try:
                return probe, describe_probe(
                    probe, pixel_m=dataset.object_pixel_m, orientation=dataset.orientation
                )
            except BundleError:
                probe = probe[:-1] if len(probe) > 1 else None
        return None, None

    def trust(
        self, dataset: Any, split: Split, run: Run
    ) -> tuple[IntervalCalibration | None, TrainingData | None]:
        return None, familiar_patterns(dataset, split, run)

    def error(self, output: FloatArray, target: FloatArray) -> float:
        return patch_errors(output, target).phase_rad

    def row(self, name: str, output: FloatArray, target: FloatArray, **columns: Any) -> AccuracyRow:
        return patch_row(name, output, target, **columns)

    def baselines(self, dataset: Any, split: Split) -> list[AccuracyRow]:
        return baseline_rows(dataset, split)

    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        errors = {p: patch_errors(output, outputs["float32"]) for p, output in outputs.items()}
        phase = {p: _limit(error.phase_rad, p) for p, error in errors.items()}
        amplitude = {p: _limit(error.amplitude, p) for p, error in errors.items()}
        return Gate(unit=self.unit, **phase, amplitude=AmplitudeGate(**amplitude))


def make_bundling(task: str, levels: tuple[float, ...]) -> Bundling:
    """Make the bundling of a task; `levels` are the quantile levels of its network's output."""
    return {"bragg": _BraggBundling, "ptycho": _PtychoBundling}[task](levels)


def _images(name: str, side: int, item: str) -> Tensor:
    return Tensor(
        name=name, shape=("n", 1, side, side), unit="1", axes=(item, "channel", "row", "col")
    )


def _limit(deviation: float, precision: Precision) -> float:
    return max(GATE_MARGIN * deviation, GATE_FLOOR[precision])
