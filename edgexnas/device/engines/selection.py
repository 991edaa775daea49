"""Engine selection: one precision, or the faster of those that pass the accuracy gate."""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from edgexnas.device.cache import EngineCache, open_cache
from edgexnas.device.engines.engine import Engine
from edgexnas.device.engines.gate import EngineProof, ObjectProof, prove_engine
from edgexnas.device.engines.opening import (
    checked_counts,
    fallback_reason,
    open_engine,
    resolve_engine,
)
from edgexnas.errors import EngineAccuracyError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision
    from edgexnas.device.cuda import CudaSession

__all__ = ["EngineOptions", "PrecisionTrial", "SelectedEngine", "select_engine"]

CANDIDATES: tuple[Precision, ...] = ("float16", "int8")
"""What precision="auto" tries; float32 where a bundle has neither."""

# With the round that warms up 0.3 s an engine, unless single runs take longer.
ROUNDS, ROUND_SECONDS, MOST_RUNS = 5, 0.05, 200
MEASURED = "measured"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrecisionTrial:
    """What one precision did on this device.

    Attributes
    ----------
    precision
        The bundle's model.
    median_ms, fastest_ms
        Time of one run of a full batch, from host memory to host memory; None if it did not run.
    runs
        Number of runs that were timed.
    refusal
        Why it cannot be used, such as how far it deviates; None if it passes.
    """

    precision: Precision
    median_ms: float | None
    fastest_ms: float | None
    runs: int
    refusal: str | None


@dataclass(frozen=True, slots=True)
class SelectedEngine:
    """An engine, how far it deviates from the reference, and what was tried to choose it.

    Attributes
    ----------
    engine
        The engine, which the receiver closes.
    proof
        How far its outputs lie from the reference outputs, and the gate.
    trials
        What precision="auto" measured; empty for a precision that was requested.
    """

    engine: Engine
    proof: EngineProof | ObjectProof
    trials: tuple[PrecisionTrial, ...] = ()


@dataclass(frozen=True)
class EngineOptions:
    """Engine options; see `open_engine` and `edgexnas.device.Predictor`.

    Attributes
    ----------
    engine, batch, threads, session
        As of `open_engine`.
    cache
        Folder of the engine cache; None for the user's own, False for none.
    """

    engine: str = "auto"
    batch: int = 32
    threads: int | None = None
    cache: str | os.PathLike[str] | Literal[False] | None = None
    session: CudaSession | None = None

    def __post_init__(self) -> None:
        batch, threads = checked_counts(self.batch, self.threads)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "threads", threads)

    @cached_property
    def opened_cache(self) -> EngineCache | None:
        """The cache, opened when something first needs it."""
        return open_cache(self.cache)


def select_engine(
    bundle: Bundle, *, precision: Precision | Literal["auto"], options: EngineOptions
) -> SelectedEngine:
    """Open an engine and check it on the bundle's reference vectors.

    With precision "auto" the float16 and the INT8 model are both opened, checked, and timed in
    turn; the faster that passes is kept. What was measured is cached, and the next start opens
    that model alone.

    Raises
    ------
    ConfigurationError
        If an option is out of range, or the bundle has no model of this precision.
    EngineError
        If the engine cannot be opened (`EngineAccuracyError`: it deviates beyond the gate). With
        engine "auto", onnxruntime takes the place of an engine that fails; that is logged.
    MissingDependencyError
        If the inference library is not installed.
    """
    if precision != "auto":
        return _checked(bundle, precision, options)
    # TensorRT 8.5.3 took 145 µs for BraggNN in INT8 and 79 in float16 (H200, batch 32): only
    # measuring tells which is the faster.
    names = [name for name in CANDIDATES if name in bundle.models] or ["float32"]
    key = _measurement_key(bundle, names, options)
    kept = _kept_choice(bundle, key, options)
    # Measured once a device: timing at each start could choose differently from run to run.
    return kept or _measured_choice(bundle, names, key, options)


