"""Time the engines of a GPU beside each other: TensorRT, fused, torch, and an empty graph.

    python device/gpu_bundles.py --output bundles
    python device/bench_gpu_engines.py --bundles bundles --cache cache --output gpu-engines.json
    python device/gpu_engines_page.py gpu-engines.json > docs/results/gpu-engines.md

Every `*.edgex` of the folder, batch 32, one CUDA graph from device memory to device memory: 375
times the mean of 10 launches by the GPU's clock. First all plans are built, several processes side
by side, each with a cache folder of its own that later runs start from. Then engines are opened one
by one, checked against the bundle's gate, and timed; what cannot be opened is a row with the
reason. The file is written after each step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.bundle import Bundle, open_bundle
from edgexnas.device.cache import EngineCache
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines import tensorrt_opening
from edgexnas.device.engines.gate import prove_engine, run_in_batches
from edgexnas.device.engines.opening import open_engine
from edgexnas.errors import EdgexnasError
from edgexnas.whole_files import write_whole

BATCH, REPEATS, RUNS = 32, 375, 10
MANY = (512, 4697)
"""Numbers of items at once for engines that take any: peaks of a frame."""

ENGINES = ("tensorrt", "fused")
PRECISIONS = ("float16", "int8")
ENERGY_NETWORKS = ("BraggNN", "mlpBragg-50x5")
ENERGY_LAUNCHES = 200
"""Launches that are queued between two looks at the clock, so that the GPU does not wait."""

LONGEST_FIRST = ("BraggNN", "PtychoNN", "cnnBragg", "cnnPtycho")
"""Networks whose plans take longest to build are begun first."""

EMPTY = 'extern "C" __global__ void empty() {}'

SECONDS_A_ROW = 3.0
"""What opening, checking and timing one engine is expected to take, for the time limit."""

Row = dict[str, Any]


def main() -> None:
    options = arguments()
    if options.build:
        build_one(options)
        return
    if options.torch_rows:
        time_torch(options)
        return
    deadline = time.monotonic() + options.seconds
    content = Content(options.output)
    names = options.networks or sorted(path.stem for path in options.bundles.glob("*.edgex"))
    if "tensorrt" in options.engines and not options.no_builds:
        build_plans(names, options, content, deadline)
    time_engines(names, options, content, deadline)
    if options.torch_python:
        add_torch(names, options, content, deadline)
    print(f"done, {deadline - time.monotonic():.0f} s before the limit", flush=True)


class Content:
    """What was measured so far; kept on disk after each step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"builds": [], "rows": [], "energy": []}
        if path.exists():
            self.found |= json.loads(path.read_text(encoding="utf-8"))

    def set(self, **values: Any) -> None:
        """Set values beside the rows."""
        self.found |= values
        self._write()

    def add(self, part: str, row: Row, *, same: tuple[str, ...]) -> None:
        """Add a row in place of an earlier one that agrees in some fields."""
        place = [row[name] for name in same]
        rows = self.found[part]
        rows[:] = [other for other in rows if [other[name] for name in same] != place]
        rows.append(row)
        shown = {name: value for name, value in row.items() if name != "layers"}
        print(json.dumps(shown, ensure_ascii=False), flush=True)
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.found, indent=1, ensure_ascii=False)
        write_whole(self.path, (text + "\n").encode())


# Building, several processes side by side


