"""Frames → labels → search → signed bundle → label-free prediction → table and picture."""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgexnas.bundle import AccuracyRow, Precision, generate_keys
from edgexnas.demo.held_out import (
    Detection,
    HeldOut,
    SpotList,
    predict_held_out,
    score_detection,
    score_positions,
)
from edgexnas.demo.picture import draw_peaks
from edgexnas.demo.spots import HexrdSpots, TrueSpots
from edgexnas.errors import ConfigurationError
from edgexnas.frames import open_frames
from edgexnas.host import (
    BRAGGNN_DENSE,
    BraggNN,
    ExportReport,
    PeakDataset,
    Split,
    TrainingData,
    TrainingSettings,
    classical_rows,
    count_parameters,
    distance_row,
    label_frames,
    optimize,
    train,
)
from edgexnas.host.networks.spaces import resolve_space
from edgexnas.host.search.journal import DifferentRunError
from edgexnas.simulate import HedmSettings, save_series, simulate_hedm
from edgexnas.whole_files import whole_file

if TYPE_CHECKING:
    from edgexnas.frames import FrameSeries

__all__ = ["DemoResult", "DemoSettings", "run_demo"]

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

SIMULATED = HedmSettings(frames=96, grains=40)


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo does.

    Attributes
    ----------
    output
        Folder for everything that it leaves.
    data
        Frames to work on; None simulates some.
    spots
        A hexrd spot list of the same frames, ``file.h5::panel``, to hold detection against.
    space, max_evals, epochs
        Of the search; all networks are trained for at most `epochs`, BraggNN too.
    maximum_parameters
        Larger networks are not tried.
    baselines
        Names of BraggNN sizes to train beside, of "small" and "large".
    """

    output: Path
    data: Path | None = None
    spots: str | None = None
    space: tuple[str, ...] = ("mlpBragg",)
    max_evals: int = 12
    epochs: int = 60
    baselines: tuple[str, ...] = ("small",)
    maximum_parameters: int = 20_000
    workers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found on held-out frames, and where it left it."""

    settings: DemoSettings
    rows: tuple[AccuracyRow, ...]
    detection: Detection | None
    bundle: Path
    bundle_bytes: int
    int8_loss: float
    picture: Path
    table: Path


def run_demo(settings: DemoSettings, progress: Progress) -> DemoResult:
    """Run every step of the product once.

    Parameters
    ----------
    progress
        Given the name of a step, a context that yields a function of (done, total).
    """
    output = settings.output
    # A mistyped name is reported before minutes of simulation and labelling.
    for space in settings.space:
        resolve_space(space, task="bragg")
    listed = None if settings.spots is None else HexrdSpots(settings.spots)
    with _frames(settings, progress) as series:
        _make_folder(output)
        spots = _spots(listed, series)
        with progress("label: find peaks and fit a pseudo-Voigt to each") as step:
            dataset = label_frames(series, progress=step)
        dataset.save(output / "peaks.h5")
        split = dataset.split()
        baselines = list(_baselines(settings, dataset, split, progress))
        report = _search(settings, output, progress, baselines)
        predicted = _predict(settings, report, dataset, split, series, progress)
        rows = _table(report, predicted, dataset, split, baselines)
        detection = None if spots is None else score_detection(predicted[-1], spots)
        picture = _picture(output, predicted[-1], series)
    table = _write_table(output / "results.csv", rows)
    return DemoResult(
        settings=settings,
        rows=tuple(rows),
        detection=detection,
        bundle=report.path,
        bundle_bytes=report.path.stat().st_size,
        int8_loss=report.int8_loss,
        picture=picture,
        table=table,
    )


def _frames(settings: DemoSettings, progress: Progress) -> FrameSeries:
    if settings.data is not None:
        return open_frames(settings.data)
    _make_folder(settings.output)
    path = settings.output / "frames.h5"
    with progress(f"simulate {SIMULATED.frames} far-field HEDM frames"):
        save_series(simulate_hedm(SIMULATED, seed=settings.seed), path)
    return open_frames(path)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"folder {folder} cannot be made: {error.strerror}; choose another"
        ) from error


def _spots(listed: SpotList | None, series: FrameSeries) -> SpotList | None:
    if listed is not None:
        return listed
    return None if series.truth is None else TrueSpots(series.truth)


