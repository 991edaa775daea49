"""Compare the device's pipeline with the usual ones, side by side on the same core.

    python host/bench_pipelines.py runs/demo --output docs/results/pipelines.md

Takes the bundle and the search that `make demo` leaves. Rounds are interleaved, so that whatever
else the machine does falls on all rivals alike; medians over rounds are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.optimize import curve_fit

from edgexnas.bragg import PATCH_SIZE, scale_patches
from edgexnas.bundle import BraggPreprocessing
from edgexnas.demo.markdown import hardware
from edgexnas.device import Predictor
from edgexnas.host import BraggNN, PeakDataset, SearchResult, fit_pseudo_voigt
from edgexnas.peak_finding import PeakFinder, estimate_background
from edgexnas.simulate import HedmSettings, simulate_hedm

ROUNDS = 15
Task = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `make demo` left")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    run = SearchResult.load(options.demo / "search")
    network = run.model(run.best("error"))
    dataset = PeakDataset.load(options.demo / "peaks.h5")
    patches = np.resize(dataset.counts[dataset.good], (1024, PATCH_SIZE, PATCH_SIZE))
    keys, bundle = options.demo / "keys", options.demo / "bragg.edgex"
    sections = [
        f"`python host/bench_pipelines.py {options.demo}`: one of {hardware()}, "
        f"{ROUNDS} interleaved rounds, medians. torch {torch.__version__}, "
        f"network {run.best('error').space} with "
        f"{int(run.best('error').metrics['parameters']):,} parameters.",
        bench_patches(bundle, keys, network, patches),
        bench_frames(bundle, keys, network),
    ]
    text = "# Pipelines side by side\n\n" + "\n\n".join(sections) + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


def bench_patches(bundle: Path, keys: Path, network: torch.nn.Module, patches: np.ndarray) -> str:
    """Patches per second at three batch sizes, and fits per second."""
    rows = [
        "| patches at once | edgexnas INT8 | edgexnas float32 | torch eager |",
        "|---|---|---|---|",
    ]
    rates: dict[int, list[float]] = {}
    for batch in (1, 32, 1024):
        part = patches[:batch]
        with (
            Predictor(bundle, trust=keys, precision="int8", batch=batch) as int8,
            Predictor(bundle, trust=keys, precision="float32", batch=batch) as float32,
        ):
            tasks: list[Task] = [
                lambda: int8.predict(part),  # noqa: B023
                lambda: float32.predict(part),  # noqa: B023
                lambda: forward(network, part),  # noqa: B023
            ]
            rates[batch] = [batch / seconds for seconds in side_by_side(tasks)]
        rows.append(f"| {batch} | " + " | ".join(f"{rate:,.0f}/s" for rate in rates[batch]) + " |")
    one, many = fit_rates(patches)
    best = rates[1024][0]
    rows += [
        "",
        f"A pseudo-Voigt fit peak by peak (scipy curve_fit) makes {one:,.0f}/s, edgexnas' batched "
        f"fit {many:,.0f}/s. INT8 at 1024 patches is {best / one:,.0f} times the fit peak by peak "
        f"and {best / many:,.0f} times the batched fit.",
    ]
    rows.append(
        "On a CPU the INT8 graph runs as float32 with rounding, so it costs more than float32; "
        "INT8 arithmetic is what TensorRT is for."
    )
    return "## Patches\n\n" + "\n".join(rows)


def bench_frames(bundle: Path, keys: Path, network: torch.nn.Module) -> str:
    """Frames per second on 2048×2048 uint16 with about 500 peaks."""
    series = simulate_hedm(
        HedmSettings(shape=(2048, 2048), frames=9, grains=300, pixel_mm=0.1), seed=1
    )
    frame, background = series[4], estimate_background([series[k] for k in range(9)])
    braggnn = BraggNN().eval()
    with Predictor(bundle, trust=keys, batch=512) as predictor:
        predictor.calibrate_background([series[k] for k in range(9)])
        found = len(predictor.process(frame))
        preprocessing = predictor.manifest.preprocessing
        assert isinstance(preprocessing, BraggPreprocessing)
        finder = PeakFinder(preprocessing.finder, shape=frame.shape,
                            background=background)  # fmt: skip
        threshold = background.level + np.maximum(20, 5 * background.noise)
        components = len(component_patches(frame, threshold, background.level))
        tasks: dict[str, Task] = {
            "edgexnas process, INT8": lambda: predictor.process(frame),
            "of which peak finding and patches": lambda: finder.find(frame),
            "connected components + the same network in torch": lambda: forward(
                network, component_patches(frame, threshold, background.level)
            ),
            "connected components + BraggNN in torch": lambda: forward(
                braggnn, component_patches(frame, threshold, background.level)
            ),
        }
        seconds = dict(zip(tasks, side_by_side(list(tasks.values())), strict=True))
    ours = seconds["edgexnas process, INT8"]
    rows = ["| pipeline | ms a frame | frames/s | edgexnas is faster by |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {1e3 * value:.1f} | {1 / value:.0f} | {value / ours:.1f}× |"
        for name, value in seconds.items()
    ]
    visible = int(series.truth.of_frame(4).visible.sum())
    note = (
        f"One frame of 2048×2048 uint16 with {visible} visible spots: edgexnas finds {found} "
        f"peaks, connected components give {components} regions."
    )
    return f"## Frames\n\n{note}\n\n" + "\n".join(rows)


def side_by_side(tasks: list[Task]) -> list[float]:
    """Median seconds of each task; every round runs each task for at least 20 ms."""
    counts = []
    for task in tasks:
        task()
        started = time.perf_counter()
        task()
        counts.append(max(1, int(0.02 / (time.perf_counter() - started))))
    samples: list[list[float]] = [[] for _ in tasks]
    for _ in range(ROUNDS):
        for task, count, sample in zip(tasks, counts, samples, strict=True):
            started = time.perf_counter()
            for _ in range(count):
                task()
            sample.append((time.perf_counter() - started) / count)
    return [statistics.median(sample) for sample in samples]


def forward(network: torch.nn.Module, patches: np.ndarray) -> np.ndarray:
    """Do what a torch pipeline does with patches: scale, wrap, infer, unwrap."""
    with torch.inference_mode():
        outputs: np.ndarray = network(torch.from_numpy(scale_patches(patches))[:, None]).numpy()
    return outputs


def component_patches(frame: np.ndarray, threshold: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Cut patches around connected components, as edgeBragg does: the usual way."""
    lit = (frame > threshold).astype(np.uint8)
    count, _, stats, centres = cv2.connectedComponentsWithStats(lit, connectivity=8)
    half = PATCH_SIZE // 2
    patches = []
    for index in range(1, count):
        if stats[index, cv2.CC_STAT_AREA] < 3:
            continue
        col, row = np.round(centres[index]).astype(int)
        if half <= row < frame.shape[0] - half and half <= col < frame.shape[1] - half:
            where = np.s_[row - half : row + half + 1, col - half : col + half + 1]
            patches.append(np.maximum(frame[where] - level[where], 0))
    return np.asarray(patches, np.float32)


def fit_rates(patches: np.ndarray) -> tuple[float, float]:
    """Pseudo-Voigt fits per second: peak by peak with scipy, and batched."""
    row, col = np.mgrid[:PATCH_SIZE, :PATCH_SIZE].astype(float)

    def model(_: object, *p: float) -> np.ndarray:
        height, r0, c0, wr, wc, mixing, level = p
        q = ((row - r0) / wr) ** 2 + ((col - c0) / wc) ** 2
        shape = mixing / (1 + q) + (1 - mixing) * np.exp(-np.log(2) * q)
        values: np.ndarray = (level + height * shape).ravel()
        return values

    # The model knows its pixels; the fit only wants one place a value.
    places = np.arange(PATCH_SIZE**2)
    few, started, done = patches[:100].astype(float), time.perf_counter(), 0
    for patch in few:
        guess = (patch.max(), 5, 5, 1.2, 1.2, 0.5, 0)
        try:
            curve_fit(model, places, patch.ravel(), p0=guess, maxfev=2000)
        except RuntimeError:
            continue
        finally:
            done += 1
    one = done / (time.perf_counter() - started)
    fit_pseudo_voigt(patches[:64])
    started = time.perf_counter()
    fit_pseudo_voigt(patches)
    return one, len(patches) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
