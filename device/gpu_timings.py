"""How long frames take on this GPU, and what device memory they need."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from made_frames import spotty_frame

from edgexnas.bragg import scale_patches
from edgexnas.bundle import Bundle, open_bundle
from edgexnas.device.bragg.gpu_pipeline import SLOTS, FramePipeline
from edgexnas.device.cache import EngineCache
from edgexnas.device.cuda import CudaSession, PinnedPool
from edgexnas.device.cuda.host_copy import HostCopy
from edgexnas.device.engines import tensorrt_opening
from edgexnas.device.engines.opening import open_engine
from edgexnas.device.sources.compression import compress, decompress
from edgexnas.errors import EdgexnasError, EngineError, MissingDependencyError
from edgexnas.peak_finding import PeakFinder, estimate_background

SHAPE = (2048, 2048)
SPOTS = (500, 5000)
FEW, MANY, MOST = 512, 2048, 8192
"""Batches of TensorRT's plans, for few peaks and for thousands, and of the fused engine."""

CODEC = "bslz4-hdf5"
"""What DECTRIS detectors send."""

DECODERS = (4, 14)
"""Threads that decode; a core is left for the one that submits."""

DECODED = 50
"""Frames that each of them decodes in one round."""

NETWORKS = {
    "mlpBragg 50×5": "mlpBragg-50x5.edgex",
    "mlpBraggMirrored 24×2": "mlpBraggMirrored-24x2.edgex",
    "BraggNN": "BraggNN.edgex",
}
"""Names on the page, and of the bundles that `gpu_bundles.py` writes."""

ENGINES = (
    ("fused", "int8"), ("fused", "float16"), ("tensorrt", "int8"), ("tensorrt", "float16"),
)  # fmt: skip
"""Engines and precisions that are compared, where they run."""

Row = dict[str, Any]


def measure(
    session: CudaSession,
    keep: Callable[[Row], None],
    bundles: Path,
    *,
    engines: Sequence[str] = ("fused", "tensorrt"),
    decoding: bool = True,
    plans: Path | None = None,
) -> Row:
    """Time everything; each row is printed, and all of them are kept, as soon as they are there.

    Parameters
    ----------
    bundles
        Folder that `gpu_bundles.py` wrote.
    engines
        Which engines; one that does not run here is printed and left out.
    decoding
        Whether frames in other memory and encoded frames are timed too.
    plans
        Folder that keeps TensorRT's plans, which take minutes; None for none.
    """
    rate = bandwidth(session)
    frame_bytes = 2 * SHAPE[0] * SHAPE[1]
    found: dict[str, Any] = {
        "GPU": session.name,
        "capability": session.capability,
        "CUDA driver": session.driver,
        "copy bytes/s": rate,
        "limit frames/s": rate / frame_bytes,
        "frame bytes": frame_bytes,
        "options": f"--engines {' '.join(engines)}{'' if decoding else ' --quick'}",
        "frames": [],
        "host copies": [],
    }
    print(f"{rate / 1e9:.1f} GB/s, {found['limit frames/s']:.0f} frames/s", flush=True)
    fields = [Field.with_spots(spots) for spots in SPOTS]
    if decoding:
        found["host copies"] = time_host_copies(session, fields[0].frames)
    first = True
    for name, file in NETWORKS.items():
        bundle = open_bundle(bundles / file, trust=bundles / "keys")
        for engine, precision in ENGINES:
            if engine not in engines:
                continue
            about = {"network": name, "engine": engine, "precision": precision}
            try:
                for row in time_network(session, bundle, about, fields, decoding and first, plans):
                    found["frames"].append(row)
                    keep(found)
            except (EdgexnasError, ImportError) as error:
                print(f"{about}: {error}", flush=True)
                continue
            # Decoding is the same with every network.
            first = False
    if decoding:
        for field in fields:
            found["frames"] += [printed(row) for row in time_others(field)]
        keep(found)
    return found


@dataclass(frozen=True, slots=True)
class Field:
    """Frames of one number of spots, what finds their peaks, and how many those are."""

    frames: list[np.ndarray]
    finder: PeakFinder
    peaks: int

    @classmethod
    def with_spots(cls, spots: int) -> Field:
        """Make frames of about so many peaks, which lie elsewhere on each."""
        first, _ = spotty_frame(SHAPE, spots, 0)
        frames = [np.roll(first, 37 * turn, axis=(0, 1)) for turn in range(4)]
        finder = PeakFinder(shape=SHAPE, background=estimate_background(frames[:1]))
        return cls(frames, finder, len(finder.find(frames[0])))


