"""The patterns of one scan on their way to patches, in batches: on a GPU, or on the CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.device.ptycho.intake import PatternIntake
from edgexnas.device.ptycho.stitching import MOST_WAITING, ObjectStitcher
from edgexnas.device.shared_engine import SharedEngine
from edgexnas.errors import EdgexnasError, EngineError
from edgexnas.ptycho import (
    PATTERN_SIZE,
    FloatArray,
    ObjectPatches,
    as_patterns,
    decode_patches,
    scale_patterns,
)

if TYPE_CHECKING:
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.ptycho.gpu_phase_components import GpuIslands
    from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline

__all__ = ["PatternLanes", "PatternRun"]

Pattern = npt.NDArray[Any]
Result = tuple[ObjectPatches, EdgexnasError | None]


class PatternLanes:
    """What patterns of one predictor go through: checks, binning, and an engine on CPU or GPU.

    Parameters
    ----------
    engine
        The network.
    intake
        The predictor's own mask and limit of counts.
    intensity_scale
        As of `edgexnas.ptycho.scale_patterns`.
    """

    def __init__(
        self, engine: SharedEngine, *, intake: PatternIntake, intensity_scale: float
    ) -> None:
        self.engine = engine
        self._intake = intake
        self._intensity_scale = intensity_scale

    def predict(self, patterns: npt.ArrayLike) -> ObjectPatches:
        """Check patterns and predict their patches; see `PtychoPredictor.predict`."""
        usable = self._intake.masked(np.asarray(patterns))
        return self.predict_admitted(as_patterns(usable, saturation=self._intake.saturation))

    def intake(self, mask: npt.NDArray[np.bool_] | None = None) -> PatternIntake:
        """Give a check of patterns of its own to a scan, with this mask beside the scan's.

        `admit` on each pattern and then `predict_admitted` is what `stream` does on the CPU, in
        two steps that can run in different threads; on a GPU it is `accept` and `predict_in`.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        return self._intake.beside(mask)

    def predict_admitted(self, patterns: FloatArray) -> ObjectPatches:
        """Predict from patterns that `intake` has admitted: (n, 64, 64) float32.

        Raises
        ------
        EngineError
            If the predictor is closed or the engine fails.
        """
        inputs = scale_patterns(patterns, self._intensity_scale)[:, None]
        return decode_patches(self.engine.run(inputs, (2, PATTERN_SIZE, PATTERN_SIZE)))

    def stitcher(self, most_waiting: int = MOST_WAITING) -> ObjectStitcher:
        """Give an empty object: on the GPU where the engine runs on one, else in host memory.

        Raises
        ------
        ConfigurationError
            If `most_waiting` is no number from 0.
        EngineError
            If the predictor is closed or the GPU failed for good.
        """
        stitcher = ObjectStitcher(most_waiting)

        def take(engine: DeviceEngine) -> GpuIslands:
            # Only predictors on a GPU load what it needs.
            from edgexnas.device.ptycho.gpu_phase_components import GpuIslands

            return GpuIslands(engine.session, most=engine.batch, cache=self.engine.cache)

        islands = self.engine.on_gpu("patches are stitched on the CPU", take)
        if islands is not None:
            stitcher.islands = islands
        return stitcher

    def open_pipeline(
        self, intake: PatternIntake, pattern: npt.NDArray[Any]
    ) -> PatternPipeline | None:
        """Take what a scan's patterns go through on the GPU; `close` gives it back at the latest.

        Parameters
        ----------
        intake
            The scan's, which has accepted its first pattern.
        pattern
            That pattern.

        Returns
        -------
        A pipeline for `predict_in`; None where patterns stay on the CPU: without an engine on a
        GPU, and, with a warning that says why, where no pipeline can be had.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU failed for good.
        """

        def take(engine: DeviceEngine) -> PatternPipeline:
            from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline

            rows, cols = pattern.shape
            return PatternPipeline(
                engine, (rows, cols), pattern.dtype, intensity_scale=self._intensity_scale,
                mask=intake.mask, saturation=intake.saturation, cache=self.engine.cache,
            )  # fmt: skip

        return self.engine.keep_on_gpu("patterns are binned on the CPU", take)

    def predict_in(
        self, pipeline: PatternPipeline, patterns: Sequence[npt.NDArray[Any]]
    ) -> tuple[ObjectPatches, tuple[int, ...]]:
        """Check, bin and predict patterns that `intake` has accepted, all on the GPU.

        Threads take turns.

        Returns
        -------
        As of `PatternPipeline.result`.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU fails.
        """
        with self.engine.in_turn():
            return pipeline.process(patterns)


