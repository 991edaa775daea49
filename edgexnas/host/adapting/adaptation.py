"""A bundle for a detector of which there are frames and no labels: `adapt`.

The pseudo-Voigt fit labels what it can of the frames. Peaks like those of the training part are
drawn, each the profile of a fitted one elsewhere in its pixel, with the noise and the suppression
that the fits show; a bundle's network trains on with both. Intervals and familiarity are calibrated
anew on frames that it has not seen, and what it was worth before and is after is told on frames
that neither has.
"""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from edgexnas.bundle import Bundle, open_bundle
from edgexnas.errors import ConfigurationError, QuantisationError
from edgexnas.host.adapting import keys
from edgexnas.host.adapting.stages import (
    Stages,
    as_json,
    named_frames,
    read_labels,
    write_labels,
    write_weights,
)
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.synthetic_peaks import draw_like
from edgexnas.host.data.timed_labels import label_in_time, split_labels
from edgexnas.host.exporting.bundle_export import (
    ExportReport,
    Origin,
    check_writable,
    checked_name,
    export_bundle,
)
from edgexnas.host.exporting.bundled_network import bundled_network
from edgexnas.host.exporting.bundling import make_bundling
from edgexnas.host.exporting.closest_recipe import closest_recipe
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import quantise, run_onnx
from edgexnas.host.exporting.scoring import distance_row
from edgexnas.host.networks.bragg_models import middle_of
from edgexnas.host.search.budget import parse_budget
from edgexnas.host.search.synthetic_data import MEASURED_SHARE
from edgexnas.host.threads import torch_threads
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

if TYPE_CHECKING:
    from torch import nn

    from edgexnas.bundle import AccuracyRow, Precision, TrustStore
    from edgexnas.frames import FrameSeries
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.recipe_choice import RecipeChoice

__all__ = ["AdaptReport", "adapt"]

SYNTHETIC_PEAKS = 200_000
"""More tell a network of this size nothing new of one detector."""

LEAST_BUDGET_S = 60.0
"""Quantising two networks and calibrating one takes ten to twenty seconds of it, more on busy
cores."""

LABEL_SHARE, SYNTHETIC_SHARE = 0.25, 0.3
"""Of the budget; training has what is left, but for the export."""

EXPORT_TIMES = 1.5
"""How many times as long as quantising the given network it takes to quantise the other one and to
export one of them; 0.9 to 1.5 were measured, on free and on busy cores."""

FINE_RATE, BATCH = 5e-4, 256
"""Learning rate and batch: a quarter of what universal networks are first trained with."""

LEAST_TRAINING_S = 4.0
"""To draw and to train: less comes to nothing."""

