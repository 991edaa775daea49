"""Unlimited labelled patterns: simulated objects under the beam that a scan was measured with.

A scan of a few hundred patterns teaches a network little. Phase retrieval of its training part
alone gives the beam and the object there, and with the beam any object can be diffracted: stars,
circuits and cells, and the reconstructed object itself, turned, mirrored, zoomed and seen from
positions between those of the scan. Nothing here may see patterns or labels that later test or
choose a network.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.ptycho_labels import cut_patches, labelled_numbers
from edgexnas.host.data.scan_parts import oriented_scan, part_of_scan
from edgexnas.host.data.synthetic_objects import CANVAS_PX, ObjectVariety, SeenObject, draw_objects
from edgexnas.host.threads import torch_threads
from edgexnas.ptycho import ORIENTATIONS, PATTERN_SIZE, Orientation

if TYPE_CHECKING:
    from edgexnas.host.data.phase_retrieval import Reconstruction
    from edgexnas.host.data.ptycho_dataset import PtychoDataset
    from edgexnas.scans import Scan

__all__ = [
    "Drawing",
    "ObjectVariety",
    "PatternSource",
    "SeenObject",
    "draw_objects",
    "in_scale_of",
    "reconstruct_part",
    "with_drawn_patterns",
    "with_probe",
    "with_synthetic_patterns",
]

ComplexArray = npt.NDArray[np.complex64]
FloatArray = npt.NDArray[np.float64]

AMPLITUDES = (0.85, 1.1)
"""Amplitudes of simulated objects, in units of the median amplitude of the labels."""

PHASE_SHIFTS = (0.5, 1.0)
"""Phase behind full thickness of simulated objects, in units of the contrast of the labels."""

CONTRAST_PERCENTILES = (1, 99)
"""Of the labels' phase, between which its contrast is taken."""

CONTRASTS_RAD = (0.2, 3.0)

OBJECTS = 64
"""Objects that a source of patterns shows unless told otherwise; each takes 1.2 MB or more."""

ROOM_PX = 128
"""By which an object is larger than a pattern at least, to be seen from many places."""

CHUNK = 64

MEASURED_SHARE = 0.1
"""Of the patterns that a source mixed with measured ones gives."""


