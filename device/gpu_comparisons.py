"""Every CUDA kernel, and the pipelines made of them, against the CPU implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from made_frames import crowded_frame, spotty_frame

from edgexnas.bragg import PATCH_SIZE, decode_offsets, scale_patches
from edgexnas.bundle import Bundle, Precision, open_bundle
from edgexnas.device.bragg.gpu_pipeline import FramePipeline
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines.fused.engine import open_fused
from edgexnas.device.engines.fused.network import UnsuitableNetworkError
from edgexnas.device.engines.gate import run_in_batches
from edgexnas.device.engines.onnx_engine import OnnxEngine
from edgexnas.device.kernels import PatternKernels, PeakKernels
from edgexnas.device.kernels.pattern_kernels import NO_BAD_PIXEL
from edgexnas.device.kernels.peak_kernels import HEADER_ITEMS
from edgexnas.device.ptycho.gpu_phase_components import GpuComponents
from edgexnas.device.ptycho.stitching import ObjectStitcher
from edgexnas.peak_finding import (
    Background,
    FinderSettings,
    FoundPeaks,
    PeakFinder,
    estimate_background,
)
from edgexnas.ptycho import bin_patterns, scale_patterns

PATCH = (1, PATCH_SIZE, PATCH_SIZE)
LOOSE = FinderSettings(0, 1, 1, 0.5, 1)
DTYPES = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32]


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
                background = estimate_background([frame], mask=masked)
                name = f"random {np.dtype(dtype)} {shape}{', mask' if masked is not None else ''}"
                settings = FinderSettings(0, 1, 1, 0.5, 1, saturation=100)
                finder = PeakFinder(
                    settings, shape=shape, background=background, mask=masked, compiled=False
                )
                yield name, frame, finder
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
    drawn = np.random.default_rng(4).normal(size=(len(expected) + 1, 2, len(levels)))
    offsets = np.sort(drawn).astype(np.float32)
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
    wanted: dict[str, np.ndarray] = {
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
    given.close()
    for buffer in outputs.values():
        buffer.close()
    return pairs


def compare_patterns(session: CudaSession) -> bool:
    """Compare checks, binning and scaling with numpy."""
    random = np.random.default_rng(0)
    good = True
    for shape, factor in (((64, 64), 1), ((130, 141), 2), ((514, 1030), 4), ((192, 200), 3)):
        patterns = random.poisson(30, (5, *shape)).astype(np.uint16)
        patterns[3, shape[0] // 2, shape[1] // 2] = 2**16 - 1
        kernels = PatternKernels(session, np.uint16, shape, factor, 17.3)
        given = session.device_buffer(patterns.shape, patterns.dtype)
        given.upload(patterns)
        scaled = session.device_buffer((5, 64, 64), np.float32)
        bad = session.device_buffer((5,), np.int32)
        with session.current():
            kernels.enqueue_scale(given.pointer, 5, scaled.pointer, bad.pointer, session.compute)
        expected = np.full(5, NO_BAD_PIXEL)
        expected[3] = shape[0] // 2 * shape[1] + shape[1] // 2
        same = np.array_equal(
            scaled.download(), scale_patterns(bin_patterns(patterns, factor), 17.3)
        ) and np.array_equal(bad.download(), expected)
        good &= same
        print(f"{'ok  ' if same else 'FAIL'} binning by {factor} and scaling of {shape}")
        for memory in (kernels, given, scaled, bad):
            memory.close()
    return good


def compare_stitching(session: CudaSession) -> bool:
    """Compare components on the GPU with those on the CPU: near, apart, joined, in any order."""
    random = np.random.default_rng(1)
    good = True
    for name, places in {
        "one component": random.uniform(-20, 60, (60, 2)),
        "many components": random.uniform(-600, 600, (60, 2)),
        "components that join": np.concatenate(
            [random.uniform(0, 20, (9, 2)) + at for at in ((0, 0), (0, 62), (0, 31), (2, 33))]
        ),
    }.items():
        one, other = ObjectStitcher(components=GpuComponents(session, most=7)), ObjectStitcher()
        for number, place in enumerate(places):
            amplitude = random.random((64, 64), dtype=np.float32) + 0.5
            phase = random.uniform(-0.3, 0.3, (64, 64)).astype(np.float32) + random.integers(-3, 3)
            for stitcher in (one, other):
                stitcher.add(number, amplitude, phase.astype(np.float32), place)
        image, wanted = one.image(), other.image()
        components = len(one.components._components)
        same = (
            components == len(other.components._components)
            and image.values.shape == wanted.values.shape
        )
        strays = float(np.abs(image.values - wanted.values).max()) if same else np.inf
        same &= np.allclose(image.coverage, wanted.coverage, rtol=1e-6) and strays < 1e-4
        good &= same
        print(
            f"{'ok  ' if same else 'FAIL'} stitching, {name}: {components} left, object within "
            f"{strays:.1e}"
        )
        one.close()
    return good


def compare_fused(session: CudaSession, bundles: Path) -> list[bool]:
    """Compare the fused engine with onnxruntime on the reference inputs of each Bragg bundle.

    Then on more patches than all blocks hold, so that each block goes on to further ones: a patch
    gives the same numbers to the last bit wherever it lies.
    """
    outcomes = []
    for path in sorted(bundles.glob("*.edgex")):
        bundle = open_bundle(path, trust=bundles / "keys")
        if bundle.manifest.task != "bragg":
            continue
        inputs = bundle.reference["input"]
        precisions: tuple[Precision, ...] = ("float16", "int8")
        for precision in precisions:
            try:
                engine = open_fused(
                    bundle, precision=precision, batch=32, reason="checked", session=session
                )
            except UnsuitableNetworkError as error:
                print(f"     {path.stem} {precision}: {error}")
                continue
            usual = OnnxEngine(bundle.models[precision], precision=precision, batch=32)
            got, wanted = (run_in_batches(e, inputs, engine.output_shape) for e in (engine, usual))
            truth = bundle.reference["output"]
            apart = [float(np.abs(answer - truth).mean()) for answer in (got, wanted)]
            # As near to float32 as onnxruntime is: in INT8 both round, in other places.
            fine = apart[0] <= 1.5 * apart[1] + 1e-4
            count = 2 * engine.kernel.items * engine._most_blocks + 5
            engine.close()
            strays = stray_patches(session, bundle, precision, got, count)
            outcomes.append(fine and strays == 0)
            each = float(np.abs(got - wanted).max())
            print(
                f"{'ok  ' if outcomes[-1] else 'FAIL'} fused {path.stem} {precision}: "
                f"{apart[0]:.1e} px from float32, onnxruntime {apart[1]:.1e}; at most {each:.1e} "
                f"apart; of {count:,} at once {strays} differ"
            )
    return outcomes


def stray_patches(
    session: CudaSession, bundle: Bundle, precision: Precision, expected: Any, count: int
) -> int:
    """Run so many patches at once, three times; count those whose answer is not as expected."""
    engine = open_fused(bundle, precision=precision, batch=count, reason="checked", session=session)
    inputs = bundle.reference["input"]
    # In another order each time, so that no place has the same patch again.
    strays = 0
    for turn in range(3):
        order = (np.arange(count) * (2 * turn + 1) + turn) % len(inputs)
        strays += int((engine.run(inputs[order]) != expected[order]).any(axis=(1, 2)).sum())
    engine.close()
    return strays


def compare_pipeline(session: CudaSession, bundles: Path, peaks: int) -> bool:
    """Compare positions of the whole pipeline with the same model's on patches of the CPU."""
    bundle = open_bundle(bundles / "mlpBragg-50x5.edgex", trust=bundles / "keys")
    counts = (peaks, 3 * peaks, 20, 0, peaks)
    frames = [spotty_frame((700, 900), spots, spots)[0] for spots in counts]
    finder = PeakFinder(
        shape=(700, 900), background=estimate_background(frames[:1]), compiled=False
    )
    levels = bundle.manifest.quantile_levels
    engine = open_fused(bundle, precision="float16", batch=2048, reason="checked", session=session)
    usual = OnnxEngine(bundle.models["float16"], precision="float16", batch=32)
    pipeline = FramePipeline(engine, finder, np.uint16, levels=levels)
    given = []
    for number, frame in enumerate(frames):
        pipeline.submit(frame, number=number)
        if pipeline.in_flight == 2:
            given.append(pipeline.result())
    given.append(pipeline.result())
    good = True
    for number, (frame, result) in enumerate(zip(frames, given, strict=True)):
        found = finder.find(frame)
        inputs = scale_patches(found.counts)[:, None]
        offsets = run_in_batches(usual, inputs, engine.output_shape)
        placed = decode_offsets(offsets, levels, found.maxima - 5)
        same = np.array_equal(result.maxima, found.maxima) and result.frame_number == number
        strays = np.abs(result.quantiles_px - placed.quantiles_px).max(initial=0) if same else -1
        # Both compute in float16 and round in other places.
        fine = same and strays < 1e-2
        good &= fine
        print(
            f"{'ok  ' if fine else 'FAIL'} pipeline, frame {number}: {len(found):,} peaks, "
            f"positions within {strays:.1e} px"
        )
    pipeline.close()
    engine.close()
    return good
