"""Which frames train, calibrate, validate and test: by contiguous blocks, never at random.

A reflection shows on neighbouring frames, so a random split would test on what it trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError

__all__ = ["DROPPED", "PARTS", "Split", "split_frames", "split_of"]

IndexArray = npt.NDArray[np.intp]

TRAIN, CALIBRATION, VALIDATION, TEST, DROPPED = range(5)
PARTS = ("train", "calibration", "validation", "test")

MINIMUM_ITEMS = 16
"""Fewest items that each part of a split must hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Indices of the peaks of each part, (n,) intp, increasing; no frame is in two parts.

    Attributes
    ----------
    train, calibration, validation, test
        Peaks with a label.
    rest
        The same of peaks without one, which a device finds and predicts too; None of patterns.
    """

    train: IndexArray
    calibration: IndexArray
    validation: IndexArray
    test: IndexArray
    rest: Split | None = None


def split_of(
    part: npt.NDArray[np.integer],
    *,
    what: str,
    remedy: str,
    good: npt.NDArray[np.bool_] | None = None,
) -> Split:
    """Gather the items of each part from the part (n,) of each item.

    Parameters
    ----------
    good
        (n,) which items have a label; None for all.
    what, remedy
        What was split and what helps if a part is too small, for the message.

    Raises
    ------
    ConfigurationError
        If a part has fewer than 16 items.
    """
    # DROPPED is the number after the last part, so it is left out here.
    split = _gathered(part) if good is None else _gathered(part, good, _gathered(part, ~good))
    sizes = {name: len(getattr(split, name)) for name in PARTS}
    if min(sizes.values()) < MINIMUM_ITEMS:
        found = ", ".join(f"{count} for {name}" for name, count in sizes.items())
        raise ConfigurationError(
            f"{what}, which split into {found}; {remedy}, for each part needs {MINIMUM_ITEMS}"
        )
    return split


def _gathered(
    part: npt.NDArray[np.integer],
    chosen: npt.NDArray[np.bool_] | bool = True,
    rest: Split | None = None,
) -> Split:
    train, calibration, validation, test = (
        np.flatnonzero((part == number) & chosen) for number in range(DROPPED)
    )
    return Split(train, calibration, validation, test, rest)


def split_frames(
    frames: int,
    *,
    blocks: int = 24,
    guard: int = 2,
    fractions: tuple[float, float, float] = (0.1, 0.15, 0.15),
    closed: bool = False,
) -> npt.NDArray[np.int8]:
    """Assign each frame to a part.

    The last blocks are the test part. Calibration and validation blocks lie evenly spread among the
    others. Between frames of different parts `guard` frames are dropped, from the training side
    where there is one.

    Parameters
    ----------
    frames
        Number of frames.
    blocks
        Number of blocks; fewer where a block would have fewer than 2·guard frames.
    guard
        Frames dropped between blocks of different parts.
    fractions
        Shares of the blocks for calibration, validation and test; at least one block each.
    closed
        Whether the last frame is a neighbour of the first, as after a full turn.

    Returns
    -------
    (frames,) int8: 0 train, 1 calibration, 2 validation, 3 test, 4 dropped.

    Raises
    ------
    ConfigurationError
        If an option is out of range or the frames are too few.
    """
    if guard < 0 or min(fractions) <= 0 or sum(fractions) >= 0.75:
        raise ConfigurationError(
            f"guard is {guard} and fractions are {fractions}; specify a guard from 0 and positive "
            "fractions that leave more than a quarter for training"
        )
    count = min(blocks, frames // max(2 * guard, 1))
    held = [max(1, round(fraction * count)) for fraction in fractions]
    rest = count - held[2]
    if rest < 2 * (held[0] + held[1]):
        raise ConfigurationError(
            f"{frames} frames make {count} blocks of at least {max(2 * guard, 1)} frames, too few "
            "to split; specify more frames or blocks, a smaller guard or smaller fractions"
        )
    kinds = np.full(count, TRAIN, np.int8)
    kinds[rest:] = TEST
    places = _evenly(rest, held[0] + held[1])
    # Calibration takes evenly spread ones of these places, so both parts see the whole series.
    kinds[places] = VALIDATION
    kinds[places[_evenly(len(places), held[0])]] = CALIBRATION
    part = kinds[np.arange(frames) * count // frames]
    return _guarded(part, guard, closed)


def _evenly(size: int, number: int) -> IndexArray:
    """Spread `number` different indices evenly over range(size)."""
    return ((np.arange(number) + 0.5) * size / number).astype(np.intp)


def _guarded(part: npt.NDArray[np.int8], guard: int, closed: bool) -> npt.NDArray[np.int8]:
    """Drop `guard` frames at each change of part."""
    result = part.copy()
    # part[-1] is the last frame, which after a full turn is the neighbour of the first.
    for frame in range(0 if closed else 1, len(part)):
        before, after = part[frame - 1], part[frame]
        if before != after:
            # Training has frames to spare; of two held-out parts the earlier one gives way.
            step = 1 if after == TRAIN else -1
            start = frame if after == TRAIN else frame - 1
            result[(start + step * np.arange(guard)) % len(part)] = DROPPED
    return result
