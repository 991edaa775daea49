"""What a simulated far-field HEDM experiment consists of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from edgexnas.errors import ConfigurationError
from edgexnas.simulate.crystal import HC_KEV_ANGSTROM, MATERIALS, Detector

_UINT16_MAXIMUM = 65535


@dataclass(frozen=True, kw_only=True)
class HedmSettings:
    """A far-field HEDM experiment.

    A field named *quantiles* is a distribution: increasing values that cut it into equally
    likely parts. Two values are a plain range, (lowest, median, highest) puts the median where
    one wants it. Between the values it is uniform, or log-uniform where the field says so.

    Attributes
    ----------
    shape
        (rows, columns) of a frame.
    frames, omega_start_deg, omega_step_deg
        How many frames, where the rotation starts, and how far each frame turns.
    grains
        How many grains are in the beam.
    material
        "ruby" or "nickel".
    sample_radius_mm
        Grains lie in a cylinder of this radius and height; they move their spots off the rings.
    distance_mm, pixel_mm, energy_kev
        From the rotation axis to the detector, side of a pixel, photon energy.
    beam_centre_px
        (row, col) where the beam meets the detector plane; None is the middle of the frame.
    mosaic_quantiles_deg
        Full width of a reflection's rocking curve. Passing through it takes ``1/|sin η|`` times
        that, here never more than two frames, so a reflection is on one to five frames.
    fwhm_quantiles_px
        Geometric mean of a spot's two full widths at half maximum.
    elongation_quantiles
        Azimuthal over radial full width, log-uniform between.
    mixing_quantiles
        Lorentzian fraction of the profile, within 0 … 1.
    peak_quantiles
        Height of the profile above background, in counts, on the frame where the reflection is
        brightest; log-uniform between.
    background_counts, background_slope, background_halo
        Level of the background, its relative change from the first row to the last, and its
        relative rise at the beam centre.
    counts_per_photon
        Gain. Photons follow Poisson statistics.
    readout_noise
        Standard deviation in counts.
    stray_events, stray_counts
        How many single pixels a frame lights by scattered photons and cosmic rays on average,
        and the mean of their exponentially distributed counts. The truth does not list them.
    saturation
        Counts at which a pixel stops, at most 65535.
    sparse_threshold
        Pixels of at most this many counts are recorded as 0 (zero suppression); None records all.
    dead_pixel_fraction, hot_pixel_fraction
        Pixels that always read 0, and always saturation. Both are masked.
    module_shape, gap_px
        (rows, columns) of the modules that tile the frame and the width of the gaps between
        them, which read 0 and are masked; None is one module.

    Raises
    ------
    ConfigurationError
        If a value is out of range; it names the field.
    """

    shape: tuple[int, int] = (1024, 1024)
    frames: int = 36
    omega_start_deg: float = 0.0
    omega_step_deg: float = 0.25
    grains: int = 30
    material: str = "ruby"
    sample_radius_mm: float = 0.3
    distance_mm: float = 500.0
    pixel_mm: float = 0.2
    energy_kev: float = 71.676
    beam_centre_px: tuple[float, float] | None = None
    mosaic_quantiles_deg: tuple[float, ...] = (0.02, 0.2)
    fwhm_quantiles_px: tuple[float, ...] = (1.2, 3.0)
    elongation_quantiles: tuple[float, ...] = (0.8, 1.6)
    mixing_quantiles: tuple[float, ...] = (0.0, 1.0)
    peak_quantiles: tuple[float, ...] = (60.0, 20_000.0)
    background_counts: float = 20.0
    background_slope: float = 0.2
    background_halo: float = 0.5
    counts_per_photon: float = 1.0
    readout_noise: float = 1.5
    stray_events: float = 5.0
    stray_counts: float = 100.0
    saturation: int = 16_000
    sparse_threshold: float | None = None
    dead_pixel_fraction: float = 1e-4
    hot_pixel_fraction: float = 1e-5
    module_shape: tuple[int, int] | None = None
    gap_px: int = 8

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_quantiles(self)

    @property
    def centre_px(self) -> tuple[float, float]:
        """(row, col) where the beam meets the detector plane."""
        rows, columns = self.shape
        return self.beam_centre_px or ((rows - 1) / 2, (columns - 1) / 2)

    @property
    def wavelength(self) -> float:
        """Wavelength in Å."""
        return HC_KEV_ANGSTROM / self.energy_kev

    @property
    def detector(self) -> Detector:
        """The detector as the geometry sees it."""
        return Detector(self.shape, self.centre_px, self.distance_mm, self.pixel_mm)

    @classmethod
    def ruby_dexela(cls, **changes: Any) -> HedmSettings:
        """Imitate three ruby spheres on a Dexela 2932 at CHESS; `changes` replace single fields.

        The real series is HEXRD's NIST_ruby/multiruby_dexelas, panel ff1: 1440 frames of
        3888×3072 px, recorded without the pixels of at most 150 counts. From both, connected
        components of at least 5 px, alone in their 11×11 px and not saturated, were fitted with
        the same 2-D pseudo-Voigt profile (of the real ones every second; rows of the fit count
        those with R² > 0.9). At 5, 50 and 95 % of the patches:

        ==============================  ==================  ==================
        of a patch                      real (1358)         simulated (1129)
        ==============================  ==================  ==================
        brightest pixel, counts         377, 1209, 10089    385, 1202, 10153
        fitted FWHM, px                 1.33, 2.03, 2.70    1.36, 2.04, 2.77
        major over minor FWHM           1.04, 1.14, 2.02    1.02, 1.13, 1.87
        four neighbours over brightest  0.42, 0.56, 0.67    0.42, 0.57, 0.70
        brightest over sum              0.09, 0.16, 0.30    0.08, 0.16, 0.29
        brightest over residual rms     25, 55, 161         28, 55, 216
        recorded pixels                 5, 17, 81           6, 16, 145
        ==============================  ==================  ==================

        What differs: the tails of the brightest real spots end sooner, and 5 % of the real
        patches are no pseudo-Voigt (R² < 0.9), of the simulated ones 0.1 %. Real frames hold
        1.05 components each, simulated ones 0.79. Single pixels of scattered photons are 44 and
        45 on a frame, median 269 and 262 counts, but the real ones gather near the beam. Level
        and noise of the background are free choices: zero suppression hides both.
        """
        preset: dict[str, Any] = {
            "shape": (3888, 3072),
            "frames": 1440,
            "grains": 3,
            "sample_radius_mm": 0.3,
            "distance_mm": 671.0,
            "pixel_mm": 0.0748,
            "energy_kev": 41.9906,
            "beam_centre_px": (1988.0, -113.0),
            "mosaic_quantiles_deg": (0.005, 0.05),
            "fwhm_quantiles_px": (1.3, 1.58, 1.76, 2.03, 2.6),
            "elongation_quantiles": (0.8, 1.25),
            "mixing_quantiles": (0.15, 0.48, 0.63, 0.71, 0.78),
            "peak_quantiles": (300.0, 720.0, 1400.0, 2950.0, 21_000.0),
            "background_counts": 1.0,
            "counts_per_photon": 2.0,
            "readout_noise": 10.0,
            "stray_events": 106.0,
            "stray_counts": 170.0,
            "saturation": 15_800,
            "sparse_threshold": 150.0,
            "dead_pixel_fraction": 0.0,
            "hot_pixel_fraction": 0.0,
        }
        return cls(**{**preset, **changes})


_LIMITS: dict[str, tuple[float, float]] = {
    "frames": (1, 1_000_000),
    "omega_step_deg": (1e-6, 360),
    "grains": (0, 1_000_000),
    "sample_radius_mm": (0, 1e3),
    "distance_mm": (1e-3, 1e6),
    "pixel_mm": (1e-4, 10),
    "energy_kev": (1, 1e3),
    "background_counts": (0, _UINT16_MAXIMUM),
    "background_slope": (-2, 2),
    "background_halo": (-0.0, 1e3),
    "counts_per_photon": (1e-3, 1e4),
    "readout_noise": (0, 1e4),
    "stray_events": (0, 1e6),
    "stray_counts": (0, 1e5),
    "saturation": (1, _UINT16_MAXIMUM),
    "dead_pixel_fraction": (0, 0.5),
    "hot_pixel_fraction": (0, 0.5),
    "gap_px": (0, 1000),
}

_QUANTILE_LIMITS: dict[str, tuple[float, float]] = {
    "mosaic_quantiles_deg": (1e-6, 10),
    "fwhm_quantiles_px": (0.2, 6),
    "elongation_quantiles": (0.1, 10),
    "mixing_quantiles": (0, 1),
    "peak_quantiles": (1e-3, 1e6),
}


def _check_ranges(settings: HedmSettings) -> None:
    for name, (low, high) in _LIMITS.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ConfigurationError(f"{name} is {value}; choose {low:g} to {high:g}")
    for name in ("shape", "module_shape"):
        sides = getattr(settings, name)
        if sides is not None and not (len(sides) == 2 and 11 <= min(sides) <= max(sides) <= 16384):
            raise ConfigurationError(f"{name} is {sides}; choose two sides of 11 to 16384 px")
    if settings.material not in MATERIALS:
        known = ", ".join(sorted(MATERIALS))
        raise ConfigurationError(f"material is {settings.material!r}; choose one of {known}")
    turn = settings.frames * settings.omega_step_deg
    if turn > 360 + 1e-9:
        raise ConfigurationError(
            f"frames × omega_step_deg is {turn:g}°; choose at most a turn of 360°"
        )


def _check_quantiles(settings: HedmSettings) -> None:
    for field in fields(settings):
        if field.name not in _QUANTILE_LIMITS:
            continue
        values, (low, high) = getattr(settings, field.name), _QUANTILE_LIMITS[field.name]
        rising = len(values) >= 2 and list(values) == sorted(values)
        if not rising or not low <= values[0] <= values[-1] <= high:
            raise ConfigurationError(
                f"{field.name} is {values}; specify two or more increasing values "
                f"within {low:g} to {high:g}"
            )
