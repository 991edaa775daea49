"""A verified bundle and an engine checked on it: what the predictors of both applications share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.bundle import Bundle, Manifest, open_bundle
from edgexnas.detector_mask import checked_mask
from edgexnas.device.engines.engine import Engine
from edgexnas.device.engines.gate import EngineProof, ObjectProof
from edgexnas.device.engines.selection import EngineOptions, PrecisionTrial, select_engine
from edgexnas.device.process_bound import ProcessBound
from edgexnas.device.shared_engine import CacheFolder, SharedEngine
from edgexnas.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from edgexnas.bundle import GatePolicy, Precision, StateOption, TrustStore
    from edgexnas.device.cuda import PinnedMemory

__all__ = ["BundlePath", "BundlePredictor", "PredictorOptions", "Task", "verified_bundle"]

Task = Literal["bragg", "ptycho"]
BundlePath = str | os.PathLike[str] | Bundle
Self = TypeVar("Self", bound="BundlePredictor")


class PredictorOptions(TypedDict, total=False):
    """How a predictor is opened; see `edgexnas.device.Predictor`."""

    trust: str | os.PathLike[str] | TrustStore | None
    state: StateOption
    gates: GatePolicy | None
    engine: str
    precision: Precision | Literal["auto"]
    batch: int
    threads: int | None
    cache: CacheFolder
    mask: npt.ArrayLike | None


class BundlePredictor(ProcessBound):
    """What `PeakPredictor` and `PtychoPredictor` have in common; see `edgexnas.device.Predictor`.

    Parameters
    ----------
    bundle, trust, state, gates, engine, precision, batch, threads, cache, mask
        As of `edgexnas.device.Predictor`.

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
    BundleError, ConfigurationError, EngineError, InputError, MissingDependencyError
        As of `edgexnas.device.Predictor`.
    """

    task: ClassVar[Task]
    """The application that a subclass serves."""

    manifest: Manifest
    bundle_digest: str
    proof: EngineProof | ObjectProof
    precision_trials: tuple[PrecisionTrial, ...]

    def __init__(
        self,
        bundle: BundlePath,
        *,
        trust: str | os.PathLike[str] | TrustStore | None = None,
        state: StateOption = None,
        gates: GatePolicy | None = None,
        engine: str = "auto",
        precision: Precision | Literal["auto"] = "int8",
        batch: int = 32,
        threads: int | None = None,
        cache: CacheFolder = None,
        mask: npt.ArrayLike | None = None,
    ) -> None:
        verified = verified_bundle(bundle, trust, state, gates)
        self.manifest, self.bundle_digest = verified.manifest, verified.digest
        self._probe = verified.probe
        require_task(self.manifest, self.task)
        self._mask = None if mask is None else checked_mask(mask)
        selected = select_engine(
            verified,
            precision=precision,
            options=EngineOptions(engine=engine, batch=batch, threads=threads, cache=cache),
        )
        self._shared = SharedEngine(selected.engine, cache)
        self.proof = selected.proof
        self.precision_trials = selected.trials
        # Only now: one that does not run here must not bar the way back to one that does.
        verified.remember()

    @property
    def engine(self) -> Engine:
        """The engine that runs; its `reason` says why this one."""
        return self._shared.engine

    def frame_buffers(
        self, count: int, shape: tuple[int, int], dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Allocate a frame ring buffer, pinned on a GPU, that acquisition code writes to.

        On a GPU `process` and `stream` read frames of this buffer where they lie; others are
        copied to pinned memory first, which takes longer than all the rest. Without a GPU it is
        ordinary memory, so that the same code runs with and without one.

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
        """Pin memory that is there already, so that a GPU reads frames from it directly.

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
        """Allocate pinned memory; None without a GPU or, which is logged, without such memory."""
        return self._shared.on_gpu(
            "frames are copied before they go to the GPU",
            lambda engine: take(engine.session.pinned),
        )

    def close(self) -> None:
        """Release the engine and the GPU's memory; closing again does nothing."""
        self._shared.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._shared.closed else f"{self.engine.name}, {self.engine.precision}"
        return (
            f"<{type(self).__name__}: {self.manifest.model_id} {self.manifest.sequence}, {state}>"
        )


def require_task(manifest: Manifest, task: Task) -> None:
    """Reject a bundle of another application.

    Raises
    ------
    ConfigurationError
        If it is one.
    """
    if manifest.task != task:
        raise ConfigurationError(
            f"bundle {manifest.model_id} is for {manifest.task}; "
            f"this predictor serves {task} bundles"
        )


def verified_bundle(
    bundle: BundlePath,
    trust: str | os.PathLike[str] | TrustStore | None,
    state: StateOption = None,
    gates: GatePolicy | None = None,
) -> Bundle:
    """Open and verify a bundle, unless it is open already.

    Raises
    ------
    BundleError
        As of `edgexnas.bundle.open_bundle`.
    ConfigurationError
        If `trust` is missing with a path, or it, `state` or `gates` come with an open bundle.
    """
    if isinstance(bundle, Bundle):
        given = {"trust": trust, "state": state, "gates": gates}
        for name, value in given.items():
            if value is not None:
                raise ConfigurationError(
                    f"{name} is given with a bundle that is verified already; give a path, or no "
                    f"{name}"
                )
        return bundle
    keys = Path(trust) if isinstance(trust, (str, os.PathLike)) else trust
    return open_bundle(os.fspath(bundle), trust=keys, state=state, gates=gates)
