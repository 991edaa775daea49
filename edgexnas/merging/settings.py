"""How peaks are merged into spots."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgexnas.errors import ConfigurationError

__all__ = ["MergeSettings"]


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How peaks on successive frames are merged into spots.

    Attributes
    ----------
    omega_start_deg, omega_step_deg
        Rotation angle at the start of frame 0, and how far each frame turns, which may be
        negative. None for what the series says of its frames.
    tolerance_px
        Largest distance of peaks on successive frames that belong to one spot.
    gap_frames
        Most missing frames that a spot is followed over; a wider gap ends all spots.
    valley
        A spot is split where its intensity falls below this share of the lower of the two maxima
        beside, and by more than the counts fluctuate; 0 for never.

    Raises
    ------
    ConfigurationError
        If a value is out of range; it names the field.
    """

    omega_start_deg: float | None = None
    omega_step_deg: float | None = None
    tolerance_px: float = 2.0
    gap_frames: int = 1
    valley: float = 0.5

    def __post_init__(self) -> None:
        if (self.omega_start_deg is None) != (self.omega_step_deg is None):
            raise ConfigurationError(
                f"omega_start_deg is {self.omega_start_deg} and omega_step_deg is "
                f"{self.omega_step_deg}; specify both or neither"
            )
        for name in ("omega_start_deg", "omega_step_deg"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigurationError(f"{name} is {value}; specify a finite number of degrees")
        if self.omega_step_deg is not None and not 1e-6 <= abs(self.omega_step_deg) <= 180:
            raise ConfigurationError(
                f"omega_step_deg is {self.omega_step_deg}; specify 1e-6 to 180 degrees, or their "
                "negative"
            )
        if not 0 < self.tolerance_px <= 100:
            raise ConfigurationError(
                f"tolerance_px is {self.tolerance_px}; specify more than 0 and at most 100"
            )
        if not 0 <= self.gap_frames <= 1000:
            raise ConfigurationError(f"gap_frames is {self.gap_frames}; specify 0 to 1000 frames")
        if not 0 <= self.valley < 1:
            raise ConfigurationError(
                f"valley is {self.valley}; specify a share from 0 to less than 1"
            )
