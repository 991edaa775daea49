"""Find the peaks on the frames of one detector, with one shape, dtype and mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.peak_finding import (
    Background,
    FinderSettings,
    FoundPeaks,
    PeakFinder,
    estimate_background,
    refuse_nan,
)

__all__ = ["PeakDetection", "naming_frame", "refuse_nan"]

Frame = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class PeakDetection:
    """Peak finding that learns the frames' shape and dtype from the first one.

    Parameters
    ----------
    settings
        What counts as a peak.
    mask
        (H, W) bool, True where a pixel must not be used; it fixes the frames' shape.

    Raises
    ------
    InputError
        If the mask is no (H, W) bool array.
    """

    def __init__(self, settings: FinderSettings, *, mask: npt.ArrayLike | None = None) -> None:
        self.settings = settings
        self.mask = None if mask is None else _checked_mask(mask)
        self.shape = None if self.mask is None else self.mask.shape
        self.dtype: np.dtype[Any] | None = None
        self.saturation: float | None = None
        self._background: Background | None = None
        self._own_finder: PeakFinder | None = None

    def calibrate(self, frames: Iterable[npt.ArrayLike]) -> None:
        """Estimate the background from these frames, for all frames to come.

        Raises
        ------
        InputError
            If there is no frame, or one does not fit those before it.
        """
        admitted = [self.admit(frame) for frame in frames]
        if not admitted:
            raise InputError("there are no frames to calibrate with; give at least one")
        self._background = estimate_background(admitted, mask=self.mask)
        self._own_finder = None

    @property
    def calibrated(self) -> bool:
        """Whether the background is known, and no frame has to show it."""
        return self._background is not None

    def find(self, frame: npt.ArrayLike) -> FoundPeaks:
        """Find the peaks of one frame; the first shows the background, unless calibrated."""
        admitted = self.admit(frame)
        return self.own_finder(admitted).find(admitted)

    def own_finder(self, frame: Frame) -> PeakFinder:
        """Give the finder of `find`; this admitted frame shows the background of the first."""
        if self._own_finder is None:
            self._own_finder = self.finder([frame])
        return self._own_finder

    def finder(
        self,
        frames: Sequence[Frame],
        *,
        mask: Mask | None = None,
        saturation: float | None = None,
    ) -> PeakFinder:
        """Make a finder for one series.

        Parameters
        ----------
        frames
            Frames that show the series' background; unused after `calibrate`.
        mask
            The series' own mask, used beside this detector's.
        saturation
            Counts from which the series says that a pixel is saturated, used instead of those of
            the settings; None for the attribute `saturation`.
        """
        shape = frames[0].shape
        mask = self.masked(mask)
        background = self._background or estimate_background(frames, mask=mask)
        stated = self.saturation if saturation is None else saturation
        # What is said of these frames is nearer than what the bundle was made with.
        settings = self.settings if stated is None else replace(self.settings, saturation=stated)
        return PeakFinder(settings, shape=shape, background=background, mask=mask)

    def masked(self, mask: Mask | None) -> Mask | None:
        """Give the mask of a series beside this detector's own."""
        if mask is None or self.mask is None:
            return self.mask if mask is None else mask
        return mask | self.mask

    def admit(self, frame: npt.ArrayLike) -> Frame:
        """Check a frame against those before it.

        Raises
        ------
        InputError
            If it is no (H, W) array of real numbers, or its shape or dtype is another.
        """
        if np.ma.is_masked(frame):
            raise InputError(
                "the frame is a numpy masked array, whose mask would be lost; give its data, and "
                "the detector's mask as mask="
            )
        array = np.asarray(frame)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "uif":
            raise InputError(
                f"the frame has shape {array.shape} and dtype {array.dtype}; "
                "give (H, W) real numbers, such as uint16"
            )
        if array.shape != (self.shape or array.shape):
            raise InputError(
                f"the frame has shape {array.shape}, this predictor's detector has {self.shape}; "
                "use one predictor for each detector"
            )
        if array.dtype != (self.dtype or array.dtype):
            raise InputError(
                f"the frame has dtype {array.dtype}, the frames before it had {self.dtype}; "
                "give all frames the same dtype"
            )
        self.shape, self.dtype = array.shape, array.dtype
        return array


@contextmanager
def naming_frame(number: int) -> Iterator[None]:
    """Say of which frame of a series it is said what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"frame {number}: {error}") from error


def _checked_mask(mask: npt.ArrayLike) -> Mask:
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype != np.bool_:
        raise InputError(
            f"the mask has shape {array.shape} and dtype {array.dtype}; "
            "give (H, W) bool, True where a pixel must not be used"
        )
    return array.copy()
