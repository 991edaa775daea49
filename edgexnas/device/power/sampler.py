"""A thread that reads a power meter at a steady rate and keeps account of what it missed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from edgexnas.device.power.meter import PowerMeter, PowerReading
from edgexnas.device.power.trace import PowerTrace
from edgexnas.errors import ConfigurationError, SourceError

__all__ = ["Clock", "PowerSampler"]

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples modulo 1 fill the slots more evenly than any other number's or random ones."""

JOIN_LIMIT_S = 60.0
"""A readout that takes longer than this hangs in the kernel; shorter, the machine may be busy."""


class Clock(Protocol):
    """What the sampler asks of time; tests replace it."""

    def now(self) -> float:
        """Seconds; the origin does not matter."""

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        """Wait until a moment, or less if `stop` is set; return whether it is."""


class MonotonicClock:
    """CLOCK_MONOTONIC, which no change of date or time zone moves."""

    def now(self) -> float:
        """Seconds since some start."""
        return time.monotonic()

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        """Wait until a moment, or less if `stop` is set; return whether it is."""
        return stop.wait(max(0.0, until_s - time.monotonic()))


@dataclass
class _Record:
    """What the thread has seen so far."""

    times_s: list[float] = field(default_factory=list)
    readings: list[PowerReading] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    steps_back: list[tuple[float, float]] = field(default_factory=list)


class PowerSampler:
    """Reads a meter in the background, once in every slot of `period_s`.

    Within its slot a reading comes early or late, by the golden ratio's sequence, so that load
    which repeats with the frames cannot hide between readings that repeat too. A reading counts
    for the middle of its slot.

    ::

        with PowerSampler(open_power_meter()) as sampler:
            began = sampler.clock.now()
            work()
            ended = sampler.clock.now()
        print(sampler.trace().energy_j(began, ended))

    Parameters
    ----------
    meter
        What to read. It stays open; the sampler's thread alone reads it meanwhile.
    period_s
        Length of a slot. A readout of Jetson rails takes up to 40 ms.
    clock
        CLOCK_MONOTONIC unless a test replaces it.

    Raises
    ------
    ConfigurationError
        If the period is not above 0.
    """

    def __init__(
        self, meter: PowerMeter, *, period_s: float = 0.1, clock: Clock | None = None
    ) -> None:
        if not period_s > 0:
            raise ConfigurationError(f"period_s is {period_s!r}; specify a number above 0")
        self.meter, self.period_s = meter, period_s
        self.clock: Clock = clock or MonotonicClock()
        self._record = _Record()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first reading is taken at once, and its failure raised here.

        Raises
        ------
        SourceError
            If the meter cannot be read.
        """
        self._stop.clear()
        self._origin_s = self.clock.now()
        self._keep(self._origin_s, self.meter.read())
        self._thread = threading.Thread(target=self._loop, name="power-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the reading under way; stopping again does nothing.

        Raises
        ------
        SourceError
            If the readout hangs.
        """
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None:
            thread.join(JOIN_LIMIT_S)
            if thread.is_alive():
                raise SourceError(
                    f"reading {self.meter.description} hangs for over {JOIN_LIMIT_S:.0f} s; "
                    "look at the kernel's log"
                )

    def __enter__(self) -> PowerSampler:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def trace(self) -> PowerTrace:
        """Return what was read so far; cheap enough to call while the thread runs."""
        with self._lock:
            record = self._record
            return PowerTrace.of(
                record.times_s,
                record.readings,
                period_s=self.period_s,
                failures=record.failures,
                steps_back=record.steps_back,
            )

    def _loop(self) -> None:
        slot, last = 0, self._origin_s
        while True:
            slot += 1
            planned = self._origin_s + (slot + (slot * GOLDEN) % 1) * self.period_s
            if self.clock.wait(self._stop, planned):
                return
            before = self.clock.now()
            # CLOCK_MONOTONIC does not; a clock of one's own, or a guest that was moved, may.
            if before < last:
                with self._lock:
                    self._record.steps_back.append((last, last - before))
                # Slots start again from here, or no reading would be due for a long time.
                self._origin_s = before - slot * self.period_s
                last = before
                continue
            late = int((before - planned) / self.period_s)
            if late > 0:
                # Slots that have passed are lost, and their gap shows it.
                slot += late
                planned = self._origin_s + (slot + (slot * GOLDEN) % 1) * self.period_s
                planned = max(planned, before)
            self._read(slot, planned)
            last = self.clock.now()

    def _read(self, slot: int, planned: float) -> None:
        try:
            reading = self.meter.read()
        except SourceError as error:
            with self._lock:
                self._record.failures.append((planned, str(error)))
            return
        middle = self._origin_s + (slot + 0.5) * self.period_s
        # The slot's middle, plus what the reading itself was late by.
        self._keep(middle + reading.time_s - planned, reading)

    def _keep(self, time_s: float, reading: PowerReading) -> None:
        with self._lock:
            self._record.times_s.append(time_s)
            self._record.readings.append(reading)
