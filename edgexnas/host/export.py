"""From a trained network to a signed bundle: ONNX in three precisions, gate and manifest."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgexnas.bragg import PATCH_SIZE
from edgexnas.bundle import (
    AccuracyRow,
    BraggPreprocessing,
    Gate,
    Manifest,
    Precision,
    Provenance,
    Quantisation,
    Tensor,
    load_signing_key,
    write_bundle,
)
from edgexnas.errors import ConfigurationError, QuantisationError
from edgexnas.host.models import LEVELS, count_parameters, middle_of
from edgexnas.host.onnx_export import to_onnx
from edgexnas.host.quantisation import QuantisedModel, quantise, recipes, run_onnx
from edgexnas.host.quantisation_aware import fine_tune_for_int8
from edgexnas.host.scoring import classical_rows, distance_row
from edgexnas.host.training import TrainingData, TrainingSettings

if TYPE_CHECKING:
    from edgexnas.host.dataset import PeakDataset, Split

__all__ = ["MAXIMUM_LOSS", "ExportReport", "Origin", "export_bundle"]

FloatArray = npt.NDArray[np.float32]

MAXIMUM_LOSS = 0.10
"""Largest share of mean distance that INT8 may lose against float32 on held-out data."""

MOST_CALIBRATION_ITEMS = 2048
"""Ranges of activations settle long before; more would only cost memory."""

REFERENCES = 256
"""Held-out patches that travel with a bundle; a device proves its engine on them."""

FINE_TUNING = TrainingSettings(epochs=60, batch_size=32, learning_rate=5e-4)
"""Quantisation-aware fine-tuning where post-training quantisation loses too much."""

GATE_MARGIN = 2.0
"""An engine may stray this many times further than the host's own run of the same graph."""

