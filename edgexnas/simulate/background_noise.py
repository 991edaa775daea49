"""Background of a detector as one draw a pixel: Poisson photons, gain and readout noise.

The sum of rounded gain × Poisson photons and rounded Gaussian readout noise is a discrete
distribution. For a background that varies slowly it is tabulated once for each of a few levels,
and a frame is a table look-up by 16 random bits a pixel, about six times faster than drawing
photons. Bits that do not settle the count are refined with a uniform number, so the
distribution is exact to its furthest tail.
"""

from __future__ import annotations

from math import lgamma

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_STEP = 0.02
"""Distance of two levels in √counts: a hundredth of what a pixel varies by is not resolved."""

_MAXIMUM_LEVELS = 64
_BITS = 1 << 16
_TAIL_SIGMAS = 12.0


class BackgroundNoise:
    """Draws background counts.

    Parameters
    ----------
    expected
        (H, W) expected counts of each pixel.
    counts_per_photon
        Gain: counts that one photon makes.
    readout_noise
        Standard deviation of the readout noise in counts.
    """

    def __init__(
        self, expected: FloatArray, *, counts_per_photon: float, readout_noise: float
    ) -> None:
        # On the scale on which Poisson noise is equally wide at every level.
        root = np.sqrt(expected)
        low, high = float(root.min()), float(root.max())
        count = int(np.clip((high - low) / _STEP + 1, 1, _MAXIMUM_LEVELS))
        levels = np.linspace(low, high, count) ** 2
        nearest = np.rint((root - low) * ((count - 1) / max(high - low, 1e-12)))
        self._shift = (nearest * _BITS).astype(np.int32).reshape(-1)
        self.shape = expected.shape
        self.expected = levels[nearest.astype(np.intp)].astype(np.float32)
        self.sigma = float(np.sqrt(levels[-1] * counts_per_photon + readout_noise**2))
        first, steps = zip(
            *(_cumulative(level, counts_per_photon, readout_noise) for level in levels),
            strict=True,
        )
        self._first = np.array(first)
        self._steps = steps
        self._table = np.concatenate(
            [_table(low_end, step) for low_end, step in zip(first, steps, strict=True)]
        )

    def draw(
        self, rng: np.random.Generator, pixels: npt.NDArray[np.intp] | None = None
    ) -> npt.NDArray[np.int32]:
        """Draw the counts of all pixels, (H·W,), or of those at the given flat indices."""
        shift = self._shift if pixels is None else self._shift[pixels]
        bits = rng.integers(0, _BITS, len(shift), dtype=np.uint16)
        place = shift + bits
        counts: npt.NDArray[np.int32] = self._table[place]
        unsettled = np.flatnonzero(counts == _UNSETTLED)
        if len(unsettled):
            counts[unsettled] = self._refine(place[unsettled], rng)
        return counts

    def _refine(
        self, place: npt.NDArray[np.int32], rng: np.random.Generator
    ) -> npt.NDArray[np.int32]:
        level, bits = np.divmod(place, _BITS)
        uniform = (bits + rng.random(len(place))) / _BITS
        counts = np.empty(len(place), np.int32)
        for number in np.unique(level):
            here = level == number
            step = np.searchsorted(self._steps[number], uniform[here], side="right")
            counts[here] = self._first[number] + step
        return counts


_UNSETTLED = np.iinfo(np.int32).min


def _cumulative(level: float, gain: float, readout: float) -> tuple[int, FloatArray]:
    """Lowest count, and the cumulative probability up to each count from there on."""
    reach = _TAIL_SIGMAS * np.sqrt(level / gain) + _TAIL_SIGMAS
    photons = np.arange(max(0, int(level / gain - reach)), int(level / gain + reach) + 2)
    # By logarithms: 171! is beyond the range of a float.
    logs = np.array([lgamma(number + 1) for number in photons])
    mean = max(level / gain, 1e-12)
    weight = np.exp(photons * np.log(mean) - mean - logs)
    counts = np.rint(photons * gain).astype(np.int64)
    bright = np.bincount(counts - counts[0], weights=weight)
    half = int(np.ceil(_TAIL_SIGMAS * readout)) if readout > 0 else 0
    span = np.arange(-half, half + 1)
    # A fine grid stands in for the integral over each count; the sum is normalised below.
    fine = span[:, None] + (np.arange(8) - 3.5) / 8
    dark = np.exp(-0.5 * (fine / max(readout, 1e-6)) ** 2).sum(axis=1) if half else np.ones(1)
    both = np.convolve(bright, dark)
    return int(counts[0]) - half, np.cumsum(both / both.sum())


def _table(first: int, steps: FloatArray) -> npt.NDArray[np.int32]:
    """Count for each value of 16 random bits, or `_UNSETTLED` where a step falls inside."""
    edges = np.arange(_BITS + 1) / _BITS
    # Settled only if the whole interval of these 16 bits lies within one count.
    low = np.searchsorted(steps, edges[:-1], side="right")
    high = np.searchsorted(steps, edges[1:], side="left")
    return np.where(low == high, first + low, _UNSETTLED).astype(np.int32)
