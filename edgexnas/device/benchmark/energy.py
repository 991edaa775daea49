"""Energy of one inference: idle, load and idle windows, integrated on one clock.

Loads take turns, A, B, B, A, A, B, ..., so that a slow drift falls on all of them alike, with an
idle window before, between and after, so that each block of load is compared with the idle power
on both sides of it. Engines stay open and the clocks stay as they are throughout, so idle is what
the device takes when it waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgexnas.device.benchmark.energy_protocol import EnergyProtocol
from edgexnas.device.benchmark.energy_result import EnergyBlock, EnergyResult
from edgexnas.device.benchmark.intervals import MeanPower, mean_power, part_count
from edgexnas.device.benchmark.load import Load
from edgexnas.device.power import Clock, PowerMeter, PowerSampler, PowerTrace

__all__ = ["EnergyProtocol", "EnergyReport", "measure_energy"]

MOST_LOST = 0.01
"""Share of a window's readings that may be missing."""

Progress = Callable[[str], None]


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
        # All before the first idle window: idle is measured with warm engines open.
        runner.load(load, plan.warm_up_s)
    with sampler:
        idle = [runner.idle()]
        windows: list[_Window] = []
        for number in range(plan.blocks):
            # The order turns with each round: A B, B A, A B, so that a straight drift cancels.
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
        # The clock waits for an event, and nothing sets this one.
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
            # Against the start and not the last part, so that overruns of parts don't add up.
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
        EnergyBlock.of(window.load.name, window.marks, trace, idle[number], idle[number + 1])
        for number, window in enumerate(windows)
    ]
    results = [
        EnergyResult.of(
            load, [b for b, w in zip(blocks, windows, strict=True) if w.load is load], trace
        )
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
    # In simulated readings the interval's half-width is 2.2 % for 5 s of load and 0.6 % for 60 s.
    if plan.load_s < 60:
        notes.append(f"Load windows last {plan.load_s:g} s; the protocol requires 60 s.")
    if plan.blocks == 1:
        notes.append(
            "Each load has one window, so the intervals hold nothing of what changes from window "
            "to window; specify three blocks or more."
        )
    counted = [(b, b.counter_j) for b in blocks if b.counter_j is not None]
    if counted:
        worst = max(abs(b.trapezoid_j / j - 1) for b, j in counted if j)
        notes.append(
            "Energy is the meter's own counter; the trapezoidal rule over its power readings "
            f"differs by {worst:.1%} at most."
        )
    for result in results:
        # Three half-widths of 95 %: about six standard errors, where the sign is beyond doubt.
        if result.marginal_mj < 3 * result.marginal_half_width_mj:
            notes.append(
                f"{result.name} takes so little above idle that its marginal energy is uncertain."
            )
    return notes
