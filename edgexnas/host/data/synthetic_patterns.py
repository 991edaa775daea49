"""Unlimited labelled patterns: simulated objects under the beam that a scan was measured with.

A scan of a few hundred patterns teaches a network little. Phase retrieval of its training part
alone gives the beam and the object there, and with the beam any object can be diffracted: stars,
circuits and cells, and the reconstructed object itself, turned, mirrored, zoomed and seen from
positions between those of the scan. Nothing here may see patterns or labels that later test or
choose a network.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.threads import torch_threads
from edgexnas.ptycho import PATTERN_SIZE
from edgexnas.simulate.ptychography_objects import OBJECT_KINDS, thickness_map

if TYPE_CHECKING:
    from edgexnas.host.data.phase_retrieval import Reconstruction
    from edgexnas.host.data.ptycho_dataset import PtychoDataset
    from edgexnas.scans import Scan

__all__ = [
    "ObjectVariety",
    "PatternSource",
    "draw_objects",
    "in_scale_of",
    "part_of_scan",
    "reconstruct_part",
    "with_drawn_patterns",
    "with_synthetic_patterns",
]

ComplexArray = npt.NDArray[np.complex64]
FloatArray = npt.NDArray[np.float64]

CANVAS_PX = 384
AMPLITUDES = (0.85, 1.1)
"""Amplitudes of simulated objects, in units of the median amplitude of the labels."""

CHUNK = 64
LIT_SHARE = 0.4
"""Share of the brightest illumination from which a reconstructed object is believed."""
EDGE_SIGMA_PX = 4.0
"""Width over which a reconstructed object gives way to a simulated one beside it."""


@dataclass(frozen=True, kw_only=True)
class ObjectVariety:
    """What simulated objects look like; ranges are drawn from uniformly.

    Attributes
    ----------
    kinds
        Names out of `edgexnas.simulate.ptychography_objects.OBJECT_KINDS`; a name given twice is
        drawn twice as often.
    phase_shift_rad
        Phase behind full thickness.
    transmission
        Amplitude behind full thickness, as a share of that beside it.
    amplitude
        Amplitude where there is nothing.
    zoom
        Magnification of a simulated object.
    drift_rad
        Standard deviation of a phase that varies slowly over the object, as in a support film.
    roughness
        Standard deviation of the amplitude from pixel to pixel, as a share.
    """

    kinds: tuple[str, ...] = ("siemens-star", "siemens-star", "circuit", "cells")
    phase_shift_rad: tuple[float, float] = (-1.3, -0.6)
    transmission: tuple[float, float] = (0.8, 1.0)
    amplitude: tuple[float, float] = (0.65, 0.85)
    zoom: tuple[float, float] = (0.8, 2.5)
    drift_rad: float = 0.12
    roughness: float = 0.03

    def __post_init__(self) -> None:
        """Reject what cannot be drawn.

        Raises
        ------
        ConfigurationError
            If a kind is unknown or a range is empty; it names the field.
        """
        unknown = [kind for kind in self.kinds if kind not in OBJECT_KINDS]
        if unknown or not self.kinds:
            raise ConfigurationError(
                f"kinds are {self.kinds}; specify at least one out of {OBJECT_KINDS}"
            )
        for name in ("phase_shift_rad", "transmission", "amplitude", "zoom"):
            low, high = getattr(self, name)
            if not low <= high or (name != "phase_shift_rad" and not low > 0):
                raise ConfigurationError(f"{name} is {(low, high)}; specify a low and a high of it")


def part_of_scan(scan: Scan, numbers: npt.NDArray[np.intp]) -> Scan:
    """Keep some patterns of a scan, by their numbers, and nothing that the others could tell."""
    return replace(
        scan, patterns=scan.patterns[numbers], positions_px=scan.positions_px[numbers], truth=None
    )


def reconstruct_part(
    scan: Scan,
    numbers: npt.NDArray[np.intp],
    targets: npt.NDArray[np.float32],
    *,
    iterations: int = 50,
    device: str = "cpu",
    threads: int = 1,
) -> Reconstruction:
    """Reconstruct beam and object from a part of a scan, in the scale of the labels there.

    Parameters
    ----------
    numbers
        (n,) patterns to use: those that a network trains on.
    targets
        (n, 2, 64, 64) labels of these patterns, amplitude and phase.
    iterations, device, threads
        As of `edgexnas.host.data.phase_retrieval.reconstruct`.
    """
    from edgexnas.host.data.phase_retrieval import reconstruct

    found = reconstruct(
        part_of_scan(scan, numbers), iterations=iterations, device=device, threads=threads
    )
    return in_scale_of(targets, found)


def in_scale_of(targets: npt.NDArray[np.float32], seen: Reconstruction) -> Reconstruction:
    """Scale an object's amplitude to the labels (n, 2, 64, 64) at its positions.

    Only the product of object and beam is measured, so the beam takes the inverse.
    """
    from edgexnas.host.data.ptycho_labels import cut_patches

    known = np.isfinite(seen.positions_px).all(axis=1)
    own = np.abs(cut_patches(seen.object, seen.positions_px[known]))
    factor = np.float32(np.median(targets[known, 0]) / np.median(own))
    return replace(seen, object=seen.object * factor, probe=seen.probe / factor)


def draw_objects(
    count: int,
    *,
    seed: int = 0,
    variety: ObjectVariety | None = None,
    seen: Reconstruction | None = None,
    seen_share: float = 0.5,
) -> ComplexArray:
    """Draw objects to diffract.

    Parameters
    ----------
    count
        How many.
    seed
        Equal arguments and seeds give equal objects.
    variety
        What they look like; None takes the defaults.
    seen
        Reconstruction of the training part of a scan. Of every draw `seen_share` are this object,
        turned by any angle, mirrored and zoomed, where it was lit, and simulated beside it.

    Returns
    -------
    (count, 384, 384) complex64.
    """
    variety = variety or ObjectVariety()
    objects = np.empty((count, CANVAS_PX, CANVAS_PX), np.complex64)
    for number in range(count):
        # Seeded by its number, so that asking for more objects leaves the first ones as they were.
        rng = np.random.default_rng([seed, number])
        objects[number] = _simulated(variety, rng)
        if seen is not None and rng.random() < seen_share:
            objects[number] = _with_seen(objects[number], seen, rng)
    return objects


def _simulated(variety: ObjectVariety, rng: np.random.Generator) -> ComplexArray:
    kind = variety.kinds[rng.integers(len(variety.kinds))]
    zoom = rng.uniform(*variety.zoom)
    side = CANVAS_PX if zoom <= 1 else int(CANVAS_PX * zoom)
    thickness = thickness_map(kind, (side, side), rng)  # type: ignore[arg-type]
    if zoom < 1:
        from scipy.ndimage import zoom as resize

        tiles = int(np.ceil(1 / zoom)) + 1
        small = resize(thickness, zoom, order=1)
        thickness = np.tile(small, (tiles, tiles))
    top, left = (int(rng.integers(0, n - CANVAS_PX + 1)) for n in thickness.shape)
    thickness = thickness[top : top + CANVAS_PX, left : left + CANVAS_PX]
    amplitude = 1 - (1 - rng.uniform(*variety.transmission)) * thickness
    amplitude = amplitude * (1 + variety.roughness * rng.normal(size=thickness.shape))
    phase = rng.uniform(*variety.phase_shift_rad) * (thickness - thickness.mean())
    phase = phase + variety.drift_rad * _slow_field(thickness.shape, rng)
    drawn = rng.uniform(*variety.amplitude) * amplitude * np.exp(1j * phase)
    return np.asarray(drawn, np.complex64)


def _slow_field(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Noise of unit variance that varies over 20 to 80 px."""
    width = rng.uniform(20, 80)
    row, col = (np.fft.fftfreq(side) for side in shape)
    # Transfer function of a Gaussian blur of this width.
    transfer = np.exp(-2 * (np.pi * width) ** 2 * (row[:, None] ** 2 + col**2))
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * transfer).real
    scaled: FloatArray = field / field.std()
    return scaled


