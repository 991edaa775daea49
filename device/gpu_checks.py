"""Check on a GPU that peaks are judged as on the CPU, and time frames with and without the checks.

    python device/gpu_bundles.py --output bundles
    python device/gpu_checks.py --bundles bundles --output docs/results/gpu-checks.json
    python device/gpu_checks.py --page docs/results/gpu-checks.json > docs/results/gpu-checks.md

Without `--bundles` it only compares. Exit status 0 only if everything agrees. Rounds with and
without checks take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gpu_timings import NETWORKS, Field, graph_times_us, opened, printed, rate_of, repeated, summary
from made_frames import spotty_frame

from edgexnas.bragg import CENTRE, centroid
from edgexnas.bundle import (
    Distribution,
    Familiarity,
    IntervalCalibration,
    TrainingData,
    Widening,
    open_bundle,
)
from edgexnas.device.bragg.gpu_pipeline import FramePipeline
from edgexnas.device.cache import EngineCache
from edgexnas.device.cuda import CudaSession
from edgexnas.device.kernels.check_kernels import CheckKernels
from edgexnas.device.kernels.peak_kernels import PeakKernels
from edgexnas.errors import EdgexnasError
from edgexnas.familiarity import PEAK_QUANTITIES, PeakChecks
from edgexnas.peak_finding import PeakFinder, estimate_background

LEVELS = (0.05, 0.5, 0.95)
SHAPE = (700, 900)
SPOTS = (0, 1, 30, 300, 1500)
"""On the frames that are compared."""

ENGINES = (("fused", "int8"), ("fused", "float16"), ("tensorrt", "int8"))
TIMES, ROUNDS = 500, 5


def some_checks(levels: Sequence[float] = LEVELS) -> PeakChecks:
    """Make checks of every kind, by which some peaks are familiar and some not."""
    rng = np.random.default_rng(5)
    count = len(PEAK_QUANTITIES)
    limits = {"width_px": (1.0, 3.0), "height_counts": (70.0, None)}
    quantities = tuple(
        Distribution(
            name=name, unit="1", levels=(0.5,), quantiles=(0.0,), n=1,
            low=limits.get(name, (None, None))[0], high=limits.get(name, (None, None))[1],
        )
        for name in PEAK_QUANTITIES
    )  # fmt: skip
    score = Familiarity(
        quantities=PEAK_QUANTITIES,
        centre=tuple(rng.normal(0, 0.3, count).tolist()),
        scale=tuple(rng.uniform(0.2, 2, count).tolist()),
        score=tuple(rng.normal(0, 0.5, (count + 1) * (count + 2) // 2).tolist()),
        limit=25,
    )
    calibration = IntervalCalibration(
        level=0.9, snr_edges=(15.0, 40.0), width_edges_px=(1.9,),
        factors=((1.5, 1.2), (1.1, 0.9), (0.7, 2.0)), counts=((1, 1), (1, 1), (1, 1)),
        widening=Widening(
            interval=0.5, disagreement=4, narrow_disagreement=2, noise=3, narrowness=2,
            floor_px=0.01,
        ),
    )  # fmt: skip
    data = TrainingData(n=1, quantities=quantities, familiarity=(score,), frame_share=0.6)
    return PeakChecks(calibration, data, levels=tuple(levels), precision="float32")


def compare(session: CudaSession, spots: int, seed: int) -> bool:
    """Judge the peaks of a frame on the GPU and on the CPU, and compare them to the last bit."""
    frame, _ = spotty_frame(SHAPE, spots, seed)
    finder = PeakFinder(shape=SHAPE, background=estimate_background([frame]))
    found = finder.find(frame, scaled=True)
    place = (centroid(found.counts) - CENTRE)[:, :, None]
    spread = np.random.default_rng(seed).uniform(0, 0.2, (len(found), 2, 3))
    offsets = (place + np.sort(spread, axis=2)).astype(np.float32)
    checks = some_checks()
    there, flags, reasons = _on_gpu(session, finder, frame, offsets, checks)
    judged = checks.judge(found.counts, found.intensities, offsets, found.flags)
    parts: dict[str, tuple[Any, Any]] = {
        "quantiles": (there, offsets),
        "flags": (flags, found.flags),
        "reasons": (reasons, judged.reasons),
    }
    wrong = [name for name, (one, other) in parts.items() if not np.array_equal(one, other)]
    print(
        f"{'ok  ' if not wrong else 'FAIL'} {len(found):,} peaks, {judged.unfamiliar:,} "
        f"unfamiliar {wrong or ''}",
        flush=True,
    )
    return not wrong


def _on_gpu(
    session: CudaSession, finder: PeakFinder, frame: Any, offsets: Any, checks: PeakChecks
) -> tuple[Any, Any, Any]:
    number = max(1, len(offsets))
    peaks = PeakKernels(session, finder, frame.dtype)
    judge = CheckKernels(session, checks, finder.settings.capacity)
    uploaded = session.device_buffer(frame.shape, frame.dtype)
    given = session.device_buffer((number, 2, 3), np.float32)
    reasons = session.device_buffer((number,), np.uint8)
    uploaded.upload(frame)
    if len(offsets):
        given.upload(offsets)
    with session.current():
        peaks.enqueue_find(uploaded.pointer, session.compute)
        judge.enqueue(
            peaks.scaled.pointer, peaks.intensities.pointer, given.pointer, 3,
            peaks.header.pointer, peaks.flags.pointer, reasons.pointer, session.compute,
        )  # fmt: skip
        session.compute.synchronize()
    kept = len(offsets)
    result = (
        given.download()[:kept],
        peaks.flags.download()[:kept],
        reasons.download()[:kept],
    )
    for resource in (uploaded, given, reasons, judge, peaks):
        resource.close()
    return result


def time_checks(session: CudaSession, bundles: Path) -> list[dict[str, Any]]:
    """Time frames in flight, one alone, and the kernels by themselves."""
    rows = []
    fields = [Field.with_spots(spots) for spots in (200, 500, 2000)]
    for name, file in NETWORKS.items():
        bundle = open_bundle(bundles / file, trust=bundles / "keys")
        for engine_name, precision in ENGINES:
            with TemporaryDirectory() as folder:
                cache = EngineCache(Path(folder))
                try:
                    about = {"engine": engine_name, "precision": precision}
                    engine = opened(session, bundle, about, cache)
                except (EdgexnasError, ImportError) as error:
                    print(f"{name}, {engine_name} {precision}: {error}", flush=True)
                    continue
                for field in fields:
                    row: dict[str, Any] = {"network": name} | about | {"peaks": field.peaks}
                    row |= side_by_side(session, engine, field, bundle.manifest.quantile_levels)
                    rows.append(printed(row))
                engine.close()
    return rows


def side_by_side(
    session: CudaSession, engine: Any, field: Field, levels: Sequence[float]
) -> dict[str, float]:
    """Time one field with and without checks, in turns."""
    checks = some_checks(levels)
    pipelines = {
        name: FramePipeline(engine, field.finder, np.uint16, levels=levels, checks=given)
        for name, given in (("with", checks), ("without", None))
    }
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    alone: dict[str, list[float]] = {name: [] for name in pipelines}
    ring = session.pinned.array((len(field.frames), *field.frames[0].shape), np.uint16)
    ring[:] = field.frames
    for turn, (name, pipeline) in itertools.product(range(ROUNDS), pipelines.items()):
        frames = itertools.cycle(ring)

        def one(pipeline: FramePipeline = pipeline, frames: Any = frames) -> None:
            pipeline.submit(next(frames))
            pipeline.result()

        alone[name].append(summary(repeated(one, TIMES // 5))["p50 ms"])
        pipeline.submit(next(frames))
        rates[name].append(rate_of(one, TIMES))
        pipeline.result()
        assert turn < ROUNDS
    kernels = _kernel_times(session, pipelines["with"])
    for pipeline in pipelines.values():
        pipeline.close()
    median = statistics.median
    return {
        "frames/s without": median(rates["without"]),
        "frames/s with": median(rates["with"]),
        "ms without": median(alone["without"]),
        "ms with": median(alone["with"]),
        "time, with / without": median(rates["without"]) / median(rates["with"]),
        **kernels,
    }


def _kernel_times(session: CudaSession, pipeline: FramePipeline) -> dict[str, float]:
    slot, peaks, judge = pipeline._frames.slots[0], pipeline._kernels, pipeline._checks
    assert judge is not None

    def work(stream: Any) -> None:
        judge.enqueue(
            peaks.scaled.pointer, peaks.intensities.pointer, pipeline._offsets.pointer,
            pipeline._levels, peaks.header.pointer, peaks.flags.pointer,
            slot.outputs["reasons"].pointer, stream,
        )  # fmt: skip

    return {f"{name}, us": time for name, time in graph_times_us(session, {"checks": work}).items()}


def page(record: dict[str, Any]) -> str:
    """Lay out what was measured as docs/results/gpu-checks.md."""
    agree = "none differs" if record["agree"] else "**some differ**"
    lines = [
        "# Checks of peaks on a GPU",
        "",
        f"`python device/gpu_checks.py --bundles bundles` on {record['GPU']}, CUDA "
        f"{record['CUDA driver']}. Positions' quantiles, flags and reasons of "
        f"{len(record['compared'])} frames are compared with the CPU's to the last bit: {agree}.",
        "",
        "Frames of 2048×2048 from pinned memory with two in flight, and one alone, with the checks "
        f"and without, in {ROUNDS} turns; medians. The kernel is timed as a CUDA graph of its own.",
        "",
        "| network | peaks | frames/s without | with | time more | ms alone, without | with "
        "| time more | kernel, µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        alone = row["ms with"] / row["ms without"] - 1
        lines.append(
            f"| {row['network']}, {row['engine']} {row['precision']} | {row['peaks']:,} "
            f"| {row['frames/s without']:,.0f} | {row['frames/s with']:,.0f} "
            f"| {row['time, with / without'] - 1:+.1%} "
            f"| {row['ms without']:.3f} | {row['ms with']:.3f} | {alone:+.1%} "
            f"| {row['checks, us']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=Path, help="folder that gpu_bundles.py wrote")
    parser.add_argument("--output", type=Path, help="JSON file of what was timed")
    parser.add_argument("--page", type=Path, metavar="JSON", help="print the page and end")
    options = parser.parse_args()
    if options.page is not None:
        print(page(json.loads(options.page.read_text(encoding="utf-8"))), end="")
        return 0
    with CudaSession() as session:
        print(f"{session.name}, {session.capability}, CUDA {session.driver}", flush=True)
        compared = [compare(session, spots, spots) for spots in SPOTS]
        good = all(compared)
        if options.bundles is not None:
            rows = time_checks(session, options.bundles)
            record = {
                "GPU": session.name, "CUDA driver": session.driver, "compared": SPOTS,
                "agree": good, "rows": rows,
            }  # fmt: skip
            if options.output is not None:
                options.output.write_text(json.dumps(record, indent=1) + "\n")
    print("everything agrees" if good else "SOMETHING DIFFERS")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
