"""The shape of a spot: a two-dimensional pseudo-Voigt profile, averaged over each pixel.

With u and v the distances from the centre along the major and the minor axis, and
q = (u/w_major)² + (v/w_minor)² for the full widths at half maximum w, the profile is

    counts · [mixing / (1 + 4·q) + (1 − mixing) · exp(−4·ln2·q)].

A pixel within 6 px of the centre expects the mean of the profile over its area, by
Gauss-Legendre quadrature with three points along each axis (wrong by at most 0.7 % of the peak
for a width of 1 px); further out, where the profile is nearly straight, it expects the profile's
value at its centre. The tails fall smoothly to 0 over the outer third of a window, at 12 px from
the centre at the latest: a Lorentzian never ends, but real spots do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgexnas.frames import Truth

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

HALF_WINDOWS_PX = (6, 9, 12)
"""Half sides of the windows in which spots are drawn."""

_NEGLIGIBLE_COUNTS = 0.3
"""A window is wide enough if the profile is below this where the tails begin to be cut."""

_CORE_PX = 6
_TAPER = 2 / 3
_DECAY = -4 * np.log(2)
# Points and weights of Gauss-Legendre on a pixel of width 1.
_NODES = np.array([-np.sqrt(0.6) / 2, 0.0, np.sqrt(0.6) / 2], np.float32)
_WEIGHTS = np.array([5 / 18, 8 / 18, 5 / 18], np.float32)


def half_windows(spots: Truth) -> npt.NDArray[np.intp]:
    """(n,) indices into `HALF_WINDOWS_PX`: the smallest window that holds each spot."""
    reach = np.array(HALF_WINDOWS_PX[:-1]) * _TAPER
    q = (reach / spots.fwhm_major_px[:, None]) ** 2
    mixing, counts = spots.mixing[:, None], spots.counts[:, None]
    tail = counts * (mixing / (1 + 4 * q) + (1 - mixing) * np.exp(_DECAY * q))
    smallest: npt.NDArray[np.intp] = (tail > _NEGLIGIBLE_COUNTS).sum(axis=1)
    return smallest


def brightest_pixels(spots: Truth) -> IntArray:
    """(n, 2) int64, (row, col) of the pixels that hold the centres."""
    return np.rint(spots.positions_px).astype(np.int64)


def expected_counts(spots: Truth, half: int) -> FloatArray:
    """Expect the counts of the pixels around each spot.

    Parameters
    ----------
    spots
        n spots; frame numbers and flags are not looked at.
    half
        Half side of the window in px.

    Returns
    -------
    (n, 2·half+1, 2·half+1) float32, counts above background, centred on `brightest_pixels`.
    """
    offset = (spots.positions_px - brightest_pixels(spots)).astype(np.float32)
    span = np.arange(-half, half + 1, dtype=np.float32)
    profile = _profile(spots, span - offset[:, :1], span - offset[:, 1:])
    core = min(half, _CORE_PX)
    inner = slice(half - core, half + core + 1)
    fine = (span[inner, None] + _NODES).reshape(-1)
    sampled = _profile(spots, fine - offset[:, :1], fine - offset[:, 1:])
    side = 2 * core + 1
    cells = sampled.reshape(-1, side, 3, side, 3)
    # A narrow spot bends within a pixel, whose centre alone would overstate it.
    profile[:, inner, inner] = np.einsum("nrasb,a,b->nrs", cells, _WEIGHTS, _WEIGHTS)
    profile *= spots.counts[:, None, None] * _taper(half)
    return profile


def _profile(spots: Truth, row: FloatArray, col: FloatArray) -> FloatArray:
    """Profile of unit height at (n, r) rows and (n, c) columns from the centres: (n, r, c)."""
    cos, sin = np.cos(spots.angle_rad)[:, None], np.sin(spots.angle_rad)[:, None]
    major, minor = spots.fwhm_major_px[:, None], spots.fwhm_minor_px[:, None]
    u = (row * sin / major)[:, :, None] + (col * cos / major)[:, None, :]
    v = (row * cos / minor)[:, :, None] - (col * sin / minor)[:, None, :]
    q = u * u + v * v
    mixing = spots.mixing[:, None, None]
    profile: FloatArray = mixing / (1 + 4 * q) + (1 - mixing) * np.exp(np.float32(_DECAY) * q)
    return profile


def _taper(half: int) -> FloatArray:
    """(2·half+1, 2·half+1), 1 in the middle, 0 from `half` px on, smooth between."""
    span = np.arange(-half, half + 1)
    radius = np.hypot(span[:, None], span[None, :])
    step = np.clip((half - radius) / (half * (1 - _TAPER)), 0, 1)
    smooth: FloatArray = (step * step * (3 - 2 * step)).astype(np.float32)
    return smooth