GATE_FLOOR_PX: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-3, "int8": 1e-2}
"""Below these distances summation order alone makes engines differ."""


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
    dataset: PeakDataset,
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
        From (n, 1, 11, 11) to (n, 2, q).
    dataset, split
        Labelled peaks. Calibration uses `split.calibration`, the choice of recipe
        `split.validation`, the table and the limits `split.test`.
    rows
        Further rows for the accuracy table, such as baselines.
    model_id
        Name under which versions follow each other; the architecture's name by default.
    sequence
        Number of this version; seconds since 1970 by default, so that it rises by itself.
    maximum_loss
        Largest share of mean distance that INT8 may lose against float32.
    fine_tune
        Settings of quantisation-aware fine-tuning, used if post-training quantisation loses more
        than half of `maximum_loss` on the validation part; None never fine-tunes.

    Raises
    ------
    ConfigurationError
        If the signing key does not fit or the folder does not exist, before anything is done.
    QuantisationError
        If INT8 loses more than `maximum_loss`; nothing is written.
    """
    key = load_signing_key(signing_key)
    check_writable(path)
    levels = tuple(levels)
    exporter = _Exporter(dataset, split, levels)
    models, quantised, fine_tuned = exporter.models(model.cpu().eval(), maximum_loss, fine_tune)
    outputs = {p: run_onnx(m, exporter.x[split.test]) for p, m in models.items()}
    table = [
        exporter.row(architecture, outputs[precision], precision, count_parameters(model))
        for precision in models
    ]
    loss = _loss(table[-1], table[0])
    if loss > maximum_loss:
        raise QuantisationError(
            f"INT8 loses {loss:.1%} of mean distance on held-out data "
            f"({table[-1].mean_px:.4f} px against {table[0].mean_px:.4f} px in float32) and "
            f"{maximum_loss:.0%} is allowed: pass fine_tune settings, or choose a wider network"
        )
    created = datetime.now(timezone.utc).replace(microsecond=0)
    manifest = Manifest(
        task="bragg",
        model_id=model_id or architecture,
        sequence=int(created.timestamp()) if sequence is None else sequence,
        created=created,
        expires=expires,
        architecture=architecture,
        parameters=count_parameters(model),
        quantile_levels=levels,
        inputs=(_PATCHES,),
        outputs=(_offsets(len(levels)),),
        preprocessing=BraggPreprocessing(finder=dataset.finder),
        accuracy=(*table, *classical_rows(dataset, split), *rows),
        quantisation=exporter.recipe(quantised, loss, fine_tuned),
        gate=exporter.gate(outputs),
        provenance=_provenance(origin or Origin(), dataset),
    )
    chosen = slice(None, REFERENCES)
    reference = {
        "input": exporter.x[split.test][chosen],
        "output": outputs["float32"][chosen],
    }
    written = write_bundle(
        path, manifest=manifest, models=models, reference=reference, signing_key=key
    )
    return ExportReport(written, manifest, loss, fine_tuned)


class _Exporter:
    """The data of one export, and the steps that need all of it."""

    def __init__(self, dataset: PeakDataset, split: Split, levels: tuple[float, ...]) -> None:
        self.x = dataset.inputs()
        self.y = dataset.targets_px
        spread = np.linspace(0, len(split.calibration) - 1, MOST_CALIBRATION_ITEMS)
        self._calibration = self.x[split.calibration[np.unique(spread.astype(int))]]
        self._dataset, self._split, self._levels = dataset, split, levels
        self._middle = middle_of(levels)

    def row(
        self, name: str, output: FloatArray, precision: Precision, parameters: int
    ) -> AccuracyRow:
        return distance_row(
            name,
            output[:, :, self._middle],
            self.y[self._split.test],
            against=self._dataset.against,
            precision=precision,
            parameters=parameters,
        )

    def models(
        self, model: nn.Module, maximum_loss: float, fine_tune: TrainingSettings | None
    ) -> tuple[dict[Precision, bytes], QuantisedModel, bool]:
        """Export float32 and float16, and the best INT8 graph."""
        example = torch.from_numpy(self.x[:4])
        float32 = to_onnx(model, example)
        float16 = to_onnx(model, example, half=True)
        # Half, because what is measured here on one part must hold on another.
        limit = (1 + maximum_loss / 2) * self._validation_error(float32)
        error, int8 = self._best_recipe(float32)
        tuned = False
        if error > limit and fine_tune is not None:
            data = TrainingData.from_dataset(self._dataset, self._split, fine_tune.device)
            calibration = torch.from_numpy(self._calibration)
            result = fine_tune_for_int8(model, data, calibration, fine_tune)
            tuned_error, tuned_int8 = self._best_recipe(to_onnx(result.model, example))
            if tuned_error < error:
                int8, tuned = tuned_int8, True
        return {"float32": float32, "float16": float16, "int8": int8.model}, int8, tuned

    def _best_recipe(self, float32: bytes) -> tuple[float, QuantisedModel]:
        """Quantise by every recipe; a layer more in float must earn itself 2 %."""
        best: tuple[float, QuantisedModel] | None = None
        for recipe in recipes():
            try:
                candidate = quantise(float32, self._calibration, recipe)
            except QuantisationError:
                if best is None:
                    raise
                continue
            error = self._validation_error(candidate.model)
            fewer_float = best is None or recipe.float_layers == best[1].recipe.float_layers
            if best is None or error < best[0] * (1.0 if fewer_float else 0.98):
                best = error, candidate
        assert best is not None
        return best

    def _validation_error(self, model: bytes) -> float:
        output = run_onnx(model, self.x[self._split.validation])[:, :, self._middle]
        target = self.y[self._split.validation]
        return float(np.linalg.norm(output - target, axis=1).mean())

    def recipe(self, int8: QuantisedModel, loss: float, fine_tuned: bool) -> Quantisation:
        items = np.ascontiguousarray(self._calibration)
        return Quantisation(
            method="qat" if fine_tuned else "ptq",
            calibration_method=int8.recipe.calibration,
            float_layers=int8.left_float,
            quantised_layers=int8.quantised,
            calibration_items=len(items),
            calibration_digest=hashlib.sha256(items.tobytes()).hexdigest(),
            loss_fraction=loss,
        )

    def gate(self, outputs: Mapping[Precision, FloatArray]) -> Gate:
        """Limits for the mean distance of an engine's quantiles from float32's."""
        reference = outputs["float32"][:REFERENCES]

        def limit(precision: Precision) -> float:
            strayed = outputs[precision][:REFERENCES] - reference
            mean = float(np.linalg.norm(strayed, axis=1).mean())
            return max(GATE_MARGIN * mean, GATE_FLOOR_PX[precision])

        return Gate(
            unit="px", float32=limit("float32"), float16=limit("float16"), int8=limit("int8")
        )


def _loss(int8: AccuracyRow, float32: AccuracyRow) -> float:
    assert int8.mean_px is not None
    assert float32.mean_px is not None
    return int8.mean_px / float32.mean_px - 1


_PATCHES = Tensor(
    name="patches",
    shape=("n", 1, PATCH_SIZE, PATCH_SIZE),
    unit="1",
    axes=("patch", "channel", "row", "col"),
)


def _offsets(levels: int) -> Tensor:
    return Tensor(
        name="offsets_px",
        shape=("n", 2, levels),
        unit="px",
        axes=("patch", "(row, col)", "quantile"),
    )


def _provenance(origin: Origin, dataset: PeakDataset) -> Provenance:
    packages = ("edgexnas", "torch", "onnx", "onnxruntime", "numpy")
    versions = {"python": platform.python_version()}
    versions.update({name: metadata.version(name) for name in packages})
    return Provenance(
        search=origin.search,
        trial=origin.trial,
        seed=origin.seed,
        data_digest=dataset.digest,
        data_source=dataset.source,
        configuration=dict(origin.configuration or {}),
        versions=versions,
    )


def check_writable(path: str | Path) -> None:
    """Refuse a target whose folder does not exist, before hours of work end there."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"folder {folder} does not exist; create it or choose another")