def build_plans(
    names: list[str], options: argparse.Namespace, content: Content, deadline: float
) -> None:
    """Build what no cache folder holds; what is not done in time is stopped and reported."""
    rows = len(names) * len(options.engines) * len(options.precisions)
    until = deadline - SECONDS_A_ROW * rows - energy_seconds(options) - options.torch_seconds
    waiting = sorted(
        ((name, precision) for name in names for precision in options.precisions),
        key=lambda job: [not job[0].startswith(long) for long in LONGEST_FIRST],
    )
    running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
    began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < options.jobs and time.monotonic() < until:
            job = waiting.pop(0)
            running[job] = start_build(*job, options)
        for job, process in list(running.items()):
            late = process.poll() is None and time.monotonic() > until
            if late:
                process.kill()
            if process.poll() is not None or late:
                process.wait()
                del running[job]
                content.add("builds", built(*job, options, late), same=("network", "precision"))
        if time.monotonic() > until:
            for name, precision in waiting:
                row = {"network": name, "precision": precision, "failed": "no time was left"}
                content.add("builds", row, same=("network", "precision"))
            waiting = []
        time.sleep(0.2)
    content.set(**{"all builds s": round(time.monotonic() - began, 1)})


def start_build(name: str, precision: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    folder = cache_folder(name, precision, options)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [
        sys.executable, __file__, "--bundles", options.bundles, "--cache", options.cache,
        "--output", report_of(name, precision, options), "--build", name, precision,
    ]  # fmt: skip
    if options.one_size:
        command += ["--one-size"]
    if options.builder_level is not None:
        command += ["--builder-level", str(options.builder_level)]
    report_of(name, precision, options).unlink(missing_ok=True)
    with log_of(name, precision, options).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def built(name: str, precision: str, options: argparse.Namespace, late: bool) -> Row:
    """Read what a build left: its report, or the end of its log."""
    row: Row = {"network": name, "precision": precision}
    report = report_of(name, precision, options)
    if report.exists():
        row |= json.loads(report.read_text(encoding="utf-8"))
        return row
    said = log_of(name, precision, options).read_text(errors="replace").strip()[-600:]
    return row | {"failed": "it was stopped at the time limit" if late else said}


def build_one(options: argparse.Namespace) -> None:
    """Build one plan in this process, and start it again from the cache."""
    name, precision = options.build
    found: Row = {}
    try:
        with CudaSession() as session:
            bundle = bundle_of(name, options)
            for what in ("first open s", "open from cache s"):
                started = time.perf_counter()
                engine = opened(name, bundle, "tensorrt", precision, session, options)
                found[what] = round(time.perf_counter() - started, 3)
                found.setdefault("built s", round(engine.plan.seconds, 1))
                found.setdefault("reason", engine.reason)
                engine.close()
    except EdgexnasError as error:
        found["failed"] = str(error)
    write_whole(options.output, json.dumps(found).encode())


# Timing


def time_engines(
    names: list[str], options: argparse.Namespace, content: Content, deadline: float
) -> None:
    """Time the empty graph, every engine, and their energy."""
    with CudaSession() as session:
        from edgexnas.device.engines.tensorrt_library import installed_library

        content.set(
            hardware={
                "GPU": session.name, "capability": session.capability, "CUDA": session.driver,
                "cores": os.cpu_count(), "Python": sys.version.split()[0],
            },
            library=library_version(installed_library()),
            batch=BATCH, repeats=REPEATS, runs=RUNS, builder_level=options.builder_level,
            one_size=options.one_size, builds_at_once=options.jobs,
        )  # fmt: skip
        floor = empty_graph(session)
        content.set(**{"empty graph µs": floor})
        for name in names:
            try:
                bundle = bundle_of(name, options)
            except EdgexnasError as error:
                row = {"network": name, "engine": "all", "precision": "", "failed": str(error)}
                content.add("rows", row, same=("network", "engine", "precision"))
                continue
            for engine in options.engines:
                for precision in options.precisions:
                    row = {"network": name, "engine": engine, "precision": precision}
                    folder = cache_folder(name, precision, options)
                    if time.monotonic() > deadline - 2:
                        row["failed"] = "no time was left"
                    # Building takes minutes, and here it would be one plan at a time.
                    elif engine == "tensorrt" and not list(folder.glob("plan-*")):
                        row["failed"] = (
                            f"no plan was built: {why_no_plan(name, precision, content)}"
                        )
                    else:
                        row |= timed(name, bundle, engine, precision, session, options)
                    content.add("rows", row, same=("network", "engine", "precision"))
        content.set(**{"empty graph µs at the end": empty_graph(session)})
        if options.energy:
            measure_energies(options, session, content, deadline)


def why_no_plan(name: str, precision: str, content: Content) -> str:
    for build in content.found["builds"]:
        if (build["network"], build["precision"]) == (name, precision):
            return str(build.get("failed", "its folder holds none"))
    return "no build was begun"


def timed(
    name: str,
    bundle: Bundle,
    engine: str,
    precision: str,
    session: CudaSession,
    options: argparse.Namespace,
) -> Row:
    """Open, check and time one engine; a row with the reason if any of it fails."""
    row: Row = {}
    try:
        started = time.perf_counter()
        with running(name, bundle, engine, precision, session, options) as (made, launches):
            row["open s"] = round(time.perf_counter() - started, 3)
            row |= {"reason": made.reason, "described": made.describe()}
            proof = prove_engine(made, bundle)
            row["gate"] = {n: getattr(proof, n) for n in type(proof).__dataclass_fields__}
            row["device µs"] = latencies(session, launches)
            inputs = bundle.reference["input"][:BATCH].copy()
            row["host to host µs"] = host_latencies(lambda: made.run(inputs))
            if made.any_count:
                row["many µs"] = {str(n): many(session, made, bundle, n) for n in MANY}
            if hasattr(made, "plan"):
                row["plan bytes"] = len(made.plan.data)
                row["layers"] = [[x.kind, x.name, x.inputs, x.outputs] for x in made.plan.layers]
    # Whatever one engine does wrong, the others are to be timed.
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
    return row


def many(session: CudaSession, made: Any, bundle: Bundle, count: int) -> Row:
    """Time an engine on so many items at once, and count those that differ from a batch of 32's."""
    given = bundle.reference["input"]
    order = np.arange(count) * 3 % len(given)
    source = session.device_buffer((count, *made.input_shape), np.float32)
    target = session.device_buffer((count, *made.output_shape), np.float32)
    try:
        source.upload(np.ascontiguousarray(given[order]))
        with recorded(
            session, lambda s: made.enqueue(source.pointer, target.pointer, count, s)
        ) as launches:
            row = latencies(session, launches)
        expected = run_in_batches(made, given, made.output_shape)[order]
        strays = (target.download() != expected).any(axis=tuple(range(1, expected.ndim)))
        return row | {"strays": int(strays.sum())}
    finally:
        source.close()
        target.close()


@contextmanager
def running(
    name: str,
    bundle: Bundle,
    engine: str,
    precision: str,
    session: CudaSession,
    options: argparse.Namespace,
) -> Iterator[tuple[Any, Callable[[int], None]]]:
    """Open an engine and record its graph on device memory: the engine, and what launches it."""
    made = opened(name, bundle, engine, precision, session, options)
    buffers = []
    try:
        for shape in (made.input_shape, made.output_shape):
            buffers.append(session.device_buffer((BATCH, *shape), np.float32))
        source, target = buffers
        source.upload(np.resize(bundle.reference["input"], (BATCH, *made.input_shape)))
        session.synchronize()
        with recorded(
            session, lambda s: made.enqueue(source.pointer, target.pointer, BATCH, s)
        ) as launches:
            yield made, launches
    finally:
        for buffer in buffers:
            buffer.close()
        made.close()


@contextmanager
def recorded(session: CudaSession, work: Callable[[Any], None]) -> Iterator[Callable[[int], None]]:
    """Record work as a graph: a function that launches it so many times, with little around."""
    with session.current():
        work(session.compute)
        session.compute.synchronize()
    graph: Any = session.capture(work)
    # Past `CudaGraph.launch`, which takes longer than the smallest networks.
    launch, executable, stream = (
        graph._bindings.cuGraphLaunch, graph._executable, graph._stream,
    )  # fmt: skip

    def launches(count: int) -> None:
        for _ in range(count):
            launch(executable, stream)

    try:
        yield launches
    finally:
        session.synchronize()
        graph.close()


def latencies(session: CudaSession, launches: Callable[[int], None]) -> Row:
    """Median, 99th percentile and least of 375 means of 10 launches, in µs, by the GPU's clock."""
    means = []
    with session.current():
        launches(5 * RUNS)
        begin, end = session.event(timing=True), session.event(timing=True)
        gc.disable()
        for _ in range(REPEATS):
            begin.record(session.compute)
            launches(RUNS)
            end.record(session.compute)
            end.synchronize()
            means.append(end.time_since(begin) * 1e3 / RUNS)
        gc.enable()
    return summary(means)


def host_latencies(run: Callable[[], object]) -> Row:
    """Time runs from host memory to host memory alike, by the host's clock."""
    for _ in range(RUNS):
        run()
    means = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(RUNS):
            run()
        means.append((time.perf_counter() - started) * 1e6 / RUNS)
    return summary(means)


def summary(means: list[float]) -> Row:
    p50, p99 = np.percentile(means, (50, 99))
    return {"p50": round(p50, 2), "p99": round(p99, 2), "least": round(min(means), 2)}


def empty_graph(session: CudaSession) -> Row:
    """Time a graph of one kernel that does nothing: the least that a launch costs."""
    buffer = session.device_buffer((4,), np.uint8)
    driver = session.driver_module
    what, work = "memset", lambda stream: driver.memset_d8_async(buffer.pointer, 0, 4, stream)
    try:
        kernel = empty_kernel(session)
        what, work = "kernel", lambda stream: kernel.prepared_async_call((1, 1), (1, 1, 1), stream)
    # Where nothing compiles, setting four bytes has to do.
    except Exception as error:
        print(f"no empty kernel: {error}", flush=True)
    try:
        with recorded(session, work) as launches:
            return latencies(session, launches) | {"what": what}
    finally:
        buffer.close()


def empty_kernel(session: CudaSession) -> Any:
    from edgexnas.device.kernels import compilation

    architecture = f"sm_{session.capability.removeprefix('SM')}"
    image = compilation._by_nvrtc(EMPTY, "empty.cu", architecture, [])
    if image is None:
        image, _ = compilation._run_nvcc(EMPTY, "empty.cu", architecture, [])
    kernel = session.module(image).get_function("empty")
    kernel.prepare("")
    return kernel


# Energy


def energy_seconds(options: argparse.Namespace) -> float:
    loads = len(options.energy) * len(options.engines) * len(options.precisions)
    window = options.energy_window + (options.energy_idle or options.energy_window)
    return loads * options.energy_blocks * (window + 1) + 5 if loads else 0.0


def measure_energies(
    options: argparse.Namespace, session: CudaSession, content: Content, deadline: float
) -> None:
    """Measure the energy of a batch, the networks of each engine and precision by turns."""
    from edgexnas.device.benchmark import EnergyProtocol, Load, measure_energy
    from edgexnas.device.power import open_power_meter

    try:
        meter = open_power_meter("nvml")
    except EdgexnasError as error:
        content.set(**{"energy failed": str(error)})
        return
    window = options.energy_window
    protocol = EnergyProtocol(
        load_s=window, idle_s=options.energy_idle or window, blocks=options.energy_blocks,
        warm_up_s=0.3, lead_s=0.4, settle_s=0.4, period_s=0.05,
    )  # fmt: skip
    # Baseline and optimised network of one engine stand side by side in one measurement.
    for engine in options.engines:
        for precision in options.precisions:
            loads, held = [], []
            for name in options.energy:
                try:
                    bundle = bundle_of(name, options)
                    context = running(name, bundle, engine, precision, session, options)
                    _, launches = context.__enter__()
                except Exception as error:
                    print(f"no energy of {name}, {engine} {precision}: {error}", flush=True)
                    continue
                held.append(context)
                loads.append(Load(name, repeated(session, launches), BATCH * ENERGY_LAUNCHES))
            try:
                if not loads or time.monotonic() + protocol.seconds(len(loads)) > deadline:
                    print(f"no energy of {engine} {precision}: no load or no time", flush=True)
                    continue
                report = measure_energy(loads, meter, protocol)
                for result in report.results:
                    content.add(
                        "energy",
                        energy_row(result, engine, precision, report),
                        same=("network", "engine", "precision"),
                    )
            # One engine's failure must not cost the others' figures.
            except Exception as error:
                print(f"no energy of {engine} {precision}: {error!r}", flush=True)
            finally:
                for context in reversed(held):
                    context.__exit__(None, None, None)


def repeated(session: CudaSession, launches: Callable[[int], None]) -> Callable[[], None]:
    def run() -> None:
        with session.current():
            launches(ENERGY_LAUNCHES)
            session.compute.synchronize()

    return run


def energy_row(result: Any, engine: str, precision: str, report: Any) -> Row:
    """Give the energy of one batch in mJ, from results of `ENERGY_LAUNCHES` batches."""
    return {
        "network": result.name,
        "engine": engine,
        "precision": precision,
        "total mJ": result.total_mj / ENERGY_LAUNCHES,
        "total half width mJ": result.total_half_width_mj / ENERGY_LAUNCHES,
        "above idle mJ": result.marginal_mj / ENERGY_LAUNCHES,
        "above idle half width mJ": result.marginal_half_width_mj / ENERGY_LAUNCHES,
        "batch µs": result.period_ms * 1e3 / ENERGY_LAUNCHES,
        "power W": result.power_w,
        "idle W": result.idle_w,
        "faults": list(report.faults),
        "notes": list(report.notes),
    }


# torch, in an interpreter that has it


def add_torch(
    names: list[str], options: argparse.Namespace, content: Content, deadline: float
) -> None:
    """Run this script in another interpreter and take its rows."""
    left = deadline - time.monotonic()
    partial = options.output.with_suffix(".torch.json")
    partial.unlink(missing_ok=True)
    # Of this interpreter's surroundings the other one may use none.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "LD_LIBRARY_PATH")}
    kept["PYTHONPATH"] = options.torch_path
    command = [
        options.torch_python, __file__, "--bundles", options.bundles, "--cache", options.cache,
        "--output", partial, "--torch-rows", "--networks", *names,
    ]  # fmt: skip
    said = ""
    try:
        done = subprocess.run(
            command, env=kept, timeout=max(left, 1), capture_output=True, text=True
        )
        said = (done.stdout + done.stderr)[-800:]
        print(said, flush=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not partial.exists():
        content.set(**{"torch failed": said})
        return
    found = json.loads(partial.read_text(encoding="utf-8"))
    content.set(torch=found.get("torch", "unknown"))
    for row in found["rows"]:
        content.add("rows", row, same=("network", "engine", "precision"))


def time_torch(options: argparse.Namespace) -> None:
    """Time torch networks of the same names as CUDA graphs on device memory."""
    import torch
    from gpu_bundles import NETWORKS, SHAPES, build_network
    from torch_stand_in import TorchStandIn

    content = Content(options.output)
    with CudaSession() as session:
        content.set(torch=torch.__version__, **{"empty graph µs": empty_graph(session)})
        for name in (name for name in options.networks if name in NETWORKS):
            row: Row = {"network": name, "engine": "torch", "precision": "float16"}
            try:
                shape = SHAPES[NETWORKS[name][0]]
                engine = TorchStandIn(build_network(name), shape, session=session, batch=BATCH)
                source = session.device_buffer((BATCH, *shape), np.float32)
                target = session.device_buffer((BATCH, *engine.output_shape), np.float32)
                run = partial(run_torch, engine, source.pointer, target.pointer)
                with recorded(session, run) as launches:
                    row["device µs"] = latencies(session, launches)
                engine.close()
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"
            content.add("rows", row, same=("network", "engine", "precision"))


def run_torch(engine: Any, source: int, target: int, stream: Any) -> None:
    engine.enqueue(source, target, BATCH, stream)


# Places


def opened(
    name: str,
    bundle: Bundle,
    engine: str,
    precision: Any,
    session: CudaSession,
    options: argparse.Namespace,
) -> Any:
    """Open an engine through the product, its plan from the folder of this network."""
    cache = EngineCache(cache_folder(name, precision, options))
    if engine == "tensorrt" and options.builder_level is not None:
        return tensorrt_opening.open_tensorrt(
            bundle, precision=precision, batch=BATCH, reason="tensorrt was requested",
            cache=cache, session=session, level=options.builder_level,
        )  # fmt: skip
    return open_engine(
        bundle, engine=engine, precision=precision, batch=BATCH, cache=cache, session=session
    )


def bundle_of(name: str, options: argparse.Namespace) -> Bundle:
    trust = options.trust or options.bundles / "keys"
    return open_bundle(options.bundles / f"{name}.edgex", trust=trust)


def cache_folder(name: str, precision: str, options: argparse.Namespace) -> Path:
    # A folder each: a cache has one key, and processes side by side would each make their own.
    folder: Path = options.cache / f"{name}-{precision}"
    return folder


def report_of(name: str, precision: str, options: argparse.Namespace) -> Path:
    path: Path = options.cache / f"{name}-{precision}.json"
    return path


def log_of(name: str, precision: str, options: argparse.Namespace) -> Path:
    path: Path = options.cache / f"{name}-{precision}.log"
    return path


def library_version(name: str | None) -> str:
    if name is None:
        return "none"
    from edgexnas.device.engines.tensorrt_library import import_tensorrt

    library = import_tensorrt()
    return f"{library.__name__} {library.__version__}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=Path, required=True, help="folder of *.edgex files")
    parser.add_argument("--trust", type=Path, help="folder of public keys; BUNDLES/keys if unset")
    parser.add_argument("--cache", type=Path, required=True, help="folder of plans, kept for later")
    parser.add_argument("--output", type=Path, required=True, help="JSON file, extended if there")
    parser.add_argument("--networks", nargs="+", help="stems of bundles; all if unset")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), help="names of open_engine")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=540.0, help="time limit of the whole run")
    parser.add_argument("--jobs", type=int, default=6, help="plans built at once")
    parser.add_argument("--no-builds", action="store_true", help="time the plans that are there")
    parser.add_argument(
        "--one-size", action="store_true", help="build for batch 32 alone, in half of the time"
    )
    parser.add_argument(
        "--builder-level", type=int, help="TensorRT's optimisation level, 0 to 5; lower is quicker"
    )
    parser.add_argument(
        "--energy", nargs="*", default=[], metavar="NETWORK",
        help=f"measure their energy, the baseline first: {' '.join(ENERGY_NETWORKS)}",
    )  # fmt: skip
    parser.add_argument("--energy-window", type=float, default=2.0, help="seconds of each window")
    parser.add_argument("--energy-idle", type=float, help="seconds of idle windows, if others")
    parser.add_argument("--energy-blocks", type=int, default=3, help="windows of each network")
    parser.add_argument("--torch-python", help="interpreter that has torch, for its rows")
    parser.add_argument("--torch-path", default="", help="PYTHONPATH of that interpreter")
    parser.add_argument("--torch-seconds", type=float, default=60.0, help="time kept for torch")
    parser.add_argument("--build", nargs=2, metavar=("NAME", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--torch-rows", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.torch_python:
        options.torch_seconds = 0.0
    if options.one_size:
        tensorrt_opening.ladder = lambda batch: (batch,)  # type: ignore[attr-defined]
    options.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
