"""The contract of Bragg peaks: patches, coordinates, scaling and decoding.

Training and inference call the same functions here, so a network sees on the device what it saw
on the host. numpy only.

Conventions
-----------
* Coordinates are (row, col) in pixel-index convention: the centre of a frame's first pixel is
  (0, 0). BraggNN's own code speaks (x, y) in units of the patch side; see `from_braggnn`.
* A patch is 11×11 pixels around the brightest pixel of a detected peak. Its origin is the frame
  index of its first pixel, so frame position = origin + patch position.
* A network's input is a patch scaled to [0, 1]; its output is the offset of the peak from the
  patch's centre pixel, in pixels, as quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

__all__ = [
    "CENTRE",
    "PATCH_SIZE",
    "PatchSet",
    "PeakFlag",
    "PeakPositions",
    "Peaks",
    "as_patches",
    "centroid",
    "cut_patches",
    "decode_offsets",
    "from_braggnn",
    "neighbour_pairs",
    "scale_patches",
]

PATCH_SIZE = 11
"""Side of a patch in pixels, as in BraggNN (Liu et al., IUCrJ 9, 104 (2022))."""

CENTRE = PATCH_SIZE // 2
"""Index of the centre pixel along each axis of a patch."""

REACH = PATCH_SIZE - 1
"""Two peaks whose rows and columns differ by at most this share pixels of their patches."""

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


class PeakFlag(IntFlag):
    """Why a peak's position deserves less trust. Flagged peaks are kept, never dropped."""

    SATURATED = 1
    """A pixel of the patch reaches the saturation level."""
    EDGE = 2
    """The patch reaches over the edge of the frame; missing pixels count as 0."""
    OVERLAP = 4
    """Another peak lies within 10 pixels in both directions."""
    MASKED = 8
    """A pixel of the patch is masked (dead, hot, or in a gap) and counts as 0."""
    UNFAMILIAR = 16
    """The peak is unlike those that the network was trained on; its interval is widened."""


@dataclass(frozen=True, slots=True)
class PeakPositions:
    """Positions of n peaks with their uncertainty.

    Attributes
    ----------
    positions_px
        (n, 2) float32, (row, col) in pixels: the median of the predicted distribution.
    intervals_px
        (n, 2) float32, (row, col) in pixels: full width of the central interval between the
        outermost quantile levels.
    quantiles_px
        (n, 2, q) float32, (row, col) in pixels, increasing along the last axis.
    reasons
        (n,) uint8, why a peak is unlike those that the network was trained on, 0 if it is not; see
        `edgexnas.familiarity.reason_name`. None where the bundle does not tell.
    """

    positions_px: FloatArray
    intervals_px: FloatArray
    quantiles_px: FloatArray
    reasons: npt.NDArray[np.uint8] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.positions_px)

    @property
    def unfamiliar(self) -> npt.NDArray[np.bool_]:
        """(n,) bool, which peaks are unlike those of the training data: their intervals are wider.

        None is where the bundle does not tell.
        """
        if self.reasons is None:
            return np.zeros(len(self.positions_px), np.bool_)
        return self.reasons > 0


@dataclass(frozen=True, slots=True)
class Peaks(PeakPositions):
    """The peaks of one frame, sorted by the (row, col) of their brightest pixel.

    Positions are in frame coordinates.

    Attributes
    ----------
    maxima
        (n, 2) int32, (row, col) of the brightest pixel.
    intensities
        (n,) float32, counts above background of the brightest pixel.
    flags
        (n,) uint8, a combination of `PeakFlag`.
    frame_number
        Number of the frame in its series, from 0.
    overflow
        How many peaks were found beyond the finder's capacity and are missing here.
    """

    maxima: IntArray
    intensities: FloatArray
    flags: npt.NDArray[np.uint8]
    frame_number: int
    overflow: int


@dataclass(frozen=True, slots=True)
class PatchSet:
    """Patches cut from one frame.

    Attributes
    ----------
    counts
        (n, 11, 11) float32, counts above background, other peaks' basins and missing pixels 0.
    flags
        (n,) uint8: `PeakFlag.EDGE`, `OVERLAP` and `MASKED` as they apply.
    """

    counts: FloatArray
    flags: npt.NDArray[np.uint8]