def _checked(bundle: Bundle, precision: Precision, options: EngineOptions) -> SelectedEngine:
    """Open and check one precision; onnxruntime steps in only under engine "auto"."""
    engine = _opened(bundle, precision, options, options.engine)
    try:
        return SelectedEngine(engine, prove_engine(engine, bundle))
    except EngineError as error:
        engine.close()
        # What was built once and deviates would deviate at each start, as the cache returns it.
        _discard_plan(engine)
        # onnxruntime itself has no stand-in: its failure is the bundle's.
        if options.engine != "auto" or engine.name == "onnxruntime":
            raise
        reason = fallback_reason(str(error))
        _log.warning("%s", reason)
    except BaseException:
        engine.close()
        raise
    # The CPU is checked as well: what replaces a failed engine must hold the same gate.
    engine = _opened(bundle, precision, options, "onnxruntime")
    engine.reason = reason
    try:
        return SelectedEngine(engine, prove_engine(engine, bundle))
    except BaseException:
        engine.close()
        raise


def _opened(bundle: Bundle, precision: Precision, options: EngineOptions, name: str) -> Engine:
    return open_engine(
        bundle,
        engine=name,
        precision=precision,
        batch=options.batch,
        threads=options.threads,
        # Only TensorRT keeps plans; nothing is made on disk for the others.
        cache=options.opened_cache if _builds_plans(name) else None,
        session=options.session,
    )


def _builds_plans(name: str) -> bool:
    if name not in ("auto", "tensorrt"):
        return False
    from edgexnas.device.engines.tensorrt_library import why_not_runnable

    return why_not_runnable() is None


def _discard_plan(engine: Engine) -> None:
    """Let the next start build again what did not hold the gate."""
    from edgexnas.device.engines.tensorrt_engine import TensorRTEngine

    if isinstance(engine, TensorRTEngine):
        engine.discard_plan()


def _measured_choice(
    bundle: Bundle, names: Sequence[Precision], key: dict[str, object], options: EngineOptions
) -> SelectedEngine:
    """Open all, time them in turn, keep the fastest and write down what each did."""
    passed: dict[Precision, SelectedEngine] = {}
    refusals: dict[Precision, Exception] = {}
    try:
        for name in names:
            try:
                passed[name] = _checked(bundle, name, options)
            except (EngineError, MissingDependencyError) as error:
                refusals[name] = error
        if not passed:
            inaccurate = any(isinstance(error, EngineAccuracyError) for error in refusals.values())
            kind = EngineAccuracyError if inaccurate else EngineError
            said = "; ".join(map(str, refusals.values()))
            raise kind(f"precision='auto' found none that works: {said}")
        times = _times_ms({name: kept.engine for name, kept in passed.items()}, bundle)
        trials = tuple(_trial(name, times.get(name, []), refusals.get(name)) for name in names)
        # The median, because one stall of the host would decide over a mean.
        best = min(times, key=lambda name: statistics.median(times[name]))
    except BaseException:
        for kept in passed.values():
            kept.engine.close()
        raise
    for name, kept in passed.items():
        if name != best:
            kept.engine.close()
    chosen = passed[best].engine
    chosen.reason = f"{chosen.reason}; {_sentence(best, trials)}"
    _log.info("precision='auto': %s", _sentence(best, trials))
    if options.opened_cache is not None:
        described = {"best": best, "trials": [asdict(trial) for trial in trials]}
        # Only now, when all were measured: half a measurement would be believed for good.
        options.opened_cache.store(MEASURED, key, described, b"")
    return SelectedEngine(chosen, passed[best].proof, trials)


def _trial(name: Precision, times: Sequence[float], refusal: Exception | None) -> PrecisionTrial:
    said = None if refusal is None else str(refusal)
    if not times:
        return PrecisionTrial(name, None, None, 0, said)
    median, fastest = statistics.median(times), min(times)
    return PrecisionTrial(name, round(median, 6), round(fastest, 6), len(times), said)


