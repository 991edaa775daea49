"""What a manifest says about the use of a model, since schema 2; each part may be left out.

What a device may adapt, how sure the model is and of what data, what each precision costs, and
what people should know before they use it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import FailFast, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from edgexnas.bundle.record import (
    LARGEST_SINGLE,
    Digest,
    Divisor,
    Identifier,
    Level,
    NonNegative,
    NonNegativeSingle,
    PositiveSingle,
    Precision,
    Record,
    Single,
    Text,
)
from edgexnas.ptycho import Orientation

__all__ = [
    "Coverage",
    "Distribution",
    "Familiarity",
    "IntervalCalibration",
    "MeasuredLatency",
    "ModelCard",
    "PeakDetection",
    "PrecisionFactors",
    "Probe",
    "QuantisationRecipe",
    "TrainingData",
    "Widening",
]

Edges = Annotated[tuple[PositiveSingle, ...], Field(max_length=32), FailFast()]
Share = Annotated[float, Field(ge=0, le=1)]
Factors = Annotated[tuple[tuple[PositiveSingle, ...], ...], Field(max_length=33), FailFast()]
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


class PrecisionFactors(Record):
    """Interval factors of one precision, whose rounding moves both ends and position."""

    precision: Precision
    """Precision of the model."""
    factors: Factors
    """(snr, width) factors, as of `IntervalCalibration.factors`."""


class Widening(Record):
    """How wide the interval of an unfamiliar peak is at least, whatever the network says of it.

    Its half width is, for each coordinate,
    sqrt(interval·h² + [disagreement·(1 - n) + narrow_disagreement·n]·d² + noise·s²
    + narrowness·(0.01/v)² + floor_px²), with h half the network's own interval, d the distance of
    the network's position from the windowed centroid, s the noise of that centroid, v the windowed
    variance of the peak and n = 0.3 / (0.3 + v), all in pixels; see `edgexnas.familiarity`. The
    coefficients were fitted on simulated peaks of many kinds.
    """

    interval: NonNegativeSingle
    """Coefficient of the network's own half width, squared."""
    disagreement: NonNegativeSingle
    """Coefficient of the distance between network and windowed centroid, squared, for wide peaks.
    """
    narrow_disagreement: NonNegativeSingle
    """The same for narrow ones, of which a centroid errs with the place in the pixel."""
    noise: NonNegativeSingle
    """Coefficient of the noise of the windowed centroid, squared."""
    narrowness: NonNegativeSingle
    """Coefficient of (0.01 / variance)², which counts for peaks narrower than a pixel or two."""
    floor_px: NonNegativeSingle
    """Least half width, in pixels."""


class IntervalCalibration(Record):
    """Factors that make predicted intervals hold as often as they say, by groups of peaks.

    Conformal prediction on calibration data (Romano, Patterson & Candès 2019): the quantiles of a
    peak are moved away from the position by the factor of the peak's group. Groups are cells of a
    grid of signal-to-noise ratio (rows) and width (columns), both measured on the patch. A group
    with too few calibration peaks has the factor of its row, or that of all.
    """

    level: Level
    """Share of true positions that a calibrated interval holds, for each coordinate."""
    snr_edges: Edges
    """Increasing signal-to-noise ratios between the groups: k edges make k + 1 groups."""
    width_edges_px: Edges
    """Increasing full widths at half maximum between the groups, in pixels."""
    factors: Factors
    """(snr, width) factors of the interval, by group, of precisions without factors of their own.
    """
    counts: Annotated[tuple[tuple[NonNegativeInt, ...], ...], Field(max_length=33), FailFast()]
    """(snr, width) number of calibration peaks of each group."""
    by_precision: Annotated[tuple[PrecisionFactors, ...], Field(max_length=3)] = ()
    """Factors that were calibrated on the output of one precision, each precision once."""
    widening: Widening | None = None
    """How wide intervals of unfamiliar peaks are at least; None leaves them as they are."""

    @model_validator(mode="after")
    def _check_groups(self) -> IntervalCalibration:
        for name in ("snr_edges", "width_edges_px"):
            if any(low >= high for low, high in pairwise(getattr(self, name))):
                raise ValueError(f"{name} {getattr(self, name)} do not increase")
        rows, cols = len(self.snr_edges) + 1, len(self.width_edges_px) + 1
        grids: list[tuple[str, tuple[tuple[float, ...], ...]]] = [
            ("factors", self.factors),
            ("counts", self.counts),
            *((f"factors of {own.precision}", own.factors) for own in self.by_precision),
        ]
        for name, grid in grids:
            lengths = [len(row) for row in grid]
            if lengths != [cols] * rows:
                raise ValueError(f"{name} have rows of {lengths}; the edges make {rows} of {cols}")
        named = [own.precision for own in self.by_precision]
        if len(set(named)) != len(named):
            raise ValueError(f"precisions of factors repeat: {named}")
        return self

    def factors_of(self, precision: Precision) -> tuple[tuple[float, ...], ...]:
        """Return the (snr, width) factors of a precision."""
        own = {entry.precision: entry.factors for entry in self.by_precision}
        return own.get(precision, self.factors)


