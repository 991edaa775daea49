"""Error against size with equal steps or time for every network, with and without drawn peaks.

    python host/equal_fronts.py PEAKS --name ruby --output docs/results

MLPs and CNNs of the search spaces, from a list of sizes, and both BraggNN are trained in two ways,
each with the same number of steps, or the same CPU time with ``--budget``, two learning rates and
the same seeds:

* *measured*: on the labelled peaks alone;
* *drawn*: on these together with peaks drawn from them, see `edgexnas.host.data.synthetic_peaks`.

The rate with the least mean validation error over the seeds counts. Figures are of the test part,
which no training and no choice has seen, as means over the seeds. Every training that has ended is
a line of a file, so a run that is cut short leaves a page of what it has; `equal_fronts_page.py`
writes that page again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from equal_fronts_page import RECIPES, Run, write_page
from torch import nn

from edgexnas.demo.markdown import hardware
from edgexnas.host import (
    BRAGGNN_DENSE,
    BraggNN,
    PeakDataset,
    TrainingData,
    TrainingSettings,
    count_parameters,
    train,
    with_synthetic_peaks,
)
from edgexnas.host.networks.bragg_models import CnnBragg, MlpBragg
from edgexnas.host.networks.symmetric_mlp import FromCentroid, mlp_bragg_symmetric
from edgexnas.host.training.bragg_criterion import evaluate_model

# (units, layers), with the largest that fit under an eighth and the whole of both BraggNN.
MLPS = (
    (8, 2), (14, 2), (20, 2), (26, 2), (22, 3), (34, 2), (29, 3), (48, 2), (64, 2), (64, 3),
    (90, 2), (128, 2), (100, 3), (84, 4), (156, 2), (121, 3),
)  # fmt: skip
SYMMETRIC = ((8, 2), (16, 2), (23, 3), (30, 3), (64, 2), (129, 2), (156, 2))
# (filters, layers)
CNNS = ((8, 4), (16, 4), (22, 6))

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"BraggNN {'-'.join(map(str, d))}": partial(BraggNN, d) for d in BRAGGNN_DENSE.values()},
    **{f"mlpBragg {u}×{h}": partial(MlpBragg, u, h) for u, h in MLPS},
    **{f"mlpBraggSymmetric {u}×{h}": partial(mlp_bragg_symmetric, u, h) for u, h in SYMMETRIC},
    **{f"cnnBragg {f}×{h}": partial(CnnBragg, f, h) for f, h in CNNS},
    # What the centroid alone is worth.
    "BraggNN 16-8-4-2 from centroid": lambda: FromCentroid(BraggNN()),
    "mlpBragg 26×2 from centroid": lambda: FromCentroid(MlpBragg(26, 2)),
}
# Two each, about what suits a kind of network, so that all have equally many tries.
RATES = {
    "BraggNN": (1e-3, 3e-3), "cnnBragg": (1e-3, 3e-3), "mlpBragg": (3e-3, 1e-2),
    "mlpBraggSymmetric": (3e-3, 1e-2),
}  # fmt: skip

# With a budget of time, BraggNN takes the batches that it is published with.
BATCHES = {"BraggNN": 32, "cnnBragg": 32, "mlpBragg": 128, "mlpBraggSymmetric": 128}


MEASURED_SECONDS = 2.0
"""Steps are timed together until they take so long."""

Jobs = Any
"""A queue of multiprocessing, whose type has no public name."""

building = threading.Lock()
"""Weights are drawn from the process's one generator."""


class Job(NamedTuple):
    """What to train."""

    seed: int
    network: str
    recipe: str
    rate: float