def free_bytes(session: CudaSession) -> int:
    """Give the GPU's free memory, without what only waits to be collected."""
    gc.collect()
    return session.free_bytes()[0]


def printed(row: Row) -> Row:
    print(row, flush=True)
    return row


def summary(seconds: list[float]) -> Row:
    """Give median and 99th percentile in ms."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"p50 ms": statistics.median(ordered) * 1e3, "p99 ms": p99 * 1e3}


def repeated(work: Callable[[], object], times: int) -> list[float]:
    for _ in range(max(3, times // 20)):
        work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def rate_of(work: Callable[[], object], times: int) -> float:
    """Give the runs a second, median of three."""
    return statistics.median(times / sum(repeated(work, times)) for _ in range(3))


def bandwidth(session: CudaSession) -> float:
    """Bytes a second from pinned host memory to the device, frame by frame; best of five."""
    buffers = [session.staged_buffer(SHAPE, np.uint16, mapped=False) for _ in range(2)]
    rates: list[float] = []
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


def opened(
    session: CudaSession, bundle: Bundle, about: Row, cache: Any, plans: Path | None = None
) -> Any:
    """Open an engine for thousands of peaks."""
    engine, precision = about["engine"], about["precision"]
    if engine == "tensorrt":
        if plans is not None:
            cache = EngineCache(plans / plans_name(bundle, precision))
        # Two sizes: one for few peaks, and one of which there are a few for thousands.
        with patch.object(tensorrt_opening, "ladder", lambda batch: (FEW, batch)):
            return open_engine(
                bundle, engine=engine, precision=precision, batch=MANY, cache=cache,
                session=session,
            )  # fmt: skip
    return open_engine(
        bundle, engine=engine, precision=precision, batch=MOST, cache=cache, session=session
    )


def plans_name(bundle: Bundle, precision: str) -> str:
    """Name the folder of plans for frames; one for each, so that several are built at once."""
    return f"frames-{bundle.manifest.model_id}-{precision}"


def time_network(
    session: CudaSession,
    bundle: Bundle,
    about: Row,
    fields: list[Field],
    decoding: bool,
    plans: Path | None,
) -> Iterator[Row]:
    """Time one engine of a network behind the pipeline, for each number of peaks."""
    levels = bundle.manifest.quantile_levels or (0.5,)
    if about["engine"] == "tensorrt" and plans is not None:
        folder_of_plans = plans / plans_name(bundle, about["precision"])
        if not list(folder_of_plans.glob("plan-*")):
            raise EngineError(f"{folder_of_plans} holds no plan; build it first")
    free = free_bytes(session)
    with TemporaryDirectory() as folder:
        cache = EngineCache(Path(folder))
        engine = opened(session, bundle, about, cache, plans)
        print(f"{about}: {engine.describe()}", flush=True)
        for field in fields:
            own = session.device_bytes
            pipeline = FramePipeline(engine, field.finder, np.uint16, levels=levels, cache=cache)
            memory = {
                "own MiB": (session.device_bytes - own) / 2**20,
                "all MiB": (free - free_bytes(session)) / 2**20,
            }
            for number, row in enumerate(time_pipeline(pipeline, field, decoding)):
                more = {} if number else memory | {"stages us": stage_times_us(session, pipeline)}
                yield printed(
                    {"peaks": field.peaks} | about | row | {"room": pipeline._room} | more
                )
            pipeline.close()
        engine.close()


def time_pipeline(pipeline: FramePipeline, field: Field, decoding: bool) -> Iterator[Row]:
    """Time frames where they may lie: where the GPU reads them, elsewhere, and still encoded."""
    frames, session = field.frames, pipeline._session
    for slot, frame in zip(pipeline._frames.slots, frames, strict=False):
        slot.input.array[:] = frame
    ring = session.pinned.array((len(frames), *SHAPE), np.uint16)
    ring[:] = frames
    yield time_frames(pipeline, itertools.repeat(None), "slot", 1000)
    yield time_frames(pipeline, itertools.cycle(ring), "ring", 1000)
    del ring
    if not decoding:
        return
    yield time_frames(pipeline, itertools.cycle(frames), "copied", 300)
    try:
        payloads = [compress(CODEC, frame) for frame in frames]
    except MissingDependencyError as error:
        print(f"no frames are decoded: {error}", flush=True)
        return
    for threads in DECODERS:
        for where in ("decoded there", "decoded, copied"):
            yield time_decoded(pipeline, payloads, where, threads)


def time_frames(
    pipeline: FramePipeline, frames: Iterator[np.ndarray | None], where: str, times: int
) -> Row:
    """Time frames that are there, one by one and with two in flight."""

    def one() -> None:
        pipeline.submit(next(frames))
        pipeline.result()

    alone = summary(repeated(one, times))
    # One more in flight, so that copy and work overlap.
    pipeline.submit(next(frames))
    rate = rate_of(one, times)
    pipeline.result()
    return {"frame": where, "frames/s": rate, **alone}


def time_decoded(pipeline: FramePipeline, payloads: list[bytes], where: str, threads: int) -> Row:
    """Time frames that threads decode ahead, as those of a service do, and that one submits.

    The latency is that of a frame which is decoded and worked on alone.
    """
    spare: PinnedPool | None = None
    if where == "decoded there":
        spare = PinnedPool(pipeline._session, SHAPE, np.uint16, 2 * threads + 3)

    def decoded(turn: int) -> np.ndarray:
        payload = payloads[turn % len(payloads)]
        lend = None if spare is None else lambda *_: spare.lend()
        return decompress(CODEC, payload, SHAPE, np.uint16, lend)

    turns = itertools.count()

    def one() -> None:
        pipeline.submit(decoded(next(turns)))
        pipeline.result()

    alone = summary(repeated(one, 60))
    times, rates = DECODED * threads, []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            ahead = deque(pool.submit(decoded, turn) for turn in range(2 * threads))
            started = time.perf_counter()
            for turn in range(times):
                frame = ahead.popleft().result()
                if turn + 2 * threads < times:
                    ahead.append(pool.submit(decoded, turn))
                pipeline.submit(frame)
                del frame
                if pipeline.in_flight == SLOTS:
                    pipeline.result()
            pipeline.result()
            rates.append(times / (time.perf_counter() - started))
    if spare is not None:
        spare.close()
    row = {"frame": where, "threads": threads, "frames/s": statistics.median(rates)}
    return row | {"packed bytes": int(np.mean([len(payload) for payload in payloads])), **alone}


def stage_times_us(session: CudaSession, pipeline: FramePipeline) -> dict[str, float]:
    """Medians of what the kernels before the network, the network and the decoding take."""
    slot, kernels = pipeline._frames.slots[0], pipeline._kernels
    pointers = {name: buffer.pointer for name, buffer in slot.outputs.items()}
    stages: dict[str, Callable[[Any], None]] = {
        "copy": lambda stream: slot.input.upload(stream),
        "find, cut, scale": lambda stream: kernels.enqueue_find(slot.input.pointer, stream),
        "network": lambda stream: pipeline._enqueue_network(slot.size, stream),
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


def time_others(field: Field) -> list[Row]:
    """Time the CPU implementation, and connected components on both, with the same network."""
    import torch
    from label_baseline import label_pipelines

    from edgexnas.host.networks.bragg_models import MlpBragg

    frames, finder = field.frames, field.finder
    network = MlpBragg(50, 5).eval()
    torch.set_num_threads(1)

    def on_cpu() -> None:
        peaks = finder.find(frames[0])
        with torch.inference_mode():
            network(torch.from_numpy(scale_patches(peaks.counts)[:, None]))

    works = {"CPU implementation and mlpBragg in torch, one core": (on_cpu, 60)}
    try:
        others = label_pipelines(frames, finder, network)
        works |= {name: (work, 20 if "scipy" in name else 60) for name, work in others.items()}
    except ImportError as error:
        print(f"no comparison with cupy: {error}")
    rows = []
    for name, (work, times) in works.items():
        seconds = repeated(work, times)
        rate = {"frames/s": times / sum(seconds)}
        rows.append({"peaks": field.peaks, "pipeline": name, **rate, **summary(seconds)})
    return rows


def time_host_copies(session: CudaSession, frames: list[np.ndarray]) -> list[Row]:
    """Time copies of frames from ordinary to pinned memory, by 1 to 4 threads."""
    pinned = [session.staged_buffer(SHAPE, np.uint16, mapped=False) for _ in range(2)]
    rows = []
    for threads in (1, 2, 3, 4):
        copy, turn = HostCopy(threads), 0

        def one(copy: HostCopy = copy) -> None:
            nonlocal turn
            turn += 1
            for _ in copy.parts(frames[turn % 4], pinned[turn % 2].array):
                pass

        seconds = repeated(one, 200)
        gb_per_s = pinned[0].nbytes / statistics.median(seconds) / 1e9
        rows.append(printed({"threads": threads, "GB/s": gb_per_s, **summary(seconds)}))
        copy.close()
    for buffer in pinned:
        buffer.close()
    return rows
