"""The data of one export, and the steps that need all of it: models, recipes and scores."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgexnas.bundle import (
    AccuracyRow,
    IntervalCalibration,
    Precision,
    Quantisation,
    TrainingData,
)
from edgexnas.errors import QuantisationError
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import QuantisedModel, quantise, recipes, run_onnx
from edgexnas.host.exporting.quantisation_aware import fine_tune_for_int8
from edgexnas.host.exporting.recipe_choice import RecipeChoice
from edgexnas.host.exporting.rewrites import rewritten
from edgexnas.host.training.settings import TrainingData as TrainingTensors
from edgexnas.host.training.settings import TrainingSettings

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.bundling import Bundling

__all__ = ["FINE_TUNING", "Exporter"]

FloatArray = npt.NDArray[np.float32]

FINE_TUNING = TrainingSettings(epochs=60, batch_size=32, learning_rate=5e-4)
"""Quantisation-aware fine-tuning where post-training quantisation loses too much."""

MOST_SEEN = 600_000
"""Items that the default fine-tuning sees at most, some 20,000 steps: with many synthetic peaks
sixty epochs would take longer than the search did."""

Kind = Mapping[str, bool]
"""Fields of `Recipe` that a kind of recipes has in common."""

KINDS: tuple[Kind, ...] = (
    {},
    {"equalised": True},
    {"float_first": True},
    {"float_first": True, "equalised": True},
)
"""Of recipes, in the order in which they are tried: equalising costs a device nothing, a first
layer in float costs it the integer arithmetic of that layer."""

_log = logging.getLogger(__name__)


class Exporter:
    """The data of one export, and the steps that need all of it."""

    def __init__(self, dataset: Dataset, split: Split, bundling: Bundling) -> None:
        self.x = dataset.inputs()
        self.y = dataset.network_targets()
        self.calibration = self.x[bundling.to_calibrate(split.calibration)]
        self._dataset, self._split, self.bundling = dataset, split, bundling

    def models(
        self,
        model: nn.Module,
        maximum_loss: float,
        fine_tune: TrainingSettings | None,
        choice: RecipeChoice | None = None,
    ) -> tuple[dict[Precision, bytes], QuantisedModel, bool]:
        """Export float32 and float16, and the INT8 graph that was chosen, else the best."""
        _log.info("writing the network in float32 and float16")
        how = None if choice is None else choice.rewrite
        float32 = self.to_onnx(rewritten(model, how))
        float16 = self.to_onnx(rewritten(model, how), half=True)
        if choice is not None and choice.int8 is not None:
            # Quantised anew, which gives the same bytes.
            int8 = quantise(choice.tuned or float32, self.calibration, choice.int8)
            models: dict[Precision, bytes] = {"float32": float32, "float16": float16}
            return {**models, "int8": int8.model}, int8, choice.tuned is not None
        _log.info("quantising it to INT8 by several recipes")
        limit = self.limit(float32, maximum_loss)
        error, int8 = self.best_recipe(float32, limit)
        tuned = False
        if error > limit and fine_tune is not None:
            tuned_float32 = self.tuned(model, fine_tune, how, float_first=int8.recipe.float_first)
            tuned_error, tuned_int8 = self.best_recipe(tuned_float32, limit)
            if tuned_error < error:
                int8, tuned = tuned_int8, True
        if int8.recipe.float_first:
            _log.warning(
                "the first layer stays in float: in INT8 it costs more accuracy than is allowed"
            )
        return {"float32": float32, "float16": float16, "int8": int8.model}, int8, tuned

    def tuned(
        self,
        model: nn.Module,
        fine_tune: TrainingSettings,
        rewrite: str | None,
        *,
        float_first: bool = False,
    ) -> bytes:
        """Fine-tune a network for INT8 and export it in float32, rewritten or not."""
        data = TrainingTensors.from_dataset(self._dataset, self._split, fine_tune.device)
        if fine_tune is FINE_TUNING:
            most = max(1, MOST_SEEN // len(data.train_x))
            fine_tune = replace(fine_tune, epochs=min(fine_tune.epochs, most))
        _log.info(
            "fine-tuning it for INT8: %d steps",
            fine_tune.epochs * max(1, len(data.train_x) // fine_tune.batch_size),
        )
        calibration = torch.from_numpy(self.calibration)
        result = fine_tune_for_int8(model, data, calibration, fine_tune, float_first=float_first)
        return self.to_onnx(rewritten(result.model, rewrite))

    def limit(self, float32: bytes, maximum_loss: float) -> float:
        """Largest error of INT8 on the validation part, in the unit of the task."""
        error = self.validation_error(float32)
        # Half, because what is measured on one part must hold on another.
        return error + max(maximum_loss * error, self.bundling.negligible) / 2

    def test_outputs(self, models: Mapping[Precision, bytes]) -> dict[Precision, FloatArray]:
        """Run every model on the test part."""
        _log.info("scoring it on the test part")
        return {p: self._run(model, self._split.test) for p, model in models.items()}

    def int8_loss(
        self, outputs: Mapping[Precision, FloatArray], maximum: float, made: QuantisedModel
    ) -> float:
        """Share of the float32 error on the test part that INT8 adds.

        Rejected above `maximum`, unless what it adds is negligible.
        """
        truth, of = self.y[self._split.test], self.bundling
        float32, int8 = (of.error(outputs[p], truth) for p in ("float32", "int8"))
        loss = int8 / float32 - 1
        if loss > maximum and int8 - float32 > of.negligible:
            raise QuantisationError(
                f"INT8 loses {loss:.1%} of {of.measure} on held-out data ({int8:.4f} {of.unit} "
                f"against {float32:.4f} {of.unit} in float32; the best recipe: {made.recipe}) and "
                f"{maximum:.0%} is allowed: pass fine_tune settings, or choose a wider network"
            )
        return loss

    def trust(
        self, models: Mapping[Precision, bytes]
    ) -> tuple[IntervalCalibration | None, TrainingData | None]:
        """Calibrate intervals and describe what is familiar; the test part is not looked at."""
        _log.info("calibrating its intervals")

        def run(precision: Precision, inputs: FloatArray) -> FloatArray:
            return run_onnx(models[precision], inputs, self.bundling.batch)

        return self.bundling.trust(self._dataset, self._split, run)

    def rows(
        self,
        name: str,
        outputs: Mapping[Precision, FloatArray],
        parameters: int,
        trust: tuple[IntervalCalibration | None, TrainingData | None] = (None, None),
    ) -> list[AccuracyRow]:
        """Score every model on the test part."""
        return [
            self.bundling.row(
                name,
                output,
                self.y[self._split.test],
                against=self._dataset.against,
                precision=precision,
                parameters=parameters,
                coverage=self.bundling.coverage(
                    self._dataset, self._split, output, precision, *trust
                ),
            )
            for precision, output in outputs.items()
        ]

    def to_onnx(self, model: nn.Module, *, half: bool = False) -> bytes:
        """Export a network with the names of the task's tensors."""
        example = torch.from_numpy(self.x[:4])
        inputs, output = self.bundling.tensors()
        return to_onnx(model, example, half=half, input_name=inputs.name, output_name=output.name)

    def _run(self, model: bytes, part: npt.NDArray[np.intp]) -> FloatArray:
        return run_onnx(model, self.x[part], self.bundling.batch)

    def best_recipe(
        self, float32: bytes, limit: float, kinds: Sequence[Kind] = KINDS
    ) -> tuple[float, QuantisedModel]:
        """Quantise by one kind of recipe after another until the error is within a limit."""
        best: tuple[float, QuantisedModel] | None = None
        for kind in kinds:
            for recipe in recipes(**kind):
                try:
                    candidate = quantise(float32, self.calibration, recipe)
                # More float layers may leave a shallow network nothing; the first recipe must work.
                except QuantisationError:
                    if best is None:
                        raise
                    continue
                error = self.validation_error(candidate.model)
                if best is None or error < best[0] * _share_to_earn(candidate, best[1]):
                    best = error, candidate
            assert best is not None
            if best[0] <= limit:
                break
            _log.info(
                "INT8 is %.4f %s on the validation part and %.4f is wanted: trying other recipes",
                best[0], self.bundling.unit, limit,
            )  # fmt: skip
        assert best is not None
        return best

    def validation_error(self, model: bytes) -> float:
        """Mean error of a graph on the validation part, in the unit of the task."""
        part = self._split.validation
        return self.bundling.error(self._run(model, part), self.y[part])

    def quantisation(self, int8: QuantisedModel, loss: float, fine_tuned: bool) -> Quantisation:
        """Describe how the INT8 model was made, for the manifest."""
        items = np.ascontiguousarray(self.calibration)
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
