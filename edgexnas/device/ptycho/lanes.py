"""The patterns of one scan on their way to patches, in batches: on a GPU, or on the CPU."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.device.ptycho.intake import PatternIntake
from edgexnas.errors import EdgexnasError, EngineError
from edgexnas.ptycho import FloatArray, ObjectPatches

if TYPE_CHECKING:
    from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline
    from edgexnas.device.ptycho.predictor import PtychoPredictor

__all__ = ["PatternRun"]

Pattern = npt.NDArray[Any]
Result = tuple[ObjectPatches, EdgexnasError | None]


class PatternRun:
    """A scan's patterns: taken one by one, submitted together, and their patches in order.

    Where they are worked on is known with the first one, whose dtype there may be no kernels for.

    Parameters
    ----------
    predictor
        Its engine and its lock are used.
    """

    def __init__(self, predictor: PtychoPredictor) -> None:
        self._predictor = predictor
        self._intake = predictor.intake()
        self._way: _Way | None = None

    def begin(self, mask: npt.NDArray[np.bool_] | None) -> PatternRun:
        """Use a scan's own mask beside the predictor's.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        self._intake = self._predictor.intake(mask)
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
            pipeline = self._predictor.open_pipeline(self._intake, array)
            self._way = (
                _OnCpu(self._predictor, self._intake)
                if pipeline is None
                else _OnGpu(self._predictor, self._intake, pipeline)
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

    def __init__(self, predictor: PtychoPredictor, intake: PatternIntake) -> None:
        self._predictor, self._intake = predictor, intake
        self._taken: list[FloatArray] = []
        self._submitted: deque[list[FloatArray]] = deque()

    def take(self, pattern: Pattern, number: int) -> None:
        self._taken.append(self._intake.binned(pattern, number))

    def submit(self) -> None:
        self._submitted.append(self._taken)
        self._taken = []

    def result(self) -> Result:
        return self._predictor.predict_admitted(np.stack(self._submitted.popleft())), None

    def close(self) -> None:
        """Do nothing: there is host memory only."""


class _OnGpu:
    """Patterns are written to the GPU's memory as they come; it does the rest."""

    ahead = 1

    def __init__(
        self, predictor: PtychoPredictor, intake: PatternIntake, pipeline: PatternPipeline
    ) -> None:
        self._predictor, self._intake, self._pipeline = predictor, intake, pipeline
        self._numbers: list[int] = []
        self._submitted: deque[tuple[Pattern, list[int]]] = deque()

    def take(self, pattern: Pattern, number: int) -> None:
        try:
            memory = self._pipeline.next_batch()
        except EngineError:
            # Which says so if the predictor is closed.
            with self._predictor.in_turn():
                raise
        memory[len(self._numbers)] = pattern
        self._numbers.append(number)

    def submit(self) -> None:
        with self._predictor.in_turn():
            self._submitted.append((self._pipeline.next_batch(), self._numbers))
            self._pipeline.submit(len(self._numbers))
        self._numbers = []

    def result(self) -> Result:
        patterns, numbers = self._submitted.popleft()
        with self._predictor.in_turn():
            patches, bad = self._pipeline.result()
        if not bad:
            return patches, None
        first = bad[0]
        before = ObjectPatches(patches.amplitude[:first], patches.phase_rad[:first])
        return before, self._intake.fault(patterns[first], numbers[first])

    def close(self) -> None:
        self._predictor.close_pipeline(self._pipeline)
