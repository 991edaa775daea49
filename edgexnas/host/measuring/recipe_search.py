"""Which precision, placement of Q/DQ and rewrite is the fastest on a device, within the gate.

INT8 alone promises nothing: around every layer that it makes faster stand roundings, and a network
this small waits for launches. So at most eight candidates are built and timed where the network
will run, by `edgexnas bench`: first float16 of each rewrite that applies, then INT8 on the fastest
of them, from all layers to the convolutions alone. How activations are calibrated changes no time
and is chosen by accuracy. Where that loses too much, the network is fine-tuned for INT8, once for
all placements. What was measured is kept by content, so a search that is stopped goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.bundle import MeasuredLatency
from edgexnas.errors import ConfigurationError, MeasurementError, QuantisationError
from edgexnas.host.exporting.bundle_export import MAXIMUM_LOSS
from edgexnas.host.exporting.bundling import make_bundling
from edgexnas.host.exporting.exporter import FINE_TUNING, Exporter
from edgexnas.host.exporting.quantisation import run_onnx
from edgexnas.host.exporting.recipe_choice import RecipeChoice, RecipeTrial
from edgexnas.host.exporting.rewrites import rewrite, rewritten
from edgexnas.host.measuring.candidate_bundle import sign_candidate
from edgexnas.host.measuring.measure_source import BenchMeasure, open_measure
from edgexnas.host.networks.bragg_models import LEVELS, count_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from edgexnas.bundle import Precision
    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.exporter import Kind
    from edgexnas.host.exporting.quantisation import QuantisedModel
    from edgexnas.host.training.settings import TrainingSettings

__all__ = ["MOST_CANDIDATES", "choose_recipe"]

MOST_CANDIDATES = 8
"""An engine of TensorRT takes minutes to build on an Orin."""

TRIED_REWRITES = ("twin-blocks-taps-first", "twin-groups-taps-first", "folded-attention")
"""The rewrites that lower the launches most, of those that a network has."""

PLACEMENTS: Mapping[str, Mapping[str, bool]] = {
    "all layers": {},
    "attention and dense in float": {"float_attention": True, "float_dense": True},
    "attention in float": {"float_attention": True},
    "resizing in INT8": {"int8_resize": True},
    "first in float": {"float_first": True},
}
"""Of Q/DQ, by name; those that place it as an earlier one does are left out."""

Progress = Callable[[str], None]


def choose_recipe(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    source: str,
    *,
    levels: Sequence[float] = LEVELS,
    maximum_loss: float = MAXIMUM_LOSS,
    fine_tune: TrainingSettings | None = FINE_TUNING,
    signing_key: str | Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> RecipeChoice:
    """Measure at most eight ways to export a network and choose the fastest.

    Parameters
    ----------
    model, dataset, split, levels, maximum_loss, fine_tune
        As of `edgexnas.host.exporting.bundle_export.export_bundle`.
    source
        Where to measure: "local" or "ssh://HOST", with options, as `open_measure` takes it.
    signing_key
        Signs what is sent to a device.
    cache
        Folder of measurements; with one a stopped search goes on where it was.
    progress
        Called with a line for each candidate.

    Raises
    ------
    ConfigurationError
        If the source is unknown or estimates instead of measuring.
    SourceError
        If the device cannot be reached.
    MeasurementError
        If not even float16 can be measured.
    """
    measure = open_measure(
        source, task=dataset.task, wanted=("latency",), signing_key=signing_key, cache=cache
    )
    if not isinstance(measure, BenchMeasure):
        raise ConfigurationError(
            f"quantise_for is {source!r}, which estimates and runs nothing; specify 'local' or "
            "'ssh://HOST'"
        )
    exporter = Exporter(dataset, split, make_bundling(dataset.task, tuple(levels)))
    search = _Search(model.cpu().eval(), exporter, measure, maximum_loss, fine_tune, progress)
    return search.run()


class _Search:
    """The candidates of one network, in the order in which they are tried."""

    def __init__(
        self,
        model: nn.Module,
        exporter: Exporter,
        measure: BenchMeasure,
        maximum_loss: float,
        fine_tune: TrainingSettings | None,
        progress: Progress | None,
    ) -> None:
        self._model, self._exporter, self._measure = model, exporter, measure
        self._maximum_loss, self._say = maximum_loss, progress or (lambda _: None)
        self._fine_tune, self._tuned = fine_tune, b""
        self._trials: list[RecipeTrial] = []
        self._graphs: dict[str | None, bytes] = {}

    def run(self) -> RecipeChoice:
        rewrites = [None, *(n for n in TRIED_REWRITES if rewrite(self._model, n) is not None)]
        for name in rewrites:
            words = "float16" + (f", {name}" if name else "")
            trial = RecipeTrial(name=words, precision="float16", rewrite=name, recipe=None)
            half = self._exporter.to_onnx(rewritten(self._model, name), half=True)
            self._timed(trial, half, self._float32(name))
        float16 = _fastest(self._trials, "float16")
        if float16 is None:
            raise MeasurementError(
                f"no float16 model runs on {self._measure.transport.name}: "
                f"{self._trials[0].refusal}"
            )
        for trial, content in self._int8_candidates(float16.rewrite):
            if content is None:
                self._keep(trial)
            else:
                self._timed(trial, content, self._float32(float16.rewrite))
        return self._choice(float16)

    def _float32(self, name: str | None) -> bytes:
        if name not in self._graphs:
            self._graphs[name] = self._exporter.to_onnx(rewritten(self._model, name))
        return self._graphs[name]

    def _int8_candidates(self, name: str | None) -> Iterator[tuple[RecipeTrial, bytes | None]]:
        """Yield INT8 graphs of one rewrite, and without a graph those that lose too much."""
        exporter, float32 = self._exporter, self._float32(name)
        limit = exporter.limit(float32, self._maximum_loss)
        seen: set[tuple[tuple[str, ...], bool]] = set()
        room = MOST_CANDIDATES - len(self._trials)
        for words, placement in PLACEMENTS.items():
            if room == 0:
                return
            try:
                kinds = [placement, {**placement, "equalised": True}]
                error, made, tuned = self._best_recipe(float32, limit, kinds, name)
            # Nothing is left for INT8, such as of an MLP with its dense layers in float.
            except QuantisationError:
                continue
            # Rounding before a resize changes nothing where none stands before an INT8 layer.
            resizes = made.recipe.int8_resize and b"_integer" in made.model
            if (made.quantised, resizes) in seen or made.recipe.int8_resize != resizes:
                continue
            seen.add((made.quantised, resizes))
            room -= 1
            parts = ("int8", words, name, "fine-tuned" if tuned else None)
            full = ", ".join(part for part in parts if part)
            trial = RecipeTrial(
                name=full, precision="int8", rewrite=name, recipe=made.recipe, tuned=tuned
            )
            if error > limit:
                unit = exporter.bundling.unit
                lost = f"loses too much: {error:.4f} {unit}, and {limit:.4f} {unit} is allowed"
                yield replace(trial, refusal=lost), None
            else:
                yield trial, made.model

    def _best_recipe(
        self, float32: bytes, limit: float, kinds: Sequence[Kind], name: str | None
    ) -> tuple[float, QuantisedModel, bool]:
        """Quantise the network, or what it is after fine-tuning where that is better."""
        error, made = self._exporter.best_recipe(float32, limit, kinds)
        if error <= limit or self._fine_tune is None:
            return error, made, False
        if not self._tuned:
            self._say("INT8 loses too much: fine-tuning the network for it")
            self._tuned = self._exporter.tuned(self._model, self._fine_tune, name)
        after, tuned = self._exporter.best_recipe(self._tuned, limit, kinds)
        return (after, tuned, True) if after < error else (error, made, False)

    def _timed(self, trial: RecipeTrial, content: bytes, float32: bytes) -> None:
        """Measure a candidate, on real inputs and within the gate that its bundle would have."""
        exporter, bundling = self._exporter, self._exporter.bundling
        items = exporter.calibration[: bundling.references]
        expected, output = (run_onnx(graph, items, bundling.batch) for graph in (float32, content))
        candidate = sign_candidate(
            content,
            trial.precision,
            bundling=bundling,
            architecture=type(self._model).__name__,
            parameters=count_parameters(self._model),
            reference={"input": items, "output": expected},
            # The limits of the other precisions, which this bundle does not have, are unused.
            gate=bundling.gate({"float32": expected, "float16": output, "int8": output}),
            signing_key=self._measure.signing_key,
        )
        before = self._measure.measurements
        try:
            kept = self._measure.measure_bundle(candidate, trial.precision)
        # One candidate that cannot be built, or deviates, does not end the search.
        except MeasurementError as error:
            self._keep(replace(trial, refusal=str(error)))
            return
        latency = _latency(kept["report"], trial.precision)
        again = self._measure.measurements == before
        self._keep(replace(trial, latency=latency), kept=again)

    def _keep(self, trial: RecipeTrial, *, kept: bool = False) -> None:
        self._trials.append(trial)
        if trial.latency is None:
            told = trial.refusal
        else:
            told = f"{trial.latency.median_ms:.4g} ms" + (" (measured before)" if kept else "")
        self._say(f"recipe {len(self._trials)} of at most {MOST_CANDIDATES}: {trial.name}: {told}")

    def _choice(self, float16: RecipeTrial) -> RecipeChoice:
        int8 = _fastest(self._trials, "int8")
        half_ms = _ms(float16)
        where = self._measure.transport.name
        if int8 is None:
            lost = "; ".join(
                f"{t.name}: {t.refusal}" for t in self._trials if t.precision == "int8"
            )
            reason = (
                f"float16 takes {half_ms:.4g} ms on {where}, and no INT8 model within the gate "
                f"runs ({lost or 'the network has no layer for INT8'})"
            )
        else:
            faster = _ms(int8) <= half_ms
            relation = "at least as fast as" if faster else "slower than"
            reason = (
                f"the fastest INT8 within the gate ({int8.name}) takes {_ms(int8):.4g} ms on "
                f"{where}, {relation} float16 with {half_ms:.4g} ms"
            )
        chosen = RecipeChoice(
            precision="int8" if int8 is not None and _ms(int8) <= half_ms else "float16",
            rewrite=float16.rewrite,
            int8=None if int8 is None else int8.recipe,
            tuned=self._tuned if int8 is not None and int8.tuned else None,
            reason=reason,
            trials=tuple(self._trials),
        )
        self._say(f"recipe: {chosen.name}, because {reason}")
        return chosen


def _fastest(trials: Sequence[RecipeTrial], precision: Precision) -> RecipeTrial | None:
    ran = [t for t in trials if t.precision == precision and t.latency is not None]
    return min(ran, key=_ms, default=None)


def _ms(trial: RecipeTrial) -> float:
    assert trial.latency is not None
    return trial.latency.median_ms


def _latency(report: Mapping[str, Any], precision: Precision) -> MeasuredLatency:
    (bench,) = report["bundles"]
    engine, device = bench["engine"], report["before"]
    return MeasuredLatency(
        precision=precision,
        batch=engine["batch"],
        median_ms=bench["latency"]["p50_ms"],
        engine=f"{engine['engine']} {engine['version']}",
        # An engine on a GPU names it; a machine with one is named by its CPU.
        device=", ".join(filter(None, (engine.get("gpu", device["name"]), device["power_mode"]))),
    )