MAXIMUM_LOSS = 1.0
"""Share of the mean distance that INT8 may add. To distances this small it adds much, and what
counts is that they are smaller than before."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptReport:
    """What an adaptation came to.

    Attributes
    ----------
    export
        The bundle that was written.
    before, after
        Distance to the fits on held-out frames: of the bundle that was given, in INT8 or else in
        what it holds, and of the one that was written, in INT8.
    adapted
        Whether the network that was trained on is in it; otherwise it was no better, and the given
        network is, with intervals for this detector.
    frames, peaks, synthetic
        How many frames were labelled, the good labels on them, and drawn peaks.
    seconds
        What it took; of one that went on, with what had ended before.
    """

    export: ExportReport
    before: AccuracyRow
    after: AccuracyRow
    adapted: bool
    frames: int
    peaks: int
    synthetic: int
    seconds: float

    @property
    def path(self) -> Path:
        """The bundle that was written."""
        return self.export.path


def adapt(
    bundle: str | Path | Bundle,
    frames: str | Path | FrameSeries,
    *,
    output: str | Path,
    signing_key: str | Path | None = None,
    trust: str | Path | TrustStore | None = None,
    budget: str | float = "10min",
    dataset: str | None = None,
    model_id: str | None = None,
    seed: int = 0,
    threads: int = 2,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    **detection: Any,
) -> AdaptReport:
    """Make a bundle for a detector from its frames alone.

    Labels, drawn peaks and the trained network are kept in the folder ``NAME.adapting`` beside the
    output until the bundle is there, so that an adaptation that was stopped goes on.

    Parameters
    ----------
    bundle
        What to start from: "universal", or a bundle for Bragg peaks that this package exported.
    frames
        What `edgexnas.frames.open_frames` reads, or a series.
    output
        Bundle to write.
    signing_key
        Private key; None takes ``NAME.key.pem`` beside the output, and makes it with its public
        half if there is none.
    trust
        Trusted keys, needed with the path of a bundle.
    budget
        For everything, from 60 s: seconds, or text such as "10min". What had ended before counts.
    dataset
        Dataset of an HDF5 file that holds the frames.
    model_id
        Name under which versions follow each other; None for the stem of the output.
    seed
        Of drawn peaks and of training.
    threads
        CPU threads.
    resume
        Whether to go on with what was stopped, if anything was; a training begins anew.
    progress
        Called with a line about what is done.
    detection
        As of `label_frames`: mask, saturation, minimum_counts, threshold, mask_hot.

    Raises
    ------
    ConfigurationError
        If an option is wrong, or the frames hold too few peaks that can be fitted.
    BundleError, SourceError, InputError
        If the bundle is not accepted, or frames cannot be read or used.
    """
    started = time.monotonic()
    seconds = parse_budget(
        budget, least_s=LEAST_BUDGET_S,
        because="quantising and calibrating alone take most of that",
    )  # fmt: skip
    say = progress or _log.info
    output = Path(output)
    check_writable(output)
    model_id = checked_name(model_id or _name(output), "")
    given = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, trust=trust)
    if given.manifest.task != "bragg":
        raise ConfigurationError(
            f"bundle {given.manifest.model_id} is for {given.manifest.task}; adapt takes one for "
            "Bragg peaks"
        )
    network = bundled_network(given)
    key = keys.signing_key(output, signing_key)
    agreed = {"bundle": given.content_digest, "seed": seed, "dataset": dataset}
    agreed |= {"frames": named_frames(frames)} | {
        n: as_json(v) for n, v in sorted(detection.items())
    }
    with Stages(output, agreed, resume=resume) as stages:
        if stages.taken:
            say(f"going on with what had ended in {stages.folder}, after {stages.taken:.0f} s")
        started -= stages.taken
        try:
            with torch_threads(threads):
                report = _Adaptation(
                    given, network, seconds, started, seed, threads, stages, say
                ).run(frames, dataset, detection, output, key, model_id)
        except (ConfigurationError, QuantisationError):
            # What was refused would be refused again.
            stages.remove()
            raise
        stages.remove()
    return report


@dataclass(frozen=True)
class _Adaptation:
    """One adaptation: from frames to the bundle."""

    given: Bundle
    network: nn.Module
    budget_s: float
    started: float
    seed: int
    threads: int
    stages: Stages
    say: Callable[[str], None]

    def run(
        self,
        frames: str | Path | FrameSeries,
        dataset: str | None,
        detection: dict[str, Any],
        output: Path,
        key: Path,
        model_id: str,
    ) -> AdaptReport:
        say, levels = self.say, self.given.manifest.quantile_levels
        labels, guard = self.stages.stage(
            "labels.h5",
            lambda: label_in_time(
                frames, dataset, LABEL_SHARE * self.budget_s, self.threads, say, detection
            ),
            write=write_labels,
            read=read_labels,
        )
        split = split_labels(labels, guard)
        say("quantising the given network")
        began = time.monotonic()
        kept, int8_as_it_was = self._quantised(self.network, labels, split)
        reserve = EXPORT_TIMES * (time.monotonic() - began)
        trained, drawn = self._trained(labels, split, reserve)
        network, choice = self.network, kept
        if trained is not None:
            say("quantising the trained network")
            other, int8 = self._quantised(trained, labels, split)
            middle = middle_of(levels)
            # Held against each other on two parts, of which training has seen one; what is told of
            # the test part would be too good, had it a say.
            if all(
                _error(int8, labels, part, middle) < _error(int8_as_it_was, labels, part, middle)
                for part in (split.validation, split.calibration)
            ):
                network, choice = trained, other
            else:
                say("training on made it no better: the given network stays, with intervals for "
                    "these")  # fmt: skip
        adapted = network is trained
        say("calibrating and signing it")
        before = _row_before(self.given, labels, split.test)
        with keys.key_pair(key, say):
            report = export_bundle(
                output, model=network, dataset=labels, split=split,
                architecture=self.given.manifest.architecture, signing_key=key, levels=levels,
                origin=Origin(
                    seed=self.seed, configuration=_configuration(self.given, adapted, drawn)
                ),
                rows=(before,), model_id=model_id, fine_tune=None, maximum_loss=MAXIMUM_LOSS,
                choice=choice,
            )  # fmt: skip
        return AdaptReport(
            export=report, before=before, after=_after(report), adapted=adapted,
            frames=labels.frames, peaks=int(labels.good.sum()), synthetic=drawn,
            seconds=self._passed(),
        )  # fmt: skip

    def _passed(self) -> float:
        return time.monotonic() - self.started

    def _quantised(
        self, model: nn.Module, labels: PeakDataset, split: Split
    ) -> tuple[RecipeChoice, bytes]:
        x, levels = labels.inputs(), self.given.manifest.quantile_levels
        calibration = x[make_bundling("bragg", levels).to_calibrate(split.calibration)]
        choice = closest_recipe(
            model, calibration, x[split.validation], labels.targets_px[split.validation],
            middle=middle_of(levels),
        )  # fmt: skip
        assert choice.int8 is not None
        float32 = to_onnx(model.eval(), torch.from_numpy(x[:4]))
        return choice, quantise(float32, calibration, choice.int8).model

    def _trained(
        self, labels: PeakDataset, split: Split, reserve_s: float
    ) -> tuple[nn.Module | None, int]:
        """Draw peaks and train on, but for the time of the export; None if that leaves none."""

        def left() -> float:
            return self.budget_s - self._passed() - reserve_s

        def draw() -> PeakDataset:
            self.say(f"drawing peaks like the {len(split.train)} fitted ones of the training part")
            return draw_like(
                labels, split.train, SYNTHETIC_PEAKS, seed=self.seed, threads=self.threads,
                seconds=min(SYNTHETIC_SHARE * self.budget_s, left() / 2),
            )  # fmt: skip

        def train_on() -> nn.Module:
            seconds = max(left(), LEAST_TRAINING_S / 2)
            self.say(f"training on, with {len(drawn)} drawn peaks, for {seconds:.0f} s")
            settings = TrainingSettings(
                batch_size=BATCH, learning_rate=FINE_RATE, seed=self.seed, device="cpu",
                seconds=seconds, continued=True, levels=self.given.manifest.quantile_levels,
            )  # fmt: skip
            # Layers this small gain nothing from a second thread.
            with torch_threads(1):
                model = copy.deepcopy(self.network)
                return train(model, _training_data(labels, split, drawn), settings).model

        if left() < LEAST_TRAINING_S and "trained.pt" not in self.stages:
            self.say(
                "no time is left to train on: the given network stays, with intervals for these; "
                "specify a larger budget"
            )
            return None, 0
        drawn = self.stages.stage(
            "drawn.h5", draw, write=lambda peaks, path: peaks.save(path), read=PeakDataset.load
        )
        trained = self.stages.stage(
            "trained.pt", train_on, write=write_weights, read=self._read_weights
        )
        return trained, len(drawn)

    def _read_weights(self, path: Path) -> nn.Module:
        model = copy.deepcopy(self.network)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()


def _training_data(labels: PeakDataset, split: Split, drawn: PeakDataset) -> TrainingData:
    """Mix drawn peaks with measured ones, which are repeated until they are a fifth of all."""
    x, y = labels.inputs(), labels.network_targets()
    times = max(1, round(MEASURED_SHARE / (1 - MEASURED_SHARE) * len(drawn) / len(split.train)))
    own = np.tile(split.train, times)
    return TrainingData(
        train_x=torch.from_numpy(np.concatenate([x[own], drawn.inputs()])),
        train_y=torch.from_numpy(np.concatenate([y[own], drawn.network_targets()])),
        validation_x=torch.from_numpy(x[split.validation]),
        validation_y=torch.from_numpy(y[split.validation]),
    )


def _error(model: bytes, labels: PeakDataset, part: npt.NDArray[np.intp], middle: int) -> float:
    """Mean distance of an ONNX network on a part, in pixels."""
    offsets = run_onnx(model, labels.inputs()[part])[:, :, middle]
    return float(np.linalg.norm(offsets - labels.targets_px[part], axis=1).mean())


def _row_before(bundle: Bundle, labels: PeakDataset, part: npt.NDArray[np.intp]) -> AccuracyRow:
    """Score a bundle as it runs on a device: in INT8, or else in the least precise that it has."""
    manifest = bundle.manifest
    precisions: tuple[Precision, ...] = ("int8", "float16", "float32")
    precision = next(name for name in precisions if name in bundle.models)
    offsets = run_onnx(bundle.models[precision], labels.inputs()[part])
    return distance_row(
        f"{manifest.model_id} before adapting",
        offsets[:, :, middle_of(manifest.quantile_levels)],
        labels.targets_px[part],
        against=labels.against,
        precision=precision,
        parameters=manifest.parameters,
    )


def _after(report: ExportReport) -> AccuracyRow:
    manifest = report.manifest
    return next(
        row
        for row in manifest.accuracy
        if row.precision == "int8" and row.name == manifest.architecture
    )


def _configuration(given: Bundle, adapted: bool, drawn: int) -> dict[str, Any]:
    """Say how the network is built, and what it comes from."""
    return {
        **{
            name: value
            for name, value in given.manifest.provenance.configuration.items()
            if not name.startswith("recipe")
        },
        "adapted_from": f"{given.manifest.model_id} {given.manifest.sequence}",
        "trained_on": adapted,
        "synthetic_peaks": drawn,
    }


def _name(output: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).lstrip("._-")[:100] or "adapted"
