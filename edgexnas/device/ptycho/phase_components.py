"""Phase components: patches that overlap each other, joined once it is known how they fit.

A patch knows its phase up to a constant. One that lies mostly on what is stitched already is turned
to fit it; any other starts a component. How components fit each other is summed up over all patches
between them, and they are joined once that is well known: a few pixels would tell it badly, and all
that is stitched later would inherit the error. An image shows components that are not joined yet
turned by what is known so far.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.ptycho import (
    PATTERN_SIZE,
    FloatArray,
    ObjectCanvas,
    ObjectImage,
    SpreadPatch,
    hann_weight,
    spread_patch,
    to_complex,
)

__all__ = ["Canvas", "Extent", "HostComponents", "PhaseComponent", "PhaseComponents", "Position"]

LEAST_OVERLAP = 0.8
"""Share of a patch's weight that must lie on a component for the patch to become a part of it."""

JOINING_OVERLAP = 10.0
"""Overlap, in weights of a patch, from which two components become one for good."""

LEAST_EVIDENCE = 0.05
"""Overlap, in weights of a patch, below which two components say nothing about each other."""

MOST_COMPONENTS = 256
"""Most components; a patch that would start one more is added where it overlaps most."""

MARGIN = 16
"""Empty pixels around a first patch, so that a canvas does not grow with every step."""

WEIGHT = hann_weight().astype(np.float32)
"""How much each pixel of a patch counts."""

Position = npt.NDArray[np.float64]
Patch = TypeVar("Patch", bound="Turnable")
Taken = TypeVar("Taken", contravariant=True)
Own = TypeVar("Own")


class Turnable(Protocol):
    """A patch as a kind of canvas takes it."""

    def turned(self: Own, phase_rad: float, /) -> Own:
        """Add a constant to the phase."""


class Canvas(Protocol[Taken]):
    """Where patches are averaged; see `edgexnas.ptycho.ObjectCanvas`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in object pixels."""

    @property
    def origin_px(self) -> tuple[int, int]:
        """(row, col) of the first pixel in the coordinates of the positions."""

    def add_spread(self, patch: Taken, /) -> None:
        """Add a patch that lies on the canvas as a whole."""

    def compare(self, patch: Taken, /) -> tuple[complex, float]:
        """Return Σ canvas · patch*, weighted, and the share of the weight on covered pixels."""

    def extend(self, before: tuple[int, int], after: tuple[int, int], /) -> None:
        """Put (rows, cols) of empty pixels before the first and after the last pixel."""

    def absorb(self: Own, other: Own, turn_rad: float, /) -> None:
        """Add what lies here of another canvas, after its phase is turned by a constant."""

    def image(self) -> ObjectImage:
        """Return the object as it stands now."""


class Extent(NamedTuple):
    """Whole pixels that patches cover; `bottom` and `right` are the first beyond."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def of(cls, row: float, col: float) -> Extent:
        """Return what a patch at this position covers."""
        bottom, right = math.ceil(row) + PATTERN_SIZE, math.ceil(col) + PATTERN_SIZE
        return cls(math.floor(row), math.floor(col), bottom, right)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.bottom - self.top, self.right - self.left

    def touches(self, other: Extent) -> bool:
        """Tell whether the two have pixels in common."""
        rows = self.top < other.bottom and other.top < self.bottom
        return rows and self.left < other.right and other.left < self.right

    def joined(self, other: Extent) -> Extent:
        """Return the least that holds both."""
        return Extent(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


@dataclass(frozen=True, slots=True)
class _Link:
    """How one component fits another where both have values.

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
        """Return the link of the one after it was turned."""
        return _Link(self.product * cmath.exp(-1j * turn_rad), self.overlap)

    def reversed(self) -> _Link:
        return _Link(self.product.conjugate(), self.overlap)

    def joined(self, other: _Link) -> _Link:
        return _Link(self.product + other.product, self.overlap + other.overlap)


@dataclass(slots=True, eq=False)
class PhaseComponent(Generic[Patch]):
    """Patches that overlap with each other, on a canvas that grows; `used` is its filled part."""

    canvas: Canvas[Patch]
    used: Extent
    patches: int = 0
    links: dict[PhaseComponent[Patch], _Link] = field(default_factory=dict)

    def add(self, patch: Patch, extent: Extent) -> None:
        """Add a patch, which covers `extent`, as it is."""
        self.make_room(extent)
        self.canvas.add_spread(patch)
        self.used = self.used.joined(extent)
        self.patches += 1

    def link(self, other: PhaseComponent[Patch], link: _Link) -> None:
        """Note evidence of how this component fits another."""
        # Complex products add up, so that each patch weighs by its overlap.
        both = self.links.get(other, _Link()).joined(link)
        self.links[other], other.links[self] = both, both.reversed()

    def absorb(self, other: PhaseComponent[Patch], turn_rad: float) -> None:
        """Take over another component, turned by a constant phase, and its links."""
        self.make_room(other.used)
        self.canvas.absorb(other.canvas, turn_rad)
        self.used = self.used.joined(other.used)
        self.patches += other.patches
        for neighbour, link in other.links.items():
            del neighbour.links[other]
            if neighbour is not self:
                # Evidence that was gathered before the turn is of the phase before it.
                self.link(neighbour, link.turned(turn_rad))

    def make_room(self, extent: Extent) -> None:
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


