"""The loops of `compiled_checks` in numpy, over all peaks at once, to the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, PATCH_SIZE, PeakFlag
from edgexnas.familiarity.quantities import (
    LARGEST_Z,
    LEAST_INTERVAL_PX,
    NARROW_PX2,
    NARROWEST_PX2,
    PEAK_QUANTITIES,
    RESPONSE,
    TOGETHER,
    WHOLE_FRAME,
    WINDOW_LIMITS_PX,
    WINDOW_PX,
    score_terms,
)

__all__ = ["check_peaks", "measured"]

FloatArray = npt.NDArray[np.float32]

_F = np.float32
_TINY = _F(1e-6)
_AREA = PATCH_SIZE * PATCH_SIZE
_MIDDLE = _AREA // 2
_ALONG = np.arange(PATCH_SIZE, dtype=np.float32) - _F(CENTRE)


def check_peaks(
    pixels: FloatArray, heights: FloatArray, offsets: FloatArray, middle: int, counted: int,
    factors: FloatArray, snr_edges: FloatArray, width_edges: FloatArray, widening: FloatArray,
    limits: FloatArray, standard: FloatArray, form: FloatArray, limit: np.float32,
    frame_share: np.float32, frame_least: int, flags: npt.NDArray[np.uint8],
    reasons: npt.NDArray[np.uint8], *_: Any,
) -> int:  # fmt: skip
    """Judge the peaks of one frame; parameters as of `compiled_checks.check_peaks`."""
    number = len(heights)
    patches = pixels.reshape(number, _AREA)
    found, terms, own = measured(patches, heights, offsets, middle)
    lowest, highest = limits[:, :counted]
    familiar = (lowest <= found[:, :counted]) & (found[:, :counted] <= highest)
    outside = ~familiar
    first = np.argmax(outside, axis=1) + 1
    reasons[:] = np.where(outside.any(axis=1), first, 0)
    if standard.size:
        score = _scores(terms[:, :counted], standard, form)
        reasons[(reasons == 0) & ~(score <= limit)] = TOGETHER
    alone = int(np.count_nonzero(reasons))
    whole = alone >= frame_least and _F(alone) > frame_share * _F(number)
    if whole:
        reasons[reasons == 0] = WHOLE_FRAME
    unfamiliar = reasons > 0
    flags[unfamiliar] |= np.uint8(PeakFlag.UNFAMILIAR)
    row = (_F(1) / np.maximum(found[:, 3], _TINY))[:, None] >= snr_edges
    col = found[:, :1] >= width_edges
    chosen = factors[row.sum(axis=1), col.sum(axis=1)]
    for axis in range(2):
        half = (offsets[:, axis, -1] - offsets[:, axis, 0]) * _F(0.5)
        far, noise, variance = (own[:, axis, part] for part in range(3))
        narrow = _F(NARROW_PX2) / (_F(NARROW_PX2) + variance)
        narrowness = _F(0.01) / variance
        least = np.sqrt(
            widening[0] * half * half
            + (widening[1] * (_F(1) - narrow) + widening[2] * narrow) * far * far
            + widening[3] * noise * noise
            + widening[4] * narrowness * narrowness
            + widening[5] * widening[5]
        )
        _stretch(offsets[:, axis], middle, chosen, np.where(unfamiliar, least, _F(0)))
    return number if whole else alone


def measured(
    patches: FloatArray, heights: FloatArray, offsets: FloatArray, middle: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give quantities (n, 11), what of them goes into scores (n, 11), and own (n, 2, 3)."""
    centre, ends = offsets[:, :, middle], offsets[:, :, -1] - offsets[:, :, 0]
    half = np.maximum(ends * _F(0.5), _F(LEAST_INTERVAL_PX / 2))
    beside = np.stack(
        [
            patches[:, _MIDDLE - PATCH_SIZE] + patches[:, _MIDDLE + PATCH_SIZE],
            patches[:, _MIDDLE - 1] + patches[:, _MIDDLE + 1],
        ],
        axis=1,
    )
    width = _within(_F(WINDOW_PX) * (_F(1) + beside), *map(_F, WINDOW_LIMITS_PX))
    start = _within(centre, _F(-1.5), _F(1.5))
    ratio = (_ALONG - start[:, :, None]) * (_F(1) / width)[:, :, None]
    edge = np.maximum(_F(1) - ratio * ratio, _F(0))
    windows = edge * edge
    per_total, mean, variance, covariance = _moments(patches, start, windows)
    squares = windows * windows
    distance = _ALONG - start[:, :, None]
    plain, first = (_in_order(part) for part in (squares, squares * distance * distance))
    share = variance / (width * width)
    linear, square, least = map(_F, RESPONSE)
    gain = _F(1) / np.maximum(_F(1) - share * (linear + square * share), least)
    place = _within(start + mean * gain, _F(-2), _F(2))
    noise = _pixel_noise(patches, place)
    spread = noise * per_total
    own = np.empty((len(patches), 2, 3), np.float32)
    own[:, :, 0] = np.abs(centre - place)
    own[:, 0, 1] = spread * np.sqrt(first[:, 0] * plain[:, 1]) * gain[:, 0]
    own[:, 1, 1] = spread * np.sqrt(plain[:, 0] * first[:, 1]) * gain[:, 1]
    own[:, :, 2] = variance
    far, interval = own[:, :, 0].max(axis=1), np.sqrt(half[:, 0] * half[:, 1])
    round_variance = np.sqrt(variance[:, 0] * variance[:, 1])
    empty = np.count_nonzero(patches == 0, axis=1).astype(np.float32)
    grid = patches.reshape(-1, PATCH_SIZE, PATCH_SIZE)
    above, below = _in_order(grid[:, 0, :-1]), _in_order(grid[:, -1, :0:-1])
    before, behind = _in_order(grid[:, 1:, 0]), _in_order(grid[:, :-1, -1])
    found = np.stack(
        [
            _F(2.3548) * np.sqrt(round_variance),
            (variance[:, 0] - variance[:, 1]) / (variance[:, 0] + variance[:, 1]),
            covariance / round_variance,
            noise,
            empty * _F(1 / _AREA),
            ((above + below) + (before + behind)) * _F(1 / 40),
            interval,
            far / (far + interval),
            (beside[:, 0] + beside[:, 1]) * _F(0.25),
            heights,
            noise * noise * heights,
        ],
        axis=1,
    )
    assert found.shape[1] == len(PEAK_QUANTITIES)
    return found, score_terms(found), own


