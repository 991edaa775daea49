"""Check the CUDA kernels against the CPU on this machine's GPU, and time the frame pipeline.

    python device/check_gpu.py                              # kernels against the CPU
    python device/check_gpu.py --frames crops.npz           # also on real frames of this file
    python device/check_gpu.py --sanitize memcheck racecheck --time --output docs/results

TensorRT is not needed: torch stands in for the network, and the page says so. Exit status 0 only if
everything agrees.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.bragg import PATCH_SIZE, decode_offsets, scale_patches
from edgexnas.device.cuda import CudaSession
from edgexnas.device.frame_pipeline import FramePipeline
from edgexnas.device.kernels import PatternKernels, PeakKernels
from edgexnas.device.kernels.compilation import kernel_resources, nvcc_path, pixel_definitions
from edgexnas.device.kernels.peak_kernels import HEADER_ITEMS
from edgexnas.errors import EngineError
from edgexnas.peak_finding import (
    Background,
    FinderSettings,
    FoundPeaks,
    PeakFinder,
    estimate_background,
)
from edgexnas.ptycho import ObjectCanvas, bin_patterns, scale_patterns, to_complex

PATCH = (1, PATCH_SIZE, PATCH_SIZE)
LOOSE = FinderSettings(0, 1, 1, 0.5, 1)
DTYPES = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32]
TIMED_SHAPE = (2048, 2048)
TIMED_PEAKS = (500, 5000)
SIZES = (512, 1024, 2048, 4096, 8192)
"""Batches of the stand-in: as many peaks as the pipeline's graphs have room for."""


def spotty_frame(shape: tuple[int, int], spots: int, seed: int) -> np.ndarray:
    """Make a Poisson background of 3 counts with pseudo-Voigt spots of 60 to 20,000, uint16."""
    random = np.random.default_rng(seed)
    frame = random.poisson(3, shape).astype(np.float64)
    for _ in range(spots):
        row, col = random.uniform(8, np.array(shape) - 9)
        height, fwhm = 10 ** random.uniform(1.8, 4.3), random.uniform(1.6, 3.6)
        top, left = int(row) - 7, int(col) - 7
        rows, cols = np.ogrid[top : top + 15, left : left + 15]
        square = ((rows - row) ** 2 + (cols - col) ** 2) / (fwhm / 2) ** 2
        profile = 0.5 / (1 + square) + 0.5 * np.exp(-square * np.log(2))
        frame[top : top + 15, left : left + 15] += random.poisson(height * profile)
    return np.minimum(frame, 65535).astype(np.uint16)


