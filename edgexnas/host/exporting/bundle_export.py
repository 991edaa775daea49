"""From a trained network to a signed bundle: ONNX in three precisions, gate and manifest."""

from __future__ import annotations

import hashlib
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import nn

from edgexnas import __version__
from edgexnas.bundle import (
    AccuracyRow,
    Manifest,
    Precision,
    Provenance,
    Quantisation,
    QuantisationRecipe,
    load_signing_key,
    write_bundle,
)
from edgexnas.bundle.manifest import IDENTIFIER
from edgexnas.bundle.strict_json import explain
from edgexnas.errors import ConfigurationError, QuantisationError
from edgexnas.host.exporting.bundling import make_bundling
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import QuantisedModel, quantise, recipes, run_onnx
from edgexnas.host.exporting.quantisation_aware import fine_tune_for_int8
from edgexnas.host.networks.bragg_models import LEVELS, count_parameters
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.printing import printable

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.bundling import Bundling

__all__ = ["MAXIMUM_LOSS", "ExportReport", "Origin", "export_bundle"]

FloatArray = npt.NDArray[np.float32]

MAXIMUM_LOSS = 0.10
"""Largest share of the mean error that INT8 may lose against float32 on held-out data."""

FINE_TUNING = TrainingSettings(epochs=60, batch_size=32, learning_rate=5e-4)
"""Quantisation-aware fine-tuning where post-training quantisation loses too much."""

MOST_SEEN = 600_000
"""Items that the default fine-tuning sees at most, some 20,000 steps: with many synthetic peaks
sixty epochs would take longer than the search did."""

KINDS: tuple[Mapping[str, bool], ...] = (
    {},
    {"equalised": True},
    {"float_first": True},
    {"float_first": True, "equalised": True},
)
"""Of recipes, in the order in which they are tried: equalising costs a device nothing, a first
layer in float costs it the integer arithmetic of that layer."""

_log = logging.getLogger(__name__)


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
    """What was written: the bundle, its manifest, and the share of accuracy that INT8 loses."""

    path: Path
    manifest: Manifest
    int8_loss: float
    fine_tuned: bool


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
        phase error of patches. Where it would add more than half of that on the validation part,
        channels are equalised, then the first layer stays in float; that is logged and recorded.
    fine_tune
        Settings of quantisation-aware fine-tuning, used if that does not suffice; None never
        fine-tunes.

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
    name, architecture = _checked_name(model_id, architecture), printable(architecture)
    bundling = make_bundling(dataset.task, tuple(levels))
    exporter = _Exporter(dataset, split, bundling)
    models, quantised, fine_tuned = exporter.models(model.cpu().eval(), maximum_loss, fine_tune)
    outputs = exporter.test_outputs(models)
    loss = exporter.int8_loss(outputs, maximum_loss, quantised)
    parameters = count_parameters(model)
    reference = {
        "input": exporter.x[split.test][: bundling.references],
        "output": outputs["float32"][: bundling.references],
    }
    # Whole seconds, as the manifest keeps them.
    created = datetime.now(timezone.utc).replace(microsecond=0)
    inputs, output = bundling.tensors()
    try:
        manifest = Manifest(
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
            accuracy=(
                *exporter.rows(architecture, outputs, parameters),
                *bundling.baselines(dataset, split),
                *rows,
            ),
            quantisation=exporter.quantisation(quantised, loss, fine_tuned),
            quantisation_recipe=QuantisationRecipe(
                placement="weights-and-activations",
                per_channel=True,
                float_first_layer=quantised.recipe.float_first,
                float_last_layer=True,
            ),
            # Of the items that travel along, on which a device measures its engine.
            gate=bundling.gate({p: o[: bundling.references] for p, o in outputs.items()}),
            provenance=_provenance(origin or Origin(), dataset),
        )
    except ValidationError as error:
        raise ConfigurationError(f"bundle {path} cannot be described: {explain(error)}") from None
    written = write_bundle(
        path, manifest=manifest, models=models, reference=reference, signing_key=key
    )
    return ExportReport(written, manifest, loss, fine_tuned)


