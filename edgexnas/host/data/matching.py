"""Compare found peaks with those that are known to be there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError

__all__ = ["DetectionScores", "detection_scores", "match_peaks"]

IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """How well peaks were found.

    Attributes
    ----------
    found, reference, matched
        Numbers of peaks.
    recall
        matched / reference; NaN without a reference peak.
    precision
        matched / found; NaN without a found peak.
    distance_px
        (p50, p75, p95) of the matched distances; NaN where nothing matches.
    """

    found: int
    reference: int
    matched: int
    recall: float
    precision: float
    distance_px: tuple[float, float, float]


def match_peaks(
    found_px: npt.ArrayLike, reference_px: npt.ArrayLike, radius_px: float
) -> IndexArray:
    """Pair found peaks with reference peaks one to one, the nearest pair first.

    Parameters
    ----------
    found_px
        (n, 2), (row, col) in pixels.
    reference_px
        (m, 2), (row, col) in pixels.
    radius_px
        Largest distance of a pair, in pixels.

    Returns
    -------
    (k, 2) indices (found, reference), by increasing `found`.

    Raises
    ------
    ConfigurationError
        If the radius is not positive.
    """
    from scipy.spatial import cKDTree

    if not radius_px > 0:
        raise ConfigurationError(f"the matching radius is {radius_px} px; specify one above 0")
    found = np.asarray(found_px, np.float64).reshape(-1, 2)
    reference = np.asarray(reference_px, np.float64).reshape(-1, 2)
    if not len(found) or not len(reference):
        return np.empty((0, 2), np.intp)
    near = cKDTree(found).sparse_distance_matrix(
        cKDTree(reference), radius_px, output_type="ndarray"
    )
    found_free, reference_free = np.ones(len(found), np.bool_), np.ones(len(reference), np.bool_)
    pairs: list[tuple[int, int]] = []
    # Nearest pair first, ties by index, so that the result does not depend on the tree.
    for first, second, _ in near[np.lexsort((near["j"], near["i"], near["v"]))]:
        if found_free[first] and reference_free[second]:
            found_free[first] = reference_free[second] = False
            pairs.append((int(first), int(second)))
    return np.array(sorted(pairs), np.intp).reshape(-1, 2)


def detection_scores(
    found_px: npt.ArrayLike, reference_px: npt.ArrayLike, radius_px: float
) -> DetectionScores:
    """Recall, precision and matched distances; parameters and errors as of `match_peaks`."""
    found = np.asarray(found_px, np.float64).reshape(-1, 2)
    reference = np.asarray(reference_px, np.float64).reshape(-1, 2)
    pairs = match_peaks(found, reference, radius_px)
    distance = np.linalg.norm(found[pairs[:, 0]] - reference[pairs[:, 1]], axis=1)
    nan = float("nan")
    p50, p75, p95 = np.percentile(distance, [50, 75, 95]).tolist() if len(pairs) else (nan,) * 3
    return DetectionScores(
        found=len(found),
        reference=len(reference),
        matched=len(pairs),
        recall=len(pairs) / len(reference) if len(reference) else nan,
        precision=len(pairs) / len(found) if len(found) else nan,
        distance_px=(p50, p75, p95),
    )