def as_patches(patches: npt.ArrayLike) -> FloatArray:
    """Check patches from outside and bring them to (n, 11, 11) float32.

    Parameters
    ----------
    patches
        (n, 11, 11) or (n, 1, 11, 11), any real dtype, counts in any unit.

    Raises
    ------
    InputError
        If the shape is another, the dtype is not real, or a value is not finite.
    """
    array = np.asarray(patches)
    if array.dtype.kind not in "uif":
        raise InputError(f"patches have dtype {array.dtype}; give real numbers, such as uint16")
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3 or array.shape[1:] != (PATCH_SIZE, PATCH_SIZE):
        raise InputError(
            f"patches have shape {np.shape(patches)}; give (n, 11, 11) or (n, 1, 11, 11)"
        )
    result = array.astype(np.float32, copy=False)
    finite = np.isfinite(result).all(axis=(1, 2))
    if not finite.all():
        raise InputError(
            f"patch {int(np.argmin(finite))} holds NaN or infinity; "
            "mask such pixels (0) before predicting"
        )
    return result


def scale_patches(patches: FloatArray) -> FloatArray:
    """Scale each patch to [0, 1] by its own minimum and maximum.

    Scaling is idempotent, so a patch that was scaled before passes unchanged. A patch without
    contrast becomes 0 everywhere.

    Parameters
    ----------
    patches
        (n, 11, 11) float32.

    Returns
    -------
    (n, 11, 11) float32 in [0, 1].
    """
    low = patches.min(axis=(1, 2), keepdims=True)
    span = patches.max(axis=(1, 2), keepdims=True) - low
    # Without contrast all pixels equal the minimum, and 0 / 1 is 0, not NaN.
    span[span <= 0] = 1
    scaled: FloatArray = patches - low
    scaled /= span
    return scaled


def neighbour_pairs(maxima: IntArray, reach: int = REACH) -> npt.NDArray[np.intp]:
    """Find the pairs of peaks whose rows and columns both differ by at most `reach` pixels.

    Parameters
    ----------
    maxima
        (n, 2) int32, (row, col), sorted by row.

    Returns
    -------
    (m, 2) indices into `maxima`, each pair once.
    """
    rows, cols = maxima[:, 0].astype(np.int64), maxima[:, 1].astype(np.int64)
    found: list[npt.NDArray[np.intp]] = []
    for step in range(1, len(maxima)):
        near = rows[step:] - rows[:-step] <= reach
        # Sorted by row, so a peak further on in the list is no nearer.
        if not near.any():
            break
        first = np.flatnonzero(near & (np.abs(cols[step:] - cols[:-step]) <= reach))
        found.append(np.stack([first, first + step], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), np.intp)


