"""Measure bundles: latency, throughput, start, energy, and the state of the device beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edgexnas import __version__
from edgexnas.device.benchmark.cold_start import ColdStart, measure_cold_start
from edgexnas.device.benchmark.energy import EnergyReport, measure_energy
from edgexnas.device.benchmark.energy_protocol import EnergyProtocol
from edgexnas.device.benchmark.energy_result import EnergyResult
from edgexnas.device.benchmark.latency import CALLS, RUNS, LatencyResult, measure_latency
from edgexnas.device.benchmark.load import Load
from edgexnas.device.bundle_predictor import BundlePredictor
from edgexnas.device.power import PowerMeter, open_power_meter
from edgexnas.device.power.device_state import DeviceState, observe_device, throttling
from edgexnas.device.predictor import Predictor
from edgexnas.errors import ConfigurationError, MeasurementError, SourceError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision

__all__ = ["BenchReport", "BenchSettings", "BundleBench", "run_bench"]

SPREAD_S = 10.0
"""So that each of the interval's twenty parts lasts half a second."""

SWEEP_RUNS = 40
"""Runs at each batch size of the sweep."""

Energy = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What to measure.

    Attributes
    ----------
    engine, precision, batch, threads
        As of `Predictor`.
    runs, calls
        Of the latency protocol.
    spread_s
        Time that its runs are spread over at least; see `measure_latency`.
    sweep
        Further batch sizes to time.
    cold_start
        Time a fresh process from its start to its first result.
    energy
        "on" fails without a power meter, "auto" leaves energy out.
    protocol
        Durations of the energy measurement.
    meter, root
        As of `open_power_meter`.
    """

    engine: str = "auto"
    precision: Precision | Literal["auto"] = "int8"
    batch: int = 32
    threads: int | None = None
    runs: int = RUNS
    calls: int = CALLS
    spread_s: float = SPREAD_S
    sweep: tuple[int, ...] = (1, 8, 32, 128)
    cold_start: bool = True
    energy: Energy = "auto"
    protocol: EnergyProtocol = field(default_factory=EnergyProtocol)
    meter: str = "auto"
    root: Path = Path("/")

    def __post_init__(self) -> None:
        counts = {"batch": self.batch, "runs": self.runs, "calls": self.calls}
        for name, value in (*counts.items(), *(("sweep", size) for size in self.sweep)):
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"{name} is {value!r}; specify a whole number from 1")
        if not 0 <= self.spread_s < math.inf:
            raise ConfigurationError(f"spread_s is {self.spread_s!r}; specify seconds from 0")


@dataclass(frozen=True)
class BundleBench:
    """What was measured of one bundle.

    Attributes
    ----------
    name
        Under which it stands in tables: its file's name.
    digest
        SHA-256 of the bundle.
    engine
        What the engine says of itself.
    build_ms
        Verified bundle to checked engine, without any cache: the build of a TensorRT plan.
    open_ms
        The same with what the first opening left in the cache.
    sweep
        Latency at other batch sizes.
    energy
        None if it was not measured.
    """

    name: str
    model_id: str
    task: str
    digest: str
    parameters: int
    engine: Mapping[str, str | int]
    build_ms: float
    open_ms: float
    latency: LatencyResult
    sweep: tuple[LatencyResult, ...]
    cold_start: ColdStart | None
    energy: EnergyResult | None


@dataclass(frozen=True)
class BenchReport:
    """What a bench gave; the first bundle is the baseline.

    Attributes
    ----------
    faults
        Sentences; with any of them the numbers must not be published.
    notes
        Sentences that a reader should know.
    """

    created: datetime
    edgexnas: str
    settings: BenchSettings
    before: DeviceState
    after: DeviceState
    bundles: tuple[BundleBench, ...]
    energy: EnergyReport | None
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def check(self) -> None:
        """Reject numbers that cannot be trusted.

        Raises
        ------
        MeasurementError
            Naming the first fault.
        """
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            raise MeasurementError(f"the measurement is void: {self.faults[0]}{more}")


def run_bench(
    bundles: Sequence[Bundle],
    settings: BenchSettings | None = None,
    *,
    trust: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Measure verified bundles side by side.

    Parameters
    ----------
    bundles
        From `edgexnas.bundle.open_bundle`; the first is the baseline of the others.
    settings
        What to measure.
    trust
        Trusted keys for the fresh process of the cold start; without them it is left out.
    progress
        Told what happens.

    Raises
    ------
    ConfigurationError
        If there is not a bundle, or an option does not fit it.
    EngineError, MissingDependencyError
        If an engine cannot be opened.
    SourceError
        If energy is requested and there is no power meter.
    """
    if not bundles:
        raise ConfigurationError("no bundle to measure; specify at least one")
    chosen = settings or BenchSettings()
    with ExitStack() as stack:
        return _Bench(bundles, chosen, trust, progress, stack).report()


