"""Stitch patches into an object image that grows while a scan runs."""

from __future__ import annotations

import cmath
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import (
    PATTERN_SIZE,
    ComplexArray,
    ObjectCanvas,
    ObjectImage,
    SpreadPatch,
    hann_weight,
    spread_patch,
)

__all__ = [
    "LONGEST_SIDE",
    "MOST_PIXELS",
    "MOST_WAITING",
    "ObjectStitcher",
    "StitchCounts",
    "plausible",
]

MOST_PIXELS = 2**26
"""Largest object, in pixels (8192²); positions that would need more are not plausible."""

LONGEST_SIDE = 2**15
"""Longest side of an object in pixels."""

MOST_WAITING = 1024
"""Patches that wait for their position, 32 kB each, before the oldest is given up."""

LEAST_OVERLAP = 0.8
"""Share of a patch's weight that must lie on an island for the patch to become a part of it."""

JOINING_OVERLAP = 10.0
"""Overlap, in weights of a patch, from which two islands become one for good."""

LEAST_EVIDENCE = 0.05
"""Overlap, in weights of a patch, below which two islands say nothing about each other."""

MOST_ISLANDS = 256
"""Most islands; a patch that would start one more is added where it overlaps most."""

MARGIN = 16
"""Empty pixels around a first patch, so that a canvas does not grow with every step."""

WEIGHT = hann_weight().astype(np.float32)
"""How much each pixel of a patch counts."""

Position = npt.NDArray[np.float64]


def plausible(height: float, width: float) -> bool:
    """Tell whether an object of this size is within `LONGEST_SIDE` and `MOST_PIXELS`."""
    return max(height, width) <= LONGEST_SIDE and height * width <= MOST_PIXELS


@dataclass(frozen=True, slots=True)
class StitchCounts:
    """What became of the patches of a scan; all but `unused_positions` add up to `patches`.

    Attributes
    ----------
    patches
        Patches so far.
    stitched
        In the object image.
    waiting
        Without a position so far, kept until it comes.
    missing
        Given up: their position did not come, or too many others waited behind them.
    repeated
        Not stitched, because the position is exactly that of the patch stitched before: an encoder
        that stood still, or whose reading is stale.
    outside
        Not stitched, because the position is infinite or would make the object larger than
        `MOST_PIXELS`.
    unused_positions
        Position readings that met no waiting patch.
    """

    patches: int = 0
    stitched: int = 0
    waiting: int = 0
    missing: int = 0
    repeated: int = 0
    outside: int = 0
    unused_positions: int = 0


