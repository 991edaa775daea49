"""What counts as a peak."""

from __future__ import annotations

from dataclasses import dataclass

from edgexnas.errors import ConfigurationError

__all__ = [
    "PLATEAU_RIM",
    "PLATEAU_SIDE",
    "RIDGE_FAR",
    "RIDGE_GATE",
    "RIDGE_NEAR",
    "FinderSettings",
]

RIDGE_GATE = 0.5
"""A peak may lie on a ridge if its perimeter has more than this fraction of its counts in one
direction; most have not, and are not looked at further."""

RIDGE_NEAR = ((0, 3), (1, 3), (2, 2), (3, 1), (3, 0), (3, -1), (2, -2), (1, -3))
RIDGE_FAR = ((0, 5), (2, 5), (4, 4), (5, 2), (5, 0), (5, -2), (4, -4), (2, -5))
"""(rows, columns) from a peak to where a ridge through it is looked for, in eight directions; the
other half lies opposite, and the direction four further is perpendicular."""

PLATEAU_RIM = 0.9
"""Fraction of the saturation from which pixels hang together as one plateau: where a profile
reaches saturation, noise would else break its rim into plateaus of their own."""

PLATEAU_SIDE = 15
"""Most rows and columns of a plateau that can be a peak; a window of twice as many fits an int."""


@dataclass(frozen=True, slots=True)
class FinderSettings:
    """What counts as a peak.

    Attributes
    ----------
    noise_sigmas
        Counts above background that a peak's brightest pixel must exceed, in standard deviations of
        the background, as measured on the frames.
    minimum_counts
        The same in counts, for detectors whose noise does not tell; the larger of the two limits
        applies. None means no limit but the noise.
    snr
        Smallest signal-to-noise ratio of the mean of the 3×3 pixels around the brightest.
    prominence_sigmas
        Smallest significance with which that mean stands above the 5×5 perimeter, in every
        direction.
    minimum_pixels
        How many of the 3×3 pixels, the centre included, must exceed half of that limit.
    saturation
        Counts from which a pixel is saturated; None means what the background frames show, else
        the largest value of an unsigned integer dtype, and no limit for other dtypes.
    capacity
        Largest number of peaks kept of one frame.
    ridge_fraction
        A peak on a ridge, such as the crest of a powder ring, is none if the ridge is higher than
        this fraction of the peak on both sides; 1 accepts all of them.

    Raises
    ------
    ConfigurationError
        If a value is out of range.
    """

    minimum_counts: float | None = None
    noise_sigmas: float = 5.0
    snr: float = 5.0
    prominence_sigmas: float = 3.0
    minimum_pixels: int = 3
    saturation: float | None = None
    capacity: int = 20_000
    ridge_fraction: float = 0.4

    def __post_init__(self) -> None:
        for name in ("minimum_counts", "noise_sigmas", "snr", "prominence_sigmas"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name} is {value}; give a finite number from 0")
        if not 1 <= self.minimum_pixels <= 9:
            raise ConfigurationError(f"minimum_pixels is {self.minimum_pixels}; give 1 to 9")
        if self.capacity < 1:
            raise ConfigurationError(f"capacity is {self.capacity}; give at least 1")
        if self.saturation is not None and not self.saturation > 0:
            raise ConfigurationError(f"saturation is {self.saturation}; give counts above 0")
        if not 0 < self.ridge_fraction <= 1:
            raise ConfigurationError(
                f"ridge_fraction is {self.ridge_fraction}; give a number above 0, at most 1"
            )

    @property
    def least_counts(self) -> float:
        """`minimum_counts`, 0 where there is none."""
        return self.minimum_counts or 0.0
