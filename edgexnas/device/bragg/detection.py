"""What the frames of one detector have in common: shape, dtype, mask and background."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.detector_mask import Mask, merged_masks
from edgexnas.errors import InputError
from edgexnas.peak_finding import (
    Background,
    FinderSettings,
    PeakFinder,
    estimate_background,
    refuse_nan,
)

__all__ = ["PeakDetection", "naming_frame", "refuse_nan"]

Frame = npt.NDArray[Any]


class PeakDetection:
    """Makes the finders of a detector, and learns shape and dtype from its first frame.

    Parameters
    ----------
    settings
        What counts as a peak.
    mask
        (H, W) bool, True where a pixel must not be used; it fixes the frames' shape.

    Attributes
    ----------
    background
        Of all frames to come; None if each series shows its own.
    """

    def __init__(self, settings: FinderSettings, *, mask: Mask | None = None) -> None:
        self.settings = settings
        self.mask = mask
        self.shape = None if mask is None else mask.shape
        self.dtype: np.dtype[Any] | None = None
        self.saturation: float | None = None
        self.background: Background | None = None

    def calibrate(self, frames: Iterable[npt.ArrayLike]) -> None:
        """Estimate the background from these frames, for all frames to come.

        Raises
        ------
        InputError
            If there is no frame, or one does not fit those before it.
        """
        with self.undone_if_refused():
            admitted = [self.admit(frame) for frame in frames]
            if not admitted:
                raise InputError("there are no frames to calibrate with; give at least one")
            self.background = estimate_background(admitted, mask=self.mask)

    @property
    def calibrated(self) -> bool:
        """Whether the background is known, and no frame has to show it."""
        return self.background is not None

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
        mask = merged_masks(self.mask, mask)
        # With the series' mask: pixels in gaps would lower the noise that is measured.
        background = self.background or estimate_background(frames, mask=mask)
        stated = self.saturation if saturation is None else saturation
        # What is said of these frames is nearer than what the bundle was made with.
        settings = self.settings if stated is None else replace(self.settings, saturation=stated)
        return PeakFinder(settings, shape=frames[0].shape, background=background, mask=mask)

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
                "expected (H, W) real numbers, such as uint16"
            )
        if array.shape != (self.shape or array.shape):
            raise InputError(
                f"the frame has shape {array.shape}, this predictor's detector has {self.shape}; "
                "use one predictor for each detector"
            )
        if array.dtype != (self.dtype or array.dtype):
            raise InputError(
                f"the frame has dtype {array.dtype}, the frames before it had {self.dtype}; "
                "use frames of one dtype"
            )
        self.shape, self.dtype = array.shape, array.dtype
        return array

    @contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """Forget the shape and dtype learned in this with-block if a frame is refused in it."""
        before = self.shape, self.dtype
        try:
            yield
        except InputError:
            self.shape, self.dtype = before
            raise


@contextmanager
def naming_frame(number: int) -> Iterator[None]:
    """Name the frame of a series in what is said of it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"frame {number}: {error}") from error
