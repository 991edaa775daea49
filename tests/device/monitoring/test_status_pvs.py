from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from edgexnas.device.monitoring.status import LastError, QueueLevel, ServiceStatus
from edgexnas.device.monitoring.status_pvs import PV_NAMES, StatusPvs, pv_values
from edgexnas.device.monitoring.summary import clock_time
from edgexnas.device.monitoring.watch import ServiceWatch
from edgexnas.errors import ConfigurationError

NDPLUGINBASE = {
    "ArrayCounter_RBV",
    "ArrayRate_RBV",
    "ArraySize0_RBV",
    "ArraySize1_RBV",
    "DriverVersion_RBV",
    "DroppedArrays_RBV",
    "ExecutionTime_RBV",
    "NDArrayPort_RBV",
    "PluginType_RBV",
    "PortName_RBV",
    "QueueFree",
    "QueueSize",
    "QueueUse",
    "UniqueId_RBV",
}
"""Names in areaDetector's NDArrayBase.template and NDPluginBase.template."""


def test_names_are_those_of_area_detector_where_it_has_one() -> None:
    assert set(PV_NAMES) >= NDPLUGINBASE


def test_values_are_those_of_the_status(watch: ServiceWatch) -> None:
    values = {name: pv.value for name, pv in pv_values(watch.observe()).items()}
    assert set(values) == set(PV_NAMES)
    assert (values["ArrayCounter_RBV"], values["ProcessedArrays_RBV"]) == (1000, 950)
    assert (values["ArraySize0_RBV"], values["ArraySize1_RBV"]) == (128, 96)
    assert (values["UniqueId_RBV"], values["Watermark_RBV"]) == (41, 40)
    assert (values["ExecutionTime_RBV"], values["LatencyP99_RBV"]) == (4.5, 21.0)


@pytest.mark.parametrize(
    ("waiting", "severity"), [(0, 0), (47, 0), (48, 1), (63, 1), (64, 2)], ids=str
)
def test_the_fullest_queue_warns_at_three_quarters_and_alarms_when_full(
    source: Any, watch: ServiceWatch, waiting: int, severity: int
) -> None:
    source.change(queues={"decode": QueueLevel(0, 8), "sink": QueueLevel(waiting, 64)})
    values = pv_values(watch.observe())
    assert values["QueueFree"].severity == values["QueueUse"].severity == severity
    if waiting:
        assert (values["QueueFree"].value, values["QueueUse"].value) == (64 - waiting, waiting)


def test_losses_are_minor_alarms_and_a_failure_is_a_major_one(
    source: Any, watch: ServiceWatch, health_of: Callable[..., Any]
) -> None:
    lost = pv_values(watch.observe())["LostArrays_RBV"]
    assert (lost.severity, lost.message) == (1, "frames were never received")
    assert pv_values(watch.observe())["State_RBV"].severity == 0
    for state, severity in (("degraded", 1), ("failing", 2)):
        source.change(health=health_of(state))
        sentence = health_of(state).sentence
        shown = pv_values(watch.observe())["Status_RBV"]
        assert (shown.value, shown.severity, shown.message) == (sentence, severity, sentence)


def test_an_error_is_an_alarm_until_it_is_gone(source: Any, watch: ServiceWatch) -> None:
    for gone, severity in ((False, 1), (True, 0)):
        source.change(last_error=LastError("the disk is full", 1.7e9, gone))
        value = pv_values(watch.observe())["LastError_RBV"]
        assert value.value == f"{clock_time(1.7e9)} the disk is full"
        assert value.severity == severity


def test_a_count_too_large_for_an_epics_integer_wraps(source: Any, watch: ServiceWatch) -> None:
    source.change(counts={"received": 2**31 + 5})
    assert pv_values(watch.observe())["ArrayCounter_RBV"].value == 5


def test_a_service_that_has_just_started_has_all_values(source: Any, watch: ServiceWatch) -> None:
    source.now = ServiceStatus()
    assert set(pv_values(watch.observe())) == set(PV_NAMES)


@pytest.mark.parametrize("prefix", ["", "EDGE X:", "EDGEX:$(P)", "É:", "EDGEX:\n"])
def test_a_prefix_that_no_pv_can_have_is_refused(watch: ServiceWatch, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot begin the name of a PV"):
        StatusPvs(watch, prefix=prefix)


def test_a_client_elsewhere_reads_the_pvs_with_alarm_time_and_units_and_cannot_write(
    source: Any,
    watch: ServiceWatch,
    read_pvs: Any,
    begun_threads: Callable[[], set[threading.Thread]],
) -> None:
    view = StatusPvs(watch, prefix="EDGEX:", period_s=0.05)
    view.start()
    try:
        names = ["EDGEX:State_RBV", "EDGEX:LatencyP99_RBV", "EDGEX:DroppedArrays_RBV"]
        answers = read_pvs(*names, put=7)
    finally:
        view.close()
        view.close()
    state, latency, dropped = (answers[name]["fields"] for name in names)
    assert state["value"] == "running"
    assert (latency["value"], latency["display"]["units"]) == (21.0, "ms")
    assert latency["timeStamp"]["secondsPastEpoch"] > 1.6e9
    assert (dropped["value"], dropped["alarm"]["severity"]) == (20, 1)
    assert "not allowed" in answers["put"]
    assert "More than one channel" not in answers["printed"]
    assert not begun_threads()
