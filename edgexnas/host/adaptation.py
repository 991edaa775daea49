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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from edgexnas.bundle import Bundle, generate_keys, load_signing_key, open_bundle
from edgexnas.bundle.keys import KEY_NAME
from edgexnas.errors import ConfigurationError
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

    from edgexnas.bundle import AccuracyRow, TrustStore
    from edgexnas.frames import FrameSeries
    from edgexnas.host.data.peak_dataset import PeakDataset
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.exporting.recipe_choice import RecipeChoice

__all__ = ["AdaptReport", "adapt"]

SYNTHETIC_PEAKS = 200_000
"""More tell a network of this size nothing new of one detector."""

LABEL_SHARE, SYNTHETIC_SHARE, TRAINING_SHARE = 0.25, 0.3, 0.3
"""Of the budget; the rest is for the export and for what takes longer than foreseen."""

FINE_RATE, BATCH = 5e-4, 256
"""Learning rate and batch: a quarter of what universal networks are first trained with."""

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
        Distance to the fits on held-out frames, in INT8: of the bundle that was given, and of the
        one that was written.
    adapted
        Whether the network that was trained on is in it; otherwise it was no better, and the given
        network is, with intervals for this detector.
    frames, peaks, synthetic
        How many frames were labelled, the good labels on them, and drawn peaks.
    seconds
        What it took.
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
    progress: Callable[[str], None] | None = None,
    **detection: Any,
) -> AdaptReport:
    """Make a bundle for a detector from its frames alone.

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
        For everything: seconds, or text such as "10min".
    dataset
        Dataset of an HDF5 file that holds the frames.
    model_id
        Name under which versions follow each other; None for the stem of the output.
    seed
        Of drawn peaks and of training.
    threads
        CPU threads.
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
    seconds = parse_budget(budget)
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
    key = _signing_key(output, signing_key)
    with torch_threads(threads):
        labels, guard = label_in_time(
            frames, dataset, LABEL_SHARE * seconds, threads, say, detection
        )
        split = split_labels(labels, guard)
        say(f"drawing peaks like the {len(split.train)} fitted ones of the training part")
        drawn = draw_like(
            labels, split.train, SYNTHETIC_PEAKS, seed=seed, threads=threads,
            seconds=SYNTHETIC_SHARE * seconds,
        )  # fmt: skip
        data = _training_data(labels, split, drawn)
        training = min(TRAINING_SHARE * seconds, max(1.0, 0.85 * seconds - _since(started)))
        say(f"training on, with {len(drawn)} drawn peaks, for {training:.0f} s")
        levels = given.manifest.quantile_levels
        settings = TrainingSettings(
            batch_size=BATCH, learning_rate=FINE_RATE, seed=seed, device="cpu", seconds=training,
            continued=True, levels=levels,
        )  # fmt: skip
        # Layers this small gain nothing from a second thread.
        with torch_threads(1):
            trained = train(copy.deepcopy(network), data, settings).model
        say("calibrating, quantising and signing it")
        x, middle = labels.inputs(), middle_of(levels)

        def quantised(model: nn.Module) -> tuple[RecipeChoice, bytes]:
            choice = closest_recipe(
                model, x[split.calibration], x[split.validation],
                labels.targets_px[split.validation], middle=middle,
            )  # fmt: skip
            assert choice.int8 is not None
            float32 = to_onnx(model.eval(), torch.from_numpy(x[:4]))
            return choice, quantise(float32, x[split.calibration], choice.int8).model

        (kept, int8_as_it_was), (choice, int8) = quantised(network), quantised(trained)
        # Held against each other on two parts, of which training has seen one; what is told of
        # the test part would be too good, had it a say.
        adapted = all(
            _error(int8, labels, part, middle) < _error(int8_as_it_was, labels, part, middle)
            for part in (split.validation, split.calibration)
        )
        if not adapted:
            choice = kept
            say("training on made it no better: the given network stays, with intervals for these")
        before = _int8_row(given, labels, split.test)
        with _key_pair(key, say):
            report = export_bundle(
                output, model=trained if adapted else network, dataset=labels, split=split,
                architecture=given.manifest.architecture, signing_key=key, levels=levels,
                origin=Origin(seed=seed, configuration=_configuration(given, adapted, len(drawn))),
                rows=(before,), model_id=model_id, fine_tune=None, maximum_loss=MAXIMUM_LOSS,
                choice=choice,
            )  # fmt: skip
    return AdaptReport(
        export=report, before=before, after=_after(report), adapted=adapted, frames=labels.frames,
        peaks=int(labels.good.sum()), synthetic=len(drawn), seconds=_since(started),
    )  # fmt: skip


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


def _int8_row(bundle: Bundle, labels: PeakDataset, part: npt.NDArray[np.intp]) -> AccuracyRow:
    """Score a bundle as it runs on a device."""
    manifest = bundle.manifest
    offsets = run_onnx(bundle.models["int8"], labels.inputs()[part])
    return distance_row(
        f"{manifest.model_id} before adapting",
        offsets[:, :, middle_of(manifest.quantile_levels)],
        labels.targets_px[part],
        against=labels.against,
        precision="int8",
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


def _signing_key(output: Path, given: str | Path | None) -> Path:
    """Say which key signs; before any work one that is there is read, and a new one's place seen.

    Raises
    ------
    ConfigurationError
        If the key cannot be used, or no pair can be made beside the output.
    """
    path = output.parent / f"{output.stem}.key.pem" if given is None else Path(given)
    if given is not None or path.exists():
        load_signing_key(path)
        return path
    public = output.parent / f"{output.stem}.pub.pem"
    if public.exists():
        raise ConfigurationError(
            f"{public} is there, and {path.name} is not; specify where its private key is as the "
            "signing key, or another output"
        )
    if not re.fullmatch(KEY_NAME, output.stem):
        raise ConfigurationError(
            f"{output.name!r} is no plain name for a key pair; use letters and digits for the "
            "output, or specify a signing key"
        )
    return path


@contextmanager
def _key_pair(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make the pair beside the output for the block, if it is not there; keep it if that ends."""
    name = path.name.removesuffix(".key.pem")
    made = () if path.exists() else generate_keys(path.parent, name=name)
    try:
        yield
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        raise
    if made:
        say(f"made the key pair {path} (keep it secret) and {name}.pub.pem (for devices)")


def _name(output: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).lstrip("._-")[:100] or "adapted"


def _since(started: float) -> float:
    return time.monotonic() - started
