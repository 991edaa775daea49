"""What is measured on a patch to tell whether its peak is like those of the training data.

All follows from the scaled patch, the network's output and the counts of the brightest pixel. Two
of it are an opinion of their own on the position: the **windowed centroid**, and its noise. The
centroid is taken once, about the network's position, in a window [1 - (t / w)²]² along each axis
that is as wide as the pixels beside the middle tell; what the window holds back is given back by
the response of a Gaussian. On simulated peaks of 1.2 to 6 px FWHM it lies as near the truth as a
pseudo-Voigt fit does; on narrower ones it errs with the place in the pixel. Its noise follows from
the patch itself: the odd part of a peak about its centre is a shift or noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "ALONE",
    "COUNTED",
    "FRAME_NOISE",
    "LARGEST_Z",
    "LEAST_INTERVAL_PX",
    "NARROWEST_PX2",
    "NARROW_PX2",
    "PEAK_QUANTITIES",
    "RESPONSE",
    "TOGETHER",
    "UNITS",
    "WHOLE_FRAME",
    "WINDOW_LIMITS_PX",
    "WINDOW_PX",
    "reason_name",
    "score_terms",
]

UNITS: dict[str, str] = {
    "width_px": "px",
    "elongation": "1",
    "tilt": "1",
    "noise": "1",
    "empty": "1",
    "background": "1",
    "interval_px": "px",
    "disagreement": "1",
    "neighbours": "1",
    "height_counts": "counts",
    "gain_counts": "counts",
}
"""Quantities of a peak, in the order in which devices compute them, and their units:

* width_px: 2.355 × the geometric mean of the windowed standard deviations along both axes: 0.8 of
  the full width at half maximum of a Gaussian, more of peaks with tails,
* elongation: difference of the windowed variances of row and column over their sum,
* tilt: windowed correlation of row and column,
* noise: standard deviation of a pixel, as a share of the peak's height,
* empty: share of the patch's pixels that hold its minimum,
* background: mean of the outermost pixels, as a share of the height,
* interval_px: half the network's own interval, geometric mean of both coordinates,
* disagreement: d / (d + interval_px), with d the larger distance, along an axis, of the network's
  position from the windowed centroid,
* neighbours: mean of the four pixels beside the middle, as a share of the height,
* height_counts: counts above background of the brightest pixel,
* gain_counts: noise² × height_counts, which is near the gain where counting makes the noise.

In a score noise, background and interval_px stand for their square roots, height_counts and
gain_counts for their logarithms to base 2, linear between powers of 2."""

PEAK_QUANTITIES = tuple(UNITS)
COUNTED = PEAK_QUANTITIES
"""What is looked at where a patch holds counts; ..."""
ALONE = PEAK_QUANTITIES[:-2]
"""... and where it is scaled, or in an unknown unit."""

WINDOW_PX = 1.3
"""Half width of a window over 1 + the two pixels beside the middle, as shares of the height."""
WINDOW_LIMITS_PX = (2.0, 5.5)
RESPONSE = (4.2, 19.0, 0.15)
"""Linear and quadratic coefficient of variance / width² by which a windowed centroid moves less
than a Gaussian does, and the least response taken for true."""
NARROWEST_PX2 = 0.02
NARROW_PX2 = 0.3
"""Windowed variance of a peak that counts half as narrow."""
LEAST_INTERVAL_PX = 0.002
LARGEST_Z = 6.0

FRAME_NOISE = "frame_noise_counts"
"""Quantity of a frame: median over the pixels of the background's standard deviation."""

TOGETHER, WHOLE_FRAME = 254, 255
"""Why a peak is unfamiliar, where it is no quantity by itself: 1 to 11 name that."""


def reason_name(code: int) -> str:
    """Name why a peak is unfamiliar, as `PeakChecks` codes it."""
    if code in (TOGETHER, WHOLE_FRAME):
        return {TOGETHER: "several together", WHOLE_FRAME: "the whole frame"}[code]
    return PEAK_QUANTITIES[code - 1]


def score_terms(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give what of quantities (n, 11) goes into a score: see `UNITS`."""
    terms = values.copy()
    for name in ("noise", "background", "interval_px"):
        column = PEAK_QUANTITIES.index(name)
        terms[:, column] = np.sqrt(values[:, column])
    for name, least in (("height_counts", 1.0), ("gain_counts", 0.01)):
        column = PEAK_QUANTITIES.index(name)
        bits = np.maximum(values[:, column], np.float32(least)).view(np.int32)
        # The bits of a float are its logarithm to base 2, straight between the powers of 2: the
        # same on every processor.
        terms[:, column] = bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(127)
    return terms
