"""The compiled twin of the reference: the same peaks, in one pass over the frame."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE, IntArray
from edgexnas.peak_finding import compiled_loops
from edgexnas.peak_finding.background import Background
from edgexnas.peak_finding.reference_finder import CutPatches
from edgexnas.peak_finding.settings import PLATEAU_RIM, FinderSettings

__all__ = ["COMPILED_DTYPES", "CompiledFinder"]

BoolArray = npt.NDArray[np.bool_]
Frame = npt.NDArray[Any]

_log = logging.getLogger(__name__)

COMPILED_DTYPES: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.uint8): np.dtype(np.uint16),
    np.dtype(np.int16): np.dtype(np.int32),
    **{np.dtype(kind): np.dtype(kind) for kind in (np.uint16, np.uint32, np.int32, np.float32)},
}
"""The dtypes of frames, and the one that the code is compiled for; narrow ones are widened."""


class CompiledFinder:
    """Find and cut the peaks of frames of one shape and dtype; see `PeakFinder` for the rules.

    Parameters
    ----------
    settings
        What counts as a peak.
    threshold
        (H, W), what a pixel must exceed, of the dtype that the code is compiled for; masked pixels
        never exceed it.
    background, mask
        As of `PeakFinder`.
    saturation
        Counts from which a pixel is saturated.
    """

    def __init__(
        self,
        settings: FinderSettings,
        threshold: Frame,
        *,
        background: Background | None,
        mask: BoolArray | None,
        saturation: float,
    ) -> None:
        if not compiled_loops.find_peaks.signatures:
            _log.info("the peak finder is compiled, which takes seconds, or taken from the cache")
        self._settings = settings
        self._dtype = threshold.dtype
        self._threshold = _read_only(threshold)
        self._saturation = saturation
        nothing = np.zeros((1, 1), np.float32)
        level = nothing if background is None else background.level
        noise = nothing if background is None else background.noise
        self._maps = (
            _read_only(np.zeros((1, 1), np.bool_) if mask is None else mask),
            mask is not None,
            _read_only(np.ascontiguousarray(level, np.float32)),
        )
        self._noise = _read_only(np.ascontiguousarray(noise, np.float32))
        self._has_background = background is not None
        self._beside = self._maps[0] if mask is None else _read_only(_beside(mask))
        height, width = threshold.shape
        self._least = _read_only(
            np.minimum.reduceat(threshold, np.arange(0, height, compiled_loops.BAND), axis=0)
        )
        self._scratch = compiled_loops.scratch_to_find(width)
        self._scratch_to_cut = compiled_loops.scratch_to_cut()
        self._peaks = np.empty(min(settings.capacity, threshold.size), np.int64)

    @staticmethod
    def works_in(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
        """Tell which dtype the code is compiled for serves frames of this one; None for none."""
        return COMPILED_DTYPES.get(dtype)

    def find(self, frame: Frame) -> npt.NDArray[np.intp]:
        """Return the flat indices of all peaks, in raster order, also beyond the capacity.

        Parameters
        ----------
        frame
            (H, W), C order, of a dtype that is a key of `COMPILED_DTYPES`.
        """
        found = self._find(frame)
        if found > len(self._peaks):
            self._peaks = np.empty(found, np.int64)
            self._find(frame)
        peaks = self._peaks[:found].astype(np.intp)
        # Only centres of saturated plateaus come late or twice.
        return peaks if np.all(peaks[1:] > peaks[:-1]) else np.unique(peaks)

    def _find(self, frame: Frame) -> int:
        found: int = compiled_loops.find_peaks(
            _read_only(frame.astype(self._dtype, copy=False)),
            self._threshold,
            self._least,
            *self._maps,
            self._noise,
            self._has_background,
            self._settings.minimum_pixels,
            float(self._settings.noise_sigmas),
            float(self._settings.least_counts),
            float(self._settings.snr),
            float(self._settings.prominence_sigmas),
            float(self._settings.ridge_fraction),
            float(self._saturation),
            PLATEAU_RIM * float(self._saturation),
            self._beside,
            *self._scratch,
            self._peaks,
        )
        return found

    def cut(self, frame: Frame, maxima: IntArray, *, scaled: bool) -> CutPatches:
        """Cut the patches of the peaks at (n, 2) maxima, sorted by (row, col)."""
        number = len(maxima)
        patches = np.empty((number, PATCH_SIZE, PATCH_SIZE), np.float32)
        flat = patches.reshape(number, PATCH_SIZE * PATCH_SIZE)
        flags, intensities = np.empty(number, np.uint8), np.empty(number, np.float32)
        compiled_loops.cut_patches(
            _read_only(frame.astype(self._dtype, copy=False)),
            *self._maps,
            self._has_background,
            float(self._saturation),
            scaled,
            maxima,
            patches,
            flat,
            flat.view(np.int32),
            flags,
            intensities,
            *self._scratch_to_cut,
        )
        return CutPatches(patches, flags, intensities)


def _read_only(array: Frame) -> Frame:
    """See an array as one that is not written to.

    numba compiles anew for arrays that may be written to, which takes seconds, and frames come as
    both.
    """
    seen = array.view()
    seen.flags.writeable = False
    return seen


def _beside(mask: BoolArray) -> BoolArray:
    """Mark the pixels that have a masked one among their 3×3."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    beside = np.zeros(mask.shape, np.bool_)
    for row in range(3):
        for col in range(3):
            beside |= padded[row : row + height, col : col + width]
    return beside
