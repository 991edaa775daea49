"""From a trained network to a signed bundle: ONNX in three precisions, gate and manifest."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
from pydantic import ValidationError
from torch import nn

from edgexnas import __version__
from edgexnas.bundle import (
    AccuracyRow,
    Manifest,
    MeasuredLatency,
    Provenance,
    QuantisationRecipe,
    load_signing_key,
    write_bundle,
)
from edgexnas.bundle.manifest import IDENTIFIER, NEWER_READER, OLDEST_READER
from edgexnas.bundle.strict_json import explain
from edgexnas.errors import ConfigurationError
from edgexnas.host.exporting.bundling import make_bundling
from edgexnas.host.exporting.exporter import FINE_TUNING, Exporter
from edgexnas.host.exporting.quantisation import first_layers
from edgexnas.host.networks.bragg_models import LEVELS, count_parameters
from edgexnas.host.training.settings import TrainingSettings
from edgexnas.printing import printable

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.recipe_choice import RecipeChoice

__all__ = ["FINE_TUNING", "MAXIMUM_LOSS", "ExportReport", "Origin", "export_bundle"]

FloatArray = npt.NDArray[np.float32]

MAXIMUM_LOSS = 0.10
"""Largest share of the mean error that INT8 may lose against float32 on held-out data."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network comes from, for the manifest.

    Attributes
    ----------
    search, trial
        Name of the search and number of the trial; None for a network trained by itself.
    configuration
        Hyperparameters of architecture and training.
    """

    seed: int = 0
    search: str | None = None
    trial: int | None = None
    configuration: Mapping[str, str | bool | int | float | None] | None = None


@dataclass(frozen=True)
class ExportReport:
    """What was written: the bundle, its manifest, and the share of accuracy that INT8 loses.

    `choice` is the recipe that was chosen by latency, if there is one.
    """

    path: Path
    manifest: Manifest
    int8_loss: float
    fine_tuned: bool
    choice: RecipeChoice | None = None


def export_bundle(
    path: str | Path,
    *,
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    architecture: str,
    signing_key: str | Path,
    levels: Sequence[float] = LEVELS,
    origin: Origin | None = None,
    rows: Sequence[AccuracyRow] = (),
    model_id: str | None = None,
    sequence: int | None = None,
    expires: datetime | None = None,
    maximum_loss: float = MAXIMUM_LOSS,
    fine_tune: TrainingSettings | None = FINE_TUNING,
    choice: RecipeChoice | None = None,
) -> ExportReport:
    """Quantise, score, sign and write a network.

    Parameters
    ----------
    model
        From (n, 1, 11, 11) to (n, 2, q) for "bragg", from (n, 1, 64, 64) to (n, 2, 64, 64) for
        "ptycho".
    dataset, split
        Labelled data. Calibration uses `split.calibration`, the choice of recipe
        `split.validation`, the table and the limits `split.test`.
    levels
        Quantile levels of the output; unused for "ptycho".
    rows
        Further rows for the accuracy table, such as baselines.
    model_id
        Name under which versions follow each other: letters, digits, ".", "_" and "-"; by default
        the architecture's name, with "-" for anything else.
    sequence
        Number of this version; seconds since 1970 by default, so that it rises by itself.
    maximum_loss
        Largest share that INT8 may add to the mean error of float32: the distance of peaks, the
        phase error of patches. For peaks 0.003 px is allowed in any case, a tenth of what noise
        leaves of the fits. Where it would add more than half of that on the validation part,
        channels are equalised, then the first layer stays in float; that is logged and recorded.
    fine_tune
        Settings of quantisation-aware fine-tuning, used if that does not suffice; None never
        fine-tunes.
    choice
        Recipe that was chosen by measured latency; see `edgexnas.host.measuring.recipe_search`.

    Raises
    ------
    ConfigurationError
        If the signing key or the model_id does not fit or the folder does not exist, before
        anything is done; or if the manifest cannot hold something else that is given.
    QuantisationError
        If INT8 loses more than `maximum_loss`; nothing is written.
    """
    # Wrong arguments are reported before minutes of quantisation.
    key = load_signing_key(signing_key)
    check_writable(path)
    name, architecture = checked_name(model_id, architecture), printable(architecture)
    bundling = make_bundling(dataset.task, tuple(levels))
    exporter = Exporter(dataset, split, bundling)
    models, quantised, fine_tuned = exporter.models(
        model.cpu().eval(), maximum_loss, fine_tune, choice
    )
    outputs = exporter.test_outputs(models)
    loss = exporter.int8_loss(outputs, maximum_loss, quantised)
    calibration, data = trust = exporter.trust(models)
    parameters = count_parameters(model)
    first = first_layers(onnx.load_from_string(models["float32"]))
    reference = {
        "input": exporter.x[split.test][: bundling.references],
        "output": outputs["float32"][: bundling.references],
    }
    # Whole seconds, as the manifest keeps them.
    created = datetime.now(timezone.utc).replace(microsecond=0)
    inputs, output = bundling.tensors()
    probe, described = bundling.probe(dataset)
    old = (described is None or described.plain) and data is None
    try:
        manifest = Manifest(
            requires_edgexnas=OLDEST_READER if old else NEWER_READER,
            task=bundling.task,
            model_id=name,
            sequence=int(created.timestamp()) if sequence is None else sequence,
            created=created,
            expires=expires,
            architecture=architecture,
            parameters=parameters,
            quantile_levels=bundling.levels,
            inputs=(inputs,),
            outputs=(output,),
            preprocessing=bundling.preprocessing(dataset),
            detection=bundling.detection(dataset),
            interval_calibration=calibration,
            training_data=data,
            probe=described,
            accuracy=(
                *exporter.rows(architecture, outputs, parameters, trust),
                *bundling.baselines(dataset, split),
                *rows,
            ),
            quantisation=exporter.quantisation(quantised, loss, fine_tuned),
            quantisation_recipe=QuantisationRecipe(
                placement="weights-and-activations",
                per_channel=True,
                float_first_layer=first <= set(quantised.left_float),
                float_last_layer=True,
                latencies=_latencies(choice),
            ),
            # Of the items that travel along, on which a device measures its engine.
            gate=bundling.gate({p: o[: bundling.references] for p, o in outputs.items()}),
            provenance=_provenance(origin or Origin(), dataset, choice),
        )
    except ValidationError as error:
        raise ConfigurationError(f"bundle {path} cannot be described: {explain(error)}") from None
    written = write_bundle(
        path,
        manifest=manifest,
        models=models,
        reference=reference,
        signing_key=key,
        probe=probe,
    )
    return ExportReport(written, manifest, loss, fine_tuned, choice)


def checked_name(model_id: str | None, architecture: str) -> str:
    """Reject a model_id that a manifest cannot hold; make one of the architecture's name."""
    if model_id is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", architecture).lstrip("._-")[:100] or "model"
    if not re.match(IDENTIFIER, model_id):
        raise ConfigurationError(
            f"model_id {model_id!r} is not a valid name; use letters, digits, '.', '_' and '-', "
            "100 at most, and begin with a letter or digit"
        )
    return model_id


def _latencies(choice: RecipeChoice | None) -> tuple[MeasuredLatency, ...]:
    trials = () if choice is None else choice.trials
    return tuple(trial.latency for trial in trials if trial.latency is not None)


def _provenance(origin: Origin, dataset: Dataset, choice: RecipeChoice | None) -> Provenance:
    # edgexnas says it itself: a source tree that is not installed has no metadata.
    versions = {"python": platform.python_version(), "edgexnas": __version__}
    for name in ("torch", "onnx", "onnxruntime", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    configuration = dict(origin.configuration or {})
    if choice is not None:
        configuration |= {"recipe": choice.name, "recipe_reason": printable(choice.reason)}
    return Provenance(
        search=origin.search,
        trial=origin.trial,
        seed=origin.seed,
        data_digest=dataset.digest,
        data_source=printable(dataset.source),
        label_residual=getattr(dataset, "residual", None),
        configuration=configuration,
        versions=versions,
    )


def check_writable(path: str | Path) -> None:
    """Reject a target that is a folder or whose folder does not exist, before the work starts."""
    if Path(path).is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file in it")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"folder {folder} does not exist; create it or choose another")
