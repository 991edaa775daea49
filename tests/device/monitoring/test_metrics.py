from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from edgexnas.device.monitoring.health import STATES
from edgexnas.device.monitoring.metrics import ServiceMetrics
from edgexnas.device.monitoring.sensors import Sensors
from edgexnas.device.monitoring.status import ServiceStatus
from edgexnas.device.monitoring.watch import ServiceWatch

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _samples(watch: ServiceWatch) -> Samples:
    """Read the text as Prometheus does."""
    families = text_string_to_metric_families(ServiceMetrics(watch).text().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_frames_are_counted_by_how_they_ended(watch: ServiceWatch) -> None:
    samples = _samples(watch)
    assert _value(samples, "edgexnas_frames_received_total") == 1000
    assert _value(samples, "edgexnas_frames_total", state="done") == 950
    assert _value(samples, "edgexnas_frames_total", state="dropped") == 20
    assert _value(samples, "edgexnas_frames_waiting", state="pending") == 20
    assert _value(samples, "edgexnas_frames_lost") == 5


def test_received_frames_are_those_that_ended_and_those_that_wait(watch: ServiceWatch) -> None:
    samples = _samples(watch)
    parts = [
        value
        for (name, _), value in samples.items()
        if name in ("edgexnas_frames_total", "edgexnas_frames_waiting")
    ]
    assert sum(parts) == _value(samples, "edgexnas_frames_received_total")


def test_times_are_in_seconds(watch: ServiceWatch) -> None:
    samples = _samples(watch)
    assert _value(samples, "edgexnas_frame_latency_seconds", quantile="0.99") == 0.021
    assert _value(samples, "edgexnas_stage_seconds", stage="find", quantile="0.5") == 0.002


def test_rates_queues_watermark_and_engine_are_there(watch: ServiceWatch) -> None:
    samples = _samples(watch)
    assert _value(samples, "edgexnas_frames_per_second", what="done") == 199.25
    assert _value(samples, "edgexnas_queue_length", stage="sink") == 60
    assert _value(samples, "edgexnas_queue_capacity", stage="sink") == 64
    assert _value(samples, "edgexnas_series_watermark") == 40
    info = {
        "model_id": "mlpBragg-12k",
        "source": "sim://hedm",
        "engine": "onnxruntime",
        "precision": "float32",
    }
    assert _value(samples, "edgexnas_service_info", **info) == 1


def test_what_source_and_sinks_count_is_measured(watch: ServiceWatch) -> None:
    samples = _samples(watch)
    assert _value(samples, "edgexnas_source_total", what="malformed") == 2
    assert _value(samples, "edgexnas_source_connected") == 1
    place = {"sink": "hdf5 results/results", "state": "refused"}
    assert _value(samples, "edgexnas_sink_results_total", **place) == 3


def test_the_state_is_one_of_all_states(
    source: Any, watch: ServiceWatch, health_of: Callable[..., Any]
) -> None:
    source.change(health=health_of("waiting"))
    samples = _samples(watch)
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in samples.items()
        if name == "edgexnas_service_state"
    }
    assert {state for state, value in states.items() if value} == {"waiting"}
    assert set(states) == set(STATES)


def test_a_service_that_has_just_started_has_metrics_too(source: Any, watch: ServiceWatch) -> None:
    source.now = ServiceStatus()
    samples = _samples(watch)
    assert _value(samples, "edgexnas_frames_received_total") == 0
    assert not any(name == "edgexnas_series_watermark" for name, _ in samples)


def test_power_and_temperatures_are_metrics(source: Any, tmp_path: Path) -> None:
    reading = SimpleNamespace(rails_w={"VDD_GPU_SOC": 6.5}, module_w=12.25, source="INA3221")
    meter = SimpleNamespace(read=lambda: reading, close=lambda: None)
    sensors = Sensors(lambda: meter, tmp_path)
    sensors.read()
    samples = _samples(ServiceWatch(source, sensors=sensors))
    assert _value(samples, "edgexnas_rail_power_watts", rail="VDD_GPU_SOC") == 6.5
    assert _value(samples, "edgexnas_module_power_watts") == 12.25


def test_the_process_s_own_memory_is_a_metric(watch: ServiceWatch) -> None:
    assert _value(_samples(watch), "process_resident_memory_bytes") > 1e6
