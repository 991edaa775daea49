"""The predictor: a verified bundle, an engine proven on it, and what the two predict."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from edgexnas.bundle import Bundle, Manifest, open_bundle
from edgexnas.device.engines.engine import Engine
from edgexnas.device.engines.gate import EngineProof, ObjectProof
from edgexnas.device.engines.selection import EngineOptions, PrecisionTrial, open_proven_engine
from edgexnas.errors import (
    ConfigurationError,
    EngineError,
    InputError,
    MissingDependencyError,
)

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks
    from edgexnas.bundle import Precision, TrustStore
    from edgexnas.device.cuda import PinnedMemory
    from edgexnas.device.engines.device_engine import DeviceEngine

__all__ = ["Predictor"]

Task = Literal["bragg", "ptycho"]
Kind = TypeVar("Kind", bound="Predictor")
Taken = TypeVar("Taken")


class Pipeline(Protocol):
    """What frames or patterns go through on a GPU."""

    def close(self) -> None:
        """Free its memory; closing again does nothing."""


_log = logging.getLogger(__name__)


class Predictor:
    """What a verified bundle predicts: Bragg peak positions, or patches of an object.

    `Predictor(...)` opens the predictor of the bundle's application, a `PeakPredictor` or a
    `PtychoPredictor`; open one of these by its own name to accept bundles of one kind only.

    Opening a predictor verifies the bundle's signature, opens an engine, and proves that engine
    on the bundle's reference vectors; a predictor that opened works within the bundle's gate.

    ::

        with Predictor("bragg.edgex", trust="keys/") as predictor:
            for peaks in predictor.stream("scan.h5"):
                print(peaks.frame_number, peaks.positions_px)

    Thread-safe: calls from several threads wait for each other. For throughput open one predictor
    for each thread or process, or raise `threads`.

    Parameters
    ----------
    bundle
        Path of a bundle, or a `Bundle` that `open_bundle` gave, which is not verified again. Open
        it yourself to keep a rollback state.
    trust
        Folder of trusted public keys (or one key file, or a `TrustStore`); needed with a path.
    engine
        "auto", "onnxruntime" or "tensorrt"; see `open_engine`.
    precision
        "int8", "float16" or "float32": which of the bundle's models runs. "auto" opens float16 and
        INT8, measures both on this device, and keeps the faster that passes the gate; the next
        start remembers.
    batch
        Largest number of patches or patterns of one run of the engine.
    threads
        CPU threads of the engine; None for 1.
    cache
        Folder where TensorRT plans and measurements are kept, for this user alone; None for
        `$EDGEXNAS_CACHE` or the user's cache folder, False for none.
    mask
        (H, W) bool, True where a pixel of the detector must not be used (dead, hot, in a gap).

    Attributes
    ----------
    manifest
        The bundle's manifest.
    bundle_digest
        SHA-256 of the bundle's file, hexadecimal, by which results name what made them.
    engine
        The engine that runs; its `reason` says why this one.
    proof
        How far the engine's outputs lie from the reference outputs, and the gate.
    precision_trials
        What precision="auto" measured of each precision; empty otherwise.

    Raises
    ------
    BundleError
        If the bundle is malformed (`SignatureError`, `TrustError`: not signed, or by a stranger).
    ConfigurationError
        If an option is out of range, or the bundle lacks the precision or is for another task.
    EngineError
        If the engine cannot be opened (`EngineAccuracyError`: it strays beyond the gate).
    InputError
        If the mask is no (H, W) bool array.
    MissingDependencyError
        If the inference library is not installed.
    """

    task: ClassVar[Task]
    """The application that a subclass serves."""

    manifest: Manifest
    bundle_digest: str
    engine: Engine
    proof: EngineProof | ObjectProof
    precision_trials: tuple[PrecisionTrial, ...]

    def __new__(
        cls: type[Kind],
        bundle: str | os.PathLike[str] | Bundle,
        *,
        trust: str | os.PathLike[str] | TrustStore | None = None,
        **options: Any,
    ) -> Kind:
        """Choose the class by the bundle's task, once the bundle is verified."""
        verified = _verified(bundle, trust)
        manifest = verified.manifest
        kind = _predictor_of(manifest.task) if cls is Predictor else cls
        if manifest.task != kind.task:
            raise ConfigurationError(
                f"bundle {manifest.model_id} is for {manifest.task}; "
                f"this predictor serves {kind.task} bundles"
            )
        predictor = cast(Kind, super().__new__(kind))
        predictor._verified = verified
        return predictor

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        trust: str | os.PathLike[str] | TrustStore | None = None,
        engine: str = "auto",
        precision: Precision | Literal["auto"] = "int8",
        batch: int = 32,
        threads: int | None = None,
        cache: str | os.PathLike[str] | Literal[False] | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> None:
        verified = self._verified
        # The engine has its own copy of the model; the bundle's need not stay in memory.
        del self._verified
        self.manifest, self.bundle_digest = verified.manifest, verified.digest
        self._lock = threading.RLock()
        self._cache = cache
        self._pipelines: list[Pipeline] = []
        self._closed = False
        proven = open_proven_engine(
            verified,
            precision=precision,
            options=EngineOptions(engine=engine, batch=batch, threads=threads, cache=cache),
        )
        self.engine, self.proof = proven.engine, proven.proof
        self.precision_trials = proven.trials

    _verified: Bundle

    def predict(self, items: npt.ArrayLike, /) -> Any:
        """Predict from patches or patterns: `PeakPositions` or `ObjectPatches`.

        See `PeakPredictor.predict` and `PtychoPredictor.predict`.
        """
        raise NotImplementedError

    def process(self, frame: npt.ArrayLike, *, frame_number: int | None = None) -> Peaks:
        """Find the peaks of one detector frame; see `PeakPredictor.process`."""
        raise self._other_task("process")

    def stream(self, source: Any, /) -> Iterator[Any]:
        """Predict from a series of frames or a scan: `Peaks` or `PlacedPatches`, in order.

        See `PeakPredictor.stream` and `PtychoPredictor.stream`.
        """
        raise NotImplementedError

    def calibrate_background(self, frames: Iterable[npt.ArrayLike]) -> None:
        """Estimate the frames' background; see `PeakPredictor.calibrate_background`."""
        raise self._other_task("calibrate_background")

    def frame_buffers(
        self, count: int, shape: tuple[int, int], dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Take memory for frames that acquisition code writes, such as the ring of a frame grabber.

        Where the engine runs on a GPU the memory is pinned, and `process` and `stream` take frames
        that lie in it from there: others are copied first, which takes longer than all the rest.
        Elsewhere it is ordinary memory, so that the same code runs with and without a GPU.

        ::

            ring = predictor.frame_buffers(8, (2048, 2048), np.uint16)
            for number in itertools.count():
                grab_into(ring[number % 8])
                peaks = predictor.process(ring[number % 8])

        A frame may be written again as soon as its result is there. The memory is freed when
        nobody refers to it or to a part of it, also after the predictor.

        Parameters
        ----------
        count
            How many frames.
        shape
            (H, W) of a frame.
        dtype
            Of the pixels, integer or float.

        Returns
        -------
        (count, H, W), zeroed and C-contiguous. Ordinary memory, with a warning that says why, also
        where the host has no memory left to pin.

        Raises
        ------
        InputError
            If a size is not positive, or the dtype is no integer or float.
        EngineError
            If the predictor is closed or the GPU failed for good.
        """
        kind, sizes = np.dtype(dtype), (count, *shape)
        if min(sizes) < 1 or kind.kind not in "uif":
            raise InputError(
                f"there are no {count} frames of shape {tuple(shape)} and dtype {kind}; give "
                "sizes from 1 and an integer or float dtype"
            )
        pinned = self._pinned(lambda memory: memory.array(sizes, kind))
        return np.zeros(sizes, kind) if pinned is None else pinned

    def pin_frames(self, frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Let a GPU read frames from memory that is there already, as those of `frame_buffers`.

        ::

            ring = predictor.pin_frames(np.frombuffer(grabber.memory, np.uint16).reshape(8, H, W))

        Parameters
        ----------
        frames
            (count, H, W), C-contiguous, integer or float; kept as long as the result.

        Returns
        -------
        The same memory. It stays pinned until nobody refers to the result or to a part of it, also
        after the predictor. Where no engine runs on a GPU, or, with a warning that says why, where
        the memory cannot be pinned, it is as it was.

        Raises
        ------
        InputError
            If the array is not C-contiguous, empty, or of another dtype.
        EngineError
            If the predictor is closed or the GPU failed for good.
        """
        if not (frames.size and frames.flags.c_contiguous and frames.dtype.kind in "uif"):
            raise InputError(
                f"frames of shape {frames.shape}, strides {frames.strides} and dtype "
                f"{frames.dtype} cannot be pinned; give C-contiguous integers or floats"
            )
        pinned = self._pinned(lambda memory: memory.pin(frames))
        return frames if pinned is None else pinned

    def _pinned(self, take: Callable[[PinnedMemory], npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
        """Take pinned memory; None where there is no GPU, or, with a warning, no such memory."""
        return self._opened_on_gpu(
            "frames are copied before they go to the GPU",
            lambda engine: take(engine.session.pinned),
        )

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Keep other threads from the engine and from the GPU for a with-block; blocks may nest.

        Raises
        ------
        EngineError
            If the predictor is closed.
        """
        with self._lock:
            self._refuse_closed()
            yield

    def close_pipeline(self, pipeline: Pipeline) -> None:
        """Give the GPU's memory of a pipeline back; closing again does nothing."""
        with self._lock:
            if pipeline in self._pipelines:
                self._pipelines.remove(pipeline)
                pipeline.close()

    def _opened_on_gpu(self, otherwise: str, take: Callable[[DeviceEngine], Taken]) -> Taken | None:
        """Take something of the engine's GPU; None if it has none, or, with a warning, not this.

        Parameters
        ----------
        otherwise
            What happens then, for the warning.
        take
            What takes it, given the engine.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU failed for good.
        """
        with self.in_turn():
            if not hasattr(self.engine, "enqueue"):
                return None
            engine = cast("DeviceEngine", self.engine)
            try:
                return take(engine)
            except (EngineError, ConfigurationError, MissingDependencyError) as error:
                if engine.session.lost:
                    raise
                _log.warning("%s, because %s", otherwise, error)
                return None

    def close(self) -> None:
        """Release the engine and the GPU's memory; closing again does nothing."""
        with self._lock:
            while self._pipelines:
                self._pipelines.pop().close()
            self._closed = True
            self.engine.close()

    def __enter__(self: Kind) -> Kind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.engine.name}, {self.engine.precision}"
        return (
            f"<{type(self).__name__}: {self.manifest.model_id} {self.manifest.sequence}, {state}>"
        )

    def _other_task(self, method: str) -> ConfigurationError:
        return ConfigurationError(
            f"bundle {self.manifest.model_id} is for {self.task}, and {method} is for frames of "
            "Bragg peaks; use predict or stream"
        )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineError("this predictor is closed; open a new one")


def _predictor_of(task: Task) -> type[Predictor]:
    # Imported late, because both modules need this one; and only what is used is loaded.
    if task == "bragg":
        from edgexnas.device.bragg.predictor import PeakPredictor

        return PeakPredictor
    from edgexnas.device.ptycho.predictor import PtychoPredictor

    return PtychoPredictor


def _verified(
    bundle: str | os.PathLike[str] | Bundle,
    trust: str | os.PathLike[str] | TrustStore | None,
) -> Bundle:
    if isinstance(bundle, Bundle):
        if trust is not None:
            raise ConfigurationError(
                "trust is given with a bundle that is verified already; give a path, or no trust"
            )
        return bundle
    if trust is None:
        raise ConfigurationError(
            f"trust is missing for {os.fspath(bundle)}; give the folder of trusted public keys"
        )
    keys = Path(trust) if isinstance(trust, (str, os.PathLike)) else trust
    return open_bundle(Path(bundle), trust=keys)
