"""Stitch patches into an object image that grows while a scan runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgexnas.device.ptycho.phase_components import (
    Extent,
    HostComponents,
    PhaseComponents,
    Position,
)
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import FloatArray, ObjectImage

__all__ = [
    "LONGEST_SIDE",
    "MOST_PIXELS",
    "MOST_WAITING",
    "ObjectStitcher",
    "StitchCounts",
    "plausible",
]

MOST_PIXELS = 2**26
"""Largest object, in pixels (8192²); positions that would need more are not plausible."""

LONGEST_SIDE = 2**15
"""Longest side of an object in pixels."""

MOST_WAITING = 1024
"""Patches that wait for their position, 32 kB each, before the oldest is given up."""


def plausible(height: float, width: float) -> bool:
    """Tell whether an object of this size is within `LONGEST_SIDE` and `MOST_PIXELS`."""
    return max(height, width) <= LONGEST_SIDE and height * width <= MOST_PIXELS


@dataclass(frozen=True, slots=True)
class StitchCounts:
    """What became of the patches of a scan; all but `unused_positions` add up to `patches`.

    Attributes
    ----------
    patches
        Patches so far.
    stitched
        In the object image.
    waiting
        Without a position so far, kept until it comes.
    missing
        Given up: their position did not come, or too many others waited behind them.
    repeated
        Not stitched, because the position is exactly that of the patch stitched before: an encoder
        that stood still, or whose reading is stale.
    outside
        Not stitched, because the position is infinite or would make the object larger than
        `MOST_PIXELS`.
    unused_positions
        Position readings that met no waiting patch.
    """

    patches: int = 0
    stitched: int = 0
    waiting: int = 0
    missing: int = 0
    repeated: int = 0
    outside: int = 0
    unused_positions: int = 0


@dataclass(slots=True)
class ObjectStitcher:
    """Puts patches at their positions, in the order in which patch and position have both come.

    A patch whose position is unknown waits, at most `most_waiting` of them; so do positions that
    come before their patch. What the image looks like depends on the order of patches and
    positions alone, not on how they were batched.

    Attributes
    ----------
    most_waiting
        Most patches that wait for a position, and most positions that wait for a patch.
    components
        Where they are stitched; in host memory unless others are given.
    on_stitched
        Called with the number and the position of each patch once it is stitched; None for nothing.
    """

    most_waiting: int = MOST_WAITING
    components: PhaseComponents[Any] = field(default_factory=HostComponents)
    on_stitched: Callable[[int, Position], None] | None = None
    _used: Extent | None = None
    _waiting: dict[int, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    _early: dict[int, Position] = field(default_factory=dict)
    _previous: tuple[float, float] | None = None
    _tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if type(self.most_waiting) is not int or self.most_waiting < 0:
            raise ConfigurationError(
                f"most_waiting is {self.most_waiting!r}; specify a whole number from 0"
            )

    def add(
        self, number: int, amplitude: FloatArray, phase_rad: FloatArray, position: Position
    ) -> Position:
        """Take in the next patch of the scan.

        Parameters
        ----------
        number
            Number of the pattern in its scan.
        amplitude, phase_rad
            (64, 64) float32; they may be overwritten afterwards.
        position
            (row, col) of its first pixel in object pixels; NaN if unknown so far.

        Returns
        -------
        The position, from an early reading where it came before the patch; else as given.

        Raises
        ------
        EngineError
            If it is stitched on a GPU, which fails.
        """
        self._tally["patches"] += 1
        # Popped even if the patch has a position of its own, or the reading would stay for ever.
        early = self._early.pop(number, None)
        if _unknown(position):
            if early is None:
                self._wait(number, amplitude, phase_rad)
                return position
            position = early
        elif early is not None:
            self._tally["unused_positions"] += 1
        self._stitch(number, amplitude, phase_rad, position)
        return position

    def place(self, number: int, position: Position) -> None:
        """Take in the position of a pattern, whether its patch has come or is still to come."""
        if number in self._waiting and not _unknown(position):
            self._stitch(number, *self._waiting.pop(number), position)
        elif number < self._tally["patches"] or number in self._early or _unknown(position):
            self._tally["unused_positions"] += 1
        else:
            self._early[number] = position
            if len(self._early) > self.most_waiting:
                # By number: the lowest is the least likely to be met by its patch still.
                del self._early[min(self._early)]
                self._tally["unused_positions"] += 1

    def finish(self) -> None:
        """Return up what still waits, at the end of a scan, and leave the GPU if on one.

        Raises
        ------
        EngineError
            If the GPU fails.
        """
        self._tally["missing"] += len(self._waiting)
        self._tally["unused_positions"] += len(self._early)
        self._waiting.clear()
        self._early.clear()
        self.leave_gpu()

    def leave_gpu(self) -> None:
        """Go on in host memory with what is stitched, if it is on a GPU.

        Raises
        ------
        EngineError
            If the GPU fails; there is not an image then.
        """
        self.components = self.components.to_host()

    def close(self) -> None:
        """Free what is on a GPU, with no image of it; closing again does nothing."""
        self.components.close()

    @property
    def counts(self) -> StitchCounts:
        """What became of the patches so far."""
        return StitchCounts(waiting=len(self._waiting), **self._tally)

    def image(self) -> ObjectImage:
        """Return the object as it stands now, cut to what the patches cover.

        Before the first patch is stitched the image has shape (0, 0).

        Raises
        ------
        EngineError
            If it is on a GPU that fails or is closed.
        """
        # Those that wait are not counted: they may still come.
        skipped = sum(self._tally[state] for state in ("missing", "repeated", "outside"))
        if self._used is None:
            empty = np.zeros((0, 0))
            return ObjectImage(empty.astype(np.complex64), empty.astype(np.float32), skipped)
        return self.components.image(self._used, skipped)

    def _wait(self, number: int, amplitude: FloatArray, phase_rad: FloatArray) -> None:
        # Copies, because views would keep a whole batch in memory.
        self._waiting[number] = amplitude.copy(), phase_rad.copy()
        if len(self._waiting) > self.most_waiting:
            # Dicts keep the order of insertion: the first is the one that waits the longest.
            del self._waiting[next(iter(self._waiting))]
            self._tally["missing"] += 1

    def _stitch(
        self, number: int, amplitude: FloatArray, phase_rad: FloatArray, position: Position
    ) -> None:
        # As numbers of Python: for two of them numpy takes many times longer.
        row, col = position.tolist()
        if (row, col) == self._previous:
            self._tally["repeated"] += 1
            return
        # Compared before the conversion to integers, which infinity and 1e300 do not survive.
        if not (abs(row) < 2.0**53 and abs(col) < 2.0**53):
            self._tally["outside"] += 1
            return
        extent = Extent.of(row, col)
        used = extent if self._used is None else self._used.joined(extent)
        # With what is stitched so far: one wild position would take gigabytes of canvas.
        if not plausible(*used.shape):
            self._tally["outside"] += 1
            return
        self.components.add(amplitude, phase_rad, position, extent)
        self._used = used
        self._previous = row, col
        self._tally["stitched"] += 1
        if self.on_stitched is not None:
            self.on_stitched(number, position)


def _unknown(position: Position) -> bool:
    row, col = position.tolist()
    return math.isnan(row) or math.isnan(col)
