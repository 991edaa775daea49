"""Open a TensorRT engine for a bundle's model: its plan from the cache, or else built and kept."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines.build_progress import build_progress
from edgexnas.device.engines.device_engine import ladder
from edgexnas.device.engines.tensorrt_engine import PlanUnusableError, TensorRTEngine
from edgexnas.device.engines.tensorrt_layers import PlanLayer
from edgexnas.device.engines.tensorrt_library import Progress, import_tensorrt
from edgexnas.device.engines.tensorrt_plan import Plan, build_options, build_plan

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision
    from edgexnas.device.cache import EngineCache

__all__ = ["open_tensorrt"]

PLAN, TIMINGS, KERNELS = "plan", "timings", "kernels"

DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))

_log = logging.getLogger(__name__)


def open_tensorrt(
    bundle: Bundle,
    *,
    precision: Precision,
    batch: int,
    reason: str,
    cache: EngineCache | None = None,
    session: CudaSession | None = None,
    level: int | None = None,
    progress: Progress | None = None,
) -> TensorRTEngine:
    """Open a TensorRT engine; see `open_engine`.

    Parameters
    ----------
    bundle
        A verified bundle: what TensorRT parses, and what it compiles to, comes from its signer.
    precision, batch, reason
        As of `open_engine`.
    cache
        Where plans and kernel timings are kept; None to build each time.
    session
        The session to run in; None for one that the engine owns.
    level
        As of `build_plan`.
    progress
        As of `build_plan`; None shows it on the terminal, or in the log where there is none.

    Raises
    ------
    EngineError
        If there is no GPU, or TensorRT fails.
    MissingDependencyError
        If TensorRT or pycuda is not installed.
    """
    library = import_tensorrt()
    own = CudaSession() if session is None else session
    engine: TensorRTEngine | None = None
    try:
        # Fixed sizes: a CUDA graph holds one shape, so that a range would serve nothing.
        profiles = [(size, size, size) for size in ladder(batch)]
        place = _place(library, own)
        # A plan is code for one GPU, driver and version; anything else must miss the cache.
        key = _plan_key(bundle, precision, profiles, place, level)
        plan, origin = _cached(cache, key), "from the cache"
        kept = None if plan is None or cache is None else cache.load(KERNELS, key)
        kernels = None if kept is None else kept[1]
        engine = None if plan is None else _started(plan, key, cache, own, precision, kernels)
        if engine is None:
            plan = _built(bundle.models[precision], key, place, cache, progress, level)
            origin = f"built in {plan.seconds:.1f} s"
            engine, kernels = TensorRTEngine(plan, session=own, precision=precision), None
        compiled = engine.compiled_kernels()
        # Compared, so that a start which compiles nothing writes nothing to a disk that wears.
        if cache is not None and compiled is not None and compiled != kernels:
            cache.store(KERNELS, key, {}, compiled)
    except BaseException:
        # What TensorRT holds goes before the context that it belongs to.
        if engine is not None:
            engine.close()
        if session is None:
            own.close()
        raise
    engine.reason = f"{reason}; its plan is {origin}"
    engine.owns_session = session is None
    if cache is not None:
        engine.discard_built = lambda: cache.discard(PLAN, key)
    return engine


def _plan_key(
    bundle: Bundle,
    precision: Precision,
    profiles: list[tuple[int, int, int]],
    place: dict[str, object],
    level: int | None,
) -> dict[str, object]:
    """Everything that a plan depends on."""
    return {
        "bundle": bundle.digest,
        "model": hashlib.sha256(bundle.models[precision]).hexdigest(),
        "precision": precision,
        "profiles": [list(sizes) for sizes in profiles],
        "options": build_options(level),
        **place,
    }


def _place(library: Any, session: CudaSession) -> dict[str, object]:
    """Name what plans and timings of kernels are tied to."""
    return {
        "library": library.__name__,
        "version": str(library.__version__),
        "CUDA": session.driver,
        "driver": _driver_version(),
        "GPU": session.name,
        "compute capability": session.capability,
    }


def _driver_version() -> str:
    for path in DRIVER_FILES:
        try:
            return path.read_text(errors="replace").splitlines()[0]
        except (OSError, IndexError):
            continue
    return "unknown"


def _cached(cache: EngineCache | None, key: dict[str, object]) -> Plan | None:
    if cache is None:
        return None
    entry = cache.load(PLAN, key)
    if entry is not None:
        described, data = entry
        layers = tuple(
            PlanLayer(**{name: _tuples(value) for name, value in layer.items()})
            for layer in described.pop("layers")
        )
        return Plan(data, layers, **{name: _tuples(value) for name, value in described.items()})
    # Minutes of building would be a riddle: say which part of the key has changed.
    for other in cache.others(PLAN, key, same=("bundle", "precision", "profiles")):
        changes = [
            f"{name} {other.get(name)}, here {value}"
            for name, value in key.items()
            if other.get(name) != value
        ]
        _log.warning("the cached plan is for %s: another one is built", "; ".join(changes))
    return None


def _tuples(value: Any) -> Any:
    """Make tuples of JSON's lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _started(
    plan: Plan,
    key: dict[str, object],
    cache: EngineCache | None,
    session: CudaSession,
    precision: Precision,
    kernels: bytes | None,
) -> TensorRTEngine | None:
    """Start a cached plan; one that does not load is removed, to be built again."""
    try:
        return TensorRTEngine(plan, session=session, precision=precision, kernels=kernels)
    except PlanUnusableError as error:
        _log.warning("the cached plan is not usable, because %s: it is built again", error)
        if cache is not None:
            cache.discard(PLAN, key)
        return None


def _built(
    model: bytes,
    key: dict[str, object],
    place: dict[str, object],
    cache: EngineCache | None,
    progress: Progress | None,
    level: int | None,
) -> Plan:
    """Build a plan with the timings of earlier builds, and keep both."""
    timings = None if cache is None else cache.load(TIMINGS, place)
    profiles: Any = key["profiles"]
    with build_progress(f"TensorRT builds the {key['precision']} engine") as shown:
        plan = build_plan(
            model,
            batch_sizes=[tuple(sizes) for sizes in profiles],
            timing_cache=None if timings is None else timings[1],
            level=level,
            progress=progress or shown,
        )
    _log.info("TensorRT built the %s plan in %.1f s", key["precision"], plan.seconds)
    if cache is not None:
        if plan.timing_cache:
            # Not by bundle: the next model on this GPU builds faster by the timings of this one.
            cache.store(TIMINGS, place, {}, plan.timing_cache)
        # Without the bytes, which are the entry's content and have nothing to do in its JSON.
        kept = asdict(replace(plan, data=b"", timing_cache=None))
        del kept["data"], kept["timing_cache"]
        cache.store(PLAN, key, kept, plan.data)
    return plan