def reconstruct_part(
    scan: Scan,
    numbers: npt.NDArray[np.intp],
    targets: npt.NDArray[np.float32],
    *,
    iterations: int = 50,
    modes: int = 3,
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstruction:
    """Reconstruct beam and object from a part of a scan, in the scale of the labels there.

    Parameters
    ----------
    numbers
        (n,) patterns to use: those that a network trains on.
    targets
        (n, 2, 64, 64) labels of these patterns, amplitude and phase.
    iterations, modes, device, threads, progress
        As of `edgexnas.host.data.phase_retrieval.reconstruct`.
    """
    from edgexnas.host.data.phase_retrieval import reconstruct

    found = reconstruct(
        part_of_scan(scan, numbers), iterations=iterations, modes=modes, device=device,
        threads=threads, progress=progress,
    )  # fmt: skip
    return in_scale_of(targets, found)


def in_scale_of(targets: npt.NDArray[np.float32], seen: Reconstruction) -> Reconstruction:
    """Scale an object's amplitude to the labels (n, 2, 64, 64) at its positions.

    Only the product of object and beam is measured, so the beam takes the inverse.
    """
    known = np.isfinite(seen.positions_px).all(axis=1)
    own = np.abs(cut_patches(seen.object, seen.positions_px[known]))
    factor = np.float32(np.median(targets[known, 0]) / np.median(own))
    return replace(seen, object=seen.object * factor, probe=seen.probe / factor)


class PatternSource:
    """Draws scaled patterns with the patches that they show, as fast as the device diffracts.

    Parameters
    ----------
    objects
        (k, H, W) complex64, from `draw_objects`.
    probe
        (modes, h, w) complex64, square with a side that is a multiple of 64; Σ|probe|² is the
        number of photons, such as a `Reconstruction`'s.
    intensity_scale
        Counts of a binned pattern that become 1, as of the network's manifest.
    mask
        (h, w) bool, detector pixels that count as 0; None for none.
    orientation
        What brings the detector's patterns into the axes of the positions: patterns are drawn as
        the detector gives them, and patches in those axes.
    device
        A torch device.
    seed
        Equal seeds give equal draws on one device.

    Raises
    ------
    InputError
        If the probe is no square of a multiple of 64, or the objects are not larger.
    """

    def __init__(
        self,
        objects: ComplexArray,
        probe: ComplexArray,
        intensity_scale: float,
        *,
        mask: npt.NDArray[np.bool_] | None = None,
        orientation: Orientation = "as-is",
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        side = probe.shape[-1]
        if probe.ndim != 3 or probe.shape[1] != side or side % PATTERN_SIZE:
            raise InputError(
                f"the probe has shape {probe.shape}; specify (modes, h, h), h a multiple of 64"
            )
        if objects.ndim != 3 or min(objects.shape[1:]) <= side:
            raise InputError(
                f"the objects have shape {objects.shape}; specify (k, H, W) larger than the "
                f"probe's {side} px"
            )
        if not intensity_scale > 0:
            raise ConfigurationError(f"intensity_scale is {intensity_scale}; specify more than 0")
        self._objects = torch.as_tensor(objects, device=device)
        self._probe = torch.as_tensor(probe, device=device)
        usable = np.ones((side, side), np.float32) if mask is None else (~mask).astype(np.float32)
        self._usable = torch.as_tensor(usable, device=device)
        self._scale = float(intensity_scale)
        self._orientation = ORIENTATIONS.index(orientation)
        self._random = torch.Generator(device=device).manual_seed(seed)
        self._measured: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where patterns are made."""
        return self._objects.device

    def seeded(self, seed: int) -> PatternSource:
        """Draw from the same objects by another seed, at no cost of memory."""
        other = copy.copy(self)
        other._random = torch.Generator(device=self.device).manual_seed(seed)
        return other

    def mixed(self, x: Tensor, y: Tensor) -> PatternSource:
        """Take about a tenth of the patterns from measured ones, at no cost of memory.

        No simulation is quite what a detector gives.

        Parameters
        ----------
        x, y
            (n, 1, 64, 64) scaled patterns and (n, 2, 64, 64) patches of the training part, on the
            device of this source.
        """
        other = copy.copy(self)
        other._measured = (x, y)
        return other

    def _on_detector(self, images: Tensor) -> Tensor:
        """Turn (n, h, h) from the axes of the positions to those of the detector."""
        # As `edgexnas.ptycho.oriented` with inverse=True does, for tensors have no negative steps.
        if self._orientation & 4:
            images = images.transpose(1, 2)
        axes = [axis for axis, bit in ((1, 1), (2, 2)) if self._orientation & bit]
        return images.flip(axes) if axes else images

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Make patterns.

        Returns
        -------
        (count, 1, 64, 64) float32, scaled as `edgexnas.ptycho.scale_patterns` does, with Poisson
        noise; and (count, 2, 64, 64) float32, amplitude and phase in radians.
        """
        if self._measured is None:
            return self._diffract(count)
        own = round(MEASURED_SHARE * count)
        taken = torch.randint(
            len(self._measured[0]), (own,), generator=self._random, device=self.device
        )
        patterns, patches = self._diffract(count - own)
        x, y = self._measured
        return torch.cat([patterns, x[taken]]), torch.cat([patches, y[taken]])

    def _diffract(self, count: int) -> tuple[Tensor, Tensor]:
        side = self._probe.shape[-1]
        windows = self._windows(count)
        # Unitary, so photons in the probe are photons on the detector.
        far = torch.fft.fft2(windows[:, None] * self._probe, norm="ortho")
        # Incoherent modes add in intensity.
        light = (far.real.square() + far.imag.square()).sum(dim=1)
        light = self._on_detector(torch.fft.fftshift(light, dim=(1, 2))) * self._usable
        binned = light.reshape(
            count, PATTERN_SIZE, side // PATTERN_SIZE, PATTERN_SIZE, side // PATTERN_SIZE
        ).sum(dim=(2, 4))
        # Sums of Poisson counts are Poisson counts of the sum, and drawing them takes longest.
        counts = torch.poisson(binned, generator=self._random)
        scaled = (counts / self._scale).sqrt()
        first = (side - PATTERN_SIZE) // 2
        patch = windows[:, first : first + PATTERN_SIZE, first : first + PATTERN_SIZE]
        return scaled[:, None], torch.stack([patch.abs(), patch.angle()], dim=1)

    def _windows(self, count: int) -> Tensor:
        """See objects (count, h, h) anywhere, turned by right angles and mirrored at random.

        Drawing objects takes long, and turned ones are others: only the probe stays as it is.
        """
        side, where = self._probe.shape[-1], self.device
        k, height, width = self._objects.shape
        number, top, left = (
            torch.randint(0, limit, (count, 1, 1), generator=self._random, device=where)
            for limit in (k, height - side, width - side)
        )
        reversed_rows, reversed_cols, transposed = torch.randint(
            0, 2, (3, count, 1, 1), generator=self._random, device=where
        ).bool()
        axis = torch.arange(side, device=where)
        down, across = axis[:, None], axis
        down = torch.where(reversed_rows, side - 1 - down, down)
        across = torch.where(reversed_cols, side - 1 - across, across)
        rows = top + torch.where(transposed, across, down)
        cols = left + torch.where(transposed, down, across)
        return self._objects[number, rows, cols]

    def draw_many(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw as `draw` does, some at a time: waves of all modes take a hundred times the room."""
        parts = [self.draw(min(CHUNK, count - at)) for at in range(0, count, CHUNK)]
        patterns, patches = (torch.cat(column) for column in zip(*parts, strict=True))
        return patterns, patches


def with_synthetic_patterns(
    dataset: PtychoDataset,
    scan: Scan,
    count: int,
    *,
    objects: int = OBJECTS,
    iterations: int = 50,
    modes: int = 3,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> PtychoDataset:
    """Add synthetic patterns to a labelled scan, for searches to train on.

    They join as a scan of their own, all of which the split gives to training. Beam and object
    come from the scan's training part alone.

    Parameters
    ----------
    dataset
        Labels of one scan, from `edgexnas.host.label_scan`.
    scan
        The scan that was labelled.
    count
        Patterns to add, 48 kB each.
    objects
        How many objects they show.
    iterations, modes, device, threads
        As of `edgexnas.host.data.phase_retrieval.reconstruct`.

    Raises
    ------
    ConfigurationError
        If `count` is below 1, or a part of the split is too small.
    InputError
        If the dataset does not hold a label for every pattern that `label_scan` labels.
    """
    if count < 1:
        raise ConfigurationError(f"count is {count}; specify 1 synthetic pattern or more")
    if dataset.probe is None:
        dataset = with_probe(
            dataset, scan, iterations=iterations, modes=modes, device=device, threads=threads
        )
    drawing = Drawing.of(dataset, dataset.split().train)
    if drawing is None:
        raise InputError(
            f"{scan.source} has a known object and no probe to draw patterns with; save one with it"
        )
    source = drawing.source(objects=objects, seed=seed, device=device)
    with torch_threads(threads):
        added = drawn_dataset(dataset, source, count, source_name=f"seed {seed}")
    return dataset.concatenate([dataset, added])


def with_probe(
    dataset: PtychoDataset,
    scan: Scan,
    *,
    iterations: int = 50,
    modes: int = 3,
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PtychoDataset:
    """Add the probe and the object that the training part alone shows, to draw patterns from.

    Where the labels are a known object, its scan's own probe is taken; without one, none.

    Parameters
    ----------
    dataset
        Labels of one scan, from `edgexnas.host.label_scan`.
    scan
        The scan that was labelled.
    iterations, modes, device, threads, progress
        As of `edgexnas.host.reconstruct`.

    Raises
    ------
    ConfigurationError
        If a part of the split is too small.
    InputError
        If the dataset does not hold a label for every pattern that `label_scan` labels.
    """
    labelled = labelled_numbers(scan, by_truth=dataset.against == "truth")
    if len(dataset) != len(labelled):
        raise InputError(
            f"{scan.source} has {len(labelled)} patterns to label and {len(dataset)} labels; "
            "label this scan as a whole"
        )
    train = dataset.split().train
    if dataset.against == "truth":
        if scan.probe is None:
            return dataset
        return replace(dataset, probe=scan.probe, mask=scan.mask)
    beam = reconstruct_part(
        oriented_scan(scan, dataset.orientation),
        labelled[train],
        dataset.targets[train],
        iterations=iterations,
        modes=modes,
        device=device,
        threads=threads,
        progress=progress,
    )
    return replace(
        dataset,
        probe=beam.probe,
        seen_object=beam.object,
        seen_illumination=beam.illumination,
        mask=scan.mask,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """What patterns of a scan are drawn from; small beside the objects that are made of it.

    Attributes
    ----------
    probe, mask, orientation, intensity_scale
        As of `PatternSource`.
    variety
        What simulated objects look like.
    seen_object, seen_illumination
        Object that the training part shows, and the photons on it; None for simulated ones alone.
    """

    probe: ComplexArray
    intensity_scale: float
    variety: ObjectVariety
    mask: npt.NDArray[np.bool_] | None = None
    orientation: Orientation = "as-is"
    seen_object: ComplexArray | None = None
    seen_illumination: npt.NDArray[np.float32] | None = None

    @classmethod
    def of(cls, dataset: PtychoDataset, part: npt.NDArray[np.intp]) -> Drawing | None:
        """Draw as of a part of a dataset, such as its training part; None if it has no probe.

        Simulated objects have the amplitude and the contrast of the labels of that part.
        """
        if dataset.probe is None:
            return None
        amplitude, phase = dataset.targets[part, 0], dataset.targets[part, 1]
        middle = float(np.median(amplitude))
        low, high = np.percentile(phase, CONTRAST_PERCENTILES)
        contrast = float(np.clip(high - low, *CONTRASTS_RAD))
        variety = ObjectVariety(
            amplitude=(AMPLITUDES[0] * middle, AMPLITUDES[1] * middle),
            phase_shift_rad=(-PHASE_SHIFTS[1] * contrast, -PHASE_SHIFTS[0] * contrast),
        )
        return cls(
            probe=dataset.probe,
            intensity_scale=dataset.intensity_scale,
            variety=variety,
            mask=dataset.mask,
            orientation=dataset.orientation,
            seen_object=dataset.seen_object,
            seen_illumination=dataset.seen_illumination,
        )

    def objects(self, count: int = OBJECTS, *, seed: int = 0) -> ComplexArray:
        """Draw (count, H, W) complex64 objects larger than the probe, which takes seconds."""
        seen = None
        if self.seen_object is not None and self.seen_illumination is not None:
            seen = SeenObject(self.seen_object, self.seen_illumination)
        side_px = max(CANVAS_PX, self.probe.shape[-1] + ROOM_PX)
        return draw_objects(count, side_px=side_px, seed=seed, variety=self.variety, seen=seen)

    def source(
        self, *, objects: int | ComplexArray = OBJECTS, seed: int = 0, device: str = "cpu"
    ) -> PatternSource:
        """Make a source of patterns that show these objects, or so many drawn by the seed."""
        if isinstance(objects, int):
            objects = self.objects(objects, seed=seed)
        return PatternSource(
            objects,
            self.probe,
            self.intensity_scale,
            mask=self.mask,
            orientation=self.orientation,
            device=device,
            seed=seed,
        )


def drawn_dataset(
    dataset: PtychoDataset, source: PatternSource, count: int, *, source_name: str
) -> PtychoDataset:
    """Draw patterns as a dataset of one scan, all of which a split gives to training."""
    x, y = (column.cpu().numpy() for column in source.draw_many(count))
    return replace(
        dataset,
        # Back to whole counts, which the dataset scales as it does measured ones.
        patterns=np.rint(x[:, 0] ** 2 * np.float32(dataset.intensity_scale)),
        targets=y,
        # One place, in the first cell of the area: no part but training holds it.
        positions_px=np.zeros((count, 2)),
        region=np.zeros(count, np.int32),
        source=f"{count} synthetic patterns, {source_name}",
    )


def with_drawn_patterns(*arguments: Any, **options: Any) -> PtychoDataset:
    """Call `with_synthetic_patterns`: its name until the next release."""
    warnings.warn(
        "with_drawn_patterns is now with_synthetic_patterns", DeprecationWarning, stacklevel=2
    )
    return with_synthetic_patterns(*arguments, **options)
