"""How wide an accuracy gate a device accepts, whatever a bundle allows itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from edgexnas.bundle.manifest import AmplitudeGate, Gate
from edgexnas.errors import BundleError, ConfigurationError

__all__ = ["ANY_GATE", "GatePolicy"]


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """The widest gates that this device accepts.

    Attributes
    ----------
    maximum_gate_px
        For positions of peaks. A constant guess is off by 0.385 px in the mean, so a gate as wide
        proves nothing.
    maximum_gate_rad
        For phases. An object without structure was off by 0.47 rad on measured scans.
    maximum_gate_amplitude
        For amplitudes, as a share of their mean.

    Raises
    ------
    ConfigurationError
        If one is not larger than 0.
    """

    maximum_gate_px: float = 0.385
    maximum_gate_rad: float = 0.4
    maximum_gate_amplitude: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Stated so that NaN, which compares false with everything, is rejected.
            if not value > 0:
                raise ConfigurationError(f"{field.name} is {value}: specify a number above 0")

    @classmethod
    def of(cls, **limits: float | None) -> GatePolicy:
        """Build a policy of limits by name, where None leaves the default."""
        return cls(**{name: limit for name, limit in limits.items() if limit is not None})

    def check(self, gate: Gate, *, what: str) -> None:
        """Reject a gate that is wider.

        Raises
        ------
        BundleError
            Naming both numbers.
        """
        for name, precision, allowed, unit in self._limits(gate):
            limit = getattr(self, name)
            if not allowed <= limit:
                raise BundleError(
                    f"{what} lets its {precision} engine deviate by {allowed:g}{unit}, where this "
                    f"device accepts {limit:g}{unit}: use a more accurate bundle, or raise {name}"
                )

    def _limits(self, gate: Gate) -> Iterator[tuple[str, str, float, str]]:
        kinds: list[tuple[str, Gate | AmplitudeGate, str]] = [
            (f"maximum_gate_{gate.unit}", gate, f" {gate.unit}")
        ]
        if gate.amplitude is not None:
            kinds.append(("maximum_gate_amplitude", gate.amplitude, " of the mean amplitude"))
        for name, limits, unit in kinds:
            for precision in AmplitudeGate.model_fields:
                yield name, precision, getattr(limits, precision), unit


ANY_GATE = GatePolicy(
    maximum_gate_px=math.inf, maximum_gate_rad=math.inf, maximum_gate_amplitude=math.inf
)
"""For those who measure a bundle and do not use its results."""
