"""Predict the spots of a simulated rotation series: where, when, how bright, and how flagged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import erf

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, neighbour_pairs
from edgexnas.frames import Truth
from edgexnas.simulate.crystal import MATERIALS, Diffraction, diffract, random_rotations
from edgexnas.simulate.hedm_settings import HedmSettings
from edgexnas.simulate.spot_profile import brightest_pixels, expected_counts

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_NEIGHBOURS = np.arange(-2, 3)
"""A reflection reaches at most two frames to either side of its own."""

_WIDEST_FRAMES = 2.0
"""Full width of the widest rocking curve, so that nothing is left beyond these frames."""

_FAINTEST_COUNTS = 1.0
_FAINTEST_SHARE = 0.01
"""What is fainter than this, or than this share of the brightest frame, is not drawn."""

_VISIBLE_SIGMAS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Grains:
    """The grains of a simulated sample.

    Attributes
    ----------
    rotations
        (n, 3, 3) float64, from crystal axes to sample axes, which are those of the laboratory at
        ω = 0; see `edgexnas.simulate.crystal`.
    positions_mm
        (n, 3) float64, centres in sample axes.
    """

    rotations: FloatArray
    positions_mm: FloatArray


def draw_grains(settings: HedmSettings, rng: np.random.Generator) -> Grains:
    """Draw the orientations and places of all grains."""
    # In this order, on which all series made so far depend.
    rotations = random_rotations(settings.grains, rng)
    return Grains(rotations, _grain_positions(settings, rng))


def predict_spots(
    settings: HedmSettings,
    grains: Grains,
    rng: np.random.Generator,
    mask: BoolArray,
    background: npt.NDArray[np.float32],
) -> Truth:
    """Predict all spots of a series.

    Parameters
    ----------
    settings
        The experiment.
    grains
        What diffracts.
    rng
        Source of the reflections' shapes.
    mask
        (H, W) bool, True where a pixel is unusable.
    background
        (H, W) expected counts between spots.
    """
    events = diffract(
        MATERIALS[settings.material],
        grains.rotations,
        grains.positions_mm,
        wavelength=settings.wavelength,
        detector=settings.detector,
    )
    truth = _over_frames(settings, events, _shapes(settings, events, rng))
    order = np.lexsort((truth.col, truth.row, truth.frame))
    return _flagged(truth.select(order), settings, mask, background)


def _grain_positions(settings: HedmSettings, rng: np.random.Generator) -> FloatArray:
    """(n, 3) mm, uniform in a cylinder around the rotation axis as high as it is wide."""
    # The root, because a uniform radius would crowd grains around the axis.
    radius = settings.sample_radius_mm * np.sqrt(rng.random(settings.grains))
    turn = rng.uniform(0, 2 * np.pi, settings.grains)
    height = settings.sample_radius_mm * rng.uniform(-1, 1, settings.grains)
    return np.stack([radius * np.cos(turn), height, radius * np.sin(turn)], axis=1)


def _shapes(
    settings: HedmSettings, events: Diffraction, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Draw brightness and shape of each reflection."""
    uniform = rng.random((5, len(events.row)))
    fwhm = _quantile(settings.fwhm_quantiles_px, uniform[0])
    elongation = np.exp(_quantile(np.log(settings.elongation_quantiles), uniform[1]))
    azimuthal = elongation >= 1
    # Below 1 the radial axis is the long one.
    stretch = np.sqrt(np.where(azimuthal, elongation, 1 / elongation))
    angle = events.radial_rad + np.where(azimuthal, np.pi / 2, 0)
    return {
        "fwhm_major_px": fwhm * stretch,
        "fwhm_minor_px": fwhm / stretch,
        # The axis has no sign: bring it to (−π/2, π/2].
        "angle_rad": np.pi / 2 - (np.pi / 2 - angle) % np.pi,
        "mixing": _quantile(settings.mixing_quantiles, uniform[2]),
        "counts": np.exp(_quantile(np.log(settings.peak_quantiles), uniform[3])),
        "mosaic": _quantile(settings.mosaic_quantiles_deg, uniform[4]) / events.sharpness,
    }


def _quantile(values: npt.ArrayLike, probability: FloatArray) -> FloatArray:
    values = np.asarray(values, np.float64)
    drawn: FloatArray = np.interp(probability, np.linspace(0, 1, len(values)), values)
    return drawn


