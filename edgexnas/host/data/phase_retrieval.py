"""Iterative phase retrieval: where the labels of measured ptychography scans come from.

The regularised ptychographical iterative engine, rPIE (Maiden, Johnson, Li, Optica 4, 736 (2017)),
on batches of patterns, with incoherent probe modes (Thibault, Menzel, Nature 494, 68 (2013)). With
intensities I, probe modes Pₘ, the object O under each pattern of the batch, and a unitary F::

    ψₘ = Pₘ·O,   Ψₘ = F ψₘ,   Δₘ = F⁻¹[ Ψₘ · (√I / √Σₘ|Ψₘ|² - 1) ]
    O  ← O  + Σ Pₘ*·Δₘ / [ (1 - α)·Σ|Pₘ|² + α·max Σ|Pₘ|² ]
    Pₘ ← Pₘ + Σ O*·Δₘ / max Σ|O|²

The sums run over the batch, Δ is 0 at masked pixels of the far field, and a fraction of a pixel
of a position shifts the probe in Fourier space.

What the data leave open is fixed so: the phase averages to 0 over the light; the amplitude, whose
product with the probe's alone is measured, is scaled to fit 0 to 1; and tilt and place, which
object and probe may exchange, stay as the flat first object and the first probe have them.

pty-chi (the package ptychi, 2.2) is not offered as a solver here: it requires Python 3.11, numpy
2.1, torchvision, which fits one release of torch, and scikit-image, and it installs ruff, mypy and
pytest beside them. Who has it can label with it all the same: a `Scan` whose `truth` is its object
goes to `label_scan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.threads import torch_threads
from edgexnas.ptycho import check_counts
from edgexnas.scans import Scan

__all__ = ["Reconstruction", "reconstruct"]

ComplexArray = npt.NDArray[np.complex64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

OBJECT_ALPHA = 0.3
BATCH = 8
"""Small batches converge in fewer sweeps; larger ones run no faster on a core."""

MARGIN_PX = 2
MAXIMUM_PIXELS = 2**26
"""Pixels of the largest object, 8192²: positions that need more are wrong."""

MODE_SHARE = 0.05
"""Power that a mode of the first guess has beside the main one."""

FIRST_RADIUS = 0.2
"""Root mean square radius of a guessed beam as a share of the window."""

FULL_AMPLITUDE = 0.95
"""Value that the 99.9th percentile of the amplitude is scaled to."""

LARGEST_SHARE = 0.3
"""Residual above photon noise, as a share of the mean pattern's, from which labels are doubted.

Twelve iterations on simulated scans leave 0.05 to 0.09 with right positions, and 0.47 to 1.1 where
axes are swapped or mirrored, positions are shuffled or the beam lies in a corner. A measured
Siemens star leaves 0.26 after 10 iterations, and 0.84 to 0.90 with positions that are not its own.
"""

LEAST_SPREAD = 0.5
"""Share of what photon noise makes by which patterns differ at least, if they are counts of
photons; what is normalised or averaged may differ by less."""

FARTHEST = 0.5
"""Share of a window's side; patterns farther from all others share no light with them, because a
beam that is sampled well enough fills half of the window at most."""

LIT_FRACTION = 0.05
"""Share of the median illumination from which the object counts as measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """An object and a beam that explain a scan.

    Attributes
    ----------
    object
        (H, W) complex64, amplitude without unit, nearly all of it within 0 to 1.
    probe
        (modes, h, w) complex64, orthogonal modes by falling power; Σ|probe|² is in photons.
    positions_px
        (n, 2) float64, (row, col) of each 64×64 patch's first pixel on `object`; NaN where the
        scan knows none.
    illumination
        (H, W) float32, photons that fell on each pixel; where it is 0 the object is a guess.
    error_history
        (iterations,) float64, Σ(√I - √model)² / ΣI during each sweep.
    mean_pattern_error
        The same sum with the mean of all patterns as the model: what is left of a scan whose
        patterns do not depend on their positions.
    photon_noise
        The same sum as photon statistics alone would make it, if counts are photons.
    """

    object: ComplexArray
    probe: ComplexArray
    positions_px: Float64Array
    illumination: npt.NDArray[np.float32]
    error_history: Float64Array
    mean_pattern_error: float
    photon_noise: float

    @property
    def residual(self) -> float:
        """Σ(√I - √model)² / ΣI of the last sweep: the part of the light that is not explained."""
        return float(self.error_history[-1])

    @property
    def counted(self) -> bool:
        """Whether patterns differ by as much as counts of photons do at least."""
        return self.mean_pattern_error >= LEAST_SPREAD * self.photon_noise

    @property
    def explains(self) -> bool:
        """Whether object and beam explain why patterns differ, so that they may serve as labels."""
        if not self.counted:
            # Their noise is not known, and is taken for something to explain.
            return self.residual <= LARGEST_SHARE * self.mean_pattern_error
        structure = self.mean_pattern_error - self.photon_noise
        # Where noise hides every difference of the patterns there is nothing to judge by.
        return structure <= 0 or self.residual - self.photon_noise <= LARGEST_SHARE * structure