class _Exporter:
    """The data of one export, and the steps that need all of it."""

    def __init__(self, dataset: Dataset, split: Split, bundling: Bundling) -> None:
        self.x = dataset.inputs()
        self.y = dataset.network_targets()
        # Spread over the part: neighbours on a series or scan are nearly alike.
        spread = np.linspace(0, len(split.calibration) - 1, bundling.calibration_items)
        # Each once, where there are fewer items than are wanted.
        self._calibration = self.x[split.calibration[np.unique(spread.astype(int))]]
        self._dataset, self._split, self._bundling = dataset, split, bundling

    def models(
        self, model: nn.Module, maximum_loss: float, fine_tune: TrainingSettings | None
    ) -> tuple[dict[Precision, bytes], QuantisedModel, bool]:
        """Export float32 and float16, and the best INT8 graph."""
        _log.info("writing the network in float32 and float16")
        float32 = self._to_onnx(model)
        float16 = self._to_onnx(model, half=True)
        _log.info("quantising it to INT8 by several recipes")
        # Half, because what is measured here on one part must hold on another.
        limit = (1 + maximum_loss / 2) * self._validation_error(float32)
        error, int8 = self._best_recipe(float32, limit)
        tuned = False
        if error > limit and fine_tune is not None:
            data = TrainingData.from_dataset(self._dataset, self._split, fine_tune.device)
            if fine_tune is FINE_TUNING:
                most = max(1, MOST_SEEN // len(data.train_x))
                fine_tune = replace(fine_tune, epochs=min(fine_tune.epochs, most))
            _log.info(
                "fine-tuning it for INT8: %d steps",
                fine_tune.epochs * max(1, len(data.train_x) // fine_tune.batch_size),
            )
            calibration = torch.from_numpy(self._calibration)
            result = fine_tune_for_int8(
                model, data, calibration, fine_tune, float_first=int8.recipe.float_first
            )
            tuned_error, tuned_int8 = self._best_recipe(self._to_onnx(result.model), limit)
            if tuned_error < error:
                int8, tuned = tuned_int8, True
        if int8.recipe.float_first:
            _log.warning(
                "the first layer stays in float: in INT8 it costs more accuracy than is allowed"
            )
        return {"float32": float32, "float16": float16, "int8": int8.model}, int8, tuned

    def test_outputs(self, models: Mapping[Precision, bytes]) -> dict[Precision, FloatArray]:
        """Run every model on the test part."""
        _log.info("scoring it on the test part")
        return {p: self._run(model, self._split.test) for p, model in models.items()}

    def int8_loss(
        self, outputs: Mapping[Precision, FloatArray], maximum: float, made: QuantisedModel
    ) -> float:
        """Share of the float32 error on the test part that INT8 adds; rejected above `maximum`."""
        truth, of = self.y[self._split.test], self._bundling
        float32, int8 = (of.error(outputs[p], truth) for p in ("float32", "int8"))
        loss = int8 / float32 - 1
        if loss > maximum:
            raise QuantisationError(
                f"INT8 loses {loss:.1%} of {of.measure} on held-out data ({int8:.4f} {of.unit} "
                f"against {float32:.4f} {of.unit} in float32; the best recipe: {made.recipe}) and "
                f"{maximum:.0%} is allowed: pass fine_tune settings, or choose a wider network"
            )
        return loss

    def rows(
        self, name: str, outputs: Mapping[Precision, FloatArray], parameters: int
    ) -> list[AccuracyRow]:
        """Score every model on the test part."""
        return [
            self._bundling.row(
                name,
                output,
                self.y[self._split.test],
                against=self._dataset.against,
                precision=precision,
                parameters=parameters,
            )
            for precision, output in outputs.items()
        ]

    def _to_onnx(self, model: nn.Module, *, half: bool = False) -> bytes:
        example = torch.from_numpy(self.x[:4])
        inputs, output = self._bundling.tensors()
        return to_onnx(model, example, half=half, input_name=inputs.name, output_name=output.name)

    def _run(self, model: bytes, part: npt.NDArray[np.intp]) -> FloatArray:
        return run_onnx(model, self.x[part], self._bundling.batch)

    def _best_recipe(self, float32: bytes, limit: float) -> tuple[float, QuantisedModel]:
        """Quantise by one kind of recipe after another until the error is within a limit."""
        best: tuple[float, QuantisedModel] | None = None
        for kind in KINDS:
            for recipe in recipes(**kind):
                try:
                    candidate = quantise(float32, self._calibration, recipe)
                # More float layers may leave a shallow network nothing; the first recipe must work.
                except QuantisationError:
                    if best is None:
                        raise
                    continue
                error = self._validation_error(candidate.model)
                if best is None or error < best[0] * _share_to_earn(candidate, best[1]):
                    best = error, candidate
            assert best is not None
            if best[0] <= limit:
                break
            _log.info(
                "INT8 is %.4f %s on the validation part and %.4f is wanted: trying other recipes",
                best[0], self._bundling.unit, limit,
            )  # fmt: skip
        assert best is not None
        return best

    def _validation_error(self, model: bytes) -> float:
        part = self._split.validation
        return self._bundling.error(self._run(model, part), self.y[part])

    def quantisation(self, int8: QuantisedModel, loss: float, fine_tuned: bool) -> Quantisation:
        items = np.ascontiguousarray(self._calibration)
        equalised = " after equalisation of channels" * int8.recipe.equalised
        return Quantisation(
            method="qat" if fine_tuned else "ptq",
            calibration_method=int8.recipe.calibration + equalised,
            float_layers=int8.left_float,
            quantised_layers=int8.quantised,
            calibration_items=len(items),
            calibration_digest=hashlib.sha256(items.tobytes()).hexdigest(),
            loss_fraction=loss,
        )


def _share_to_earn(candidate: QuantisedModel, best: QuantisedModel) -> float:
    """Share of the best error that a candidate must stay below: layers in float must pay."""
    return 0.98 if len(candidate.left_float) > len(best.left_float) else 1.0


def _checked_name(model_id: str | None, architecture: str) -> str:
    """Reject a model_id that a manifest cannot hold; make one of the architecture's name."""
    if model_id is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", architecture).lstrip("._-")[:100] or "model"
    if not re.match(IDENTIFIER, model_id):
        raise ConfigurationError(
            f"model_id {model_id!r} is not a valid name; use letters, digits, '.', '_' and '-', "
            "100 at most, and begin with a letter or digit"
        )
    return model_id


def _provenance(origin: Origin, dataset: Dataset) -> Provenance:
    # edgexnas says it itself: a source tree that is not installed has no metadata.
    versions = {"python": platform.python_version(), "edgexnas": __version__}
    for name in ("torch", "onnx", "onnxruntime", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return Provenance(
        search=origin.search,
        trial=origin.trial,
        seed=origin.seed,
        data_digest=dataset.digest,
        data_source=printable(dataset.source),
        label_residual=getattr(dataset, "residual", None),
        configuration=dict(origin.configuration or {}),
        versions=versions,
    )


def check_writable(path: str | Path) -> None:
    """Reject a target whose folder does not exist, before the work starts."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"folder {folder} does not exist; create it or choose another")