class Coverage(Record):
    """How often intervals held the true value, with what this number is uncertain by."""

    group: Text
    """Which items: "all", or a group of signal-to-noise ratio and width."""
    n: PositiveInt
    """Number of items."""
    level: Level
    """Share that the intervals are to hold."""
    share: Share
    """Share of the coordinates that they held."""
    low: Share
    """Lower end of the 95 % interval of the share (Wilson)."""
    high: Share
    """Upper end of it."""
    median_width_px: NonNegative
    """Median full width of the intervals, in pixels."""


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
    low: Single | None = None
    """Items below this are unfamiliar; None for no limit."""
    high: Single | None = None
    """Items above this are unfamiliar; None for no limit."""

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
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"limits of {self.name} are {self.low} to {self.high}")
        return self


class Familiarity(Record):
    """When quantities that are each familiar are not so together.

    With z = (quantity - centre) / scale, clipped to ±6, an item is unfamiliar if
    score[0] + Σᵢ score[1+i]·zᵢ + Σᵢ≤ⱼ score[...]·zᵢ·zⱼ (i outer, j from i) exceeds `limit`. The
    score tells peaks of the training data from simulated ones that the network places wrongly.
    """

    quantities: Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=32), FailFast()]
    """Names of the quantities, in the order of the coefficients."""
    centre: Annotated[tuple[Single, ...], Field(max_length=32), FailFast()]
    """What is subtracted from each quantity."""
    scale: Annotated[tuple[Divisor, ...], Field(max_length=32), FailFast()]
    """What each difference is divided by."""
    score: Annotated[tuple[Single, ...], Field(max_length=600), FailFast()]
    """Coefficients: constant, linear, and upper triangle of the quadratic ones."""
    limit: Single
    """Largest score of a familiar item."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Familiarity:
        count = len(self.quantities)
        wanted = (count, count, (count + 1) * (count + 2) // 2)
        lengths = (len(self.centre), len(self.scale), len(self.score))
        if lengths != wanted:
            raise ValueError(f"centre, scale and score have {lengths} numbers, not {wanted}")
        if abs(self.limit - self.score[0]) > LARGEST_SINGLE:
            raise ValueError(
                f"limit {self.limit:g} less the constant {self.score[0]:g} would be infinite on a "
                "device, which computes in float32"
            )
        return self


class TrainingData(Record):
    """What the model was trained on, so that a device can tell what lies outside."""

    n: PositiveInt
    """Number of patches or patterns."""
    quantities: Annotated[tuple[Distribution, ...], Field(max_length=100), FailFast()]
    """Distributions of single quantities, each name once."""
    familiarity: Annotated[tuple[Familiarity, ...], Field(max_length=4)] = ()
    """Scores of several quantities together; a device uses the first whose quantities it has."""
    frame_share: Share | None = None
    """All peaks of a frame are unfamiliar if more than this share of them is, by themselves."""
    frame_least: Annotated[int, Field(ge=1, lt=2**31)] = 3
    """Fewest peaks that are unfamiliar by themselves and may make all of their frame so."""

    @model_validator(mode="after")
    def _check_names(self) -> TrainingData:
        names = [quantity.name for quantity in self.quantities]
        if len(set(names)) != len(names):
            raise ValueError(f"names of quantities repeat: {names}")
        missing = {name for one in self.familiarity for name in one.quantities} - set(names)
        if missing:
            raise ValueError(f"familiarity names quantities without distribution: {missing}")
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
