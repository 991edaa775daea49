"""Refinement of a scan's object after the network, by the physics of its patterns."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, EngineError, InputError, RefinementError
from edgexnas.ptycho import ObjectImage, PatternStore, Refinement, Refiner
from edgexnas.ptycho.refinement import check_sweeps

if TYPE_CHECKING:
    from edgexnas.bundle import Manifest
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.ptycho.gpu_refining import GpuRefiner
    from edgexnas.device.ptycho.intake import PatternIntake
    from edgexnas.device.shared_engine import SharedEngine

__all__ = ["RefinedScan", "ScanRefiner"]

_log = logging.getLogger(__name__)


class ScanRefiner:
    """Refines the objects of scans with the probe of a bundle.

    On the GPU where the engine runs on one, else on the CPU; if the GPU cannot, that is logged.

    Parameters
    ----------
    manifest, probe
        Of the bundle; `probe` is None where it has none.
    sweeps
        Of phase retrieval, from 1.
    engine
        Of the predictor.

    Raises
    ------
    ConfigurationError
        If `sweeps` is out of range or the bundle has no probe.
    EngineError
        If the engine is closed or the GPU failed for good.
    """

    def __init__(
        self,
        manifest: Manifest,
        probe: npt.NDArray[np.complex64] | None,
        sweeps: int,
        engine: SharedEngine,
    ) -> None:
        check_sweeps(sweeps)
        if probe is None or manifest.probe is None:
            raise ConfigurationError(
                f"bundle {manifest.model_id} holds no probe, which refine={sweeps} needs; label "
                "the scan again and export it with edgexnas 0.3.0 or newer, or use refine=0"
            )
        self.sweeps = sweeps
        self.shape = manifest.probe.shape
        self.orientation = manifest.probe.orientation
        self._refiner = Refiner(probe)
        shape, modes = self.shape, len(probe)

        def create(on: DeviceEngine) -> GpuRefiner:
            # Only predictors on a GPU load what it needs.
            from edgexnas.device.ptycho.gpu_refining import GpuRefiner

            return GpuRefiner(on.session, shape, modes, cache=engine.cache)

        # Now, and not at the end of a scan: kernels take a second to compile.
        self._gpu = engine.keep_on_gpu("objects are refined on the CPU", create)
        if self._gpu is not None:
            weakref.finalize(self, engine.release, self._gpu).atexit = False

    def scan(self) -> RefinedScan:
        """Begin to keep the patterns of a scan."""
        return RefinedScan(self)

    def refine(
        self,
        image: ObjectImage,
        store: PatternStore,
        stop: Callable[[], bool] | None = None,
    ) -> Refinement | None:
        """Refine an object; see `Refiner.refine`."""
        if self._gpu is not None:
            try:
                return self._refiner.refine(
                    image, store, self.sweeps, stop=stop, begin=self._gpu.begin
                )
            except EngineError as error:
                # Object and patterns are in host memory.
                _log.warning("the object is refined on the CPU, because %s", error)
        return self._refiner.refine(image, store, self.sweeps, stop=stop)


class RefinedScan:
    """The patterns of one scan on their way to its refinement."""

    def __init__(self, refiner: ScanRefiner) -> None:
        self._refiner = refiner
        self._intake: PatternIntake | None = None
        self._store: PatternStore | None = None
        self._failure: InputError | None = None

    def begin(self, shape: tuple[int, ...], intake: PatternIntake) -> None:
        """Take in the shape of the scan's patterns, and the mask that its check knows."""
        wanted = self._refiner.shape
        # A probe in the axes of the positions: rows and columns are alike, for patterns are square.
        if shape != wanted:
            self._failure = InputError(
                f"patterns have shape {shape} and the probe of the bundle {wanted}; give patterns "
                "as the detector of its training sent them, neither binned nor cut, or use refine=0"
            )
            return
        self._intake = intake
        self._store = PatternStore(wanted, mask=intake.mask, orientation=self._refiner.orientation)

    def keep(self, number: int, pattern: npt.ArrayLike) -> None:
        """Keep a pattern that was checked; once one cannot be kept, `refine` fails."""
        if self._store is None:
            return
        assert self._intake is not None
        array: npt.NDArray[Any] = self._intake.masked(np.asarray(pattern))
        try:
            # On a GPU counts are checked later; the scan then ends with that pattern.
            self._store.add(number, np.maximum(array, 0))
        except InputError as error:
            # The scan goes on, for its stitched object is worth having, and memory is free again.
            self._failure, self._store = error, None

    def place(self, number: int, position: npt.NDArray[np.float64]) -> None:
        """Take in where the patch of a pattern was stitched."""
        # Looked at once: a service keeps patterns in another thread, which may end it.
        store = self._store
        if store is not None:
            store.place(number, position)

    def refine(
        self, image: ObjectImage, *, stop: Callable[[], bool] | None = None
    ) -> Refinement | None:
        """Refine the object that was stitched; None if nothing was, or `stop` said so.

        Raises
        ------
        RefinementError
            If a pattern could not be kept, or patterns or object tell nothing.
        """
        try:
            if self._failure is not None:
                raise self._failure
            if self._store is None or not image.values.size:
                return None
            return self._refiner.refine(image, self._store, stop)
        except InputError as error:
            raise RefinementError(f"the object is stitched and not refined: {error}") from error
