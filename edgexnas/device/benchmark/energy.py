"""Energy of one inference: idle, load and idle windows, integrated on one clock.

Loads take turns, A, B, B, A, A, B, ..., so that a slow drift falls on all of them alike, with an
idle window before, between and after, so that each block of load is compared with the idle power
on both sides of it. Engines stay open and the clocks stay as they are throughout, so idle is what
the device takes when it waits.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgexnas.device.benchmark.energy_protocol import EnergyProtocol
from edgexnas.device.benchmark.intervals import MeanPower, half_width, mean_power, part_count
from edgexnas.device.benchmark.load import Load
from edgexnas.device.power import Clock, PowerMeter, PowerSampler, PowerTrace

__all__ = ["EnergyBlock", "EnergyProtocol", "EnergyReport", "EnergyResult", "measure_energy"]

MOST_LOST = 0.01
"""Share of a window's readings that may be missing."""

Progress = Callable[[str], None]


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

    @property
    def seconds_per_inference(self) -> float:
        """Time from one inference to the next."""
        return (self.end_s - self.start_s) / self.inferences


@dataclass(frozen=True)
class EnergyResult:
    """Energy of one inference of `items` items, over all blocks of a load.

    Attributes
    ----------
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

    @property
    def total_mj_per_item(self) -> float:
        """`total_mj` over the items of an inference."""
        return self.total_mj / self.items

    @property
    def marginal_mj_per_item(self) -> float:
        """`marginal_mj` over the items of an inference."""
        return self.marginal_mj / self.items


@dataclass(frozen=True)
class EnergyReport:
    """What an energy measurement gave.

    Attributes
    ----------
    results
        One a load.
    faults
        Sentences; a report with any of them must not be published.
    notes
        Sentences that a reader should know.
    """

    meter: str
    source: str
    protocol: EnergyProtocol
    results: tuple[EnergyResult, ...]
    blocks: tuple[EnergyBlock, ...]
    idle: tuple[MeanPower, ...]
    trace: PowerTrace
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def measure_energy(
    loads: Sequence[Load],
    meter: PowerMeter,
    protocol: EnergyProtocol | None = None,
    *,
    clock: Clock | None = None,
    progress: Progress = lambda text: None,
    after_block: Callable[[], object] = lambda: None,
) -> EnergyReport:
    """Measure the energy of one inference of each load.

    Parameters
    ----------
    loads
        The first is the baseline.
    meter
        Measures the module; it stays open.
    protocol
        Durations.
    clock
        CLOCK_MONOTONIC unless a test replaces it.
    progress
        Told what happens.
    after_block
        Called at the end of each block, while the device is still hot.

    Raises
    ------
    SourceError
        If the meter cannot be read at the start.
    MeasurementError
        If readings are missing for over half a second in a window, a rail vanishes, the module's
        power is not measured, or the sampler's clock goes back.
    """
    plan = protocol or EnergyProtocol()
    sampler = PowerSampler(meter, period_s=plan.period_s, clock=clock)
    runner = _Runner(sampler.clock, plan, progress)
    for load in loads:
        runner.load(load, plan.warm_up_s)
    with sampler:
        idle = [runner.idle()]
        windows: list[_Window] = []
        for number in range(plan.blocks):
            for load in loads[:: -1 if number % 2 else 1]:
                windows.append(_Window(load, runner.block(load)))
                after_block()
                idle.append(runner.idle())
        # A last reading after the last window, so that its end lies between two.
        runner.wait(3 * plan.period_s)
    return _report(loads, meter, plan, sampler.trace(), windows, idle)


class _Runner:
    """Keeps the device busy or idle for given times."""

    def __init__(self, clock: Clock, protocol: EnergyProtocol, progress: Progress) -> None:
        self._clock, self._protocol, self._progress = clock, protocol, progress
        self._never = threading.Event()

    def wait(self, seconds: float) -> None:
        self._clock.wait(self._never, self._clock.now() + seconds)

    def idle(self) -> tuple[float, float]:
        self._progress(f"idle for {self._protocol.settle_s + self._protocol.idle_s:.0f} s")
        self.wait(self._protocol.settle_s)
        start = self._clock.now()
        self.wait(self._protocol.idle_s)
        return start, self._clock.now()

    def load(self, load: Load, seconds: float, parts: int = 1) -> list[tuple[float, int]]:
        """Run a load and return (moment, inferences so far) at the start and after each part."""
        start = now = self._clock.now()
        marks, inferences = [(start, 0)], 0
        for part in range(1, parts + 1):
            while now < start + seconds * part / parts:
                load.run()
                inferences += 1
                now = self._clock.now()
            marks.append((now, inferences))
        return marks

    def block(self, load: Load) -> list[tuple[float, int]]:
        self._progress(f"{load.name} for {self._protocol.lead_s + self._protocol.load_s:.0f} s")
        self.load(load, self._protocol.lead_s)
        seconds, period = self._protocol.load_s, self._protocol.period_s
        return self.load(load, seconds, part_count(seconds, period))


@dataclass(frozen=True)
class _Window:
    """One window of one load, as it ran."""

    load: Load
    marks: list[tuple[float, int]]


def _report(
    loads: Sequence[Load],
    meter: PowerMeter,
    plan: EnergyProtocol,
    trace: PowerTrace,
    windows: Sequence[_Window],
    idle_windows: Sequence[tuple[float, float]],
) -> EnergyReport:
    idle = [mean_power(trace, *window) for window in idle_windows]
    blocks = [
        _block(trace, window, idle[number], idle[number + 1])
        for number, window in enumerate(windows)
    ]
    results = [
        _result(load, [b for b, w in zip(blocks, windows, strict=True) if w.load is load], trace)
        for load in loads
    ]
    return EnergyReport(
        meter=meter.description,
        source=meter.source,
        protocol=plan,
        results=tuple(results),
        blocks=tuple(blocks),
        idle=tuple(idle),
        trace=trace,
        faults=tuple(_faults(blocks)),
        notes=tuple(_notes(plan, blocks, results)),
    )


def _block(
    trace: PowerTrace,
    window: _Window,
    before: MeanPower,
    after: MeanPower,
) -> EnergyBlock:
    (start, _), (end, inferences) = window.marks[0], window.marks[-1]
    idle = MeanPower(
        (before.watts + after.watts) / 2,
        math.hypot(before.half_width_w, after.half_width_w) / 2,
        (*before.batches_w, *after.batches_w),
    )
    return EnergyBlock(
        name=window.load.name,
        start_s=start,
        end_s=end,
        inferences=inferences,
        marks=tuple(window.marks),
        power=mean_power(trace, start, end),
        idle=idle,
        drift_w=abs(after.watts - before.watts) / 2,
        trapezoid_j=trace.energy_j(start, end),
        counter_j=trace.counted_energy_j(start, end),
        readings=trace.count(start, end),
        lost=trace.lost(start, end),
        rails_w={r: trace.rail_energy_j(r, start, end) / (end - start) for r in trace.rails_w},
    )


def _result(load: Load, blocks: Sequence[EnergyBlock], trace: PowerTrace) -> EnergyResult:
    seconds = [b.seconds_per_inference for b in blocks]
    total = [1e3 * b.power.watts * s for b, s in zip(blocks, seconds, strict=True)]
    marginal = [
        1e3 * (b.power.watts - b.idle.watts) * s for b, s in zip(blocks, seconds, strict=True)
    ]
    mean_s = float(np.mean(seconds))
    within_mj = math.hypot(*(_within_mj(b, trace) for b in blocks)) / len(blocks)
    drift_w = float(np.mean([b.drift_w for b in blocks]))
    idle_mj = 1e3 * mean_s * math.hypot(_pooled([b.idle for b in blocks]), drift_w)
    power_w = float(np.mean([b.power.watts for b in blocks]))
    systematic_w = _systematic_w(trace, power_w)
    gain = trace.gain_error
    return EnergyResult(
        name=load.name,
        items=load.items,
        inferences=sum(b.inferences for b in blocks),
        period_ms=1e3 * mean_s,
        power_w=power_w,
        idle_w=float(np.mean([b.idle.watts for b in blocks])),
        drift_w=drift_w,
        total_mj=float(np.mean(total)),
        total_half_width_mj=math.hypot(within_mj, _between(total)),
        marginal_mj=float(np.mean(marginal)),
        marginal_half_width_mj=math.hypot(within_mj, idle_mj, _between(marginal)),
        total_systematic_mj=None if systematic_w is None else 1e3 * mean_s * systematic_w,
        marginal_systematic_mj=None if gain is None else gain * abs(float(np.mean(marginal))),
        rails_mj={
            rail: 1e3 * mean_s * float(np.mean([b.rails_w[rail] for b in blocks]))
            for rail in blocks[0].rails_w
        },
        blocks_total_mj=tuple(total),
        blocks_marginal_mj=tuple(marginal),
    )


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
        if done > before and end > start
    ]
    resolution_w = trace.resolution_w(block.start_s, block.end_s)
    return math.hypot(half_width(parts), 1e3 * resolution_w * block.seconds_per_inference)


def _pooled(powers: Sequence[MeanPower]) -> float:
    """Half-width of the mean of several windows from the spread within each."""
    return math.sqrt(sum(p.half_width_w**2 for p in powers)) / len(powers)


def _between(values: Sequence[float]) -> float:
    """Half-width from the spread between blocks; of two, half their distance."""
    if len(values) < 3:
        return (max(values) - min(values)) / 2
    return half_width(values)


def _faults(blocks: Sequence[EnergyBlock]) -> list[str]:
    return [
        f"{b.lost} of {b.lost + b.readings} power readings were lost while {b.name} ran; close "
        "what else runs and measure again"
        for b in blocks
        if b.lost > MOST_LOST * (b.lost + b.readings)
    ]


def _notes(
    plan: EnergyProtocol, blocks: Sequence[EnergyBlock], results: Sequence[EnergyResult]
) -> list[str]:
    notes = []
    if plan.load_s < 60:
        notes.append(f"Load windows last {plan.load_s:g} s; the protocol asks for 60 s.")
    counted = [(b, b.counter_j) for b in blocks if b.counter_j is not None]
    if counted:
        worst = max(abs(b.trapezoid_j / j - 1) for b, j in counted if j)
        notes.append(
            "Energy is the meter's own counter; the trapezoidal rule over its power readings "
            f"differs by {worst:.1%} at most."
        )
    for result in results:
        if result.marginal_mj < 3 * result.marginal_half_width_mj:
            notes.append(
                f"{result.name} takes so little above idle that its marginal energy is uncertain."
            )
    return notes
