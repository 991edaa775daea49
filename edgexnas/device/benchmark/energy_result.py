"""What the energy of one inference comes to, from power readings and moments of inferences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgexnas.device.benchmark.intervals import MeanPower, half_width, mean_power
from edgexnas.device.benchmark.load import Load
from edgexnas.device.power import PowerTrace

__all__ = ["EnergyBlock", "EnergyResult"]


@dataclass(frozen=True)
class EnergyBlock:
    """One window of one load.

    Attributes
    ----------
    start_s, end_s
        On the sampler's clock, between two inferences.
    inferences
        How many ended in the window.
    marks
        (moment, inferences so far) at the edges of the window's parts.
    power, idle
        Mean power in the window, and of the idle windows on both sides of it.
    drift_w
        Half the difference of these two idle windows.
    trapezoid_j, counter_j
        Energy by the trapezoidal rule over the readings, and by the meter's own counter, or None.
    readings, lost
        Power readings in the window, and those missing.
    rails_w
        Rail → mean power.
    """

    name: str
    start_s: float
    end_s: float
    inferences: int
    marks: tuple[tuple[float, int], ...]
    power: MeanPower
    idle: MeanPower
    drift_w: float
    trapezoid_j: float
    counter_j: float | None
    readings: int
    lost: int
    rails_w: Mapping[str, float]

    @classmethod
    def of(
        cls,
        name: str,
        marks: Sequence[tuple[float, int]],
        trace: PowerTrace,
        before: MeanPower,
        after: MeanPower,
    ) -> EnergyBlock:
        """Take a window's numbers from the readings.

        Parameters
        ----------
        name
            Of the load.
        marks
            As of the attribute.
        trace
            Readings of the whole measurement.
        before, after
            Mean power in the idle windows on both sides.

        Raises
        ------
        MeasurementError
            As `PowerTrace.energy_j`.
        """
        (start, _), (end, inferences) = marks[0], marks[-1]
        idle = MeanPower(
            (before.watts + after.watts) / 2,
            math.hypot(before.half_width_w, after.half_width_w) / 2,
            (*before.batches_w, *after.batches_w),
        )
        return cls(
            name=name,
            start_s=start,
            end_s=end,
            inferences=inferences,
            marks=tuple(marks),
            power=mean_power(trace, start, end),
            idle=idle,
            # The mean of both idles may be off by half of what they differ.
            drift_w=abs(after.watts - before.watts) / 2,
            trapezoid_j=trace.energy_j(start, end),
            counter_j=trace.counted_energy_j(start, end),
            readings=trace.count(start, end),
            lost=trace.lost(start, end),
            rails_w={r: trace.rail_energy_j(r, start, end) / (end - start) for r in trace.rails_w},
        )

    @property
    def seconds_per_inference(self) -> float:
        """Time from one inference to the next."""
        return (self.end_s - self.start_s) / self.inferences


@dataclass(frozen=True)
class EnergyResult:
    """Energy of one inference of `items` items, over all blocks of a load.

    Attributes
    ----------
    period_ms, period_half_width_ms
        Time from one inference to the next over whole windows of load: the mean latency, stalls
        and what changes from window to window included, with its 95 % interval.
    total_mj, total_half_width_mj
        Module energy from one inference to the next with its 95 % interval.
    marginal_mj, marginal_half_width_mj
        What it takes above idle; the interval holds the idle power's and its drift.
    total_systematic_mj, marginal_systematic_mj
        What offset and gain of the sensors may add to all numbers of this device alike; of a
        difference the gain alone. None if the sensors' maker states none.
    power_w, idle_w, drift_w
        Mean power under load and idle, and half the change of idle power across a block.
    rails_mj
        Rail → energy of one inference. Rails may contain each other.
    """

    name: str
    items: int
    inferences: int
    period_ms: float
    period_half_width_ms: float
    power_w: float
    idle_w: float
    drift_w: float
    total_mj: float
    total_half_width_mj: float
    marginal_mj: float
    marginal_half_width_mj: float
    total_systematic_mj: float | None
    marginal_systematic_mj: float | None
    rails_mj: Mapping[str, float]
    blocks_total_mj: tuple[float, ...]
    blocks_marginal_mj: tuple[float, ...]

    @classmethod
    def of(cls, load: Load, blocks: Sequence[EnergyBlock], trace: PowerTrace) -> EnergyResult:
        """Gather the blocks of one load."""
        seconds = [b.seconds_per_inference for b in blocks]
        total = [1e3 * b.power.watts * s for b, s in zip(blocks, seconds, strict=True)]
        marginal = [
            1e3 * (b.power.watts - b.idle.watts) * s for b, s in zip(blocks, seconds, strict=True)
        ]
        mean_s = float(np.mean(seconds))
        within_mj = math.hypot(*(_within_mj(b, trace) for b in blocks)) / len(blocks)
        within_s = math.hypot(*(_within_s(b) for b in blocks)) / len(blocks)
        drift_w = float(np.mean([b.drift_w for b in blocks]))
        # Drift is kept whole over blocks: it may go one way in all of them.
        idle_mj = 1e3 * mean_s * math.hypot(_pooled([b.idle for b in blocks]), drift_w)
        power_w = float(np.mean([b.power.watts for b in blocks]))
        systematic_w = _systematic_w(trace, power_w)
        gain = trace.gain_error
        return cls(
            name=load.name,
            items=load.items,
            inferences=sum(b.inferences for b in blocks),
            period_ms=1e3 * mean_s,
            period_half_width_ms=1e3 * math.hypot(within_s, _between(seconds)),
            power_w=power_w,
            idle_w=float(np.mean([b.idle.watts for b in blocks])),
            drift_w=drift_w,
            total_mj=float(np.mean(total)),
            total_half_width_mj=math.hypot(within_mj, _between(total)),
            marginal_mj=float(np.mean(marginal)),
            marginal_half_width_mj=math.hypot(within_mj, idle_mj, _between(marginal)),
            total_systematic_mj=None if systematic_w is None else 1e3 * mean_s * systematic_w,
            # Offsets cancel in a difference of two powers of one board; the gain does not.
            marginal_systematic_mj=None if gain is None else gain * abs(float(np.mean(marginal))),
            rails_mj={
                rail: 1e3 * mean_s * float(np.mean([b.rails_w[rail] for b in blocks]))
                for rail in blocks[0].rails_w
            },
            blocks_total_mj=tuple(total),
            blocks_marginal_mj=tuple(marginal),
        )

    @property
    def total_mj_per_item(self) -> float:
        """`total_mj` over the items of an inference."""
        return self.total_mj / self.items

    @property
    def marginal_mj_per_item(self) -> float:
        """`marginal_mj` over the items of an inference."""
        return self.marginal_mj / self.items


def _systematic_w(trace: PowerTrace, power_w: float) -> float | None:
    """Error that sensors add to a mean power: their offset, the same at every power, and gain."""
    if trace.systematic_w is None or trace.gain_error is None:
        return trace.systematic_w
    mean_w = float(np.mean(trace.module_w))
    offset_squared = max(0.0, trace.systematic_w**2 - (trace.gain_error * mean_w) ** 2)
    return math.sqrt(offset_squared + (trace.gain_error * power_w) ** 2)


def _within_mj(block: EnergyBlock, trace: PowerTrace) -> float:
    """Half-width of a block's energy of one inference, from the spread between its parts.

    A part's energy is divided by its own inferences, so the spread holds both power and speed.
    """
    parts = [
        1e3 * trace.best_energy_j(start, end) / (done - before)
        for (start, before), (end, done) in itertools.pairwise(block.marks)
        # A part shorter than an inference has none of its own, and says nothing.
        if done > before and end > start
    ]
    resolution_w = trace.resolution_w(block.start_s, block.end_s)
    return math.hypot(half_width(parts), 1e3 * resolution_w * block.seconds_per_inference)


def _within_s(block: EnergyBlock) -> float:
    """Half-width of a block's time for one inference, from the spread between its parts."""
    return half_width(
        [
            (end - start) / (done - before)
            for (start, before), (end, done) in itertools.pairwise(block.marks)
            if done > before
        ]
    )


def _pooled(powers: Sequence[MeanPower]) -> float:
    """Half-width of the mean of several windows from the spread within each."""
    return math.sqrt(sum(p.half_width_w**2 for p in powers)) / len(powers)


def _between(values: Sequence[float]) -> float:
    """Half-width from the spread between blocks; one block says nothing of it."""
    return half_width(values) if len(values) > 1 else 0.0
