"""The manifest: what a bundle says about its model, and what a device checks before it runs it.

The pydantic models here are the source; `manifest.schema.json` beside this module is generated
from them by `write_schema`.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    FailFast,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from edgexnas.bundle.deployment import (
    Coverage,
    IntervalCalibration,
    ModelCard,
    PeakDetection,
    Probe,
    QuantisationRecipe,
    TrainingData,
)
from edgexnas.bundle.record import (
    IDENTIFIER,
    Digest,
    Identifier,
    Level,
    Names,
    NonNegative,
    Precision,
    Record,
    Release,
    Text,
)
from edgexnas.bundle.strict_json import parse_json, parse_record
from edgexnas.errors import BundleError
from edgexnas.peak_finding import FinderSettings

__all__ = [
    "IDENTIFIER",
    "MODEL_MEMBERS",
    "SCHEMA_VERSION",
    "AccuracyRow",
    "AmplitudeGate",
    "BraggPreprocessing",
    "Gate",
    "Manifest",
    "Precision",
    "Provenance",
    "PtychoPreprocessing",
    "Quantisation",
    "Tensor",
    "encode_manifest",
    "manifest_schema",
    "parse_manifest",
    "write_schema",
]

SCHEMA_VERSION: Literal[2] = 2
"""Version of the manifest that this edgexnas writes, and the newest that it reads."""

OLDEST_READER = "0.2.0"
"""The first edgexnas that reads `SCHEMA_VERSION`."""

NEWER_READER = "0.3.0"
"""The first edgexnas that reads probes of several modes, of patterns that are to be turned, or of
unknown pixel size; and interval factors of one precision, widening, limits of quantities,
familiarity and coverage."""

NEWER_FIELDS: dict[str, dict[str, object]] = {
    "accuracy": {"coverage": []},
    "interval_calibration": {"by_precision": [], "widening": None},
    "training_data": {"familiarity": [], "frame_share": None, "frame_least": 3},
    "quantities": {"low": None, "high": None},
}
"""Fields of parts that 0.2.0 does not know, and what they hold where they say nothing: they are not
written then."""

MODEL_MEMBERS: dict[Precision, str] = {
    "float32": "model.onnx",
    "float16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}
"""Name of each precision's ONNX file inside a bundle."""

SCHEMA_PATH = Path(__file__).with_name("manifest.schema.json")

OPTIONAL_FIELDS = frozenset(
    (
        "detection",
        "interval_calibration",
        "training_data",
        "probe",
        "quantisation_recipe",
        "model_card",
    )
)
"""Fields that schema 1 does not have."""


class Tensor(Record):
    """One input or output of the model."""

    name: Identifier
    """Name of the tensor in every ONNX file of the bundle."""
    shape: Annotated[tuple[PositiveInt | Literal["n"], ...], Field(min_length=2, max_length=6)]
    """Length of each axis; "n" is the batch, which stands first and nowhere else."""
    dtype: Literal["float32"] = "float32"
    """Element type that a caller sees, whatever the precision inside."""
    unit: Text
    """Unit of the elements: "px", "rad", or "1" for none."""
    axes: Annotated[tuple[Text, ...], Field(min_length=2, max_length=6)]
    """What each axis counts, in the order of `shape`."""

    @model_validator(mode="after")
    def _check_axes(self) -> Tensor:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"tensor {self.name} has {len(self.shape)} axes, {self.axes} named")
        if self.shape[0] != "n" or "n" in self.shape[1:]:
            raise ValueError(f'shape of tensor {self.name} must have "n" first and only there')
        return self


class BraggPreprocessing(Record):
    """How a detector frame becomes network input for Bragg peaks; see `edgexnas.bragg`."""

    kind: Literal["bragg"] = "bragg"
    """The application these constants belong to."""
    patch_size: Literal[11] = 11
    """Side of a patch in pixels."""
    scaling: Literal["min-max"] = "min-max"
    """Each patch is scaled to [0, 1] by its own minimum and maximum."""
    finder: FinderSettings = Field(default_factory=FinderSettings)
    """Settings of the peak finder that cut the patches the network was trained on."""


