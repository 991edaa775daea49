"""Merge the peaks of successive frames into spots, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PeakFlag
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.merging.rotation import Rotation
from edgexnas.merging.settings import MergeSettings
from edgexnas.spots import SpotFlag, Spots

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks

__all__ = ["SpotMerger", "merge_peaks"]

SMALLEST_SIGMA_PX = 0.01
"""A network may state an interval of no width, which would outweigh all others."""

_NONE = Spots.joined([])


class SpotMerger:
    """Merges the peaks of one reflection on successive frames into one spot.

    Peaks on successive frames belong together if they are within the tolerance; of several the
    nearest pair is linked first. A spot ends on the first frame without a peak of it, at a valley
    of its intensity, or where the rotation jumps. Only open spots are held, which are no more than
    the peaks of one frame.

    ::

        merger = SpotMerger(Rotation(0.0, 0.25))
        for peaks in predictor.stream("scan.h5"):
            spots = merger.add(peaks)          # those that ended with this frame
        spots = merger.finish()                # those that were still open

    Frames without any peak are to be added too. One that is missing is not: it is a gap in the
    numbers. The angle of a spot on one or two frames follows from how many frames spots are on
    (`frames_per_spot`); see `merging_loops`. Equal peaks give equal spots, whenever one asks.

    Parameters
    ----------
    rotation
        Rotation angle of each frame.
    settings
        None for the defaults; its angles are not looked at.
    coverage
        Share of errors that an interval of `Peaks` is to hold: the outermost quantile levels of the
        bundle, 0.05 and 0.95 unless its manifest says otherwise.

    Raises
    ------
    ConfigurationError
        If the coverage is not between 0 and 1.
    """

    def __init__(
        self,
        rotation: Rotation,
        settings: MergeSettings | None = None,
        *,
        coverage: float = 0.9,
    ) -> None:
        from statistics import NormalDist

        from edgexnas.merging import merging_loops

        if not 0 < coverage < 1:
            raise ConfigurationError(f"coverage is {coverage}; specify more than 0 and less than 1")
        self.rotation = rotation
        self.settings = settings or MergeSettings()
        self._loops = merging_loops
        # Of a normal distribution: 90 % lie within 1.645 standard deviations to either side.
        self._widths = 2 * NormalDist().inv_cdf((1 + coverage) / 2)
        self._open = np.zeros((64, merging_loops.OPEN_COLUMNS))
        self._ended = np.empty((64, merging_loops.SPOT_NUMBERS))
        self._count = 0
        self._seen = np.zeros(3)
        self._last: int | None = None
        self._end_deg = 0.0
        self._step_deg = 0.0
        self._turns_deg = 0.0

    @property
    def open_spots(self) -> int:
        """How many spots may still go on."""
        return self._count

    @property
    def last_frame(self) -> int | None:
        """Number of the frame added last; None before the first."""
        return self._last

    @property
    def frames_per_spot(self) -> float:
        """Mean number of frames of the spots that have ended whole, 1.5 before there are any."""
        loops = self._loops
        mean: float = (loops.PRIOR_FRAMES + self._seen[1]) / (loops.PRIOR_SPOTS + self._seen[0])
        return mean

    def add(self, peaks: Peaks) -> Spots:
        """Take in the peaks of the next frame; return the spots that have ended.

        Raises
        ------
        InputError
            If the frame does not follow on the last one, or has no rotation angle; nothing has
            changed then.
        """
        return self.add_arrays(
            peaks.frame_number,
            peaks.positions_px,
            peaks.intervals_px,
            peaks.intensities,
            peaks.flags,
        )

    def add_arrays(
        self,
        frame_number: int,
        positions_px: npt.ArrayLike,
        intervals_px: npt.ArrayLike,
        intensities: npt.ArrayLike,
        flags: npt.ArrayLike,
    ) -> Spots:
        """Take in the peaks of a frame as arrays of the shapes of `Peaks`; as `add` otherwise.

        Raises
        ------
        InputError
            As of `add`, or if a position or an intensity is not finite.
        """
        if self._last is not None and frame_number <= self._last:
            raise InputError(
                f"frame {frame_number} does not follow on frame {self._last}; add frames in the "
                "order of their numbers"
            )
        start, end = self.rotation.of_frame(frame_number)
        positions = np.ascontiguousarray(positions_px, np.float64).reshape(-1, 2)
        counts = np.ascontiguousarray(intensities, np.float64)
        sigmas = np.ascontiguousarray(intervals_px, np.float64).reshape(-1, 2) / self._widths
        # NaN too: a peak without a stated interval is as good as any.
        sigmas = np.where(sigmas > SMALLEST_SIGMA_PX, sigmas, SMALLEST_SIGMA_PX)
        bits = np.ascontiguousarray(flags, np.int64)
        # Its place among the flags of peaks is another one's among those of spots.
        bits = (bits & ~PeakFlag.UNFAMILIAR) | np.where(
            bits & PeakFlag.UNFAMILIAR, SpotFlag.UNFAMILIAR, 0
        )
        if not len(positions) == len(sigmas) == len(counts) == len(bits):
            raise InputError(
                f"frame {frame_number} has {len(positions)} positions, {len(sigmas)} intervals, "
                f"{len(counts)} intensities and {len(bits)} flags; give one for each peak"
            )
        if not (np.isfinite(positions).all() and np.isfinite(counts).all()):
            raise InputError(
                f"frame {frame_number} has a position or an intensity that is not finite; leave "
                "such peaks out"
            )
        parts: list[Spots] = []
        begin = self._follow_rotation(frame_number, start, end, parts)
        self._reserve(self._count + len(positions))
        settings, middle = self.settings, (start + end) / 2 + self._turns_deg
        # Of these types alone: numba compiles anew for each other, which takes seconds.
        self._count, ended = self._loops.merge_frame(
            self._open, self._count, int(frame_number), middle, self._turns_deg,
            abs(end - start), positions, sigmas, counts, bits, begin,
            float(settings.tolerance_px), float(settings.valley), self._seen, self._ended,
        )  # fmt: skip
        self._last, self._end_deg = frame_number, end + self._turns_deg
        self._step_deg = end - start
        parts.append(self._spots(ended))
        return parts[0] if len(parts) == 1 else Spots.joined(parts)

    def finish(self) -> Spots:
        """End the series and return the spots that were open; the next frame begins another."""
        spots = self._close(SpotFlag.CUT)
        self._last, self._turns_deg = None, 0.0
        return spots

    def _follow_rotation(self, number: int, start: float, end: float, parts: list[Spots]) -> int:
        """Compare a frame's start with the end of the last; return the flags of what begins."""
        if self._last is None:
            return SpotFlag.CUT.value
        turns, missing = 0.0, float(number - self._last - 1)
        turned_back = (end - start) * self._step_deg < 0
        if not self.rotation.has_equal_steps:
            # A table may go on at 0 after 360, or at -180 after 180.
            turns = 360.0 * round((self._end_deg - start) / 360)
            on = (start + turns - self._end_deg) / (end - start)
            missing = max(missing, on)
            # Wedges may overlap.
            turned_back = turned_back or on < -0.5
        if missing > self.settings.gap_frames + 0.5 or turned_back:
            parts.append(self._close(SpotFlag.CUT))
            self._turns_deg = 0.0
            return SpotFlag.CUT.value
        self._turns_deg = turns
        return SpotFlag.GAP.value if missing > 0.5 else 0

    def _close(self, flag: SpotFlag) -> Spots:
        count, self._count = self._count, 0
        self._loops.close_all(
            self._open, count, flag.value, abs(self._step_deg), self._seen, self._ended
        )
        return self._spots(count)

    def _reserve(self, spots: int) -> None:
        if spots > len(self._open):
            # Doubled, so that growing costs little however often.
            more = 2 * spots - len(self._open)
            self._open = np.concatenate([self._open, np.zeros((more, self._open.shape[1]))])
            self._ended = np.empty((len(self._open), self._ended.shape[1]))

    def _spots(self, count: int) -> Spots:
        """Take what has ended out of the scratch."""
        if not count:
            # Most frames end none, and live ones come by thousands a second.
            return _NONE
        ended = self._ended[:count]
        return Spots(
            ended[:, 0:2].astype(np.float32),
            ended[:, 3:5].astype(np.float32),
            ended[:, 2].copy(),
            ended[:, 5].astype(np.float32),
            ended[:, 6].astype(np.float32),
            ended[:, 7].astype(np.int32),
            ended[:, 8:10].astype(np.int64),
            ended[:, 10].astype(np.uint16),
        )


def merge_peaks(peaks: Iterable[Peaks], merger: SpotMerger) -> Iterator[Spots]:
    """Merge the peaks of a series, frame by frame, to its end.

    Yields
    ------
    The spots that ended with a frame, where any did.

    Raises
    ------
    InputError
        As of `SpotMerger.add`.
    """
    for frame in peaks:
        spots = merger.add(frame)
        if len(spots):
            yield spots
    spots = merger.finish()
    if len(spots):
        yield spots