def trained(
    job: Job, peaks: dict[str, Path], steps: int, batch: int, budget: float | None, device: str
) -> Run:
    """Train one network one way."""
    torch.set_num_threads(1)
    dataset = PeakDataset.load(peaks[job.recipe])
    split = dataset.split()
    data = TrainingData.from_dataset(dataset, split, device)
    if budget is not None:
        batch = BATCHES[job.network.split()[0]]
        steps = int(budget / step_seconds(job.network, data, batch))
    # Epochs of whole data would not fit into few steps, so they shrink until they do.
    epochs = -(-steps * batch // len(data.train_x))
    chosen = np.random.default_rng(job.seed).permutation(len(data.train_x))
    part = torch.from_numpy(chosen[: max(batch, steps * batch // epochs)])
    data = replace(data, train_x=data.train_x[part], train_y=data.train_y[part])
    settings = TrainingSettings(
        epochs=epochs, batch_size=batch, learning_rate=job.rate, seed=job.seed, device=device
    )
    with building:
        torch.manual_seed(job.seed)
        model = NETWORKS[job.network]()
    clock = time.perf_counter if budget is None else time.process_time
    started = clock()
    # Threads of one process run side by side on a GPU if each has a stream of its own.
    own: AbstractContextManager[object] = nullcontext()
    if device == "cuda":
        own = torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    with own:
        result = train(model, data, settings)
    seconds = clock() - started
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    test = evaluate_model(result.model, x[split.test], y[split.test])
    return Run(
        job.network, job.recipe, job.seed, job.rate, count_parameters(model),
        result.metrics["error"], test, seconds, device, steps, batch,
    )  # fmt: skip


def step_seconds(network: str, data: TrainingData, batch: int) -> float:
    """Measure the CPU time of one step, without what a training takes once."""
    few = replace(
        data, train_x=data.train_x[: 50 * batch], train_y=data.train_y[: 50 * batch],
        validation_x=data.validation_x[:16], validation_y=data.validation_y[:16],
    )  # fmt: skip

    def seconds(epochs: int) -> float:
        started = time.process_time()
        train(NETWORKS[network](), few, TrainingSettings(epochs=epochs, batch_size=batch))
        return time.process_time() - started

    seconds(1)
    once, epochs = seconds(1), 5
    # What a training takes once varies by more than a hundred steps of the smallest networks take.
    while (difference := seconds(epochs) - once) < MEASURED_SECONDS:
        epochs *= 2
    return difference / ((epochs - 1) * max(1, len(few.train_x) // batch))


def serve(todo: Jobs, done: Jobs, threads: int, **options: object) -> None:
    """Train what is to do, some networks side by side, and report each as it ends."""

    def work() -> None:
        while (job := todo.get()) is not None:
            try:
                done.put(trained(job, **options))  # type: ignore[arg-type]
            except Exception as error:
                done.put(f"{job}: {type(error).__name__}: {error}")

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--name", required=True, help="of the data, for file names and headings")
    parser.add_argument("--drawn", type=int, default=100_000, help="peaks drawn in addition")
    parser.add_argument("--steps", type=int, default=24_000, help="of every training")
    parser.add_argument(
        "--budget",
        type=float,
        help="CPU seconds of every training instead of steps, for as many steps as fit in",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes that train MLPs")
    parser.add_argument("--gpu-workers", type=int, default=0, help="processes on the GPU")
    parser.add_argument("--gpu-threads", type=int, default=3, help="trainings in each of them")
    parser.add_argument("--time-limit", type=float, help="seconds after which no training starts")
    parser.add_argument("--only", nargs="+", help="networks, or kinds of them, by name")
    parser.add_argument("--rates", type=float, nargs="+", help="instead of two for each kind")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--append", action="store_true", help="add what a run that is there lacks")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()

    options.runs.mkdir(parents=True, exist_ok=True)
    title = f"fronts-{options.name}-{'time' if options.budget else 'steps'}"
    record = options.runs / f"{title}.jsonl"
    known: list[Run] = []
    if options.append and record.exists():
        _, *lines = map(json.loads, record.read_text(encoding="utf-8").splitlines())
        known = [Run(**line) for line in lines]
    with record.open("a" if known else "w", encoding="utf-8") as file:
        for line in itertools.islice(search(options, known), 1 if known else 0, None):
            file.write(json.dumps(line) + "\n")
            file.flush()
    write_page(record, options.peaks, options.output)


def search(options: argparse.Namespace, known: list[Run]) -> Iterator[dict[str, object]]:
    """Train what is not known; the first item says how, each other one has been trained."""
    began = time.monotonic()
    gpu = torch.cuda.get_device_name() if options.gpu_workers else None
    dataset = PeakDataset.load(options.peaks)
    drawn = options.runs / f"{options.name}-{dataset.digest[:8]}-{options.drawn}-drawn.h5"
    if "drawn" in options.recipes and not drawn.exists():
        with_synthetic_peaks(dataset, options.drawn, device="cuda" if gpu else "cpu").save(drawn)
        print(f"{options.drawn} peaks drawn in {time.monotonic() - began:.1f} s", flush=True)
    named = ["drawn", *(("budget",) if options.budget else ("steps", "batch")), "seeds", "workers"]
    named += ["gpu_workers", "gpu_threads"] if gpu else []
    flags = " ".join(f"--{n.replace('_', '-')} {getattr(options, n)}" for n in named)
    yield {
        "command": f"python host/equal_fronts.py {options.peaks.name} --name {options.name} "
        f"{flags}",
        "hardware": f"{gpu} and {hardware()}" if gpu else hardware(),
        "drawn": options.drawn, "steps": options.steps, "batch": options.batch,
        "budget": options.budget,
    }  # fmt: skip
    jobs = [
        Job(seed, network, recipe, rate)
        for seed, network, recipe in itertools.product(range(options.seeds), NETWORKS, RECIPES)
        for rate in options.rates or RATES[network.split()[0]]
        if options.only is None or {network, network.split()[0]} & set(options.only)
        if recipe in options.recipes
    ]
    done_before = {Job(run.seed, run.network, run.recipe, run.rate) for run in known}
    jobs = [job for job in jobs if job not in done_before]
    # CNNs after all BraggNN, for without those there is nothing to compare with.
    jobs.sort(key=lambda job: job.network.startswith("cnn"))
    common = {
        "peaks": {"measured": options.peaks, "drawn": drawn}, "steps": options.steps,
        "batch": options.batch, "budget": options.budget,
    }  # fmt: skip
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    processes, queues = [], []
    for device, among, workers, threads in (
        ("cpu", [j for j in jobs if not gpu or j.network.startswith("mlp")], options.workers, 1),
        ("cuda", [j for j in jobs if gpu and not j.network.startswith("mlp")],
         options.gpu_workers, options.gpu_threads),
    ):  # fmt: skip
        queues.append(todo := context.Queue())
        for item in [*among, *[None] * (workers * threads)]:
            todo.put(item)
        processes += [
            context.Process(
                target=serve, args=(todo, done, threads), kwargs=common | {"device": device},
                daemon=True,
            )
            for _ in range(workers)
        ]  # fmt: skip
    for process in processes:
        process.start()
    for _ in jobs:
        try:
            left = (options.time_limit or float("inf")) - (time.monotonic() - began)
            run = done.get(timeout=max(0.0, min(left, 3600.0)))
        except queue.Empty:
            print("out of time", flush=True)
            break
        if isinstance(run, str):
            print(run, flush=True)
            continue
        print(
            f"{time.monotonic() - began:4.0f} s {run.network:20s} {run.recipe:8s} {run.seed} "
            f"{run.rate:g} {run.parameters:6d} {run.validation_px:.4f} {run.test['error']:.4f} "
            f"{run.seconds:.1f} s", flush=True,
        )  # fmt: skip
        yield asdict(run)
    for process in processes:
        process.terminate()


if __name__ == "__main__":
    main()
