"""A service's status as Prometheus metrics.

Names follow Prometheus' rules: one prefix, base units (seconds, watts), ``_total`` for counters.
Latency percentiles are taken over a window by the service, so they are gauges with a `quantile`
label and cannot be added up over machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgexnas.device.monitoring.health import STATES
from edgexnas.device.monitoring.status import LatencySummary
from edgexnas.device.monitoring.watch import Observation, ServiceWatch
from edgexnas.errors import MissingDependencyError

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingDependencyError.of(
        "prometheus_client", extra="monitor", purpose="monitoring over HTTP"
    ) from error

__all__ = ["CONTENT_TYPE", "ServiceCollector", "ServiceMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text format that every Prometheus reads."""

_ENDED = ("done", "dropped", "failed", "duplicate")
_WAITING = ("pending", "spilled")


class ServiceCollector(Collector):
    """Turns one observation into metrics, each time that it is asked.

    Parameters
    ----------
    watch
        Whom to ask.
    """

    def __init__(self, watch: ServiceWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one moment: all from one snapshot, so that counts add up."""
        observation = self._watch.observe()
        yield from _service(observation)
        yield from _frames(observation)
        yield from _source_and_sinks(observation)
        yield from _flow(observation)
        yield from _machine(observation)

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: a registry must not ask a service that has not started."""
        return iter(())


class ServiceMetrics:
    """The text that Prometheus scrapes: the service's metrics and the process's.

    Parameters
    ----------
    watch
        Whom to ask.
    """

    def __init__(self, watch: ServiceWatch) -> None:
        # A registry of its own: a program that embeds the service keeps its own metrics.
        self._registry = CollectorRegistry()
        self._registry.register(ServiceCollector(watch))
        # Memory and file handles of the process show leaks that frame counts do not.
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _service(observation: Observation) -> Iterator[Metric]:
    status, engine = observation.status, observation.status.engine
    yield _gauge(
        "service_state",
        "1 for the state that the service is in.",
        {name: name == status.health.state for name in STATES},
        label="state",
    )
    yield _gauge("service_healthy", "1 while /healthz answers 200.", status.health.healthy)
    yield _gauge("service_uptime_seconds", "Since the start.", status.uptime_s)
    yield InfoMetricFamily(
        "edgexnas_service",
        "Which model runs on which engine, and where frames come from.",
        value={
            "model_id": status.model_id,
            "source": status.source,
            "engine": engine.name if engine else "",
            "precision": engine.precision if engine else "",
        },
    )


def _frames(observation: Observation) -> Iterator[Metric]:
    status = observation.status
    counts = status.counts
    yield CounterMetricFamily(
        "edgexnas_frames_received", "Frames received.", value=counts.get("received", 0)
    )
    ended = CounterMetricFamily(
        "edgexnas_frames", "Frames that have ended, by how they ended.", labels=["state"]
    )
    # Also those at 0: an alert on a series that does not exist yet never fires.
    for name in _ENDED:
        ended.add_metric([name], counts.get(name, 0))
    yield ended
    waiting = {name: counts.get(name, 0) for name in _WAITING}
    yield _gauge("frames_waiting", "Frames in memory or spilled to disk.", waiting, label="state")
    # A gauge, because a frame that arrives late is no longer lost.
    yield _gauge("frames_lost", "Frames never received.", counts.get("lost", 0))
    yield _gauge(
        "series_frames",
        "Frames of the newest series, by state.",
        status.series_counts,
        label="state",
    )
    yield CounterMetricFamily(
        "edgexnas_peaks", "Peaks of all committed frames.", value=status.peaks_total
    )
    yield CounterMetricFamily(
        "edgexnas_judged",
        "Peaks, or patterns, that were compared with the training data.",
        value=status.familiarity.judged,
    )
    yield CounterMetricFamily(
        "edgexnas_unfamiliar",
        "Peaks, or patterns, unlike those of the training data.",
        value=status.familiarity.unfamiliar,
    )
    yield CounterMetricFamily(
        "edgexnas_peak_intensity_counts",
        "Intensities of all peaks of committed frames, in counts above background.",
        value=status.sums.intensity_counts,
    )
    if status.watermark is not None:
        text = "Frames up to this number have all ended in the newest series."
        yield _gauge("series_watermark", text, status.watermark)


def _source_and_sinks(observation: Observation) -> Iterator[Metric]:
    status = observation.status
    source = CounterMetricFamily(
        "edgexnas_source", "What the source itself counts.", labels=["what"]
    )
    for name, value in status.source_counts.items():
        # Texts, such as "connection", are no numbers and have a gauge of their own.
        if isinstance(value, int):
            source.add_metric([name], value)
    yield source
    # Files and simulations say nothing of a connection: they are there.
    connected = status.source_counts.get("connection", "connected") == "connected"
    yield _gauge("source_connected", "0 while the source is disconnected.", connected)
    results = CounterMetricFamily(
        "edgexnas_sink_results", "Results by what a sink did with them.", labels=["sink", "state"]
    )
    for sink, counts in status.sinks.items():
        for name, count in counts._asdict().items():
            results.add_metric([sink, name], count)
    yield results


def _flow(observation: Observation) -> Iterator[Metric]:
    status = observation.status
    rates = {"received": status.rates.received_per_s, "done": status.rates.done_per_s}
    yield _gauge("frames_per_second", "Over the last seconds.", rates, label="what")
    queued = {stage: level.length for stage, level in status.queues.items()}
    yield _gauge("queue_length", "Frames queued.", queued, label="stage")
    capacity = {stage: level.capacity for stage, level in status.queues.items()}
    yield _gauge("queue_capacity", "Frames that may be queued.", capacity, label="stage")
    yield _quantiles(
        "frame_latency_seconds",
        "From the arrival of a frame to the commit of its result.",
        {"": status.latency_ms},
    )
    yield _quantiles("stage_seconds", "Time of a frame or a batch in it.", status.stage_ms)


def _machine(observation: Observation) -> Iterator[Metric]:
    sensors = observation.sensors
    yield _gauge("rail_power_watts", "Power of a rail.", sensors.rails_w, label="rail")
    if sensors.module_w is not None:
        yield _gauge("module_power_watts", "Power of the module.", sensors.module_w)
    zones = sensors.temperatures_c
    yield _gauge("temperature_celsius", "Of a thermal zone.", zones, label="zone")


def _gauge(
    name: str, text: str, value: float | Mapping[str, float], *, label: str | None = None
) -> GaugeMetricFamily:
    """Make a gauge of one value, or of one a label."""
    labelled = value if isinstance(value, Mapping) else {"": value}
    family = GaugeMetricFamily(f"edgexnas_{name}", text, labels=[label] if label else [])
    for key, number in labelled.items():
        family.add_metric([key] if label else [], float(number))
    return family


def _quantiles(name: str, text: str, summaries: Mapping[str, LatencySummary]) -> GaugeMetricFamily:
    """Make gauges in seconds; those of the summary "" carry no stage."""
    stages = [] if "" in summaries else ["stage"]
    family = GaugeMetricFamily(f"edgexnas_{name}", text, labels=[*stages, "quantile"])
    for stage, summary in summaries.items():
        times_ms = (summary.p50, summary.p95, summary.p99, summary.max)
        for quantile, time_ms in zip(("0.5", "0.95", "0.99", "1"), times_ms, strict=True):
            family.add_metric([*([stage] if stages else []), quantile], time_ms / 1000)
    return family
