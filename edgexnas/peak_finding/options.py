"""What a user sets of peak finding, and how it goes with what detector and bundle say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgexnas.errors import ConfigurationError
from edgexnas.peak_finding.finder import SaturationOrigin
from edgexnas.peak_finding.settings import FinderSettings

__all__ = ["DetectionOptions"]


@dataclass(frozen=True, slots=True)
class DetectionOptions:
    """What a user sets of peak finding, beside a mask; None leaves it to detector and bundle.

    Attributes
    ----------
    saturation
        Counts from which a pixel is saturated.
    minimum_counts
        Counts above background that a peak's brightest pixel must exceed.
    threshold
        The same in standard deviations of the measured background noise; the larger of the two
        limits applies.
    mask_hot
        Whether pixels are masked that fire by themselves in the background frames.

    Raises
    ------
    ConfigurationError
        If a value is out of range.
    """

    saturation: float | None = None
    minimum_counts: float | None = None
    threshold: float | None = None
    mask_hot: bool | None = None

    def __post_init__(self) -> None:
        # By its own name: settings call it noise_sigmas, and check the others.
        if self.threshold is not None and not 0 <= self.threshold < float("inf"):
            raise ConfigurationError(
                f"threshold is {self.threshold}; give standard deviations, a finite number from 0"
            )
        self.applied_to(FinderSettings())

    @property
    def finds_hot(self) -> bool:
        """Whether pixels that fire by themselves are looked for: yes, unless said otherwise."""
        return self.mask_hot is not False

    def applied_to(
        self, defaults: FinderSettings, *, detector_saturation: float | None = None
    ) -> tuple[FinderSettings, SaturationOrigin]:
        """Make the settings of a finder, and say where their saturation comes from.

        The user's saturation goes before the detector's, and that before the one of `defaults`:
        what is said of these frames is nearer than what the network was made with.

        Parameters
        ----------
        defaults
            Of the bundle, or of the labels.
        detector_saturation
            What the series or the detector states, in counts; None if they do not.
        """
        saturation, origin = defaults.saturation, SaturationOrigin.SETTINGS
        if detector_saturation is not None:
            saturation, origin = detector_saturation, SaturationOrigin.DETECTOR
        if self.saturation is not None:
            saturation, origin = self.saturation, SaturationOrigin.OPTION
        least, sigmas = self.minimum_counts, self.threshold
        settings = replace(
            defaults,
            saturation=saturation,
            minimum_counts=defaults.minimum_counts if least is None else least,
            noise_sigmas=defaults.noise_sigmas if sigmas is None else sigmas,
        )
        return settings, origin