def _with_seen(
    canvas: ComplexArray, seen: Reconstruction, rng: np.random.Generator
) -> ComplexArray:
    """Lay the lit part of a reconstructed object over a simulated one."""
    from scipy.ndimage import affine_transform, gaussian_filter

    lit = (seen.illumination > LIT_SHARE * seen.illumination.max()).astype(np.float64)
    # Faded inwards, so that what was hardly lit stays out.
    weight = gaussian_filter(lit, EDGE_SIGMA_PX)
    weight = (2 * weight - 1).clip(0, 1)
    middle = np.argwhere(lit > 0).mean(axis=0)
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.2)
    # affine_transform maps output to input, hence the division by the zoom.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    if rng.random() < 0.5:
        turn = turn @ np.diag([1, -1])
    offset = middle - turn @ (np.full(2, CANVAS_PX / 2) + rng.uniform(-30, 30, 2))

    def moved(image: npt.NDArray[np.floating]) -> FloatArray:
        result: FloatArray = affine_transform(
            image.astype(np.float64), turn, offset, canvas.shape, order=1
        )
        return result

    share = moved(weight)
    # By real and imaginary part, since a phase cannot be interpolated across ±π.
    theirs = moved(seen.object.real) + 1j * moved(seen.object.imag)
    mixed = share * theirs + (1 - share) * canvas
    return mixed.astype(np.complex64)


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
        self._random = torch.Generator(device=device).manual_seed(seed)

    @property
    def device(self) -> torch.device:
        """Where patterns are made."""
        return self._objects.device

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Make patterns.

        Returns
        -------
        (count, 1, 64, 64) float32, scaled as `edgexnas.ptycho.scale_patterns` does, with Poisson
        noise; and (count, 2, 64, 64) float32, amplitude and phase in radians.
        """
        side, where = self._probe.shape[-1], self.device
        k, height, width = self._objects.shape
        number, top, left = (
            torch.randint(0, limit, (count,), generator=self._random, device=where)
            for limit in (k, height - side, width - side)
        )
        axis = torch.arange(side, device=where)
        rows, cols = top[:, None, None] + axis[:, None], left[:, None, None] + axis
        windows = self._objects[number[:, None, None], rows, cols]
        # Unitary, so photons in the probe are photons on the detector.
        far = torch.fft.fft2(windows[:, None] * self._probe, norm="ortho")
        # Incoherent modes add in intensity.
        light = (far.real.square() + far.imag.square()).sum(dim=1)
        light = torch.fft.fftshift(light, dim=(1, 2)) * self._usable
        binned = light.reshape(
            count, PATTERN_SIZE, side // PATTERN_SIZE, PATTERN_SIZE, side // PATTERN_SIZE
        ).sum(dim=(2, 4))
        # Sums of Poisson counts are Poisson counts of the sum, and drawing them takes longest.
        counts = torch.poisson(binned, generator=self._random)
        scaled = (counts / self._scale).sqrt()
        first = (side - PATTERN_SIZE) // 2
        patch = windows[:, first : first + PATTERN_SIZE, first : first + PATTERN_SIZE]
        return scaled[:, None], torch.stack([patch.abs(), patch.angle()], dim=1)


def with_synthetic_patterns(
    dataset: PtychoDataset,
    scan: Scan,
    count: int,
    *,
    objects: int = 64,
    iterations: int = 50,
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
    iterations, device, threads
        As of `edgexnas.host.data.phase_retrieval.reconstruct`.

    Raises
    ------
    ConfigurationError
        If `count` is below 1, or a part of the split is too small.
    InputError
        If the dataset does not hold a label for every pattern that has a position.
    """
    if count < 1:
        raise ConfigurationError(f"count is {count}; specify 1 synthetic pattern or more")
    known = np.flatnonzero(np.isfinite(scan.positions_px).all(axis=1))
    if len(dataset) != len(known):
        raise InputError(
            f"{scan.source} has {len(known)} patterns with a position and {len(dataset)} labels; "
            "label this scan as a whole"
        )
    train = dataset.split().train
    beam = reconstruct_part(
        scan,
        known[train],
        dataset.targets[train],
        iterations=iterations,
        device=device,
        threads=threads,
    )
    # Labels have an arbitrary scale of amplitude; simulated objects take it over.
    middle = float(np.median(dataset.targets[train, 0]))
    variety = ObjectVariety(amplitude=(AMPLITUDES[0] * middle, AMPLITUDES[1] * middle))
    source = PatternSource(
        draw_objects(objects, seed=seed, variety=variety, seen=beam),
        beam.probe,
        dataset.intensity_scale,
        mask=scan.mask,
        device=device,
        seed=seed,
    )
    with torch_threads(threads):
        drawn = [source.draw(min(CHUNK, count - at)) for at in range(0, count, CHUNK)]
    x, y = (torch.cat(parts).cpu().numpy() for parts in zip(*drawn, strict=True))
    added = replace(
        dataset,
        # Back to whole counts, which the dataset scales as it does measured ones.
        patterns=np.rint(x[:, 0] ** 2 * np.float32(dataset.intensity_scale)),
        targets=y,
        # One place, in the first cell of the area: no part but training holds it.
        positions_px=np.zeros((count, 2)),
        region=np.zeros(count, np.int32),
        source=f"{count} synthetic patterns, seed {seed}",
    )
    return dataset.concatenate([dataset, added])


def with_drawn_patterns(*arguments: Any, **options: Any) -> PtychoDataset:
    """Call `with_synthetic_patterns`: its name until the next release."""
    warnings.warn(
        "with_drawn_patterns is now with_synthetic_patterns", DeprecationWarning, stacklevel=2
    )
    return with_synthetic_patterns(*arguments, **options)