def _baselines(
    settings: DemoSettings, dataset: PeakDataset, split: Split, progress: Progress
) -> Iterator[AccuracyRow]:
    """Train BraggNN as the candidates are trained and score it on the held-out peaks."""
    import torch

    data = TrainingData.from_dataset(dataset, split)
    x = torch.from_numpy(dataset.inputs()[split.test])
    training = TrainingSettings(epochs=settings.epochs, batch_size=32, seed=settings.seed)
    for size in settings.baselines:
        # Before it is built, or its weights would depend on what was drawn before.
        torch.manual_seed(settings.seed)
        model = BraggNN(BRAGGNN_DENSE[size])
        with progress(
            f"train the baseline BraggNN, {count_parameters(model):,} parameters"
        ) as step:
            best = train(
                model,
                data,
                training,
                on_epoch=lambda epoch, _: bool(step(epoch, settings.epochs)),
            ).model
        with torch.inference_mode():
            offsets = best(x)[:, :, len(training.levels) // 2].numpy()
        yield distance_row(
            f"BraggNN {'-'.join(map(str, BRAGGNN_DENSE[size]))}",
            offsets,
            dataset.targets_px[split.test],
            against=dataset.against,
            precision="float32",
            parameters=count_parameters(best),
        )


def _search(
    settings: DemoSettings, output: Path, progress: Progress, baselines: list[AccuracyRow]
) -> ExportReport:
    # Only what devices may have lies in the folder that they trust.
    key = output / "signing" / "demo.key.pem"
    if not key.exists():
        generate_keys(output / "keys", name="demo", private=key.parent)
    run = functools.partial(
        optimize,
        "bragg",
        data=output / "peaks.h5",
        space=settings.space,
        objectives=("error", "parameters"),
        constraints={"parameters": settings.maximum_parameters},
        max_evals=settings.max_evals,
        epochs=settings.epochs,
        workers=settings.workers,
        seed=settings.seed,
        output=output / "search",
        resume=True,
        signing_key=key,
    )
    with progress(f"search {', '.join(settings.space)}: {settings.max_evals} evaluations"):
        try:
            result = run()
        # Another run in this folder, on other data or settings: keep it, and search anew.
        except DifferentRunError:
            _move_aside(output / "search")
            result = run()
    with progress("quantise to INT8, check against the gate, sign"):
        return result.export(
            output / "bragg.edgex",
            candidate=result.best("error"),
            rows=baselines,
            model_id="demo-bragg",
        )


def _move_aside(folder: Path) -> None:
    """Keep what an earlier demo searched, on other data or otherwise, under another name."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    folder.rename(next(name for name in names if not name.exists()))


def _predict(
    settings: DemoSettings,
    report: ExportReport,
    dataset: PeakDataset,
    split: Split,
    series: FrameSeries,
    progress: Progress,
) -> list[HeldOut]:
    """Predict the whole held-out block of frames in float32 and in INT8."""
    first, last = dataset.frame[split.test].min(), dataset.frame[split.test].max()
    # All frames of the block, also those without a label: on the device none has one.
    frames = range(int(first), int(last) + 1)
    precisions: tuple[Precision, ...] = ("float32", "int8")
    results = []
    for precision in precisions:
        with progress(f"predict {len(frames)} held-out frames, {precision}") as step:
            results.append(
                predict_held_out(
                    report.path,
                    trust=settings.output / "keys",
                    series=series,
                    frames=frames,
                    precision=precision,
                    step=step,
                )
            )
    return results


def _table(
    report: ExportReport,
    predicted: list[HeldOut],
    dataset: PeakDataset,
    split: Split,
    baselines: list[AccuracyRow],
) -> list[AccuracyRow]:
    manifest = report.manifest
    rows = [
        score_positions(
            held_out, dataset, split.test, name=manifest.architecture,
            parameters=manifest.parameters,
        )
        for held_out in predicted
    ]  # fmt: skip
    return [*rows, *baselines, *classical_rows(dataset, split)]


def _picture(output: Path, held_out: HeldOut, series: FrameSeries) -> Path:
    """Draw the held-out frame with the most peaks that carry no flag."""
    clear = [int((peaks.flags == 0).sum()) for peaks in held_out.peaks]
    chosen = int(np.argmax(clear))
    number, peaks = held_out.frames[chosen], held_out.peaks[chosen]
    path = output / "peaks.png"
    draw_peaks(
        path,
        series[number],
        peaks,
        title=f"frame {number} of {Path(series.source).name}: {len(peaks)} peaks, INT8",
    )
    return path


def _write_table(path: Path, rows: list[AccuracyRow]) -> Path:
    with whole_file(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*type(rows[0]).model_fields], extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            # Of all peaks; a cell holds one number.
            shares = [held.share for held in row.coverage]
            writer.writerow(row.model_dump() | {"coverage": shares[0] if shares else None})
    return path
