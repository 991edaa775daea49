"""An engine that threads share, and what they take of its GPU."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from edgexnas.device.cache import EngineCache, open_cache
from edgexnas.device.engines.engine import Engine
from edgexnas.device.engines.gate import run_in_batches
from edgexnas.device.process_bound import ProcessBound
from edgexnas.errors import ConfigurationError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from edgexnas.device.engines.device_engine import DeviceEngine

__all__ = ["CacheFolder", "SharedEngine"]

CacheFolder = str | os.PathLike[str] | Literal[False] | None
"""Where plans, kernels and measurements are kept; None for the user's own, False for none."""

FloatArray = npt.NDArray[np.float32]
Resource = TypeVar("Resource")

_log = logging.getLogger(__name__)


class Closable(Protocol):
    """Something that holds memory of a GPU."""

    def close(self) -> None:
        """Free it; closing again does nothing."""


ClosableResource = TypeVar("ClosableResource", bound=Closable)


class SharedEngine(ProcessBound):
    """One engine, one thread at a time, and the GPU memory that is to be freed before it.

    Parameters
    ----------
    engine
        Closed by `close`.
    cache
        Where compiled kernels are kept.
    """

    def __init__(self, engine: Engine, cache: CacheFolder = None) -> None:
        self.engine = engine
        self._cache = cache
        # Reentrant, because a predictor holds it around the steps of a lane.
        self._lock = threading.RLock()
        self._resources: list[Closable] = []
        self.closed = False

    @property
    def cache(self) -> EngineCache | None:
        """The cache, opened when a GPU needs it."""
        return open_cache(self._cache)

    @property
    def on_device(self) -> bool:
        """Whether the engine runs on a GPU, where lanes leave all to it."""
        return hasattr(self.engine, "enqueue")

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Keep other threads from the engine and from the GPU for a with-block; blocks may nest.

        Raises
        ------
        EngineError
            If the engine is closed, or was opened before a fork.
        """
        # Before the lock, which a thread that the fork left behind may hold for ever.
        self.require_own_process()
        with self._lock:
            self.require_open()
            yield

    def require_open(self) -> None:
        """Raise `EngineError` if the engine is closed or was opened before a fork."""
        self.require_own_process()
        if self.closed:
            raise EngineError("this predictor is closed; open a new one")

    def run(self, inputs: FloatArray, item_shape: tuple[int, ...]) -> FloatArray:
        """Run any number of items; see `run_in_batches`.

        Raises
        ------
        EngineError
            If the engine is closed or fails.
        """
        with self.in_turn():
            return run_in_batches(self.engine, inputs, item_shape)

    def on_gpu(self, otherwise: str, create: Callable[[DeviceEngine], Resource]) -> Resource | None:
        """Create a GPU resource; log and return None if it is unavailable.

        Parameters
        ----------
        otherwise
            What happens then, for the log.
        create
            Creates it, given the engine.

        Raises
        ------
        EngineError
            If the engine is closed or the GPU failed for good.
        """
        with self.in_turn():
            if not self.on_device:
                return None
            engine = cast("DeviceEngine", self.engine)
            try:
                return create(engine)
            except (EngineError, ConfigurationError, MissingDependencyError) as error:
                if engine.session.lost:
                    raise
                _log.warning("%s, because %s", otherwise, error)
                return None

    def keep_on_gpu(
        self, otherwise: str, create: Callable[[DeviceEngine], ClosableResource]
    ) -> ClosableResource | None:
        """Create a GPU resource as `on_gpu` does, which `close` or `release` closes."""
        with self.in_turn():
            resource = self.on_gpu(otherwise, create)
            if resource is not None:
                self._resources.append(resource)
        return resource

    def release(self, resource: Closable) -> None:
        """Close what `keep_on_gpu` created; releasing it again does nothing."""
        if self.elsewhere:
            return
        with self._lock:
            if resource in self._resources:
                self._resources.remove(resource)
                resource.close()

    def close(self) -> None:
        """Free the GPU's memory and close the engine; closing again does nothing.

        In a forked child it does nothing either: all of it is the parent's.
        """
        if self.elsewhere:
            return
        with self._lock:
            while self._resources:
                self._resources.pop().close()
            self.closed = True
            self.engine.close()
