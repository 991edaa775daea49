"""What counts as a peak."""

from __future__ import annotations

from dataclasses import dataclass

from edgexnas.errors import ConfigurationError

__all__ = ["FinderSettings"]


@dataclass(frozen=True, slots=True)
class FinderSettings:
    """What counts as a peak.

    Attributes
    ----------
    minimum_counts
        Counts above background that a peak's brightest pixel must exceed.
    noise_sigmas
        The same in units of the background's noise; the larger of the two limits applies.
    snr
        Smallest signal-to-noise ratio of the mean of the 3×3 pixels around the brightest.
    prominence_sigmas
        Smallest significance with which that mean stands above the 5×5 perimeter, in every
        direction.
    minimum_pixels
        How many of the 3×3 pixels, the centre included, must exceed the threshold.
    saturation
        Counts from which a pixel is saturated; None means the largest value of an unsigned
        integer dtype, and no limit for other dtypes.
    capacity
        Largest number of peaks kept of one frame.

    Raises
    ------
    ConfigurationError
        If a value is out of range.
    """

    minimum_counts: float = 20.0
    noise_sigmas: float = 5.0
    snr: float = 5.0
    prominence_sigmas: float = 3.0
    minimum_pixels: int = 3
    saturation: float | None = None
    capacity: int = 20_000

    def __post_init__(self) -> None:
        for name in ("minimum_counts", "noise_sigmas", "snr", "prominence_sigmas"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; give a finite number from 0")
        if not 1 <= self.minimum_pixels <= 9:
            raise ConfigurationError(f"minimum_pixels is {self.minimum_pixels}; give 1 to 9")
        if self.capacity < 1:
            raise ConfigurationError(f"capacity is {self.capacity}; give at least 1")
        if self.saturation is not None and not self.saturation > 0:
            raise ConfigurationError(f"saturation is {self.saturation}; give counts above 0")