def _times_ms(engines: dict[Precision, Engine], bundle: Bundle) -> dict[Precision, list[float]]:
    """Time full batches, the engines by turns, so that a clock that drifts hits all alike."""
    times: dict[Precision, list[float]] = {name: [] for name in engines}
    for round_number in range(ROUNDS + 1):
        for name, engine in engines.items():
            inputs = np.resize(
                bundle.reference["input"], (engine.batch, *bundle.reference["input"].shape[1:])
            )
            ends = time.perf_counter() + ROUND_SECONDS
            for _ in range(MOST_RUNS):
                started = time.perf_counter()
                engine.run(inputs)
                finished = time.perf_counter()
                # The first round warms up.
                if round_number:
                    times[name].append((finished - started) * 1e3)
                if finished >= ends:
                    break
    return times


def _sentence(best: Precision, trials: Sequence[PrecisionTrial]) -> str:
    said = [
        f"{trial.precision} is rejected ({trial.refusal})"
        if trial.median_ms is None
        else f"{trial.precision} takes {trial.median_ms:.3f} ms a batch"
        for trial in trials
    ]
    return f"{best} was chosen on this device: {', '.join(said)}"


def _kept_choice(
    bundle: Bundle, key: dict[str, object], options: EngineOptions
) -> SelectedEngine | None:
    """Open what an earlier start chose; None if it chose nothing, or that fails today."""
    if options.opened_cache is None:
        return None
    entry = options.opened_cache.load(MEASURED, key)
    if entry is None:
        return None
    try:
        trials = tuple(PrecisionTrial(**trial) for trial in entry[0]["trials"])
        best = cast("Precision", entry[0]["best"])
    except (KeyError, TypeError):
        # Of this device and this bundle, but written by another version of edgexnas.
        _log.warning("discarding precision timings from another version")
        options.opened_cache.discard(MEASURED, key)
        return None
    try:
        checked = _checked(bundle, best, options)
    except EngineError as error:
        _log.warning("the precision chosen earlier fails (%s): both are measured again", error)
        options.opened_cache.discard(MEASURED, key)
        return None
    checked.engine.reason = f"{checked.engine.reason}; {_sentence(best, trials)}, measured earlier"
    return SelectedEngine(checked.engine, checked.proof, trials)


def _measurement_key(
    bundle: Bundle, names: Sequence[Precision], options: EngineOptions
) -> dict[str, object]:
    """Name everything that the choice depends on."""
    name, _, _ = resolve_engine(options.engine)
    return {
        "bundle": bundle.digest,
        "precisions": list(names),
        "batch": options.batch,
        "threads": options.threads,
        "engine": name,
        "requested": options.engine,
        "library": _library_version(name),
        # The cache folder may be on a network disk, or a card that moves to another device.
        "processor": _processor(),
        "GPU": _gpu() if name != "onnxruntime" else None,
    }


def _library_version(name: str) -> str:
    from importlib import import_module

    if name == "tensorrt":
        from edgexnas.device.engines.tensorrt_library import import_tensorrt

        library = import_tensorrt()
        return f"{library.__name__} {library.__version__}"
    try:
        return str(import_module("onnxruntime").__version__)
    except ImportError:
        # Opening the engine says so in full.
        return "none"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    # ARM kernels give no "model name"; there the architecture must do.
    model = next((line.split(":", 1)[1].strip() for line in lines if line[:10] == "model name"), "")
    return f"{model or platform.machine()}, {os.cpu_count()} cores"


def _gpu() -> str:
    from edgexnas.device.cuda import CudaSession

    try:
        with CudaSession() as session:
            return f"{session.name}, {session.capability}, CUDA {session.driver}"
    except (EngineError, MissingDependencyError):
        return "none"
