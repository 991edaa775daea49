"""The line in which a command says at its end what became of the frames it read."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PeakFlag
from edgexnas.familiarity import UnfamiliarTally
from edgexnas.printing import printable

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks

__all__ = ["PeakTally", "say_at_end"]

_log = logging.getLogger(__name__)


class PeakTally:
    """Counts frames, and peaks by their flags.

    Attributes
    ----------
    frames
        Processed so far.
    numbers
        How many there are from the lowest frame number to the highest.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._peaks = self._flagged = 0
        self._with: Counter[str] = Counter()
        self._range: tuple[int, int] | None = None
        self._familiarity = UnfamiliarTally()

    @property
    def numbers(self) -> int:
        """How many numbers there are from the lowest to the highest."""
        return 0 if self._range is None else self._range[1] - self._range[0] + 1

    def add(
        self,
        flags: npt.NDArray[np.integer],
        *,
        frames: int = 1,
        number: int | None = None,
        reasons: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Count the peaks of one frame with its number, or of several.

        Parameters
        ----------
        flags
            (n,) `PeakFlag`.
        reasons
            (n,), why peaks are unfamiliar; None where nobody knows.
        """
        self._familiarity.add(reasons)
        self.frames += frames
        if number is not None:
            low, high = self._range or (number, number)
            self._range = min(low, number), max(high, number)
        self._peaks += len(flags)
        self._flagged += int(np.count_nonzero(flags))
        for flag in PeakFlag:
            self._with[str(flag.name).lower()] += int(np.count_nonzero(flags & flag))

    def counted(self, stream: Iterator[Peaks]) -> Iterator[Peaks]:
        """Count the peaks of each frame as it passes."""
        for peaks in stream:
            self.add(peaks.flags, number=peaks.frame_number, reasons=peaks.reasons)
            yield peaks

    def say(self, source: object, *, missing: int) -> None:
        """Write the counts; a series without any peak is warned of."""
        which = ", ".join(f"{count} {name}" for name, count in self._with.items() if count)
        # A peak may have several flags, so these need not add up to those that have any.
        flagged = f"{self._flagged} flagged{f' ({which})' if which else ''}"
        say_at_end(
            f"{self.frames} frames processed, {missing} missing; {self._peaks} peaks, {flagged}"
        )
        if self._familiarity.unfamiliar:
            say_at_end(self._familiarity.sentence)
        if self.frames and not self._peaks:
            _log.warning(
                "no peaks on any of %d frames of %s: check that it holds diffraction, as counts "
                "and not normalised to 1, what its mask and saturation leave of it, and from how "
                "many counts a peak counts",
                self.frames,
                printable(str(source)),
            )


def say_at_end(line: str) -> None:
    """Write one line to standard error, where it is in the way of no table."""
    print(line, file=sys.stderr)  # noqa: T201