def reconstruct(
    scan: Scan,
    *,
    iterations: int = 50,
    modes: int = 3,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstruction:
    """Retrieve object and probe from a scan.

    Parameters
    ----------
    scan
        Patterns and positions; patterns without a position are left out, masked pixels are free.
        Its probe is the first guess; without one, the guess is a defocused beam with the mean
        intensity of the patterns.
    iterations
        Sweeps over all patterns.
    modes
        Incoherent modes of the probe.
    seed
        Order of the patterns; equal seeds give equal results on one device.
    device
        A torch device.
    threads
        CPU threads of torch.
    progress
        Called with (sweeps done, sweeps in all) after each sweep.

    Raises
    ------
    ConfigurationError
        If `iterations`, `modes` or `threads` is below 1.
    InputError
        If no position is known, they span an impossible area or patterns do not overlap, or a
        usable pixel holds a negative count, NaN or a saturated one.
    """
    if min(iterations, modes) < 1:
        raise ConfigurationError(
            f"iterations is {iterations} and modes {modes}; specify 1 or more of each"
        )
    with torch_threads(threads):
        solver = _Solver(scan, modes, seed, device)
        errors = []
        for sweep in range(iterations):
            # The object is flat at first and says nothing about the probe.
            errors.append(solver.sweep(refine_probe=sweep > 0))
            if progress is not None:
                progress(sweep + 1, iterations)
        return solver.result(np.array(errors))


class _Solver:
    """State of a reconstruction."""

    def __init__(self, scan: Scan, modes: int, seed: int, device: str) -> None:
        known, first = origin_of(scan)
        check_overlap(scan)
        corners = scan.window_corners_px[known] - first
        self.positions_px = scan.positions_px - first
        # Windows are cut at whole pixels; the probe takes the fraction, by a Fourier shift.
        self._whole = np.round(corners).astype(int)
        part = torch.as_tensor(corners - self._whole, dtype=torch.float32, device=device)
        self._window = h, w = scan.patterns.shape[1:]
        row, col = (torch.fft.fftfreq(side, device=device) for side in (h, w))
        self._ramps = [
            torch.exp(-2j * torch.pi * part[:, k, None] * f) for k, f in ((0, row), (1, col))
        ]
        self._amplitude, self._free = _amplitudes(scan, known, device)
        self._total = float(self._amplitude.square().sum())
        mean = self._amplitude.square().mean(dim=0)
        spread = (self._amplitude - mean.sqrt()).square().sum()
        self._mean_pattern_error = float(spread) / self._total
        self._photon_noise = float(_root_variance(mean).sum()) * known.sum() / self._total
        self._random = torch.Generator().manual_seed(seed)
        self._probe = _first_probe(scan.probe, self._amplitude, modes)
        rows, cols = self._whole.max(axis=0) + np.array([h, w])
        self._object = torch.ones(
            rows + MARGIN_PX, cols + MARGIN_PX, dtype=torch.complex64, device=device
        )

    def sweep(self, *, refine_probe: bool) -> float:
        """Go through all patterns in random order; return their error on the way."""
        error = 0.0
        order = torch.randperm(len(self._amplitude), generator=self._random)
        for batch in torch.split(order, BATCH):
            error += self._update(batch, refine_probe)
        if refine_probe:
            self._probe = _orthogonal(self._probe)
        return error / self._total

    def _update(self, batch: Tensor, refine_probe: bool) -> float:
        places = [self._place(int(number)) for number in batch]
        patches = torch.stack([self._object[place] for place in places])[:, None]
        ramp = (self._ramps[0][batch][:, None, :, None]) * self._ramps[1][batch][:, None, None, :]
        probes = torch.fft.ifft2(torch.fft.fft2(self._probe) * ramp)
        waves = torch.fft.fft2(probes * patches, norm="ortho")
        model = waves.abs().square().sum(dim=1, keepdim=True).sqrt()
        measured = self._amplitude[batch][:, None]
        # Masked pixels keep what the model says there.
        ratio = torch.where(self._free, 1.0, measured / model.clamp(min=1e-6))
        change = torch.fft.ifft2(waves * (ratio - 1), norm="ortho")
        self._update_object(places, probes, change)
        # The shift of each pattern is undone, so that all gradients are of one probe.
        if refine_probe:
            gradient = (torch.fft.fft2(patches.conj() * change) * ramp.conj()).sum(dim=0)
            self._probe = self._probe + torch.fft.ifft2(gradient) / _power(patches).max()
        misfit = torch.where(self._free, 0.0, model - measured)
        return float(misfit.square().sum())

    def _update_object(
        self, places: list[tuple[slice, slice]], probes: Tensor, change: Tensor
    ) -> None:
        gradient = torch.zeros_like(self._object)
        weight = torch.zeros_like(gradient.real)
        direction, light = (probes.conj() * change).sum(dim=1), probes.abs().square().sum(dim=1)
        # Patches of a batch overlap, so their updates are summed before the division.
        for place, its_direction, its_light in zip(places, direction, light, strict=True):
            gradient[place] += its_direction
            weight[place] += its_light
        damped = (1 - OBJECT_ALPHA) * weight + OBJECT_ALPHA * weight.max()
        self._object += gradient / damped

    def _place(self, number: int) -> tuple[slice, slice]:
        (top, left), (h, w) = self._whole[number], self._window
        return slice(top, top + h), slice(left, left + w)

    def result(self, errors: Float64Array) -> Reconstruction:
        """Bring the object to its conventions of phase and scale."""
        light = self._probe.abs().square().sum(dim=0)
        illumination = torch.zeros_like(self._object.real)
        for number in range(len(self._amplitude)):
            illumination[self._place(number)] += light
        found = self._object
        lit = illumination > LIT_FRACTION * illumination[illumination > 0].median()
        mean = (found * illumination).sum()
        # Thinned, because torch.quantile takes at most 2²⁴ values.
        top = torch.quantile(found[lit].abs()[:: 1 + int(lit.sum()) // 2**22], 0.999)
        factor = FULL_AMPLITUDE / top * torch.exp(-1j * mean.angle())
        return Reconstruction(
            object=(found * factor).cpu().numpy(),
            probe=(self._probe / factor).cpu().numpy(),
            positions_px=self.positions_px,
            illumination=illumination.cpu().numpy(),
            error_history=errors,
            mean_pattern_error=self._mean_pattern_error,
            photon_noise=self._photon_noise,
        )


def origin_of(scan: Scan) -> tuple[BoolArray, Float64Array]:
    """Tell which positions are known (n,), and where the object's first pixel shall lie (2,)."""
    known = np.asarray(np.isfinite(scan.positions_px).all(axis=1))
    if not known.any():
        raise InputError(f"{scan.source} has no known position; specify (row, col) in object px")
    corners = scan.window_corners_px[known]
    rows, cols = np.ptp(corners, axis=0) + scan.patterns.shape[1:]
    if rows * cols > MAXIMUM_PIXELS:
        raise InputError(
            f"positions of {scan.source} span {rows:.6g}×{cols:.6g} px, more than any scan; "
            "specify them in object pixels"
        )
    # A whole number, so that the object keeps its place between pixels.
    return known, np.floor(corners.min(axis=0)) - MARGIN_PX


def check_overlap(scan: Scan) -> None:
    """Refuse a scan most of whose patterns share no light with another.

    Any object explains such patterns, each for itself.
    """
    known = scan.positions_px[np.isfinite(scan.positions_px).all(axis=1)]
    if len(known) < 2:
        return
    side = min(scan.patterns.shape[1:])
    distances, _ = cKDTree(known).query(known, k=2, p=np.inf)
    apart = float(np.median(np.asarray(distances)[:, 1]))
    if apart > FARTHEST * side:
        raise InputError(
            f"patterns of {scan.source} lie {apart:.4g} px from the nearest other one (median), "
            f"too far to overlap in windows of {side} px; specify positions in object pixels, or "
            "record a scan in smaller steps"
        )


def _amplitudes(scan: Scan, known: BoolArray, device: str) -> tuple[Tensor, Tensor]:
    """Return √counts (n, h, w) and the masked pixels (h, w), the direct beam at (0, 0)."""
    patterns = scan.patterns[known]
    mask = np.zeros(patterns.shape[1:], np.bool_) if scan.mask is None else scan.mask
    patterns = np.where(mask, patterns.dtype.type(0), patterns)
    check_counts(patterns)
    roots = np.fft.ifftshift(np.sqrt(patterns.astype(np.float32)), axes=(1, 2))
    free = np.fft.ifftshift(mask)
    return torch.as_tensor(roots, device=device), torch.as_tensor(free, device=device)


def _first_probe(guess: ComplexArray | None, amplitude: Tensor, modes: int) -> Tensor:
    """Scale a guess of the probe to the measured power and add weak modes that it lacks."""
    h, w = amplitude.shape[1:]
    row, col = (torch.fft.fftfreq(side, device=amplitude.device) for side in (h, w))
    if guess is None:
        # A phase of π·c·k² sends the ray of frequency k to c·k px from the middle; frequencies are
        # counted from the direct beam, wherever it lies.
        mean = amplitude.square().mean(dim=0)
        down, across = (
            (axis - at + 0.5) % 1 - 0.5 for axis, at in zip((row, col), beam_at(mean), strict=True)
        )
        square = down[:, None] ** 2 + across**2
        spread = ((mean * square).sum() / mean.sum()).sqrt()
        phase = torch.pi * (FIRST_RADIUS * h / spread) * square
        probe = torch.fft.fftshift(torch.fft.ifft2(mean.sqrt() * torch.exp(1j * phase)))[None]
    else:
        probe = _aimed(torch.as_tensor(guess[:modes], device=amplitude.device), amplitude)
    down, across = (torch.fft.fftshift(axis) for axis in (row, col))
    shapes = (down[:, None], across, down[:, None] * across, down[:, None] ** 2, across**2)
    extra = [probe[0] * shapes[k % 5] ** (1 + k // 5) for k in range(modes - len(probe))]
    share = MODE_SHARE * _power(probe[0])
    extra = [mode * (share.sum() / _power(mode).sum()).sqrt() for mode in extra]
    probe = torch.cat([probe, torch.stack(extra)]) if extra else probe
    return probe * (amplitude.square().sum(dim=(1, 2)).mean() / _power(probe).sum()).sqrt()


def beam_at(mean: Tensor) -> tuple[float, float]:
    """Tell where the direct beam lies: (row, col) in cycles per pixel, from -0.5 to 0.5.

    Parameters
    ----------
    mean
        (h, w) intensity of the far field, frequency 0 at (0, 0).
    """
    found = []
    for other in (1, 0):
        profile = mean.double().sum(dim=other)
        # The circular mean: the far field of a sampled wave has no edge.
        turns = torch.fft.fftfreq(len(profile), device=mean.device).double() * (2 * torch.pi)
        found.append(float((profile * torch.exp(1j * turns)).sum().angle() / (2 * torch.pi)))
    return found[0], found[1]


def _aimed(probe: Tensor, amplitude: Tensor) -> Tensor:
    """Tilt a guessed probe so that its far field lies where the patterns are."""
    wanted = beam_at(amplitude.square().mean(dim=0))
    own = beam_at(torch.fft.fft2(probe).abs().square().sum(dim=0))
    h, w = probe.shape[-2:]
    (row, col) = (b - a for a, b in zip(own, wanted, strict=True))
    # Within a pixel the first sweeps do as well, and a guess that is right stays as it is.
    if max(abs(row) * h, abs(col) * w) < 1:
        return probe
    down, across = (torch.arange(side, device=probe.device) for side in (h, w))
    tilted: Tensor = probe * torch.exp(2j * torch.pi * (row * down[:, None] + col * across))
    return tilted


def _root_variance(mean: Tensor) -> Tensor:
    """E(√N - √mean)² of counts N of this mean: about twice the mean of few, and 1/4 of many."""
    few = mean.double().clamp(1e-9, 20)[..., None]
    counts = torch.arange(64, dtype=few.dtype, device=few.device)
    chance = torch.exp(counts * few.log() - few - torch.lgamma(counts + 1))
    return 2 * few[..., 0] - 2 * few[..., 0].sqrt() * (chance * counts.sqrt()).sum(dim=-1)


def _power(values: Tensor) -> Tensor:
    """|values|² summed over all but the last two axes."""
    power: Tensor = values.abs().square().reshape(-1, *values.shape[-2:]).sum(dim=0)
    return power


def _orthogonal(probe: Tensor) -> Tensor:
    """Mix the modes so that they are orthogonal, by falling power; the intensity stays."""
    # Eigenvectors of the modes' Gram matrix mix them to orthogonal ones.
    flat = probe.flatten(start_dim=1)
    # Eigenvalues come in rising order, hence the flip.
    _, mixing = torch.linalg.eigh(flat @ flat.conj().T)
    modes: Tensor = (mixing.conj().T @ flat).flip(0).reshape(probe.shape)
    return modes
