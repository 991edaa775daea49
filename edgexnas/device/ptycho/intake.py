"""Bring a detector's diffraction patterns to the network's 64×64, one detector at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.detector_mask import Mask, checked_mask, merged_masks
from edgexnas.errors import ConfigurationError, EdgexnasError, EngineError, InputError
from edgexnas.ptycho import PATTERN_SIZE, bin_patterns, check_counts

__all__ = ["PatternIntake"]

FloatArray = npt.NDArray[np.float32]


class PatternIntake:
    """Checks and binning that learn the patterns' shape and dtype from the first one.

    Parameters
    ----------
    mask
        (H, W) bool, True where a pixel must not be used and counts as 0; it fixes the patterns'
        shape.
    saturation
        Counts from which a pixel is saturated; None as in `edgexnas.ptycho.check_counts`.

    Raises
    ------
    InputError
        If the mask is no (H, W) bool array.
    ConfigurationError
        If `saturation` is not positive.
    """

    def __init__(
        self, *, mask: npt.ArrayLike | None = None, saturation: float | None = None
    ) -> None:
        if saturation is not None and not saturation > 0:
            raise ConfigurationError(f"saturation is {saturation}; specify more than 0 counts")
        self.mask = None if mask is None else checked_mask(mask)
        self.saturation = saturation
        self._shape = None if self.mask is None else self.mask.shape
        self._dtype: np.dtype[Any] | None = None

    def beside(self, mask: Mask | None) -> PatternIntake:
        """Make a fresh intake for one scan, which uses the scan's own mask beside this one's."""
        return PatternIntake(mask=merged_masks(self.mask, mask), saturation=self.saturation)

    def admit(self, pattern: npt.ArrayLike, number: int) -> FloatArray:
        """Check one pattern against those before it and bin it to (64, 64) float32.

        Parameters
        ----------
        pattern, number
            As of `accept`.

        Raises
        ------
        InputError
            If its shape or dtype is another, or a count is negative, not finite or saturated.
        """
        return self.binned(self.accept(pattern, number), number)

    def accept(self, pattern: npt.ArrayLike, number: int) -> npt.NDArray[Any]:
        """Check the shape and dtype of one pattern against those before it.

        Parameters
        ----------
        pattern
            (H, W) counts, any real dtype, the direct beam at (H // 2, W // 2); square, its side a
            multiple of 64.
        number
            Number of the pattern in its scan, for messages.

        Raises
        ------
        InputError
            If its shape or dtype is another.
        """
        array = np.asarray(pattern)
        if (array.shape, array.dtype) != (self._shape, self._dtype):
            self._learn(array, number)
        return array

    def binned(self, pattern: npt.NDArray[Any], number: int) -> FloatArray:
        """Check the counts of an accepted pattern and bin it to (64, 64) float32.

        Raises
        ------
        InputError
            If a count is negative, not finite or saturated.
        """
        array = self.checked(pattern, number)
        binned: FloatArray = bin_patterns(array[None], len(array) // PATTERN_SIZE)[0]
        return binned

    def checked(self, pattern: npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
        """Set the masked pixels of an accepted pattern to 0 and check its counts.

        Raises
        ------
        InputError
            If a count is negative, not finite or saturated.
        """
        array = self.masked(pattern)
        check_counts(array[None], saturation=self.saturation, first_number=number)
        return array

    def fault(self, pattern: npt.NDArray[Any], number: int) -> EdgexnasError:
        """Say what is wrong with the counts of an accepted pattern that a GPU has rejected."""
        try:
            self.checked(pattern, number)
        except InputError as error:
            return error
        # Kernel and CPU follow one rule; if they ever differ, a wrong result must not look like
        # data.
        return EngineError(
            f"the GPU rejects pattern {number} and the CPU does not; use an engine on the CPU, and "
            "report it"
        )

    def masked(self, patterns: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Set the masked pixels of (..., H, W) patterns to 0.

        Raises
        ------
        InputError
            If the mask has another shape.
        """
        if self.mask is None:
            return patterns
        if patterns.shape[-2:] != self.mask.shape:
            raise InputError(
                f"patterns have shape {patterns.shape} and the mask {self.mask.shape}; "
                "specify a mask of one pattern's shape"
            )
        # Cleared before counts are checked: masked pixels may hold anything, NaN too.
        cleared: npt.NDArray[Any] = np.where(self.mask, patterns.dtype.type(0), patterns)
        return cleared

    def _learn(self, array: npt.NDArray[Any], number: int) -> None:
        """Take over shape and dtype of the first pattern; reject others after it."""
        if array.dtype.kind not in "uif" or array.ndim != 2:
            raise InputError(
                f"pattern {number} has shape {array.shape} and dtype {array.dtype}; "
                "expected (H, W) real numbers"
            )
        rows, cols = array.shape
        if rows != cols or not rows or rows % PATTERN_SIZE:
            raise InputError(
                f"pattern {number} has shape {array.shape}; expected squares whose side is a "
                f"multiple of {PATTERN_SIZE}, with the direct beam in the middle"
            )
        if self._shape not in (None, array.shape):
            raise InputError(
                f"pattern {number} has shape {array.shape}, this detector's mask or first pattern "
                f"has {self._shape}; use patterns of one detector"
            )
        if self._dtype not in (None, array.dtype):
            raise InputError(
                f"pattern {number} has dtype {array.dtype}, the patterns before it had "
                f"{self._dtype}; use patterns of one detector"
            )
        self._shape, self._dtype = array.shape, array.dtype