class PtychoPreprocessing(Record):
    """How a diffraction pattern becomes network input for ptychography; see `edgexnas.ptycho`."""

    kind: Literal["ptycho"] = "ptycho"
    """The application these constants belong to."""
    pattern_size: PositiveInt = 64
    """Side of a pattern in pixels."""
    intensity_scale: PositiveFloat
    """Counts that become 1 at the network's input."""


class AccuracyRow(Record):
    """One row of the accuracy table on held-out data: a model or a classical estimate."""

    name: Text
    """What is scored: "model", "constant", "centroid", "pseudo-Voigt fit", ..."""
    precision: Precision | None = None
    """Precision of the model; None for a classical estimate."""
    against: Literal["fit", "iterative", "truth", "reference"]
    """Scored against the pseudo-Voigt fit, the iterative phase retrieval, the simulated truth, or
    the float32 outputs."""
    n: PositiveInt
    """Number of scored items: peaks or patterns."""
    mean_px: NonNegative | None = None
    """Mean distance, in pixels."""
    p50_px: NonNegative | None = None
    """Median distance, in pixels."""
    p75_px: NonNegative | None = None
    """75th percentile of the distance, in pixels."""
    p95_px: NonNegative | None = None
    """95th percentile of the distance, in pixels."""
    phase_mae_rad: NonNegative | None = None
    """Mean absolute error of the phase after each patch's constant is removed, in radians."""
    amplitude_mae: NonNegative | None = None
    """Mean absolute error of the amplitude, as a share of its mean."""
    parameters: NonNegativeInt | None = None
    """Trainable parameters; None for a classical estimate."""
    coverage: Annotated[tuple[Coverage, ...], Field(max_length=100), FailFast()] = ()
    """How often calibrated intervals hold, of all peaks and of each group of at least 200."""


class Quantisation(Record):
    """How the INT8 model was made, and what it costs."""

    method: Literal["ptq", "qat"]
    """Post-training quantisation, or quantisation-aware training before it."""
    calibration_method: Text
    """How activation ranges were chosen: "minmax", "percentile", ..."""
    float_layers: Names
    """Layers left in float."""
    quantised_layers: Names
    """Layers computed in INT8."""
    calibration_items: PositiveInt
    """Number of patches or patterns that the ranges were chosen from."""
    calibration_digest: Digest
    """SHA-256 of those items."""
    loss_fraction: float
    """INT8 mean error / float32 mean error - 1, on held-out data."""


class _Limits(Record):
    float32: PositiveFloat
    """Limit for a float32 engine."""
    float16: PositiveFloat
    """Limit for a float16 engine."""
    int8: PositiveFloat
    """Limit for an INT8 engine."""


class AmplitudeGate(_Limits):
    """Largest mean amplitude difference allowed, as a share of the reference's mean amplitude."""


class Gate(_Limits):
    """Largest mean distance allowed between an engine's output and the float32 reference.

    Distances of peaks are Euclidean; phases are compared by `edgexnas.ptycho.patch_errors`.
    """

    unit: Literal["px", "rad"]
    """Unit of the three distances."""
    amplitude: AmplitudeGate | None = None
    """Limits for the amplitude of ptychography; None leaves it unchecked."""


class Provenance(Record):
    """Where the model comes from."""

    search: Text | None = None
    """Name of the search; None if the model was trained by itself."""
    trial: NonNegativeInt | None = None
    """Number of the trial in that search."""
    seed: NonNegativeInt
    """Seed of the training."""
    data_digest: Digest
    """SHA-256 of the labelled data."""
    data_source: Text
    """What the data was opened from."""
    label_residual: NonNegative | None = None
    """Part of the light that phase retrieval left unexplained in making labels; None without it."""
    configuration: Annotated[dict[Text, Text | bool | int | float | None], Field(max_length=1000)]
    """Hyperparameters of the architecture and of its training."""
    versions: Annotated[dict[Text, Text], Field(max_length=1000)]
    """Versions of the packages that made the bundle."""