@dataclass(frozen=True, slots=True)
class _Extent:
    """Whole pixels that patches cover; `bottom` and `right` are the first beyond."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def of(cls, position: Position) -> _Extent:
        row, col = position.tolist()
        bottom, right = math.ceil(row) + PATTERN_SIZE, math.ceil(col) + PATTERN_SIZE
        return cls(math.floor(row), math.floor(col), bottom, right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def touches(self, other: _Extent) -> bool:
        rows = self.top < other.bottom and other.top < self.bottom
        return rows and self.left < other.right and other.left < self.right

    def joined(self, other: _Extent) -> _Extent:
        return _Extent(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


@dataclass(frozen=True, slots=True)
class _Link:
    """How one island fits another where both have values.

    Attributes
    ----------
    product
        Σ other · one*, weighted; its argument is the phase by which the one must be turned.
    overlap
        Over how much of a patch's weight.
    """

    product: complex = 0j
    overlap: float = 0.0

    @property
    def turn_rad(self) -> float:
        return cmath.phase(self.product)

    def turned(self, turn_rad: float) -> _Link:
        """Give the link of the one after it was turned."""
        return _Link(self.product * cmath.exp(-1j * turn_rad), self.overlap)

    def reversed(self) -> _Link:
        return _Link(self.product.conjugate(), self.overlap)

    def joined(self, other: _Link) -> _Link:
        return _Link(self.product + other.product, self.overlap + other.overlap)


@dataclass(slots=True, eq=False)
class _Island:
    """Patches that overlap with each other, on a canvas that grows; `used` is its filled part."""

    canvas: ObjectCanvas
    used: _Extent
    patches: int = 0
    links: dict[_Island, _Link] = field(default_factory=dict)

    @classmethod
    def around(cls, extent: _Extent) -> _Island:
        height, width = extent.shape
        canvas = ObjectCanvas(
            (height + 2 * MARGIN, width + 2 * MARGIN),
            origin_px=(extent.top - MARGIN, extent.left - MARGIN),
        )
        return cls(canvas, extent)

    def add(self, patch: SpreadPatch, extent: _Extent) -> None:
        self._make_room(extent)
        self.canvas.add_spread(patch)
        self.patches += 1

    def link(self, other: _Island, link: _Link) -> None:
        """Note evidence of how this island fits another."""
        both = self.links.get(other, _Link()).joined(link)
        self.links[other], other.links[self] = both, both.reversed()

    def absorb(self, other: _Island, turn_rad: float) -> None:
        """Take over another island, turned by a constant phase, and its links."""
        self._make_room(other.used)
        self.canvas.absorb(other.canvas, turn_rad)
        self.patches += other.patches
        for neighbour, link in other.links.items():
            del neighbour.links[other]
            if neighbour is not self:
                self.link(neighbour, link.turned(turn_rad))

    def _make_room(self, extent: _Extent) -> None:
        """Extend the canvas to hold `extent`, by a quarter of its side or more where it grows."""
        (row, col), (height, width) = self.canvas.origin_px, self.canvas.shape
        # One pixel more, because a patch at a fraction of a pixel is spread over 65 pixels.
        lacking = (
            (row - extent.top, height),
            (col - extent.left, width),
            (extent.bottom + 1 - row - height, height),
            (extent.right + 1 - col - width, width),
        )
        top, left, bottom, right = (
            pixels + side // 4 if pixels > 0 else 0 for pixels, side in lacking
        )
        if top or left or bottom or right:
            self.canvas.extend((top, left), (bottom, right))
        self.used = self.used.joined(extent)


@dataclass(slots=True)
class ObjectStitcher:
    """Puts patches at their positions, in the order in which patch and position have both come.

    A patch knows its phase up to a constant. One that lies mostly on what is stitched already is
    turned to fit it; any other starts an island. How islands fit each other is summed up over all
    patches between them, and they are joined once that is well known: a few pixels would
    tell it badly, and all that is stitched later would inherit the error. An image shows islands
    that are not joined yet turned by what is known so far.

    A patch whose position is unknown waits, at most `most_waiting` of them; so do positions that
    come before their patch. What the image looks like depends on the order of patches and
    positions alone, not on how they were batched.

    Attributes
    ----------
    most_waiting
        Most patches that wait for a position, and most positions that wait for a patch.
    """

    most_waiting: int = MOST_WAITING
    _islands: list[_Island] = field(default_factory=list)
    _used: _Extent | None = None
    _waiting: dict[int, ComplexArray] = field(default_factory=dict)
    _early: dict[int, Position] = field(default_factory=dict)
    _previous: Position | None = None
    _tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if type(self.most_waiting) is not int or self.most_waiting < 0:
            raise ConfigurationError(
                f"most_waiting is {self.most_waiting!r}; give a whole number from 0"
            )

    def add(self, number: int, patch: ComplexArray, position: Position) -> Position:
        """Take in the next patch of the scan.

        Parameters
        ----------
        number
            Number of the pattern in its scan.
        patch
            (64, 64) complex64.
        position
            (row, col) of its first pixel in object pixels; NaN if unknown so far.

        Returns
        -------
        The position, from an early reading where it came before the patch; else as given.
        """
        self._tally["patches"] += 1
        early = self._early.pop(number, None)
        if np.isnan(position).any():
            if early is None:
                self._wait(number, patch)
                return position
            position = early
        elif early is not None:
            self._tally["unused_positions"] += 1
        self._stitch(patch, position)
        return position

    def place(self, number: int, position: Position) -> None:
        """Take in the position of a pattern, whether its patch has come or is still to come."""
        if number in self._waiting and not np.isnan(position).any():
            self._stitch(self._waiting.pop(number), position)
        elif number < self._tally["patches"] or number in self._early or np.isnan(position).any():
            self._tally["unused_positions"] += 1
        else:
            self._early[number] = position
            if len(self._early) > self.most_waiting:
                del self._early[min(self._early)]
                self._tally["unused_positions"] += 1

    def finish(self) -> None:
        """Give up what still waits, at the end of a scan."""
        self._tally["missing"] += len(self._waiting)
        self._tally["unused_positions"] += len(self._early)
        self._waiting.clear()
        self._early.clear()

    @property
    def counts(self) -> StitchCounts:
        """What became of the patches so far."""
        return StitchCounts(waiting=len(self._waiting), **self._tally)

    def image(self) -> ObjectImage:
        """Return the object as it stands now, cut to what the patches cover.

        Before the first patch is stitched the image has shape (0, 0).
        """
        skipped = sum(self._tally[state] for state in ("missing", "repeated", "outside"))
        if self._used is None:
            empty = np.zeros((0, 0))
            return ObjectImage(empty.astype(np.complex64), empty.astype(np.float32), skipped)
        whole = _Island.around(self._used)
        turns = self._turns()
        for island in self._islands:
            whole.canvas.absorb(island.canvas, turns.get(island, 0.0))
        where = slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN)
        stitched, origin = whole.canvas.image(), (self._used.top, self._used.left)
        return ObjectImage(
            stitched.values[where].copy(), stitched.coverage[where].copy(), skipped, origin
        )

    def _wait(self, number: int, patch: ComplexArray) -> None:
        # A copy, because a view would keep its whole batch in memory.
        self._waiting[number] = patch.copy()
        if len(self._waiting) > self.most_waiting:
            del self._waiting[next(iter(self._waiting))]
            self._tally["missing"] += 1

    def _stitch(self, patch: ComplexArray, position: Position) -> None:
        if self._previous is not None and np.array_equal(position, self._previous):
            self._tally["repeated"] += 1
            return
        extent = self._extent(position)
        if extent is None:
            self._tally["outside"] += 1
            return
        self._join(spread_patch(patch, position, WEIGHT), extent)
        self._used = extent if self._used is None else self._used.joined(extent)
        self._previous = position
        self._tally["stitched"] += 1

    def _extent(self, position: Position) -> _Extent | None:
        """Pixels of a patch at this position; None if no object reaches there."""
        # Compared before the conversion to integers, which infinity and 1e300 do not survive.
        if not (np.abs(position) < 2.0**53).all():
            return None
        extent = _Extent.of(position)
        whole = extent if self._used is None else self._used.joined(extent)
        return extent if plausible(*whole.shape) else None

    def _join(self, patch: SpreadPatch, extent: _Extent) -> None:
        """Add a patch to the island that it overlaps most with, and join islands that now fit."""
        near = [island for island in self._islands if island.used.touches(extent)]
        links = {island: _Link(*island.canvas.compare(patch)) for island in near}
        home = max(links, key=lambda island: links[island].overlap, default=None)
        if home is None or links[home].overlap < LEAST_OVERLAP:
            home = self._new_island(extent) or home or max(self._islands, key=_size)
        turn = links[home].turn_rad if home in links else 0.0
        home.add(patch.turned(turn), extent)
        for island, link in links.items():
            if island is not home and link.overlap:
                home.link(island, link.turned(turn))
        self._join_islands(home)

    def _new_island(self, extent: _Extent) -> _Island | None:
        if len(self._islands) >= MOST_ISLANDS:
            return None
        self._islands.append(_Island.around(extent))
        return self._islands[-1]

    def _join_islands(self, home: _Island) -> None:
        while home.links:
            other = max(home.links, key=lambda island: home.links[island].overlap)
            if home.links[other].overlap < JOINING_OVERLAP:
                return
            if other.patches > home.patches:
                home, other = other, home
            home.absorb(other, other.links[home].turn_rad)
            self._islands.remove(other)

    def _turns(self) -> dict[_Island, float]:
        """Phases that make the islands fit the largest, along the links of most overlap."""
        turns = {max(self._islands, key=_size): 0.0}
        while True:
            reach = [
                (link.overlap, turns[island] - link.turn_rad, other)
                for island in turns
                for other, link in island.links.items()
                if other not in turns and link.overlap >= LEAST_EVIDENCE
            ]
            if not reach:
                return turns
            _, turn, other = max(reach, key=lambda found: found[0])
            turns[other] = turn


def _size(island: _Island) -> int:
    return island.patches
