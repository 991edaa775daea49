"""Engine selection: of engines and precisions, the fastest that passes the accuracy gate."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from edgexnas.device.cache import EngineCache, open_cache
from edgexnas.device.engines.engine import Engine
from edgexnas.device.engines.fused.network import UnsuitableNetworkError
from edgexnas.device.engines.gate import EngineProof, ObjectProof, prove_engine
from edgexnas.device.engines.opening import (
    checked_counts,
    fallback_reason,
    open_engine,
    resolve_engine,
)
from edgexnas.device.power.device_state import device_name
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

Candidate = tuple[str, "Precision"]
"""Names of an engine and of a precision."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrecisionTrial:
    """What one engine did with one precision on this device.

    Attributes
    ----------
    engine
        Name of the engine, such as "fused".
    precision
        The bundle's model.
    median_ms, fastest_ms
        Time of one run of a full batch, from host memory to host memory; None if it did not run.
    runs
        Number of runs that were timed.
    refusal
        Why it cannot be used, such as how far it deviates; None if it passes.
    """

    engine: str
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
        What was measured to choose; empty where there was one choice.
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

    With engine "auto" on a GPU, the fused engine and TensorRT are candidates where they can run;
    with precision "auto", the float16 and the INT8 model. All candidates are opened, checked, and
    timed in turn; the fastest that passes is kept. What was measured is cached, and the next start
    opens that one alone.

    Raises
    ------
    ConfigurationError
        If an option is out of range, or the bundle has no model of this precision.
    EngineError
        If the engine cannot be opened (`EngineAccuracyError`: it deviates beyond the gate). With
        engine "auto", onnxruntime takes the place of engines that fail; that is logged.
    MissingDependencyError
        If the inference library is not installed.
    """
    # TensorRT 8.5.3 took 145 µs for BraggNN in INT8 and 79 in float16 (H200, batch 32): only
    # measuring tells which is the faster.
    both = [name for name in CANDIDATES if name in bundle.models] or ["float32"]
    precisions = both if precision == "auto" else [precision]
    candidates = [(engine, name) for engine in _engines(bundle, options) for name in precisions]
    if len(candidates) == 1:
        return _checked(bundle, *candidates[0], options)
    key = _measurement_key(bundle, candidates, options)
    kept = _kept_choice(bundle, key, options)
    # Measured once a device: timing at each start could choose differently from run to run.
    return kept or _measured_choice(bundle, candidates, key, options)


def _engines(bundle: Bundle, options: EngineOptions) -> list[str]:
    """Names of the engines to compare; "auto" for TensorRT with the CPU in its place."""
    if options.engine != "auto" or bundle.manifest.task != "bragg":
        return [options.engine]
    from edgexnas.device.cuda import why_no_cuda

    if why_no_cuda() is not None:
        return ["auto"]
    from edgexnas.device.engines.tensorrt_library import why_not_runnable

    # Without TensorRT the CPU is no candidate: it only steps in where nothing runs on the GPU.
    return ["fused", "tensorrt"] if why_not_runnable() is None else ["fused"]


def _checked(
    bundle: Bundle,
    name: str,
    precision: Precision,
    options: EngineOptions,
    *,
    alone: bool = False,
) -> SelectedEngine:
    """Open and check one engine; onnxruntime steps in under engine "auto", unless it is `alone`."""
    stands_in = options.engine == "auto" and not alone
    try:
        engine = _opened(bundle, precision, options, name)
    except EngineError as error:
        # "auto" itself has fallen back already.
        if not stands_in or name == "auto":
            raise
        return _on_the_cpu(bundle, precision, options, str(error))
    try:
        return SelectedEngine(engine, prove_engine(engine, bundle))
    except EngineError as error:
        engine.close()
        # What was built once and deviates would deviate at each start, as the cache returns it.
        _discard_built(engine)
        # onnxruntime itself has no stand-in: its failure is the bundle's.
        if not stands_in or engine.name == "onnxruntime":
            raise
        said = str(error)
    except BaseException:
        engine.close()
        raise
    return _on_the_cpu(bundle, precision, options, said)


def _on_the_cpu(
    bundle: Bundle, precision: Precision, options: EngineOptions, obstacle: str
) -> SelectedEngine:
    """Open and check onnxruntime: what replaces a failed engine must hold the same gate."""
    reason = fallback_reason(obstacle)
    _log.warning("%s", reason)
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
        # Nothing is made on disk for engines that build nothing.
        cache=options.opened_cache if _builds(name) else None,
        session=options.session,
    )


def _builds(name: str) -> bool:
    if name == "fused":
        return True
    if name not in ("auto", "tensorrt"):
        return False
    from edgexnas.device.engines.tensorrt_library import why_not_runnable

    return why_not_runnable() is None


def _discard_built(engine: Engine) -> None:
    """Let the next start build again what did not hold the gate."""
    discard = getattr(engine, "discard_built", None)
    if discard is not None:
        discard()


def _measured_choice(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    key: dict[str, object],
    options: EngineOptions,
) -> SelectedEngine:
    """Open all, time them in turn, keep the fastest and write down what each did."""
    passed: dict[Candidate, SelectedEngine] = {}
    refusals: dict[Candidate, Exception] = {}
    try:
        for candidate in candidates:
            name, precision = candidate
            try:
                # One that is named has the other candidates in its place, and the CPU behind all.
                passed[candidate] = _checked(bundle, name, precision, options, alone=name != "auto")
            except UnsuitableNetworkError as error:
                # An engine for some networks only: that this is another one is no failure.
                _log.info("%s", error)
                refusals[candidate] = error
                candidates = [other for other in candidates if other != candidate]
            except (EngineError, MissingDependencyError) as error:
                refusals[candidate] = error
        if not passed:
            return _none_passed(bundle, refusals, options)
        if len(candidates) == 1:
            return passed[candidates[0]]
        times = _times_ms({name: kept.engine for name, kept in passed.items()}, bundle)
        trials = tuple(
            _trial(candidate, times.get(candidate, []), refusals.get(candidate))
            for candidate in candidates
        )
        # The median, because one stall of the host would decide over a mean.
        best = min(times, key=lambda name: statistics.median(times[name]))
    except BaseException:
        for kept in passed.values():
            kept.engine.close()
        raise
    for candidate, kept in passed.items():
        if candidate != best:
            kept.engine.close()
    chosen = passed[best].engine
    chosen.reason = f"{chosen.reason}; {_sentence(best, trials)}"
    _log.info("%s", _sentence(best, trials))
    # A refusal that may pass, as for want of a compiler, is not remembered.
    lasting = (EngineAccuracyError, UnsuitableNetworkError)
    kept_for_good = all(isinstance(error, lasting) for error in refusals.values())
    if options.opened_cache is not None and kept_for_good:
        described = {"best": list(best), "trials": [asdict(trial) for trial in trials]}
        # Only now, when all were measured: half a measurement would be believed for good.
        options.opened_cache.store(MEASURED, key, described, b"")
    return SelectedEngine(chosen, passed[best].proof, trials)


def _none_passed(
    bundle: Bundle,
    refusals: Mapping[Candidate, Exception],
    options: EngineOptions,
) -> SelectedEngine:
    """Let the CPU step in under engine "auto"; else raise what all candidates said."""
    failures = [e for e in refusals.values() if not isinstance(e, UnsuitableNetworkError)]
    said = "; ".join(map(str, failures or refusals.values()))
    names = {name for name, _ in refusals}
    if options.engine == "auto" and names != {"auto"}:
        return _on_the_cpu(bundle, list(refusals)[-1][1], options, said)
    inaccurate = any(isinstance(error, EngineAccuracyError) for error in refusals.values())
    kind = EngineAccuracyError if inaccurate else EngineError
    raise kind(f"precision='auto' found none that works: {said}")


def _trial(
    candidate: Candidate, times: Sequence[float], refusal: Exception | None
) -> PrecisionTrial:
    said = None if refusal is None else str(refusal)
    if not times:
        return PrecisionTrial(*candidate, None, None, 0, said)
    median, fastest = statistics.median(times), min(times)
    return PrecisionTrial(*candidate, round(median, 6), round(fastest, 6), len(times), said)


def _times_ms(engines: dict[Candidate, Engine], bundle: Bundle) -> dict[Candidate, list[float]]:
    """Time full batches, the engines by turns, so that a clock that drifts hits all alike."""
    times: dict[Candidate, list[float]] = {name: [] for name in engines}
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


def _sentence(best: Candidate, trials: Sequence[PrecisionTrial]) -> str:
    several = len({trial.engine for trial in trials}) > 1

    def named(engine: str, precision: str) -> str:
        return f"{engine} in {precision}" if several else precision

    said = [
        f"{named(trial.engine, trial.precision)} is rejected ({trial.refusal})"
        if trial.median_ms is None
        else f"{named(trial.engine, trial.precision)} takes {trial.median_ms:.3f} ms a batch"
        for trial in trials
    ]
    return f"{named(*best)} was chosen on this device: {', '.join(said)}"


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
        name, best = cast("Candidate", entry[0]["best"])
    except (KeyError, TypeError, ValueError):
        # Of this device and this bundle, but written by another version of edgexnas.
        _log.warning("discarding timings from another version")
        options.opened_cache.discard(MEASURED, key)
        return None
    try:
        checked = _checked(bundle, name, best, options, alone=name != "auto")
    except EngineError as error:
        _log.warning("what was chosen earlier fails (%s): all are measured again", error)
        options.opened_cache.discard(MEASURED, key)
        return None
    checked.engine.reason = (
        f"{checked.engine.reason}; {_sentence((name, best), trials)}, measured earlier"
    )
    return SelectedEngine(checked.engine, checked.proof, trials)


def _measurement_key(
    bundle: Bundle, candidates: Sequence[Candidate], options: EngineOptions
) -> dict[str, object]:
    """Name everything that the choice depends on."""
    name, _, _ = resolve_engine(options.engine)
    return {
        "bundle": bundle.digest,
        "candidates": [list(candidate) for candidate in candidates],
        "fused": _fused_parts() if candidates[0][0] == "fused" else None,
        "batch": options.batch,
        "threads": options.threads,
        "engine": name,
        "requested": options.engine,
        "library": _library_version(name),
        # The cache folder may be on a network disk, or a card that moves to another device.
        "processor": f"{device_name(Path('/'))}, {os.cpu_count()} cores",
        "GPU": _gpu() if candidates[0][0] == "fused" or name != "onnxruntime" else None,
    }


def _fused_parts() -> str:
    from edgexnas.device.engines.fused.engine import parts_digest

    return parts_digest()


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


def _gpu() -> str:
    from edgexnas.device.cuda import CudaSession

    try:
        with CudaSession() as session:
            return f"{session.name}, {session.capability}, CUDA {session.driver}"
    except (EngineError, MissingDependencyError):
        return "none"
