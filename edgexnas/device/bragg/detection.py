"""What the frames of one detector have in common: shape, dtype, mask and background."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bundle.deployment import PeakDetection as BundleDetection
from edgexnas.detector_mask import Mask, merged_masks
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.peak_finding import (
    Background,
    DetectionOptions,
    FinderReport,
    FinderSettings,
    PeakFinder,
    estimate_background,
    refuse_nan,
)

if TYPE_CHECKING:
    from edgexnas.bundle import Manifest

__all__ = ["PeakDetection", "bundle_detection", "naming_frame", "refuse_nan"]

Frame = npt.NDArray[Any]


class PeakDetection:
    """Makes the finders of a detector, and learns shape and dtype from its first frame.

    Parameters
    ----------
    settings
        What counts as a peak where neither options nor the detector say otherwise.
    options
        What the user sets.
    mask
        (H, W) bool, True where a pixel must not be used; it fixes the frames' shape.

    Attributes
    ----------
    background
        Of all frames to come; None if each series shows its own.
    saturation
        Counts from which the detector says that a pixel is saturated; None if it does not.
    used
        By which limits the newest finder finds peaks; None before the first.
    """

    def __init__(
        self,
        settings: FinderSettings,
        options: DetectionOptions | None = None,
        *,
        mask: Mask | None = None,
    ) -> None:
        self.settings = settings
        self.options = options or DetectionOptions()
        self.mask = mask
        self.shape = None if mask is None else mask.shape
        self.dtype: np.dtype[Any] | None = None
        self.saturation: float | None = None
        self.used: FinderReport | None = None
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
            self.background = estimate_background(
                admitted, mask=self.mask, find_hot=self.options.finds_hot
            )

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
            Counts from which the series says that a pixel is saturated; None for the attribute
            `saturation`. The user's goes before it, that of the settings comes after it.
        """
        mask = merged_masks(self.mask, mask)
        # With the series' mask: pixels in gaps would lower the noise that is measured.
        background = self.background or estimate_background(
            frames, mask=mask, find_hot=self.options.finds_hot
        )
        settings, origin = self.options.applied_to(
            self.settings,
            detector_saturation=self.saturation if saturation is None else saturation,
        )
        finder = PeakFinder(
            settings,
            shape=frames[0].shape,
            background=background,
            mask=mask,
            saturation_from=origin,
        )
        self.used = finder.used(frames[0].dtype)
        return finder

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


def bundle_detection(
    manifest: Manifest, options: DetectionOptions, *, masked: bool
) -> tuple[FinderSettings, DetectionOptions]:
    """Give the defaults of a bundle for Bragg peaks, and the options beside them.

    A manifest without a record of detection, as of schema 1, holds the least counts of the
    detector that the network was trained with. They are no default: thresholds follow the noise.

    Parameters
    ----------
    manifest
        Of a bundle for Bragg peaks.
    options
        What the user sets.
    masked
        Whether the user gives a mask.

    Raises
    ------
    ConfigurationError
        If an option is given, or a mask, that the bundle does not let users set.
    """
    assert manifest.preprocessing.kind == "bragg"
    finder, said = manifest.preprocessing.finder, manifest.detection or BundleDetection()
    given = {
        "mask": masked or None,
        "saturation": options.saturation,
        "minimum_counts": options.minimum_counts,
        "threshold": options.threshold,
    }
    for name, value in given.items():
        if value is not None and not {name, f"{name}_sigma"} & set(said.adaptable):
            raise ConfigurationError(
                f"{name} is given, and bundle {manifest.model_id} does not let it be set; leave "
                "it out, or export the bundle with it among `adaptable`"
            )
    defaults = replace(
        finder,
        minimum_counts=said.minimum_counts,
        noise_sigmas=finder.noise_sigmas if said.threshold_sigma is None else said.threshold_sigma,
        saturation=finder.saturation if said.saturation is None else said.saturation,
    )
    if options.mask_hot is None:
        options = replace(options, mask_hot=said.mask_isolated_pixels)
    return defaults, options


@contextmanager
def naming_frame(number: int) -> Iterator[None]:
    """Name the frame of a series in what is said of it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"frame {number}: {error}") from error