class _Bench:
    """The steps of one bench."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        settings: BenchSettings,
        trust: str | Path | None,
        progress: Callable[[str], None],
        stack: ExitStack,
    ) -> None:
        self._bundles, self._settings, self._trust = bundles, settings, trust
        self._progress, self._stack = progress, stack
        self._names = _names(bundles)
        self._faults: list[str] = []
        self._notes: list[str] = []
        self._meter = self._open_meter()
        self._before = self._observe()

    def report(self) -> BenchReport:
        openings = [self._open(bundle) for bundle in self._bundles]
        predictors = [predictor for predictor, _, _ in openings]
        loads = [
            load_of(name, predictor, bundle, self._settings.batch)
            for name, predictor, bundle in zip(self._names, predictors, self._bundles, strict=True)
        ]
        chosen = self._settings
        self._progress(f"latency: {chosen.runs} runs of {chosen.calls}")
        latencies = measure_latency(
            loads, runs=chosen.runs, calls=chosen.calls, spread_s=chosen.spread_s
        )
        # After the latency that is reported, so that its engines meet a device as it was.
        sweeps = self._sweeps()
        starts = [self._cold_start(bundle) for bundle in self._bundles]
        energy = self._energy(loads)
        after = self._observe()
        self._note_throttling(after)
        return BenchReport(
            created=datetime.now(timezone.utc).replace(microsecond=0),
            edgexnas=__version__,
            settings=self._settings,
            before=self._before,
            after=after,
            bundles=tuple(
                BundleBench(
                    name=self._names[k],
                    model_id=bundle.manifest.model_id,
                    task=bundle.manifest.task,
                    digest=bundle.digest,
                    parameters=bundle.manifest.parameters,
                    engine=predictors[k].engine.describe(),
                    build_ms=openings[k][1],
                    open_ms=openings[k][2],
                    latency=latencies[k],
                    sweep=tuple(sweep[k] for sweep in sweeps),
                    cold_start=starts[k],
                    energy=energy.results[k] if energy else None,
                )
                for k, bundle in enumerate(self._bundles)
            ),
            energy=energy,
            # Each once, in the order in which they came: throttling is found after many blocks.
            faults=tuple(dict.fromkeys(self._faults)),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def _predictor(self, bundle: Bundle, batch: int, *, cached: bool = True) -> BundlePredictor:
        chosen = self._settings
        return Predictor(
            bundle,
            engine=chosen.engine,
            precision=chosen.precision,
            batch=batch,
            threads=chosen.threads,
            cache=None if cached else False,
        )

    def _open(self, bundle: Bundle) -> tuple[BundlePredictor, float, float]:
        self._progress(f"open {bundle.manifest.model_id}")
        began = time.perf_counter()
        # Without the cache first: this is what the very first start on a device takes.
        self._predictor(bundle, self._settings.batch, cached=False).close()
        built = time.perf_counter()
        # Fills the cache, untimed; the next opening is the usual one.
        self._predictor(bundle, self._settings.batch).close()
        filled = time.perf_counter()
        predictor = self._stack.enter_context(self._predictor(bundle, self._settings.batch))
        opened = time.perf_counter()
        return predictor, 1e3 * (built - began), 1e3 * (opened - filled)

    def _sweeps(self) -> list[list[LatencyResult]]:
        """Latencies of all bundles at each batch size, engines opened for that size."""
        results = []
        for size in self._settings.sweep:
            self._progress(f"latency at batch {size}")
            with ExitStack() as stack:
                loads = [
                    load_of(name, stack.enter_context(self._predictor(bundle, size)), bundle, size)
                    for name, bundle in zip(self._names, self._bundles, strict=True)
                ]
                runs = min(self._settings.runs, SWEEP_RUNS)
                results.append(measure_latency(loads, runs=runs, calls=self._settings.calls))
        return results

    def _cold_start(self, bundle: Bundle) -> ColdStart | None:
        chosen = self._settings
        if not chosen.cold_start:
            return None
        if bundle.path is None or self._trust is None:
            self._notes.append("A bundle that is not a file has no cold start.")
            return None
        self._progress(f"cold start of {bundle.manifest.model_id}")
        return measure_cold_start(
            bundle.path,
            self._trust,
            engine=chosen.engine,
            precision=chosen.precision,
            batch=chosen.batch,
            threads=chosen.threads,
        )

    def _energy(self, loads: Sequence[Load]) -> EnergyReport | None:
        if self._meter is None:
            return None
        seconds = self._settings.protocol.seconds(len(loads))
        self._progress(f"energy: about {seconds / 60:.1f} minutes")
        try:
            report = measure_energy(
                loads,
                self._meter,
                self._settings.protocol,
                progress=self._progress,
                # While it is hot: clocks recover within seconds, and a look at the end would see
                # nothing.
                after_block=lambda: self._note_throttling(self._observe()),
            )
        except MeasurementError as error:
            self._faults.append(f"energy: {error}")
            return None
        self._faults.extend(report.faults)
        self._notes.extend(report.notes)
        return report

    def _open_meter(self) -> PowerMeter | None:
        chosen = self._settings
        if chosen.energy == "off":
            return None
        try:
            meter = open_power_meter(chosen.meter, root=chosen.root)
        except SourceError as error:
            if chosen.energy == "on":
                raise
            self._notes.append(f"Energy is not measured: {error}.")
            return None
        self._stack.callback(meter.close)
        return meter

    def _observe(self) -> DeviceState:
        supply = None
        if self._meter is not None:
            try:
                supply = self._meter.read().supply_v
            except SourceError as error:
                self._faults.append(str(error))
        source = None if self._meter is None else self._meter.source
        return observe_device(self._settings.root, supply_v=supply, nvml=source == "nvml")

    def _note_throttling(self, state: DeviceState) -> None:
        self._faults.extend(throttling(self._before, state))


def load_of(name: str, predictor: BundlePredictor, bundle: Bundle, batch: int) -> Load:
    """Make a load that runs a predictor's engine on the bundle's own reference inputs.

    Parameters
    ----------
    batch
        Items of one inference; the references are repeated as needed.
    """
    references = bundle.reference["input"]
    shape = (batch, *references.shape[1:])
    # Real inputs: what takes time may depend on values, as with denormals.
    inputs: npt.NDArray[np.float32] = np.ascontiguousarray(np.resize(references, shape))
    engine = predictor.engine
    return Load(name, lambda: engine.run(inputs), batch)


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """File names, and model ids of what is not a file; equal ones with their digest."""
    plain = [b.path.stem if b.path else b.manifest.model_id for b in bundles]
    return [
        name if plain.count(name) == 1 else f"{name} {bundle.digest[:8]} #{number + 1}"
        for number, (name, bundle) in enumerate(zip(plain, bundles, strict=True))
    ]