def _over_frames(
    settings: HedmSettings, events: Diffraction, shapes: dict[str, FloatArray]
) -> Truth:
    """Spread each reflection over the frames through which it stays in reflection."""
    step, turn = settings.omega_step_deg, 360 / settings.omega_step_deg
    position = ((events.omega_deg - settings.omega_start_deg) % 360) / step
    # Just before the first frame is just before the end of a turn.
    before = (position >= settings.frames) & (position > turn - 2)
    position = np.where(before, position - turn, position)
    frame = np.floor(position).astype(np.int64)[:, None] + _NEIGHBOURS
    # A full turn closes: its last frames neighbour the first.
    if settings.frames == round(turn):
        frame %= settings.frames
    share = _shares(position, np.minimum(shapes["mosaic"] / step, _WIDEST_FRAMES))
    counts = shapes["counts"][:, None] * share
    kept = (frame >= 0) & (frame < settings.frames)
    kept &= (counts >= _FAINTEST_COUNTS) & (share >= _FAINTEST_SHARE)
    which, column = np.nonzero(kept)
    rows: dict[str, npt.NDArray[np.generic]] = {
        name: values[which] for name, values in shapes.items() if name != "mosaic"
    }
    rows |= {name: getattr(events, name)[which] for name in ("row", "col", "omega_deg", "grain")}
    rows |= {"frame": frame[which, column], "counts": counts[which, column], "reflection": which}
    blank = np.zeros(len(which), np.bool_)
    flags = dict.fromkeys(("overlap", "saturated", "masked", "visible"), blank)
    return Truth.from_columns({**rows, **flags})


def _shares(position: FloatArray, fwhm: FloatArray) -> FloatArray:
    """(n, 5) share of a Gaussian rocking curve in each frame around it, the largest being 1."""
    edges = np.floor(position)[:, None] + np.arange(_NEIGHBOURS[0], _NEIGHBOURS[-1] + 2)
    scaled = (edges - position[:, None]) * (2 * np.sqrt(np.log(2)) / fwhm[:, None])
    cumulative = np.array([erf(value) for value in scaled.reshape(-1)]).reshape(scaled.shape)
    share = np.diff(cumulative, axis=1)
    relative: FloatArray = share / share.max(axis=1, keepdims=True)
    return relative


def _flagged(
    truth: Truth,
    settings: HedmSettings,
    mask: BoolArray,
    background: npt.NDArray[np.float32],
) -> Truth:
    """Fill in the flags, which follow from what the brightest pixels expect."""
    brightest = brightest_pixels(truth)
    row, col = brightest.T
    level = background[row, col]
    peak = expected_counts(truth, 1)[:, 1, 1]
    noise = np.sqrt(level * settings.counts_per_photon + settings.readout_noise**2)
    suppressed = settings.sparse_threshold
    visible = (peak >= _VISIBLE_SIGMAS * noise) & ~mask[row, col]
    if suppressed is not None:
        visible &= peak + level > suppressed
    columns = truth.columns()
    columns["visible"] = visible
    columns["saturated"] = peak + level >= settings.saturation
    columns["masked"] = _touches(mask, brightest)
    columns["overlap"] = _crowded(truth.frame, brightest, visible)
    return Truth.from_columns(columns)


def _touches(mask: BoolArray, brightest: npt.NDArray[np.int64]) -> BoolArray:
    """Tell which patches around the given pixels hold a masked pixel."""
    # One summed-area table answers every patch with four look-ups.
    total = np.pad(mask, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    limit = np.array(mask.shape)
    low = np.clip(brightest - CENTRE, 0, limit)
    high = np.clip(brightest + CENTRE + 1, 0, limit)
    count = total[high[:, 0], high[:, 1]] - total[low[:, 0], high[:, 1]]
    count += total[low[:, 0], low[:, 1]] - total[high[:, 0], low[:, 1]]
    touched: BoolArray = count > 0
    return touched


def _crowded(
    frame: npt.NDArray[np.int32], brightest: npt.NDArray[np.int64], visible: BoolArray
) -> BoolArray:
    """Tell which spots have a visible neighbour within reach of their patch."""
    crowded = np.zeros(len(frame), np.bool_)
    bounds = np.searchsorted(frame, np.arange(frame.max(initial=-1) + 2))
    for first, last in pairwise(bounds.tolist()):
        # Sorted by centre, the brightest pixels are sorted by row as well.
        pairs = first + neighbour_pairs(brightest[first:last].astype(np.int32))
        for one, other in (pairs.T, pairs[:, ::-1].T):
            crowded[one[visible[other]]] = True
    return crowded
