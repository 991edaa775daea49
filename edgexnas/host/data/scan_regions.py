"""Which patches of a scan train, calibrate, validate and test: by region, never at random.

Neighbouring patches show the same object, so a random split would test on what it trained on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.host.data.splitting import CALIBRATION, DROPPED, TEST, TRAIN, VALIDATION

__all__ = ["CELLS", "scan_regions", "split_regions"]

Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]

CELLS = 8
"""The area of a scan is divided into 8×8 cells of equal size."""

TEST_COLUMNS = 2
"""The last two columns of cells, a quarter of the area, test ..."""
VALIDATION_ROWS = 1
"""... and what the last row holds beside them validates."""


def scan_regions(positions_px: Float64Array, *, scan: int = 0) -> Int32Array:
    """Tell which cell of the scan area each patch lies in.

    Parameters
    ----------
    positions_px
        (n, 2) finite (row, col) positions of the patches of one scan, in object pixels.
    scan
        Number of the scan, where a dataset joins several.

    Returns
    -------
    (n,) int32: 64 × `scan` + 8 × row of cells + column of cells.
    """
    if not len(positions_px):
        return np.zeros(0, np.int32)
    first = positions_px.min(axis=0)
    extent = np.maximum(positions_px.max(axis=0) - first, 1e-9)
    # The last position lies at the end of the area, beyond the last cell's half-open interval.
    cell = np.minimum((positions_px - first) / extent * CELLS, CELLS - 1).astype(np.int32)
    region: Int32Array = (scan * CELLS**2 + cell[:, 0] * CELLS + cell[:, 1]).astype(np.int32)
    return region


def split_regions(
    region: Int32Array, positions_px: Float64Array, *, guard_px: float
) -> npt.NDArray[np.int8]:
    """Assign each patch to a part.

    The right quarter of each scan tests, and the last eighth of the rows beside it validates. A
    patch nearer than `guard_px` (along both axes) to a test patch is dropped. Of the others, those
    nearer than half of that to a validation patch calibrate: they serve neither training nor
    scoring, so no part pays for them. All that is left trains.

    Parameters
    ----------
    region
        (n,) int32 from `scan_regions`.
    positions_px
        (n, 2) finite (row, col) positions in object pixels.
    guard_px
        Distance below which two patches count as showing the same object; 64 px is the side of
        a patch.

    Returns
    -------
    (n,) int8: 0 train, 1 calibration, 2 validation, 3 test, 4 dropped.

    Raises
    ------
    ConfigurationError
        If `guard_px` is negative.
    """
    if not guard_px >= 0:
        raise ConfigurationError(f"guard_px is {guard_px}; specify 0 px or more")
    column, row = region % CELLS, region % CELLS**2 // CELLS
    part = np.full(len(region), TRAIN, np.int8)
    part[row >= CELLS - VALIDATION_ROWS] = VALIDATION
    part[column >= CELLS - TEST_COLUMNS] = TEST
    for scan in np.unique(region // CELLS**2):
        here = np.flatnonzero(region // CELLS**2 == scan)
        own, positions = part[here], positions_px[here]
        near_test = _distance(positions, positions[own == TEST]) < guard_px
        # A patch that shares pixels with a test patch would let training see the test.
        own[near_test & (own != TEST)] = DROPPED
        near_validation = _distance(positions, positions[own == VALIDATION]) < guard_px / 2
        own[near_validation & (own == TRAIN)] = CALIBRATION
        part[here] = own
    return part


def _distance(positions: Float64Array, others: Float64Array) -> Float64Array:
    """(n,) distance to the nearest of the others, the larger of rows and columns; inf for none."""
    from scipy.spatial import KDTree

    if not len(others):
        return np.full(len(positions), np.inf)
    distance, _ = KDTree(others).query(positions, p=np.inf)
    return np.asarray(distance, np.float64)
