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
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _service(observation: Observation) -> Iterator[Metric]:
    status = observation.status
    state = GaugeMetricFamily(
        "edgexnas_service_state", "1 for the state that the service is in.", labels=["state"]
    )
    for name in STATES:
        state.add_metric([name], float(name == status.health.state))
    yield state
    yield GaugeMetricFamily(
        "edgexnas_service_healthy",
        "1 while /healthz answers 200.",
        value=float(status.health.healthy),
    )
    yield GaugeMetricFamily(
        "edgexnas_service_uptime_seconds", "Since the start.", value=status.uptime_s
    )
    engine = status.engine
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
        "edgexnas_frames_received", "Frames that came.", value=counts.get("received", 0)
    )
    ended = CounterMetricFamily(
        "edgexnas_frames", "Frames that have ended, by how they ended.", labels=["state"]
    )
    for name in _ENDED:
        ended.add_metric([name], counts.get(name, 0))
    yield ended
    waiting = GaugeMetricFamily(
        "edgexnas_frames_waiting", "Frames in memory or spilled to disk.", labels=["state"]
    )
    for name in _WAITING:
        waiting.add_metric([name], counts.get(name, 0))
    yield waiting
    # No counter: a frame that comes late after all is lost no longer.
    yield GaugeMetricFamily(
        "edgexnas_frames_lost", "Frames that never came.", value=counts.get("lost", 0)
    )
    series = GaugeMetricFamily(
        "edgexnas_series_frames", "Frames of the newest series, by state.", labels=["state"]
    )
    for name, count in status.series_counts.items():
        series.add_metric([name], count)
    yield series
    yield CounterMetricFamily(
        "edgexnas_peaks", "Peaks of all committed frames.", value=status.peaks_total
    )
    if status.watermark is not None:
        yield GaugeMetricFamily(
            "edgexnas_series_watermark",
            "Frames up to this number have all ended in the newest series.",
            value=status.watermark,
        )


def _source_and_sinks(observation: Observation) -> Iterator[Metric]:
    status = observation.status
    source = CounterMetricFamily(
        "edgexnas_source", "What the source itself counts.", labels=["what"]
    )
    for name, value in status.source_counts.items():
        if isinstance(value, int):
            source.add_metric([name], value)
    yield source
    yield GaugeMetricFamily(
        "edgexnas_source_connected",
        "0 while the source is away.",
        value=float(status.source_counts.get("connection", "connected") == "connected"),
    )
    results = CounterMetricFamily(
        "edgexnas_sink_results", "Results by what a sink did with them.", labels=["sink", "state"]
    )
    for sink, counts in status.sinks.items():
        for name, count in counts._asdict().items():
            results.add_metric([sink, name], count)
    yield results


def _flow(observation: Observation) -> Iterator[Metric]:
    status = observation.status
    rate = GaugeMetricFamily(
        "edgexnas_frames_per_second", "Over the last seconds.", labels=["what"]
    )
    rate.add_metric(["received"], status.rates.received_per_s)
    rate.add_metric(["done"], status.rates.done_per_s)
    yield rate
    length = GaugeMetricFamily("edgexnas_queue_length", "Frames that wait.", labels=["stage"])
    capacity = GaugeMetricFamily(
        "edgexnas_queue_capacity", "Frames that may wait.", labels=["stage"]
    )
    for stage, level in status.queues.items():
        length.add_metric([stage], level.length)
        capacity.add_metric([stage], level.capacity)
    yield length
    yield capacity
    yield _quantiles(
        "edgexnas_frame_latency_seconds",
        "From the arrival of a frame to the commit of its result.",
        {"": status.latency_ms},
    )
    yield _quantiles(
        "edgexnas_stage_seconds", "Time that a frame or a batch spends in it.", status.stage_ms
    )


def _quantiles(name: str, text: str, summaries: Mapping[str, LatencySummary]) -> GaugeMetricFamily:
    """Gauges in seconds; those of the summary "" carry no stage."""
    stages = [] if "" in summaries else ["stage"]
    family = GaugeMetricFamily(name, text, labels=[*stages, "quantile"])
    for stage, summary in summaries.items():
        labels = [stage] if stages else []
        for quantile, value_ms in (
            ("0.5", summary.p50),
            ("0.95", summary.p95),
            ("0.99", summary.p99),
            ("1", summary.max),
        ):
            family.add_metric([*labels, quantile], value_ms / 1000)
    return family


def _machine(observation: Observation) -> Iterator[Metric]:
    sensors = observation.sensors
    rails = GaugeMetricFamily("edgexnas_rail_power_watts", "Power of a rail.", labels=["rail"])
    for rail, power_w in sensors.rails_w.items():
        rails.add_metric([rail], power_w)
    yield rails
    if sensors.module_w is not None:
        yield GaugeMetricFamily(
            "edgexnas_module_power_watts", "Power of the module.", value=sensors.module_w
        )
    temperatures = GaugeMetricFamily(
        "edgexnas_temperature_celsius", "Of a thermal zone.", labels=["zone"]
    )
    for zone, celsius in sensors.temperatures_c.items():
        temperatures.add_metric([zone], celsius)
    yield temperatures