def crowded_frame(seed: int, shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """Make a frame of few different values with spots on a slope: ties and overlaps abound."""
    random = np.random.default_rng(seed)
    frame = random.poisson(np.linspace(2, 30, shape[1]), shape).astype(dtype)
    spots = random.random(shape) < 0.01
    frame[spots] += random.integers(1, 10, int(spots.sum())).astype(dtype) * 10
    return frame


def cases(frames: Path | None, small: bool) -> Iterator[tuple[str, np.ndarray, PeakFinder]]:
    """Name, frame and reference finder of each comparison."""
    shapes = [(70, 97), (9, 300)] if small else [(70, 97), (9, 300), (260, 515), (2048, 2048)]
    for dtype in (np.uint16, np.float32) if small else DTYPES:
        # The reference takes seconds for large frames full of peaks.
        for shape in shapes if dtype is np.uint16 else shapes[:3]:
            frame = crowded_frame(1, shape, dtype)
            mask = np.random.default_rng(2).random(shape) < 0.003
            mask[:, shape[1] // 2 : shape[1] // 2 + 3] = True
            for masked in (None, mask):
                given = {"background": estimate_background([frame], mask=masked), "mask": masked}
                name = f"random {np.dtype(dtype)} {shape}{', mask' if masked is not None else ''}"
                settings = FinderSettings(0, 1, 1, 0.5, 1, saturation=100)
                yield name, frame, PeakFinder(settings, shape=shape, compiled=False, **given)
    for capacity in (1, 700) if small else (1, 700, 5000):
        shape = (96, 200) if small else (512, 700)
        frame = crowded_frame(3, shape, np.uint16)
        level = np.linspace(0, 9.3, frame.size, dtype=np.float32).reshape(shape)
        settings = FinderSettings(0, 1, 1, 0.5, 1, capacity=capacity)
        finder = PeakFinder(
            settings, shape=shape, background=Background(level, np.sqrt(level)), compiled=False
        )
        yield f"overflow, capacity {capacity}", frame, finder
    if frames is not None:
        with np.load(frames) as file:
            for name in file.files:
                frame = np.ascontiguousarray(file[name])
                frame = frame[:200, :300].copy() if small else frame
                for settings in (FinderSettings(), LOOSE):
                    background = estimate_background([frame])
                    finder = PeakFinder(
                        settings, shape=frame.shape, background=background, compiled=False
                    )
                    kind = "default" if settings is not LOOSE else "loose"
                    yield f"real {name} {frame.shape}, {kind} settings", frame, finder


def compare_peaks(session: CudaSession, name: str, frame: np.ndarray, finder: PeakFinder) -> bool:
    """Compare every output of the kernels with the numpy reference, to the last bit."""
    expected = finder.find(frame)
    kernels = PeakKernels(session, finder, frame.dtype)
    uploaded = session.device_buffer(frame.shape, frame.dtype)
    uploaded.upload(frame)
    counts = session.device_buffer((finder.settings.capacity, PATCH_SIZE**2), np.float32)
    with session.current():
        for _ in range(3):
            kernels.enqueue_find(uploaded.pointer, session.compute, counts=counts.pointer)
        session.compute.synchronize()
    found, kept, _ = kernels.header.download().tolist()
    given = {
        **compare_decoding(session, kernels, expected),
        "thresholds": (kernels.thresholds(), finder.thresholds(frame.dtype)),
        "overflow": (np.array(found - kept), np.array(expected.overflow)),
        "maxima": (
            np.stack(np.divmod(kernels.kept.download()[:kept], frame.shape[1]), axis=1),
            expected.maxima,
        ),
        "flags": (kernels.flags.download()[:kept], expected.flags),
        "intensities": (kernels.intensities.download()[:kept], expected.intensities),
        "counts": (counts.download()[:kept].reshape(-1, PATCH_SIZE, PATCH_SIZE), expected.counts),
        "scaled": (
            kernels.scaled.download()[:kept].reshape(-1, PATCH_SIZE, PATCH_SIZE),
            scale_patches(expected.counts),
        ),
    }
    kernels.close()
    counts.close()
    uploaded.close()
    wrong = [part for part, (one, other) in given.items() if not np.array_equal(one, other)]
    print(f"{'ok  ' if not wrong else 'FAIL'} {name}: {len(expected):,} peaks {wrong or ''}")
    return not wrong


def compare_decoding(
    session: CudaSession, kernels: PeakKernels, expected: FoundPeaks
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Decode random offsets of the peaks that the kernels hold; give what came and what should."""
    levels = (0.1, 0.25, 0.5, 0.9)
    offsets = np.random.default_rng(4).normal(size=(len(expected) + 1, 2, len(levels)))
    offsets = np.sort(offsets).astype(np.float32)
    given = session.device_buffer(offsets.shape, np.float32)
    given.upload(offsets)
    rows = max(1, len(expected))
    layouts: dict[str, tuple[tuple[int, ...], Any]] = {
        "positions": ((rows, 2), np.float32),
        "intervals": ((rows, 2), np.float32),
        "quantiles": ((rows, 2, len(levels)), np.float32),
        "maxima": ((rows, 2), np.int32),
        "intensities": ((rows,), np.float32),
        "flags": ((rows,), np.uint8),
        "header": ((HEADER_ITEMS,), np.int32),
    }
    outputs = {
        name: session.staged_buffer(*layout, mapped=True) for name, layout in layouts.items()
    }
    pointers = {name: buffer.pointer for name, buffer in outputs.items()}
    with session.current():
        kernels.enqueue_decode(given.pointer, len(levels), 2, pointers, session.compute)
        session.compute.synchronize()
    placed = decode_offsets(offsets[: len(expected)], levels, expected.maxima - 5)
    wanted = {
        "positions": placed.positions_px,
        "intervals": placed.intervals_px,
        "quantiles": placed.quantiles_px,
        "maxima": expected.maxima,
        "intensities": expected.intensities,
        "flags": expected.flags,
    }
    pairs = {
        f"decoded {name}": (outputs[name].array[: len(expected)].copy(), array)
        for name, array in wanted.items()
    }
    for buffer in (given, *outputs.values()):
        buffer.close()
    return pairs


def compare_patterns(session: CudaSession) -> bool:
    """Compare binning, scaling and stitching with numpy."""
    random = np.random.default_rng(0)
    good = True
    for shape, factor in (((64, 64), 1), ((130, 141), 2), ((514, 1030), 4), ((192, 200), 3)):
        patterns = random.poisson(30, (5, *shape)).astype(np.uint16)
        kernels = PatternKernels(session, np.uint16, shape=(65, 65))
        given = session.device_buffer(patterns.shape, patterns.dtype)
        given.upload(patterns)
        scaled = session.device_buffer((5, 64, 64), np.float32)
        with session.current():
            kernels.enqueue_scale(
                given.pointer, 5, shape, factor, 17.3, scaled.pointer, session.compute
            )
        same = np.array_equal(
            scaled.download(), scale_patterns(bin_patterns(patterns, factor), 17.3)
        )
        good &= same
        print(f"{'ok  ' if same else 'FAIL'} binning by {factor} and scaling of {shape}")
        kernels.close()
    number, shape = 40, (150, 170)
    patches = np.stack(
        [random.random((number, 64, 64)), random.uniform(-3, 3, (number, 64, 64))], axis=1
    ).astype(np.float32)
    positions = random.uniform((-1, -1), (87, 107), (number, 2))
    positions[0] = np.nan
    canvas = ObjectCanvas(shape)
    canvas.add(to_complex(patches[:, 0], patches[:, 1]), positions)
    kernels = PatternKernels(session, np.uint16, shape=shape)
    for part in (slice(0, 7), slice(7, 8), slice(8, None)):
        given = session.device_buffer(patches[part].shape, np.float32)
        given.upload(patches[part])
        places = session.device_buffer(positions[part].shape, np.float64)
        places.upload(positions[part])
        with session.current():
            kernels.enqueue_stitch(
                given.pointer, places.pointer, len(positions[part]), session.compute
            )
            session.compute.synchronize()
    image, expected = kernels.image(), canvas.image()
    kernels.close()
    difference = float(np.abs(image.values - expected.values).max())
    same = np.array_equal(image.coverage, expected.coverage) and difference < 1e-6
    print(f"{'ok  ' if same else 'FAIL'} stitching: largest difference {difference:.1e}")
    return good and same


def compare_pipeline(session: CudaSession, peaks: int) -> bool:
    """Compare positions of the whole pipeline with the same network's on patches of the CPU."""
    import torch

    from edgexnas.host.models import mlp_bragg

    frames = [spotty_frame((700, 900), spots, spots) for spots in (peaks, 3 * peaks, 20, 0, peaks)]
    finder = PeakFinder(
        shape=(700, 900), background=estimate_background(frames[:1]), compiled=False
    )
    network = mlp_bragg(50, 2).eval()
    levels = tuple(np.linspace(0.1, 0.9, network(torch.zeros(1, *PATCH)).shape[-1]))
    engine = open_stand_in(session, network, "float32")
    pipeline = FramePipeline(engine, finder, np.uint16, levels=levels)
    given = []
    for number, frame in enumerate(frames):
        pipeline.submit(frame, number=number)
        if pipeline.in_flight == 2:
            given.append(pipeline.result())
    given.append(pipeline.result())
    good = True
    cpu = network.to("cpu", torch.float32)
    for number, (frame, result) in enumerate(zip(frames, given, strict=True)):
        found = finder.find(frame)
        with torch.inference_mode():
            inputs = torch.from_numpy(scale_patches(found.counts)[:, None])
            offsets = cpu(inputs).numpy() if len(found) else np.empty((0, 2, len(levels)))
        placed = decode_offsets(offsets.astype(np.float32), levels, found.maxima - 5)
        same = np.array_equal(result.maxima, found.maxima) and result.frame_number == number
        strays = np.abs(result.quantiles_px - placed.quantiles_px).max(initial=0) if same else -1
        fine = same and strays < 1e-3
        good &= fine
        print(
            f"{'ok  ' if fine else 'FAIL'} pipeline, frame {number}: {len(found):,} peaks, "
            f"positions within {strays:.1e} px"
        )
    pipeline.close()
    engine.close()
    return good


def open_stand_in(session: CudaSession, network: Any, precision: str) -> Any:
    """Open a torch network with one batch size for each room of the pipeline."""
    import torch
    from torch_stand_in import TorchStandIn

    torch.backends.cudnn.benchmark = True
    engine = TorchStandIn(network, PATCH, session=session, precision=precision, batch=SIZES[-1])
    engine.sizes = SIZES
    return engine


def sanitize(tool: str, frames: Path | None) -> tuple[bool, str]:
    """Run the comparison on small frames under compute-sanitizer; give its verdict."""
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [path, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--small"]
    command += [] if frames is None else ["--frames", str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdicts = [line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line]
    said = f"compute-sanitizer {tool}: {' '.join(verdicts) or 'no verdict'}"
    print(f"{said} (exit status {done.returncode})", flush=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1500:])
    return done.returncode == 0, said


# Timing


def quantiles_ms(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{statistics.median(ordered) * 1e3:.3f} / {p99 * 1e3:.3f}"


def repeated(work: Callable[[], object], times: int) -> list[float]:
    for _ in range(max(3, times // 20)):
        work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def bandwidth(session: CudaSession) -> float:
    """Bytes a second from pinned host memory to the device, frame by frame; best of five."""
    buffers = [session.staged_buffer(TIMED_SHAPE, np.uint16, mapped=False) for _ in range(2)]
    rates = []
    with session.current():
        for _ in range(5):
            begin, end = session.event(timing=True), session.event(timing=True)
            begin.record(session.copies)
            for turn in range(200):
                buffers[turn % 2].upload(session.copies)
            end.record(session.copies)
            end.synchronize()
            rates.append(200 * buffers[0].nbytes / (end.time_since(begin) * 1e-3))
    for buffer in buffers:
        buffer.close()
    return max(rates)


def stage_times_us(session: CudaSession, pipeline: FramePipeline, room: int) -> dict[str, float]:
    """Medians of what the kernels before the network, the network and the decoding take."""
    slot, kernels = pipeline._slots[0], pipeline._kernels
    pointers = {name: buffer.pointer for name, buffer in slot.outputs.items()}
    stages: dict[str, Callable[[Any], None]] = {
        "copy": lambda stream: slot.frame.upload(stream),
        "find, cut and scale": lambda stream: kernels.enqueue_find(slot.frame.pointer, stream),
        "network": lambda stream: pipeline._engine.enqueue(
            kernels.scaled.pointer, pipeline._offsets.pointer, room, stream
        ),
        "decode": lambda stream: kernels.enqueue_decode(
            pipeline._offsets.pointer, pipeline._levels, pipeline._middle, pointers, stream
        ),
    }
    return graph_times_us(session, stages)


def graph_times_us(
    session: CudaSession, stages: dict[str, Callable[[Any], None]]
) -> dict[str, float]:
    """Median time of each piece of work as a CUDA graph of its own."""
    times = {}
    for name, work in stages.items():
        with session.current():
            work(session.compute)
            session.compute.synchronize()
        graph = session.capture(work)
        taken = []
        with session.current():
            for _ in range(30):
                begin, end = session.event(timing=True), session.event(timing=True)
                begin.record(session.compute)
                for _ in range(10):
                    graph.launch()
                end.record(session.compute)
                end.synchronize()
                taken.append(end.time_since(begin) * 1e3 / 10)
        graph.close()
        times[name] = statistics.median(taken)
    return times


def label_rows(
    frames: list[np.ndarray], finder: PeakFinder, network: Any
) -> dict[str, list[float]]:
    """Time connected components and the same network: cupy on the GPU, and scipy before it."""
    import cupy
    import torch
    from cupyx.scipy import ndimage as gpu_ndimage
    from scipy import ndimage

    assert finder.background is not None
    network = network.eval().to("cuda", torch.float16)
    window = np.arange(-5, 6)
    step = 0

    def pipeline(xp: Any, label: Any, frame: Any, limit: Any, level: Any) -> np.ndarray:
        labels, count = label(frame > limit)
        lit = xp.flatnonzero(labels)
        of = labels.ravel()[lit]
        weight = frame.ravel()[lit].astype(np.float64)
        total = xp.bincount(of, weight, count + 1)[1:]
        rows = xp.bincount(of, weight * (lit // frame.shape[1]), count + 1)[1:] / total
        cols = xp.bincount(of, weight * (lit % frame.shape[1]), count + 1)[1:] / total
        span = xp.asarray(window)
        row = xp.clip(xp.rint(rows).astype(np.int64)[:, None] + span, 0, frame.shape[0] - 1)
        col = xp.clip(xp.rint(cols).astype(np.int64)[:, None] + span, 0, frame.shape[1] - 1)
        place = (row[:, :, None], col[:, None, :])
        patches = xp.maximum(frame[place].astype(np.float32) - level[place], 0)
        low = patches.min(axis=(1, 2), keepdims=True)
        patches = (patches - low) / xp.maximum(patches.max(axis=(1, 2), keepdims=True) - low, 1)
        with torch.inference_mode():
            given = torch.as_tensor(patches, device="cuda").to(torch.float16)[:, None]
            return network(given).float().cpu().numpy()

    level = finder.background.level
    limit = finder.thresholds(np.uint16)
    on_gpu = cupy.asarray(limit), cupy.asarray(level)

    def by_cupy() -> None:
        nonlocal step
        step += 1
        frame = cupy.asarray(frames[step % len(frames)])
        pipeline(cupy, gpu_ndimage.label, frame, *on_gpu)

    def by_scipy() -> None:
        nonlocal step
        step += 1
        pipeline(np, ndimage.label, frames[step % len(frames)], limit, level)

    return {
        "cupy label + torch on the GPU": repeated(by_cupy, 60),
        "scipy label + torch on the GPU": repeated(by_scipy, 20),
    }


def time_pipeline(
    session: CudaSession, spots: int, frames_per_s_limit: float
) -> tuple[list[str], list[str]]:
    """Give the rows of both tables, of pipelines and of stages, for one number of peaks."""
    import torch

    from edgexnas.host.models import BraggNN, mlp_bragg

    frames = [spotty_frame(TIMED_SHAPE, spots, seed) for seed in range(4)]
    background = estimate_background(frames[:1])
    finder = PeakFinder(shape=TIMED_SHAPE, background=background)
    found = len(finder.find(frames[0]))
    rows: list[str] = []
    stages: list[str] = []

    def row(name: str, rate: float, seconds: list[float]) -> None:
        share = f"{rate / frames_per_s_limit:.0%}"
        rows.append(f"| {found:,} | {name} | {rate:,.0f} | {share} | {quantiles_ms(seconds)} |")
        print(rows[-1], flush=True)

    for kind, network in (("mlpBragg 50×5", mlp_bragg(50, 5)), ("BraggNN", BraggNN())):
        levels = tuple(np.linspace(0.1, 0.9, network(torch.zeros(1, *PATCH)).shape[-1]))
        engine = open_stand_in(session, network, "float16")
        taken_before = session.free_bytes()[0]
        pipeline = FramePipeline(engine, finder, np.uint16, levels=levels)
        taken = taken_before - session.free_bytes()[0]
        for slot, frame in zip(pipeline._slots, frames, strict=False):
            slot.frame.array[:] = frame
        in_place = repeated(lambda: (pipeline.submit(), pipeline.result()), 1000)  # noqa: B023
        pipeline.submit()
        best = statistics.median(
            sum(repeated(lambda: (pipeline.submit(), pipeline.result()), 500)) / 500  # noqa: B023
            for _ in range(3)
        )
        pipeline.result()
        row(f"edgexnas, {kind}, frame in pinned memory", 1 / best, in_place)
        turn = 0

        def copied(pipeline: FramePipeline = pipeline) -> None:
            nonlocal turn
            turn += 1
            pipeline.submit(frames[turn % 4])
            pipeline.result()

        alone = repeated(copied, 300)
        pipeline.submit(frames[0])
        rate = 1 / (sum(repeated(copied, 500)) / 500)
        pipeline.result()
        row(f"edgexnas, {kind}, frame in other memory, copied", rate, alone)
        times = stage_times_us(session, pipeline, pipeline._room_for(found))
        cells = " | ".join(f"{value:.0f}" for value in times.values())
        stages.append(f"| {found:,} | {kind} | {cells} | {taken / 2**20:.0f} |")
        print(stages[-1], flush=True)
        pipeline.close()
        engine.close()
    network = mlp_bragg(50, 5).eval()
    torch.set_num_threads(1)

    def on_cpu() -> None:
        peaks = finder.find(frames[0])
        with torch.inference_mode():
            network(torch.from_numpy(scale_patches(peaks.counts)[:, None]))

    seconds = repeated(on_cpu, 60)
    row("CPU twin and mlpBragg in torch, one core", 1 / statistics.mean(seconds), seconds)
    try:
        for name, seconds in label_rows(frames, finder, network).items():
            row(name, 1 / statistics.mean(seconds), seconds)
    except ImportError as error:
        print(f"no comparison with cupy: {error}")
    return rows, stages


def timing_page(session: CudaSession) -> list[str]:
    """Time everything and give the page's lines."""
    import torch

    rate = bandwidth(session)
    frame_bytes = 2 * TIMED_SHAPE[0] * TIMED_SHAPE[1]
    limit = rate / frame_bytes
    lines = [
        "# Frames on a GPU",
        "",
        f"`python device/check_gpu.py --time` on {session.name}, {session.capability}, CUDA "
        f"{session.driver}, torch {torch.__version__}. TensorRT does not run there: the network is "
        "torch in float16, standing in behind the same interface.",
        "",
        f"Frames of 2048×2048 uint16, {frame_bytes / 1e6:.1f} MB, from host memory to positions in "
        f"host memory. Pinned memory is copied to the device at {rate / 1e9:.1f} GB/s, which "
        f"allows {limit:,.0f} frames/s. Frames/s with two frames in flight, latency with one. "
        "Device memory is what opening the pipeline takes, with what torch needs in between.",
        "",
        "| peaks | pipeline | frames/s | of the limit | latency p50 / p99, ms |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    stages: list[str] = []
    for spots in TIMED_PEAKS:
        rows, more = time_pipeline(session, spots, limit)
        lines += rows
        stages += more
    lines += ["", "## Stages, µs", ""]
    lines += ["| peaks | network | copy | find, cut, scale | network | decode | device MiB |"]
    return [*lines, "|---|---|---|---|---|---|---|", *stages, *pattern_lines(session)]


def pattern_lines(session: CudaSession) -> list[str]:
    """Time what surrounds a ptychography network, for a batch of 32."""
    number, shape, canvas = 32, (256, 256), (1024, 1024)
    random = np.random.default_rng(0)
    before = session.device_bytes
    kernels = PatternKernels(session, np.uint16, shape=canvas)
    patterns = session.device_buffer((number, *shape), np.uint16)
    patterns.upload(random.poisson(30, (number, *shape)).astype(np.uint16))
    scaled = session.device_buffer((number, 64, 64), np.float32)
    patches = session.device_buffer((number, 2, 64, 64), np.float32)
    places = session.device_buffer((number, 2), np.float64)
    places.upload(random.uniform(0, 900, (number, 2)))
    taken = session.device_bytes - before
    times = graph_times_us(
        session,
        {
            "scale": lambda stream: kernels.enqueue_scale(
                patterns.pointer, number, shape, 4, 100.0, scaled.pointer, stream
            ),
            "stitch": lambda stream: kernels.enqueue_stitch(
                patches.pointer, places.pointer, number, stream
            ),
        },
    )
    kernels.close()
    said = (
        f"Ptychography, 32 patterns of 256×256: binning by 4 and scaling {times['scale']:.0f} µs, "
        f"stitching on a canvas of 1024×1024 {times['stitch']:.0f} µs, "
        f"{taken / 2**20:.0f} MiB of device memory with canvas, patterns and patches."
    )
    print(said, flush=True)
    return ["", said]


def resource_lines() -> list[str]:
    """Tell what the kernels take on an Orin and on Hopper GPUs, where nvcc is installed."""
    if nvcc_path() is None:
        return []
    lines = ["", "## What the kernels take", ""]
    lines += [
        "| kernel | GPU | registers | shared bytes | spilled bytes |",
        "|---|---|---|---|---|",
    ]
    for source in ("peaks.cu", "patterns.cu"):
        for capability in ("SM87", "SM90"):
            lines += [
                f"| {kernel.name} | {capability} | {kernel.registers} | "
                f"{kernel.shared_bytes} | {kernel.spilled_bytes} |"
                for kernel in kernel_resources(source, capability, pixel_definitions(np.uint16))
            ]
    return lines


def compare(session: CudaSession, options: argparse.Namespace) -> tuple[bool, str]:
    """Compare every kernel with the CPU; give the verdict in a sentence."""
    outcomes = [
        compare_peaks(session, name, frame, finder)
        for name, frame, finder in cases(options.frames, options.small)
    ]
    outcomes.append(compare_patterns(session))
    if not options.small:
        outcomes.append(compare_pipeline(session, 300))
    said = f"{len(outcomes)} comparisons with the CPU, {outcomes.count(False)} differ"
    print(said, flush=True)
    return all(outcomes), said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, help=".npz of real frames")
    parser.add_argument("--small", action="store_true", help="small frames only, no network")
    parser.add_argument("--sanitize", nargs="*", default=[], metavar="TOOL")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--output", type=Path, help="folder for the page, with --time")
    options = parser.parse_args()
    try:
        with CudaSession() as session:
            print(f"{session.name}, {session.capability}, CUDA {session.driver}", flush=True)
            verdicts = [compare(session, options)]
            verdicts += [sanitize(tool, options.frames) for tool in options.sanitize]
            if options.time:
                page = timing_page(session)
                page += ["", "## Checks", "", *(f"* {said}" for _, said in verdicts)]
                page += resource_lines()
                if options.output is not None:
                    text = "\n".join(page) + "\n"
                    (options.output / "gpu-frames.md").write_text(text)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    good = all(fine for fine, _ in verdicts)
    print("everything agrees" if good else "SOMETHING DIFFERS")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