class PhaseComponents(Generic[Patch]):
    """All that is stitched of one object, on canvases of one kind."""

    def __init__(self) -> None:
        self._components: list[PhaseComponent[Patch]] = []

    def add(
        self, amplitude: FloatArray, phase_rad: FloatArray, position: Position, extent: Extent
    ) -> None:
        """Stitch a patch, after all that were added before.

        Parameters
        ----------
        amplitude, phase_rad
            (64, 64) float32; they may be overwritten afterwards.
        position
            (row, col) of the first pixel in object pixels, finite.
        extent
            The whole pixels that it covers.
        """
        raise NotImplementedError

    def to_host(self) -> HostComponents:
        """Return the same components in host memory; these are closed then."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what was taken elsewhere than in host memory; closing again does nothing."""

    def image(self, used: Extent, skipped: int) -> ObjectImage:
        """Return the object as it stands now.

        Parameters
        ----------
        used
            What the image shows: all pixels that patches cover.
        skipped
            Patches that are not a part of it.
        """
        whole = self._around(used)
        turns = self._turns()
        for component in self._components:
            whole.canvas.absorb(component.canvas, turns.get(component, 0.0))
        where = slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN)
        stitched, origin = whole.canvas.image(), (used.top, used.left)
        self._drop(whole)
        return ObjectImage(
            stitched.values[where].copy(), stitched.coverage[where].copy(), skipped, origin
        )

    def join(self, patch: Patch, extent: Extent) -> None:
        """Add a patch to the component that it overlaps most, and join those that fit now."""
        near = [component for component in self._components if component.used.touches(extent)]
        links = {component: _Link(*component.canvas.compare(patch)) for component in near}
        # By overlap and not by fit: a phase from a few pixels fits by chance.
        home = max(links, key=lambda component: links[component].overlap, default=None)
        if home is None or links[home].overlap < LEAST_OVERLAP:
            home = self._new_component(extent) or home or max(self._components, key=_size)
        turn = links[home].turn_rad if home in links else 0.0
        # Turned once, when it comes: later patches are compared with sums, which are not taken
        # apart.
        home.add(patch.turned(turn), extent)
        for component, link in links.items():
            if component is not home and link.overlap:
                home.link(component, link.turned(turn))
        self._join_components(home)

    def _new_canvas(self, shape: tuple[int, int], origin_px: tuple[int, int]) -> Canvas[Patch]:
        raise NotImplementedError

    def _drop(self, component: PhaseComponent[Patch]) -> None:
        """Free a component that is not needed any more."""

    def _around(self, extent: Extent) -> PhaseComponent[Patch]:
        height, width = extent.shape
        canvas = self._new_canvas(
            (height + 2 * MARGIN, width + 2 * MARGIN), (extent.top - MARGIN, extent.left - MARGIN)
        )
        return PhaseComponent(canvas, extent)

    def _new_component(self, extent: Extent) -> PhaseComponent[Patch] | None:
        if len(self._components) >= MOST_COMPONENTS:
            return None
        self._components.append(self._around(extent))
        return self._components[-1]

    def _join_components(self, home: PhaseComponent[Patch]) -> None:
        while home.links:
            other = max(home.links, key=lambda component: home.links[component].overlap)
            if home.links[other].overlap < JOINING_OVERLAP:
                return
            # The larger one stays as it is: fewer pixels are copied, and the image keeps its phase.
            if other.patches > home.patches:
                home, other = other, home
            home.absorb(other, other.links[home].turn_rad)
            self._components.remove(other)
            self._drop(other)

    def _turns(self) -> dict[PhaseComponent[Patch], float]:
        """Phases that make the components fit the largest, along the links of most overlap."""
        if not self._components:
            return {}
        # The largest is the reference, so that the image does not turn when small ones come and go.
        turns = {max(self._components, key=_size): 0.0}
        while True:
            reach = [
                (link.overlap, turns[component] - link.turn_rad, other)
                for component in turns
                for other, link in component.links.items()
                if other not in turns and link.overlap >= LEAST_EVIDENCE
            ]
            if not reach:
                return turns
            # As Prim's tree: each is reached along the best-known link.
            _, turn, other = max(reach, key=lambda found: found[0])
            turns[other] = turn


class HostComponents(PhaseComponents[SpreadPatch]):
    """Phase components in host memory, stitched by numpy."""

    def add(
        self, amplitude: FloatArray, phase_rad: FloatArray, position: Position, extent: Extent
    ) -> None:
        """Stitch a patch; see `PhaseComponents.add`."""
        patch = spread_patch(to_complex(amplitude, phase_rad), position, WEIGHT)
        self.join(patch, extent)

    def to_host(self) -> HostComponents:
        """Return these components."""
        return self

    def _new_canvas(self, shape: tuple[int, int], origin_px: tuple[int, int]) -> ObjectCanvas:
        return ObjectCanvas(shape, origin_px=origin_px)


def _size(component: PhaseComponent[Patch]) -> int:
    return component.patches