class PatternRun:
    """A scan's patterns: taken one by one, submitted together, and their patches in order.

    Where they are worked on is known with the first one, whose dtype there may be no kernels for.

    Parameters
    ----------
    lanes
        Of the predictor.
    """

    def __init__(self, lanes: PatternLanes) -> None:
        self._lanes = lanes
        self._intake = lanes.intake()
        self._way: _Way | None = None

    def begin(self, mask: npt.NDArray[np.bool_] | None) -> PatternRun:
        """Use a scan's own mask beside the predictor's.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        self._intake = self._lanes.intake(mask)
        return self

    def __call__(self, pattern: npt.ArrayLike, number: int) -> None:
        """Take in the next pattern of the batch; it may be overwritten afterwards.

        Raises
        ------
        InputError
            If it cannot be used; those before it are unharmed.
        EngineError
            If the predictor is closed or the GPU fails.
        """
        array = self._intake.accept(pattern, number)
        if self._way is None:
            pipeline = self._lanes.open_pipeline(self._intake, array)
            self._way = (
                _OnCpu(self._lanes, self._intake)
                if pipeline is None
                else _OnGpu(self._lanes, self._intake, pipeline)
            )
        self._way.take(array, number)

    @property
    def ahead(self) -> int:
        """How many batches are worth submitting before the oldest one's patches are taken."""
        return 1 if self._way is None else self._way.ahead

    def submit(self) -> None:
        """Start work on the patterns taken since the last call.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU fails.
        """
        assert self._way is not None
        self._way.submit()

    def result(self) -> Result:
        """Give the patches of the oldest batch submitted.

        Returns
        -------
        Patches of the patterns up to the first that cannot be used, and what is wrong with it;
        None if nothing is.

        Raises
        ------
        EngineError
            If the predictor is closed or the engine fails.
        """
        assert self._way is not None
        return self._way.result()

    def close(self) -> None:
        """Give back what was taken of the GPU; closing again does nothing."""
        if self._way is not None:
            self._way.close()


class _Way(Protocol):
    """Where patterns are worked on."""

    ahead: int

    def take(self, pattern: Pattern, number: int) -> None: ...

    def submit(self) -> None: ...

    def result(self) -> Result: ...

    def close(self) -> None: ...


class _OnCpu:
    """Patterns are checked and binned as they come, and predicted when patches are asked for."""

    ahead = 0

    def __init__(self, lanes: PatternLanes, intake: PatternIntake) -> None:
        self._lanes, self._intake = lanes, intake
        self._taken: list[FloatArray] = []
        self._submitted: deque[list[FloatArray]] = deque()

    def take(self, pattern: Pattern, number: int) -> None:
        self._taken.append(self._intake.binned(pattern, number))

    def submit(self) -> None:
        self._submitted.append(self._taken)
        self._taken = []

    def result(self) -> Result:
        return self._lanes.predict_admitted(np.stack(self._submitted.popleft())), None

    def close(self) -> None:
        """Do nothing: there is host memory only."""


class _OnGpu:
    """Patterns are written to the GPU's memory as they come; it does the rest."""

    ahead = 1

    def __init__(
        self, lanes: PatternLanes, intake: PatternIntake, pipeline: PatternPipeline
    ) -> None:
        self._lanes, self._intake, self._pipeline = lanes, intake, pipeline
        self._numbers: list[int] = []
        self._submitted: deque[tuple[Pattern, list[int]]] = deque()

    def take(self, pattern: Pattern, number: int) -> None:
        try:
            memory = self._pipeline.next_batch()
        except EngineError:
            # Which says so if the predictor is closed.
            with self._lanes.engine.in_turn():
                raise
        memory[len(self._numbers)] = pattern
        self._numbers.append(number)

    def submit(self) -> None:
        with self._lanes.engine.in_turn():
            self._submitted.append((self._pipeline.next_batch(), self._numbers))
            self._pipeline.submit(len(self._numbers))
        self._numbers = []

    def result(self) -> Result:
        patterns, numbers = self._submitted.popleft()
        with self._lanes.engine.in_turn():
            patches, bad = self._pipeline.result()
        if not bad:
            return patches, None
        first = bad[0]
        before = ObjectPatches(patches.amplitude[:first], patches.phase_rad[:first])
        return before, self._intake.fault(patterns[first], numbers[first])

    def close(self) -> None:
        self._lanes.engine.release(self._pipeline)
