"""Scans through a predictor whose engine is on this GPU: against the CPU, and how long they take.

The predictor is the package's own, opened on the tests' small bundle and given the engine that is
timed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from gpu_timings import Row, free_bytes, graph_times_us, printed, summary

from edgexnas.bundle import generate_keys, open_bundle
from edgexnas.device import PtychoPredictor
from edgexnas.device.cache import EngineCache
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines import tensorrt_opening
from edgexnas.device.engines.opening import open_engine
from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline
from edgexnas.scans import Scan
from edgexnas.testing import write_visible_bundle

BATCH = 32

SCANNED = ("mlpPtycho-256x2", "PtychoNN")
"""Networks that scans are timed with."""


class HostOnly:
    """An engine of which a predictor only knows that it takes and gives numpy arrays."""

    def __init__(self, engine: Any) -> None:
        self.batch, self.name, self.precision = engine.batch, engine.name, engine.precision
        self.reason, self.run = engine.reason, engine.run

    def describe(self) -> dict[str, str | int]:
        """Say what runs; no report is made of it."""
        return {"engine": self.name, "precision": self.precision, "batch": self.batch}

    def close(self) -> None:
        """Do nothing: whoever gave the engine closes it."""


@contextmanager
def plan_of(session: CudaSession, bundles: Path, plans: Path, name: str) -> Iterator[Any]:
    """Open TensorRT on a float16 plan that `bench_gpu_engines.py --one-size` has built."""
    bundle = open_bundle(bundles / f"{name}.edgex", trust=bundles / "keys")
    cache = EngineCache(plans / f"{name}-float16")
    with patch.object(tensorrt_opening, "ladder", lambda batch: (batch,)):
        engine = open_engine(
            bundle,
            engine="tensorrt",
            precision="float16",
            batch=BATCH,
            cache=cache,
            session=session,
        )
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def predictor_on(engine: Any) -> Iterator[PtychoPredictor]:
    """Open a predictor and give it this engine."""
    with tempfile.TemporaryDirectory() as folder:
        key, _ = generate_keys(Path(folder) / "keys")
        path = write_visible_bundle(Path(folder) / "visible.edgex", signing_key=key)
        bundle = open_bundle(path, trust=Path(folder) / "keys")
        predictor = PtychoPredictor(bundle, precision="float32", batch=engine.batch, cache=False)
    predictor.engine.close()
    predictor._shared.engine = engine
    try:
        yield predictor
    finally:
        # The engine is its maker's to close.
        predictor._shared.engine = HostOnly(engine)
        predictor.close()


def raster(count: int, side: int, *, step: float = 8.3) -> Scan:
    """Give patterns of side × side, uint16, along a raster of steps that are no whole pixels."""
    random = np.random.default_rng(5)
    across = int(np.ceil(np.sqrt(count)))
    positions = np.stack(np.divmod(np.arange(count), across), axis=1) * step
    few = random.poisson(30, (min(count, 256), side, side)).astype(np.uint16)
    patterns = few[np.arange(count) % len(few)]
    return Scan(patterns=patterns, positions_px=positions, source="raster")


def compare_scan(engine: Any) -> bool:
    """Compare a scan through a predictor with all of it on the GPU, and the network alone there."""
    scan = raster(100, 128)
    positions = scan.positions_px.copy()
    positions[[17, 50]] = np.nan
    scan = replace(scan, positions_px=positions)
    found = []
    for given in (engine, HostOnly(engine)):
        with predictor_on(given) as predictor:
            stream = predictor.stream(scan)
            patches = np.concatenate([patches.values for patches in stream])
            found.append((patches, stream.image(), stream.counts))
    (patches, image, counts), (wanted_patches, wanted, wanted_counts) = found
    strays = float(np.abs(patches - wanted_patches).max())
    of_object = float(np.abs(image.values - wanted.values).max())
    fine = strays < 1e-5 and of_object < 1e-4 and counts == wanted_counts
    print(
        f"{'ok  ' if fine else 'FAIL'} a scan of {counts.patches} patterns: patches within "
        f"{strays:.1e}, object within {of_object:.1e}"
    )
    return fine


def time_scan(session: CudaSession, name: str, engine: Any) -> Row:
    """Time a scan from patterns to patches and object, with all on the GPU or the network alone."""
    free, own = free_bytes(session), session.device_bytes
    row: Row = {"network": name, "engine": engine.name, "precision": engine.precision}
    scan = raster(4096, 256)
    with predictor_on(engine) as predictor:
        stream = predictor.stream(scan)
        next(stream)
        row["own MiB"] = (session.device_bytes - own) / 2**20
        row["all MiB"] = (free - free_bytes(session)) / 2**20
        row["stages us"] = stages_us(session, predictor, stream)
        row["patterns/s"] = rate(predictor, scan)
        live = []
        chunks = predictor.stream(iter(zip(scan.patterns, scan.positions_px, strict=True)))
        for _ in range(100):
            started = time.perf_counter()
            next(chunks)
            live.append(time.perf_counter() - started)
        row |= summary(live[5:])
    with predictor_on(HostOnly(engine)) as predictor:
        row["patterns/s, rest on the CPU"] = rate(predictor, beginning(scan, 512))
    return printed(row)


def beginning(scan: Scan, count: int) -> Scan:
    """Give the first patterns of a scan."""
    return replace(scan, patterns=scan.patterns[:count], positions_px=scan.positions_px[:count])


def rate(predictor: PtychoPredictor, scan: Scan) -> float:
    """Patterns a second of whole scans, image included; median of three after one."""
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        stream = predictor.stream(scan)
        for _ in stream:
            pass
        stream.image()
        seconds.append(time.perf_counter() - started)
    return len(scan.patterns) / statistics.median(seconds[1:])


def stages_us(session: CudaSession, predictor: PtychoPredictor, stream: Any) -> dict[str, float]:
    """Medians of what the GPU takes for each step with a full batch."""
    pipeline = predictor._shared._resources[0]
    assert isinstance(pipeline, PatternPipeline)
    slot = pipeline._batches.slots[0]
    patches, bad = (slot.outputs[name].pointer for name in ("patches", "bad"))
    components = stream._stitcher.components
    memory, canvas = components._memory, components._components[0].canvas
    positions = [np.array([8.3, 8.3 * number]) for number in range(BATCH)]
    components._components[0].make_room(components._components[0].used)
    with session.current():
        memory.upload_places(positions, canvas.origin_px)
        memory.weigh(BATCH)
        memory.stream.synchronize()
    return graph_times_us(
        session,
        {
            "copy": lambda stream: slot.input.upload(stream),
            "bin, scale": lambda stream: pipeline._kernels.enqueue_scale(
                slot.input.pointer, BATCH, pipeline._scaled.pointer, bad, stream
            ),
            "network": lambda stream: pipeline._engine.enqueue(
                pipeline._scaled.pointer, patches, BATCH, stream
            ),
            "copy back": lambda stream: slot.outputs["patches"].download(stream, BATCH),
            "weigh": lambda stream: memory.kernels.enqueue_weigh(
                memory.patches.pointer, BATCH, memory.weighted_at(0), stream
            ),
            "fit and add": lambda stream: memory.kernels.enqueue_fit(
                memory.weighted_at(0), memory.places.pointer, BATCH, canvas._where,
                memory.report.pointer, stream, least=0.0,
            ),
        },
    )  # fmt: skip


def scans_page(session: CudaSession, rows: list[Row], checks: list[str]) -> str:
    """Lay out what was measured as docs/results/gpu-scans.md."""
    stages = list(rows[0]["stages us"])
    lines = [
        "# Scans on a GPU",
        "",
        f"`python device/check_gpu.py --plans cache --time-scans` on {session.name}, "
        f"{session.capability}, CUDA {session.driver}; the network runs in "
        f"{rows[0]['engine']}, {rows[0]['precision']}.",
        "",
        "4,096 patterns of 256×256 uint16 in ordinary memory, batches of 32, through "
        "`Predictor.stream` to patches and object. Beside it the network alone on the GPU, the "
        "rest on one CPU core.",
        "",
        "| network | patterns/s | network alone on the GPU | ratio | 32 patterns, ms, p50 / p99 "
        "| edgexnas MiB | all MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fast, slow = row["patterns/s"], row["patterns/s, rest on the CPU"]
        lines.append(
            f"| {row['network']} | {fast:,.0f} | {slow:,.0f} | {fast / slow:.1f}× | "
            f"{row['p50 ms']:.2f} / {row['p99 ms']:.2f} | {row['own MiB']:.0f} | "
            f"{row['all MiB']:.0f} |"
        )
    lines += [
        "",
        "Stages of 32 patterns, µs, each as a CUDA graph of its own.",
        "",
        f"| network | {' | '.join(stages)} |",
        "|---" * (len(stages) + 1) + "|",
        *(
            f"| {row['network']} | "
            + " | ".join(f"{row['stages us'][stage]:.0f}" for stage in stages)
            + " |"
            for row in rows
        ),
        "",
        "## Checks",
        "",
        *(f"* {said}" for said in checks),
    ]
    return "\n".join(lines) + "\n"
