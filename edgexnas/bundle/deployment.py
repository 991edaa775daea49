"""What a manifest says about the use of a model, since schema 2; each part may be left out.

What a device may adapt, how sure the model is and of what data, what each precision costs, and
what people should know before they use it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import FailFast, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from edgexnas.bundle.record import (
    Digest,
    Identifier,
    Level,
    NonNegative,
    Precision,
    Record,
    Text,
)
from edgexnas.ptycho import Orientation

__all__ = [
    "Distribution",
    "IntervalCalibration",
    "MeasuredLatency",
    "ModelCard",
    "PeakDetection",
    "Probe",
    "QuantisationRecipe",
    "TrainingData",
]

Edges = Annotated[tuple[PositiveFloat, ...], Field(max_length=32), FailFast()]
Pixels = Annotated[int, Field(ge=1, le=4096)]
# A millimetre or more is a size in another unit.
LengthM = Annotated[float, Field(gt=0, lt=1e-3)]


class PeakDetection(Record):
    """Where a device begins to adapt peak finding to its detector; none of it is a promise.

    What is None here is taken from `BraggPreprocessing.finder`, which tells how the patches of the
    training data were found; but without `minimum_counts` there is no limit but the noise.
    """

    saturation: PositiveFloat | None = None
    """Counts from which a pixel is saturated, where the detector does not say."""
    minimum_counts: NonNegative | None = None
    """Counts above background that a peak's brightest pixel must exceed."""
    threshold_sigma: NonNegative | None = None
    """The same in standard deviations of the measured background noise."""
    mask_isolated_pixels: bool = True
    """Whether pixels are masked that are bright without neighbours in the background frames."""
    adaptable: Annotated[
        tuple[Literal["mask", "saturation", "minimum_counts", "threshold_sigma"], ...],
        Field(max_length=4),
    ] = ("mask", "saturation", "minimum_counts", "threshold_sigma")
    """What users of a device may set to other values."""


class IntervalCalibration(Record):
    """Factors that make predicted intervals hold as often as they say, by groups of peaks.

    Conformal prediction on calibration data (Romano, Patterson & Candès 2019): a predicted interval
    of a peak is widened about its middle by the factor of the peak's group. Groups are cells of a
    grid of signal-to-noise ratio (rows) and width (columns).
    """

    level: Level
    """Share of true positions that a calibrated interval holds."""
    snr_edges: Edges
    """Increasing signal-to-noise ratios between the groups: k edges make k + 1 groups."""
    width_edges_px: Edges
    """Increasing full widths at half maximum between the groups, in pixels."""
    factors: Annotated[tuple[tuple[PositiveFloat, ...], ...], Field(max_length=33), FailFast()]
    """(snr, width) factors of the full width of the interval, by group."""
    counts: Annotated[tuple[tuple[NonNegativeInt, ...], ...], Field(max_length=33), FailFast()]
    """(snr, width) number of calibration peaks of each group."""

    @model_validator(mode="after")
    def _check_groups(self) -> IntervalCalibration:
        for name in ("snr_edges", "width_edges_px"):
            if any(low >= high for low, high in pairwise(getattr(self, name))):
                raise ValueError(f"{name} {getattr(self, name)} do not increase")
        rows, cols = len(self.snr_edges) + 1, len(self.width_edges_px) + 1
        for name in ("factors", "counts"):
            lengths = [len(row) for row in getattr(self, name)]
            if lengths != [cols] * rows:
                raise ValueError(f"{name} have rows of {lengths}; the edges make {rows} of {cols}")
        return self


class Distribution(Record):
    """How one quantity is distributed over the training data."""

    name: Identifier
    """Name of the quantity: "width", "snr", "clipped_share", ..."""
    unit: Text
    """Unit of its values; "1" for none."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=99), FailFast()]
    """Increasing quantile levels."""
    quantiles: Annotated[tuple[float, ...], Field(min_length=1, max_length=99), FailFast()]
    """Value of the quantity at each level."""
    n: PositiveInt
    """Number of items that they were taken from."""

    @model_validator(mode="after")
    def _check_quantiles(self) -> Distribution:
        if len(self.levels) != len(self.quantiles):
            raise ValueError(
                f"{self.name} has {len(self.levels)} levels, {len(self.quantiles)} quantiles"
            )
        if any(low >= high for low, high in pairwise(self.levels)):
            raise ValueError(f"levels of {self.name} do not increase")
        if any(low > high for low, high in pairwise(self.quantiles)):
            raise ValueError(f"quantiles of {self.name} decrease")
        return self


class TrainingData(Record):
    """What the model was trained on, so that a device can tell what lies outside."""

    n: PositiveInt
    """Number of patches or patterns."""
    quantities: Annotated[tuple[Distribution, ...], Field(max_length=100), FailFast()]
    """Distributions of single quantities, each name once."""

    @model_validator(mode="after")
    def _check_names(self) -> TrainingData:
        names = [quantity.name for quantity in self.quantities]
        if len(set(names)) != len(names):
            raise ValueError(f"names of quantities repeat: {names}")
        return self


class Probe(Record):
    """The illumination of the training data; the array is the bundle's member `probe.npz`."""

    shape: tuple[Pixels, Pixels]
    """(rows, columns) of each mode: those of the detector's patterns."""
    pixel_m: tuple[LengthM, LengthM] | None = None
    """(row, col) size of its pixels in metres, at the object; None if unknown."""
    digest: Digest
    """SHA-256 of the member."""
    modes: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of incoherent modes."""
    orientation: Orientation = "as-is"
    """What brings the detector's patterns into the axes of the positions."""

    @property
    def plain(self) -> bool:
        """Whether edgexnas 0.2.0 reads it: one mode, of known pixel size, patterns as they are."""
        return self.modes == 1 and self.orientation == "as-is" and self.pixel_m is not None


class MeasuredLatency(Record):
    """How long one run of an engine took."""

    precision: Precision
    """Precision of the engine."""
    batch: PositiveInt
    """Items in a run."""
    median_ms: PositiveFloat
    """Median duration of a run, in milliseconds."""
    engine: Text
    """What ran it: "tensorrt 10.3", "onnxruntime 1.22", ..."""
    device: Text
    """Hardware and power mode: "Jetson AGX Orin 32 GB, MAXN", ..."""


class QuantisationRecipe(Record):
    """How Q/DQ nodes were placed, and what each precision was measured to take."""

    placement: Literal["weights", "weights-and-activations"]
    """Which tensors pass through Q/DQ."""
    per_channel: bool
    """Whether weights have a scale for each output channel."""
    float_first_layer: bool
    """Whether the first layer was left in float."""
    float_last_layer: bool
    """Whether the last layer was left in float."""
    latencies: Annotated[tuple[MeasuredLatency, ...], Field(max_length=100), FailFast()] = ()
    """Measured latencies of the precisions."""


class ModelCard(Record):
    """What people should know before they use the model."""

    intended_use: Text
    """What the model is for: detectors, samples, range of signals."""
    limits: Text
    """What it is not for, and where it was seen to fail."""
    licence: Text
    """Under which terms it may be used, as an SPDX identifier where there is one."""
    contact: Text
    """Whom to ask."""