def cut_patches(
    frame: npt.NDArray[np.generic],
    maxima: IntArray,
    *,
    background: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> PatchSet:
    """Cut an 11×11 patch of counts around each peak.

    The background is subtracted and what falls below it is 0. Pixels over the edge of the frame,
    masked pixels, and pixels in the basin of another peak are 0. A pixel belongs to the peak that
    steepest ascent over its eight neighbours reaches; ties go to the first in raster order, as in
    the peak finder.

    Parameters
    ----------
    frame
        (H, W) counts, any real dtype.
    maxima
        (n, 2) int32, (row, col) of all peaks of the frame, sorted by (row, col).
    background
        (H, W) float32 counts, or None for 0.
    mask
        (H, W) bool, True where a pixel must not be used.
    """
    counts, outside, masked = _windows(frame, maxima, CENTRE, background, mask)
    flags = np.zeros(len(maxima), np.uint8)
    flags[outside] |= np.uint8(PeakFlag.EDGE)
    flags[masked] |= np.uint8(PeakFlag.MASKED)
    pairs = neighbour_pairs(maxima)
    if len(pairs):
        crowded = np.unique(pairs)
        flags[crowded] |= np.uint8(PeakFlag.OVERLAP)
        # The finder compares raw counts; a sloping background would order near ties differently.
        wide, _, _ = _windows(frame, maxima[crowded], REACH, None, mask)
        other = _other_basins(wide, crowded, pairs, maxima)
        inner = slice(REACH - CENTRE, REACH + CENTRE + 1)
        counts[crowded] = np.where(other[:, inner, inner], 0, counts[crowded])
    return PatchSet(counts, flags)


def _windows(
    frame: npt.NDArray[np.generic],
    maxima: IntArray,
    half: int,
    background: FloatArray | None,
    mask: npt.NDArray[np.bool_] | None,
) -> tuple[FloatArray, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Gather (n, 2·half+1, 2·half+1) counts above background; tell who touches edge or mask."""
    height, width = frame.shape
    span = np.arange(-half, half + 1)
    row = maxima[:, 0, None].astype(np.intp) + span
    col = maxima[:, 1, None].astype(np.intp) + span
    row_in, col_in = (row >= 0) & (row < height), (col >= 0) & (col < width)
    outside = ~(row_in.all(axis=1) & col_in.all(axis=1))
    # Pixels over the edge read the nearest one on the frame here and become 0 below.
    index = np.clip(row, 0, height - 1)[:, :, None] * width + np.clip(col, 0, width - 1)[:, None, :]
    counts = frame.reshape(-1).take(index).astype(np.float32)
    if background is not None:
        counts -= background.reshape(-1).take(index)
    # Detectors mark gaps by negative numbers, which would set the scale of a patch.
    np.maximum(counts, 0, out=counts)
    if outside.any():
        counts[outside] *= (row_in[outside, :, None] & col_in[outside, None, :]).astype(np.float32)
    masked = np.zeros(len(maxima), np.bool_)
    if mask is not None:
        hidden = mask.reshape(-1).take(index)
        masked = hidden.any(axis=(1, 2))
        counts[hidden] = 0
    return counts, outside, masked


def _other_basins(
    wide: FloatArray,
    crowded: npt.NDArray[np.intp],
    pairs: npt.NDArray[np.intp],
    maxima: IntArray,
) -> npt.NDArray[np.bool_]:
    """Mark the pixels of (m, 21, 21) windows from which steepest ascent reaches another peak."""
    count, side = len(wide), wide.shape[1]
    padded = np.pad(wide, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    # Starts at the first of the nine pixels in raster order, up and left.
    highest = padded[:, :side, :side].copy()
    ascent = np.full(highest.shape, -side - 1)
    for row, col in np.ndindex(3, 3):
        neighbour = padded[:, row : row + side, col : col + side]
        # Strictly above: of equals the first in raster order stays.
        ascent = np.where(neighbour > highest, (row - 1) * side + col - 1, ascent)
        np.maximum(highest, neighbour, out=highest)
    target = np.arange(side * side) + ascent.reshape(count, -1)
    # Doubling the path five times follows 32 steps, more than a 21-pixel window is wide.
    for _ in range(5):
        target = np.take_along_axis(target, target, axis=1)
    place = np.empty(len(maxima), np.intp)
    place[crowded] = np.arange(count)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    relative = maxima[both[:, 1]].astype(np.intp) - maxima[both[:, 0]] + REACH
    is_other = np.zeros((count, side * side), np.bool_)
    is_other[place[both[:, 0]], relative[:, 0] * side + relative[:, 1]] = True
    return np.take_along_axis(is_other, target, axis=1).reshape(wide.shape)


def centroid(patches: FloatArray) -> FloatArray:
    """Intensity centroid of each patch: the classical estimate, and a row of every table.

    Returns
    -------
    (n, 2) float32, (row, col) in pixels from the patch's first pixel; the centre pixel where a
    patch holds no counts.
    """
    total = patches.sum(axis=(1, 2))
    axis = np.arange(PATCH_SIZE, dtype=np.float32)
    rows, cols = patches.sum(axis=2) @ axis, patches.sum(axis=1) @ axis
    safe = np.where(total > 0, total, 1)
    moments: FloatArray = np.stack([rows / safe, cols / safe], axis=1).astype(np.float32)
    moments[total <= 0] = CENTRE
    return moments


def decode_offsets(
    offsets_px: FloatArray, levels: Sequence[float], origins: IntArray | None = None
) -> PeakPositions:
    """Turn a network's output into positions.

    Parameters
    ----------
    offsets_px
        (n, 2, q) float32: for (row, col), the quantiles of the offset from the patch's centre
        pixel, in pixels, increasing along the last axis.
    levels
        The q quantile levels, increasing; the one nearest 0.5 is the position.
    origins
        (n, 2) frame index of each patch's first pixel; None leaves positions relative to it.
    """
    quantiles = offsets_px + np.float32(CENTRE)
    if origins is not None:
        quantiles = quantiles + origins[:, :, None].astype(np.float32)
    middle = int(np.argmin(np.abs(np.asarray(levels) - 0.5)))
    width: FloatArray = offsets_px[:, :, -1] - offsets_px[:, :, 0]
    return PeakPositions(quantiles[:, :, middle], width, quantiles)


def from_braggnn(xy: npt.ArrayLike) -> FloatArray:
    """Convert BraggNN's output to patch positions.

    BraggNN's published code predicts (x, y) = (col, row) divided by the patch side, with pixel
    centres at integers.

    Parameters
    ----------
    xy
        (n, 2), (x, y) as a fraction of the patch side.

    Returns
    -------
    (n, 2) float32, (row, col) in pixels from the patch's first pixel.
    """
    return np.asarray(xy, np.float32)[:, ::-1] * np.float32(PATCH_SIZE)