class Manifest(Record):
    """Everything a device needs to know about a model before it runs it."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    """Version of this manifest's fields."""
    requires_edgexnas: Release = OLDEST_READER
    """The first edgexnas that can read this manifest."""
    task: Literal["bragg", "ptycho"]
    """The application."""
    model_id: Identifier
    """Name under which versions of this model follow each other."""
    sequence: Annotated[int, Field(ge=0, lt=2**53)]
    """Rises with every version of `model_id`; a device can refuse to go back."""
    created: AwareDatetime
    """When the bundle was made, with time zone."""
    expires: AwareDatetime | None = None
    """When devices stop accepting the bundle; None for never."""
    architecture: Text
    """Name of the architecture: "BraggNN", "mlpBragg", ..."""
    parameters: PositiveInt
    """Number of trainable parameters, biases included."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1, max_length=3)] = (
        "float32",
        "float16",
        "int8",
    )
    """Precisions of the models in the bundle, each once."""
    quantile_levels: Annotated[tuple[Level, ...], Field(max_length=99), FailFast()] = ()
    """Increasing quantile levels of the output's last axis; empty for ptychography."""
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=8), FailFast()]
    """Inputs of the network, in order."""
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=8), FailFast()]
    """Outputs of the network, in order."""
    preprocessing: Annotated[BraggPreprocessing | PtychoPreprocessing, Field(discriminator="kind")]
    """From the detector's frame to the network's input."""
    accuracy: Annotated[tuple[AccuracyRow, ...], Field(max_length=1000), FailFast()]
    """Accuracy on held-out data, of the models and of classical estimates."""
    quantisation: Quantisation | None = None
    """How the INT8 model was made; None without one."""
    gate: Gate
    """How far an engine may deviate from the reference outputs."""
    provenance: Provenance
    """Search, data and packages that led to the model."""
    detection: PeakDetection | None = None
    """Defaults of peak finding that a device may adapt; None for those of `preprocessing`."""
    interval_calibration: IntervalCalibration | None = None
    """Factors of predicted intervals; None leaves them as the network gives them."""
    training_data: TrainingData | None = None
    """Distribution of the training data; None if nothing can be said of other data."""
    probe: Probe | None = None
    """Illumination of the training data, for ptychography; None if it is unknown."""
    quantisation_recipe: QuantisationRecipe | None = None
    """How the precisions were made and what they take; None if it was not recorded."""
    model_card: ModelCard | None = None
    """Use, limits and licence in words."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Manifest:
        for fault in (_task_fault(self), _version_fault(self), _tensor_fault(self)):
            if fault:
                raise ValueError(fault)
        return self


def _task_fault(manifest: Manifest) -> str | None:
    if manifest.preprocessing.kind != manifest.task:
        return f"preprocessing is for {manifest.preprocessing.kind}, the task is {manifest.task}"
    unit = {"bragg": "px", "ptycho": "rad"}[manifest.task]
    if manifest.gate.unit != unit:
        return f"the gate of a {manifest.task} model is in {unit}, not {manifest.gate.unit}"
    if manifest.task == "bragg" and manifest.gate.amplitude is not None:
        return "the gate of a bragg model has no amplitude"
    foreign = {"bragg": ("probe",), "ptycho": ("detection", "interval_calibration")}
    for name in foreign[manifest.task]:
        if getattr(manifest, name) is not None:
            return f"a {manifest.task} model has no {name}"
    return None


def _version_fault(manifest: Manifest) -> str | None:
    # `model_fields_set`, because a field that is None by default may have been written out.
    later = OPTIONAL_FIELDS & manifest.model_fields_set
    later |= {"label_residual"} & manifest.provenance.model_fields_set
    if manifest.schema_version == 1 and later:
        return f"schema 1 has no {', '.join(sorted(later))}"
    if len(set(manifest.precisions)) != len(manifest.precisions):
        return f"precisions repeat: {manifest.precisions}"
    if manifest.quantisation is not None and "int8" not in manifest.precisions:
        return f"quantisation is described, but int8 is not in precisions {manifest.precisions}"
    if manifest.expires is not None and manifest.expires <= manifest.created:
        return f"it expires at {manifest.expires}, before it is created at {manifest.created}"
    return None


def _tensor_fault(manifest: Manifest) -> str | None:
    names = [tensor.name for tensor in (*manifest.inputs, *manifest.outputs)]
    if len(set(names)) != len(names):
        return f"tensor names repeat: {names}"
    expected: list[tuple[int | str, ...]]
    levels = manifest.quantile_levels
    if isinstance(manifest.preprocessing, PtychoPreprocessing):
        if levels:
            return "a ptycho model has no quantile_levels"
        side = manifest.preprocessing.pattern_size
        expected, kind = [("n", 1, side, side), ("n", 2, side, side)], "a ptycho model"
    else:
        if not levels or any(low >= high for low, high in pairwise(levels)):
            return f"quantile_levels {levels} do not increase"
        side = manifest.preprocessing.patch_size
        expected = [("n", 1, side, side), ("n", 2, len(levels))]
        kind = f"a bragg model with {len(levels)} quantiles"
    if [tensor.shape for tensor in (*manifest.inputs, *manifest.outputs)] != expected:
        return f"{kind} maps {expected[0]} to {expected[1]}"
    return None


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest as canonical JSON: sorted keys, two spaces, UTF-8, one final newline."""
    # A manifest of schema 1 is written as it was read.
    later: dict[str, bool | set[str]] = dict.fromkeys(OPTIONAL_FIELDS, True)
    later["provenance"] = {"label_residual"}
    if manifest.schema_version == 2:
        # Nor does one that 0.2.0 can read hold what that does not know.
        plain = manifest.probe is not None and manifest.probe.plain
        later = {"probe": {"modes", "orientation"}} if plain else {}
    fields = manifest.model_dump(mode="json", exclude=later)
    _drop_silent(fields)
    return _canonical(fields)


