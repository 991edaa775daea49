"""Labelled diffraction patterns: what a search for ptychography trains on, its split and file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.dataset import require_finite
from edgexnas.host.data.dataset_file import DatasetFile
from edgexnas.host.data.scan_regions import CELLS, split_regions
from edgexnas.host.data.splitting import Split, split_of
from edgexnas.host.data.stored_dataset import Columns, StoredDataset
from edgexnas.ptycho import (
    ORIENTATIONS,
    PATTERN_SIZE,
    ComplexArray,
    FloatArray,
    Orientation,
    scale_patterns,
)

__all__ = ["PtychoDataset"]

_IMAGE = (PATTERN_SIZE, PATTERN_SIZE)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PtychoDataset(StoredDataset):
    """Patterns of one scan or several with the object under each, in the order of the scans.

    Attributes
    ----------
    patterns
        (n, 64, 64) float32, photon counts with the direct beam at (32, 32), not scaled.
    targets
        (n, 2, 64, 64) float32, the label: channel 0 is the object's amplitude (no unit, 0 to 1),
        channel 1 its phase in radians, with one constant removed from each whole object.
    positions_px
        (n, 2) float64, (row, col) of the patch's first pixel on its object, in object pixels.
    region
        (n,) int32, 64 × number of the scan + number of the cell in its area; see `scan_regions`.
    intensity_scale
        Counts that become 1 at the network's input, a constant of the model.
    source
        Where the scans came from.
    against
        "truth" where the object is known, "iterative" where it is a reconstruction.
    residual
        Part of the light, from 0, that the reconstruction leaves unexplained, the worst of the
        scans; None for a known object.
    probe
        (modes, H, W) complex64, the illumination that the training part alone shows, in photons and
        in the scale of the labels: with it patterns of any object can be drawn. None without.
    seen_object, seen_illumination
        (h, w) complex64 and float32, the object that the training part alone shows, to be drawn
        from beside simulated ones, and the photons that fell on it; None for simulated ones alone.
    mask
        (H, W) bool, detector pixels that count as 0 in drawn patterns; None for none.
    orientation
        What brings the detector's patterns into the axes of the positions.
    object_pixel_m
        (row, col) size of an object pixel in metres; None if unknown.
    """

    task: ClassVar[str] = "ptycho"
    # Version 1 has no probe.
    FILE: ClassVar[DatasetFile] = DatasetFile(
        "edgexnas patterns", 2, "label the scan again", oldest=1
    )
    OPTIONAL: ClassVar[tuple[str, ...]] = ("probe", "seen_object", "seen_illumination", "mask")
    COLUMNS: ClassVar[Columns] = {
        "patterns": (_IMAGE, np.float32),
        "targets": ((2, *_IMAGE), np.float32),
        "positions_px": ((2,), np.float64),
        "region": ((), np.int32),
    }

    patterns: FloatArray
    targets: FloatArray
    positions_px: npt.NDArray[np.float64]
    region: npt.NDArray[np.int32]
    intensity_scale: float
    source: str
    against: Literal["iterative", "truth"]
    residual: float | None = None
    probe: ComplexArray | None = None
    seen_object: ComplexArray | None = None
    seen_illumination: FloatArray | None = None
    mask: npt.NDArray[np.bool_] | None = None
    orientation: Orientation = "as-is"
    object_pixel_m: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Reject columns that do not fit each other.

        Raises
        ------
        InputError
            If a column has another shape or dtype or a value that is not finite, or
            `intensity_scale` or `against` is out of range.
        """
        self._check_columns()
        require_finite(self.source, **{name: getattr(self, name) for name in self.COLUMNS})
        if not 0 < self.intensity_scale < np.inf:
            raise InputError(
                f"intensity_scale is {self.intensity_scale}; specify more than 0 counts"
            )
        if self.against not in ("iterative", "truth"):
            raise InputError(f"against is {self.against!r}; specify 'iterative' or 'truth'")
        if self.residual is not None and not 0 <= self.residual < np.inf:
            raise InputError(f"residual is {self.residual}; specify a number from 0, or None")
        if self.orientation not in ORIENTATIONS:
            raise InputError(f"orientation is {self.orientation!r}; specify one of {ORIENTATIONS}")
        self._check_probe()

    def _check_probe(self) -> None:
        probe, seen, light = self.probe, self.seen_object, self.seen_illumination
        if probe is not None and (
            probe.ndim != 3 or probe.dtype != np.complex64 or not np.isfinite(probe).all()
        ):
            raise InputError(
                f"the probe has shape {probe.shape} and dtype {probe.dtype}; specify finite "
                "complex64 (modes, H, W)"
            )
        if (seen is None) != (light is None) or (
            seen is not None and light is not None and seen.shape != light.shape
        ):
            raise InputError(
                "seen_object and seen_illumination have different shapes; specify both"
            )
        if probe is not None and self.mask is not None and self.mask.shape != probe.shape[1:]:
            raise InputError(
                f"the mask has shape {self.mask.shape} and the probe {probe.shape}; specify that "
                "of a detector pattern for both"
            )

    def inputs(self) -> FloatArray:
        """(n, 1, 64, 64) float32, patterns scaled as the device scales them."""
        return scale_patterns(self.patterns, self.intensity_scale)[:, None]

    def network_targets(self) -> FloatArray:
        """`targets`: what a network should give for `inputs()`."""
        return self.targets

    def split(self, *, guard_px: float = PATTERN_SIZE) -> Split:
        """Split by regions of the scans: the right quarter tests; see `split_regions`.

        Parameters
        ----------
        guard_px
            Patches nearer than this to a test patch are dropped: by default those that share a
            pixel with one.

        Raises
        ------
        ConfigurationError
            If `guard_px` is negative, or a part has fewer than 16 patterns.
        """
        part = split_regions(self.region, self.positions_px, guard_px=guard_px)
        return split_of(
            part,
            what=f"{self.source} has {len(self)} patterns",
            remedy="choose a larger or denser scan or a smaller guard_px",
        )

    @classmethod
    def concatenate(cls, datasets: Sequence[PtychoDataset]) -> PtychoDataset:
        """Join datasets; their scans are numbered on.

        Scale, probe and all else that is not of single patterns are those of the first one.

        Raises
        ------
        ConfigurationError
            If there is none, or some are labelled by the truth and some by reconstruction.
        """
        if len({item.against for item in datasets}) != 1:
            raise ConfigurationError(
                f"{len(datasets)} datasets are labelled differently; specify at "
                "least one, labelled alike"
            )
        # A scan owns the regions of one multiple of CELLS², by which the split tells scans apart.
        cells, start = CELLS**2, 0
        regions = []
        for item in datasets:
            regions.append(item.region + np.int32(start * cells))
            start += 1 + int(item.region.max(initial=-1)) // cells
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(item, name) for item in datasets]) for name in cls.COLUMNS
        }
        source = "; ".join(dict.fromkeys(item.source for item in datasets))
        residuals = [item.residual for item in datasets if item.residual is not None]
        joined |= {"region": np.concatenate(regions), "residual": max(residuals, default=None)}
        return replace(datasets[0], **joined, source=source)

    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "intensity_scale": self.intensity_scale,
            "against": self.against,
        }
        # Absent and not null, so that files from before them keep their digest.
        if self.residual is not None:
            described["residual"] = self.residual
        if self.orientation != "as-is":
            described["orientation"] = self.orientation
        if self.object_pixel_m is not None:
            described["object_pixel_m"] = list(self.object_pixel_m)
        return described

    @classmethod
    def _described(cls, description: Mapping[str, Any]) -> dict[str, Any]:
        scale = float(description["intensity_scale"])
        residual, pixel_m = description.get("residual"), description.get("object_pixel_m")
        return {
            "intensity_scale": scale,
            "against": description["against"],
            "residual": None if residual is None else float(residual),
            "orientation": description.get("orientation", "as-is"),
            "object_pixel_m": None if pixel_m is None else (float(pixel_m[0]), float(pixel_m[1])),
        }