def _within(values: FloatArray, low: np.float32, high: np.float32) -> FloatArray:
    """Bound values, NaN too: pixels are picked by what comes out."""
    bounded: FloatArray = np.fmin(np.fmax(values, low), high)
    return bounded


def _in_order(values: FloatArray) -> FloatArray:
    """Sum along the last axis in its order; numpy sums in pairs."""
    total = np.zeros(values.shape[:-1], np.float32)
    for index in range(values.shape[-1]):
        total += values[..., index]
    return total


def _moments(
    patches: FloatArray, start: FloatArray, windows: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Give 1 / windowed sum (n,), means (n, 2), variances (n, 2) and covariance (n,)."""
    sums: FloatArray = np.zeros((6, len(patches)), np.float32)
    total, down, across, down2, across2, cross = sums
    for c in range(PATCH_SIZE):
        column: FloatArray = np.zeros((3, len(patches)), np.float32)
        plain, first, second = column
        for r in range(PATCH_SIZE):
            t = _ALONG[r] - start[:, 0]
            weighted = windows[:, 0, r] * patches[:, PATCH_SIZE * r + c]
            plain += weighted
            weighted = weighted * t
            first += weighted
            second += weighted * t
        t, weight = _ALONG[c] - start[:, 1], windows[:, 1, c]
        total += weight * plain
        down += weight * first
        down2 += weight * second
        weight = weight * t
        across += weight * plain
        cross += weight * first
        across2 += weight * t * plain
    per_total = _F(1) / np.maximum(total, _TINY)
    mean = np.stack([down * per_total, across * per_total], axis=1)
    raw = np.stack([down2 * per_total, across2 * per_total], axis=1)
    variance = np.maximum(raw - mean * mean, _F(NARROWEST_PX2))
    return per_total, mean, variance, cross * per_total - mean[:, 0] * mean[:, 1]


def _pixel_noise(patches: FloatArray, place: FloatArray) -> FloatArray:
    number = len(patches)
    twice = 2 * CENTRE + np.floor(_F(2) * _within(place, _F(-1), _F(1)) + _F(0.5)).astype(np.int64)
    first = (twice - 4) // 2
    sides = twice - 2 * first + 1
    rr, cc, rc, qr, qc, qq = np.zeros((6, number), np.float32)
    pairs = np.zeros(number, np.int64)
    every = np.arange(number)
    for down in range(3):
        r = first[:, 0] + down
        columns = np.where(2 * r == twice[:, 0], sides[:, 1] // 2, sides[:, 1])
        for across in range(6):
            used = across < columns
            c = np.where(used, first[:, 1] + across, CENTRE)
            here = PATCH_SIZE * r + c
            there = PATCH_SIZE * (twice[:, 0] - r) + np.where(used, twice[:, 1] - c, CENTRE)
            one, other = patches[every, here], patches[every, there]
            odd = np.where(used, one - other, _F(0))
            even = np.where(used, one + other, _F(0))
            slope = even * (_F(2) + even)
            t_row = (2 * r - twice[:, 0]).astype(np.float32)
            t_col = (2 * (first[:, 1] + across) - twice[:, 1]).astype(np.float32)
            along_row, along_col = t_row * slope, t_col * slope
            rr += along_row * along_row
            cc += along_col * along_col
            rc += along_row * along_col
            qr += odd * along_row
            qc += odd * along_col
            qq += odd * odd
            pairs += even > 0
    determinant = rr * cc - rc * rc
    solvable = determinant > _TINY * rr * cc
    explained = qr * qr * cc - _F(2) * qr * qc * rc + qc * qc * rr
    qq -= np.where(solvable, explained / np.where(solvable, determinant, _F(1)), _F(0))
    freedom = (2 * np.maximum(pairs - 2, 1)).astype(np.float32)
    noise: FloatArray = np.sqrt(np.maximum(qq, _F(0)) / freedom)
    return noise


def _scores(terms: FloatArray, standard: FloatArray, form: FloatArray) -> FloatArray:
    centre, per_scale, linear = standard
    z = np.clip((terms - centre) * per_scale, _F(-LARGEST_Z), _F(LARGEST_Z))
    slopes = np.broadcast_to(linear, z.shape).copy()
    for quantity, row in enumerate(form):
        slopes += row * z[:, quantity, None]
    return _in_order(z * slopes)


def _stretch(quantiles: FloatArray, middle: int, factor: FloatArray, least: FloatArray) -> None:
    last = quantiles.shape[1] - 1
    position = quantiles[:, middle].copy()
    down, up = (position - quantiles[:, 0]) * factor, (quantiles[:, last] - position) * factor
    lower, upper = (
        np.where(
            (length > 0) & (length < least),
            factor * (least / np.where(length > 0, length, 1)),
            factor,
        )
        for length in (down, up)
    )
    for quantile in range(last + 1):
        if quantile < middle:
            quantiles[:, quantile] = position - (position - quantiles[:, quantile]) * lower
        elif quantile > middle:
            quantiles[:, quantile] = position + (quantiles[:, quantile] - position) * upper
    if middle > 0:
        quantiles[:, 0] = np.where(down > 0, quantiles[:, 0], position - least)
    if middle < last:
        quantiles[:, last] = np.where(up > 0, quantiles[:, last], position + least)