def _drop_silent(fields: dict[str, Any]) -> None:
    """Leave out what 0.2.0 does not know and what says nothing."""
    data = fields.get("training_data") or {}
    places = {
        "accuracy": fields["accuracy"],
        "interval_calibration": [fields.get("interval_calibration") or {}],
        "training_data": [data],
        "quantities": data.get("quantities", []),
    }
    for name, parts in places.items():
        for part in parts:
            silent = NEWER_FIELDS[name]
            if all(part.get(field, nothing) == nothing for field, nothing in silent.items()):
                for field in silent:
                    part.pop(field, None)


def parse_manifest(raw: bytes, *, what: str = "manifest.json") -> Manifest:
    """Read a manifest.

    Parameters
    ----------
    raw
        Content of `manifest.json`.
    what
        What is parsed, for messages.

    Raises
    ------
    BundleError
        If it is not strict JSON, has a newer schema, or a field is wrong.
    """
    fields = parse_json(raw, what=what)
    version = fields.get("schema_version")
    # To Python and to pydantic's Literal, true is 1.
    if type(version) is not int:
        raise BundleError(f"{what} is wrong at schema_version: it must be a whole number")
    # Before fields are looked at, which would fail at the first that is new, with no advice.
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{what} has schema {str(version)[:20]} and {SCHEMA_VERSION} is the newest that this "
            f"edgexnas reads: install edgexnas {_needed(fields)}"
        )
    return parse_record(raw, Manifest, what=what)


def _needed(fields: dict[str, object]) -> str:
    """Say which release reads a newer manifest, as far as that manifest tells."""
    release = fields.get("requires_edgexnas")
    # Of an unread schema and shown to people, so that only what looks like a release passes.
    if isinstance(release, str) and len(release) < 20 and release.replace(".", "").isdecimal():
        return f"{release} or newer"
    return "of a newer release"


def manifest_schema() -> bytes:
    """Return the JSON schema of `Manifest` as the canonical JSON that is committed."""
    return _canonical(Manifest.model_json_schema())


def write_schema(path: Path = SCHEMA_PATH) -> Path:
    """Write the JSON schema of `Manifest`; run this after changing a model of this module."""
    path.write_bytes(manifest_schema())
    return path


def _canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
