"""Readings of a power meter over time, and the energy between two moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgexnas.device.power.meter import PowerReading
from edgexnas.errors import MeasurementError

__all__ = ["LONGEST_GAP_S", "PowerTrace"]

LONGEST_GAP_S = 0.5
"""A window with a longer time between two readings is rejected; with readings closer than 50 ms
already one of ten periods."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PowerTrace:
    """Power over time.

    Attributes
    ----------
    times_s
        (n,) moments on the sampler's clock, rising.
    module_w
        (n,) power of the module; NaN where it is not measured.
    rails_w
        Rail → (n,) power.
    counter_times_s, counter_j
        (n,) each, the cumulative energy counter and the moments of its readings; None where the
        meter has none.
    period_s
        Time between readings that was requested.
    source
        As of `PowerReading`.
    steps_w
        Rail that adds to `module_w` → smallest difference that its sensor resolves.
    systematic_w
        Half-width of the error that all readings share, mean over the readings; None if the maker
        states none.
    gain_error
        As of `PowerReading`.
    failures
        (moment, sentence) of each reading that failed.
    steps_back
        (moment, seconds) of each time that the clock went back.
    """

    times_s: FloatArray
    module_w: FloatArray
    rails_w: Mapping[str, FloatArray]
    counter_times_s: FloatArray | None
    counter_j: FloatArray | None
    period_s: float
    source: str
    steps_w: Mapping[str, float]
    systematic_w: float | None
    gain_error: float | None
    failures: tuple[tuple[float, str], ...] = ()
    steps_back: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(
        cls,
        times_s: Sequence[float],
        readings: Sequence[PowerReading],
        *,
        period_s: float,
        failures: Sequence[tuple[float, str]] = (),
        steps_back: Sequence[tuple[float, float]] = (),
    ) -> PowerTrace:
        """Gather readings, each with the moment that it stands for."""
        labels = list(dict.fromkeys(label for r in readings for label in r.rails_w))
        counted = [r for r in readings if r.energy_j is not None]
        # All or none: a counter that lacks readings cannot be interpolated.
        complete = bool(readings) and len(counted) == len(readings)
        errors = [r.systematic_w for r in readings if r.systematic_w is not None]
        stepped = [r for r in readings if r.steps_w]
        return cls(
            times_s=np.array(times_s, np.float64),
            module_w=np.array([math.nan if r.module_w is None else r.module_w for r in readings]),
            rails_w={
                label: np.array([r.rails_w.get(label, math.nan) for r in readings])
                for label in labels
            },
            counter_times_s=np.array([r.time_s for r in counted]) if complete else None,
            counter_j=np.array([r.energy_j for r in counted], np.float64) if complete else None,
            period_s=period_s,
            source=readings[0].source if readings else "",
            steps_w={
                label: float(np.mean([r.steps_w.get(label, 0.0) for r in stepped]))
                for label in (stepped[0].steps_w if stepped else ())
            },
            systematic_w=float(np.mean(errors)) if errors else None,
            gain_error=readings[0].gain_error if readings else None,
            failures=tuple(failures),
            steps_back=tuple(steps_back),
        )

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Energy of the module between two moments, in J: the trapezoidal rule over the readings.

        The ends are interpolated between the readings around them.

        Raises
        ------
        MeasurementError
            If the readings do not cover the window, leave a gap of over `LONGEST_GAP_S` in it, or
            do not measure the module, or if the clock went back.
        """
        self.check_window(start_s, end_s)
        return _trapezoid(self.times_s, self.module_w, start_s, end_s)

    def rail_energy_j(self, rail: str, start_s: float, end_s: float) -> float:
        """Energy of one rail in J; as `energy_j`."""
        self.check_window(start_s, end_s)
        return _trapezoid(self.times_s, self.rails_w[rail], start_s, end_s)

    def counted_energy_j(self, start_s: float, end_s: float) -> float | None:
        """Energy of the module in J by the meter's own counter; None where it has none.

        Raises
        ------
        MeasurementError
            As `energy_j`.
        """
        if self.counter_j is None or self.counter_times_s is None:
            return None
        self.check_window(start_s, end_s)
        # Interpolated, because a window does not begin at a reading.
        first, last = np.interp((start_s, end_s), self.counter_times_s, self.counter_j)
        return float(last - first)

    def best_energy_j(self, start_s: float, end_s: float) -> float:
        """Energy by the counter where there is one, else by the trapezoidal rule."""
        counted = self.counted_energy_j(start_s, end_s)
        return self.energy_j(start_s, end_s) if counted is None else counted

    def count(self, start_s: float, end_s: float) -> int:
        """Count the readings in a window."""
        return int(np.count_nonzero((self.times_s >= start_s) & (self.times_s < end_s)))

    def lost(self, start_s: float, end_s: float) -> int:
        """Count the readings that a window should have and has not."""
        return max(0, math.floor((end_s - start_s) / self.period_s) - self.count(start_s, end_s))

    def gaps(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """(from, to) of the times without a reading in a window that are longer than allowed."""
        limit = min(LONGEST_GAP_S, 10 * self.period_s)
        inside = self.times_s[(self.times_s > start_s) & (self.times_s < end_s)]
        moments = np.concatenate([[start_s], inside, [end_s]])
        wide = np.flatnonzero(np.diff(moments) > limit)
        return [(float(moments[k]), float(moments[k + 1])) for k in wide]

    def resolution_w(self, start_s: float, end_s: float) -> float:
        """Largest error of the mean module power that comes from the sensors' steps.

        Where readings spread over a step, as they do under load, rounding averages out: for
        Gaussian spread σ and step q at most (q/π) exp(−2π²σ²/q²) is left (Widrow and Kollár,
        *Quantization Noise*, 2008, chapter 9); where they hardly move, half a step.
        """
        chosen = (self.times_s >= start_s) & (self.times_s < end_s)
        error = 0.0
        for rail, step in self.steps_w.items():
            spread = float(np.nanstd(self.rails_w[rail][chosen])) / step if chosen.any() else 0.0
            averaged = step / math.pi * math.exp(-2 * math.pi**2 * spread**2)
            # At 0.3 steps the formula leaves 0.05 of a step; below it grows fast, and half a step
            # is safe.
            error += averaged if spread > 0.3 else step / 2
        return error

    def check_window(self, start_s: float, end_s: float) -> None:
        """Reject a window that the readings cannot answer for; see `energy_j`."""
        if not end_s > start_s:
            raise MeasurementError(
                f"the window ends {start_s - end_s:.3f} s before it starts; specify it a duration"
            )
        if self.steps_back:
            moment, seconds = self.steps_back[0]
            raise MeasurementError(
                f"the sampler's clock went back by {seconds:.3f} s at {moment:.3f} s, so no energy "
                "can be computed; measure again"
            )
        gaps = self.gaps(start_s, end_s)
        if gaps:
            began, ended = gaps[0]
            why = next((f": {text}" for at, text in self.failures if began <= at <= ended), None)
            raise MeasurementError(
                f"power readings are missing for {ended - began:.2f} s from "
                f"{began - start_s:.2f} s on in a window of {end_s - start_s:.2f} s"
                f"{why or '; measure again on a less busy machine'}"
            )
        chosen = (self.times_s >= start_s) & (self.times_s < end_s)
        if np.isnan(self.module_w[chosen]).any():
            raise MeasurementError(
                f"the power of the module is not measured, only rails {', '.join(self.rails_w)}; "
                "energy needs a module whose rails are all enabled"
            )


def _trapezoid(times: FloatArray, watts: FloatArray, start_s: float, end_s: float) -> float:
    """Integral of the straight lines between readings; level beyond the first and the last."""
    inside = (times > start_s) & (times < end_s)
    moments = np.concatenate([[start_s], times[inside], [end_s]])
    values = np.interp(moments, times, watts)
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(moments)))
