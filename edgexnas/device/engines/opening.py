"""Open the engine that a name stands for on this device."""

from __future__ import annotations

import logging
from numbers import Integral
from typing import TYPE_CHECKING, get_args

from edgexnas.errors import ConfigurationError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession
    from edgexnas.device.engines.engine import Engine
    from edgexnas.device.engines.tensorrt_library import Progress

__all__ = ["ENGINES", "checked_counts", "fallback_reason", "open_engine", "resolve_engine"]

MOST_BATCH, MOST_THREADS = 65536, 1024
"""Memory is allocated for a whole batch: more is a slip of the finger, and no memory holds it."""

ENGINES = ("auto", "fused", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
"""Names that `open_engine` knows."""

_log = logging.getLogger(__name__)


def open_engine(
    bundle: Bundle,
    *,
    engine: str = "auto",
    precision: Precision = "int8",
    batch: int = 32,
    threads: int | None = None,
    cache: EngineCache | None = None,
    session: CudaSession | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Open an engine for one of a bundle's models.

    Parameters
    ----------
    bundle
        A verified bundle.
    engine
        A name of `ENGINES` for that one and no other ("fused", which runs a Bragg network as one
        kernel; "tensorrt"; "onnxruntime" on the CPU, or its CUDA and TensorRT providers), or
        "auto": TensorRT where it can run, else onnxruntime on the CPU. The engine's `reason`, which
        is also logged, says which and why. `select_engine` measures "fused" and "tensorrt" for
        "auto".
    precision
        Which of the bundle's models: "float32", "float16" or "int8".
    batch
        Largest number of items of one run.
    threads
        CPU threads of the engine; None for 1, with which networks this small run best.
    cache
        Where TensorRT plans are kept; None to build at each start.
    session
        CUDA session for "fused" and TensorRT, to share its GPU memory; None for one of the engine's
        own. The engine is then a `DeviceEngine`, unless "auto" falls back.
    progress
        Called with (phase, steps done, steps in all) while TensorRT builds; None shows it on the
        terminal.

    Raises
    ------
    ConfigurationError
        If an option is out of range, or the bundle has no model of this precision.
    EngineError
        If the engine cannot run here or the library rejects the model.
    MissingDependencyError
        If the inference library is not installed.
    """
    _check_engine(engine)
    batch, threads = checked_counts(batch, threads)
    model = _model_of(bundle, precision)
    name, reason, level = resolve_engine(engine)
    _log.log(level, "%s", reason)
    if name == "fused":
        from edgexnas.device.engines.fused.engine import open_fused

        return open_fused(
            bundle, precision=precision, batch=batch, reason=reason, cache=cache, session=session
        )
    if name == "tensorrt":
        # Imported late: an inference library is loaded by the engine that uses it.
        from edgexnas.device.engines.tensorrt_opening import open_tensorrt

        try:
            return open_tensorrt(
                bundle,
                precision=precision,
                batch=batch,
                reason=reason,
                cache=cache,
                session=session,
                progress=progress,
            )
        # Only "auto" may fall back: who names an engine is to learn that it does not run.
        except (EngineError, MissingDependencyError) as error:
            if engine != "auto":
                raise
            reason = fallback_reason(str(error))
            _log.warning("%s", reason)
            name = "onnxruntime"
    from edgexnas.device.engines.onnx_engine import OnnxEngine

    return OnnxEngine(
        model,
        precision=precision,
        batch=batch,
        threads=threads,
        reason=reason,
        provider=name.removeprefix("onnxruntime").removeprefix("-") or "cpu",
    )


def resolve_engine(engine: str) -> tuple[str, str, int]:
    """Say which engine a name stands for here, why, and how loudly to say it in the log.

    Raises
    ------
    EngineError
        If "tensorrt" is requested and cannot run here.
    """
    if engine == "fused":
        return engine, "the whole network runs as one kernel", logging.DEBUG
    if engine not in ("auto", "tensorrt"):
        return engine, f"{engine} was requested", logging.DEBUG
    from edgexnas.device.engines.tensorrt_library import installed_library, why_not_runnable

    obstacle = why_not_runnable()
    if obstacle is None:
        why = "was requested" if engine == "tensorrt" else "can run here"
        return "tensorrt", f"TensorRT {why}", logging.INFO
    if engine == "tensorrt":
        raise EngineError(
            f"engine='tensorrt' cannot run here: {obstacle}; specify engine='onnxruntime'"
        )
    # Where TensorRT is present its user expects it, so its absence from the run is a warning.
    level = logging.WARNING if installed_library() else logging.INFO
    return "onnxruntime", fallback_reason(obstacle), level


def fallback_reason(obstacle: str) -> str:
    """Say why onnxruntime takes the place of TensorRT."""
    return f"onnxruntime runs the model on the CPU, because {obstacle}"


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ConfigurationError(f"unknown engine {engine!r}; specify one of {', '.join(ENGINES)}")


def checked_counts(batch: int, threads: int | None) -> tuple[int, int]:
    """Check how many items and threads a run may have; None for threads is 1.

    Returns
    -------
    Both as Python's own integers, also where numpy's were given.

    Raises
    ------
    ConfigurationError
        If one is no whole number in its range; True and 2.0 are none.
    """
    threads = 1 if threads is None else threads
    for name, value, most in (("batch", batch, MOST_BATCH), ("threads", threads, MOST_THREADS)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not 1 <= value <= most:
            raise ConfigurationError(
                f"{name} is {value!r}; specify a whole number from 1 to {most}"
            )
    return int(batch), int(threads)


def _model_of(bundle: Bundle, precision: Precision) -> bytes:
    from edgexnas.bundle import Precision as Precisions

    known = get_args(Precisions)
    if precision not in known:
        raise ConfigurationError(
            f"unknown precision {precision!r}; specify one of {', '.join(known)}"
        )
    if precision not in bundle.models:
        raise ConfigurationError(
            f"bundle {bundle.manifest.model_id} has no {precision} model; "
            f"specify one of {', '.join(bundle.models)}"
        )
    return bundle.models[precision]
