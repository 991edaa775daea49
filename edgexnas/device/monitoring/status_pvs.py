"""Status PVs over EPICS PV Access, under the names that areaDetector's plugins use.

Operators' screens for NDPluginBase show them without change: ArrayCounter_RBV, ArrayRate_RBV,
DroppedArrays_RBV, QueueSize, QueueFree, QueueUse, UniqueId_RBV, ExecutionTime_RBV. What
areaDetector has no name for is named alike: LostArrays_RBV, LatencyP99_RBV, State_RBV.

The PVs speak PV Access alone. Clients that only know Channel Access need a gateway, or an IOC
that reads them.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from edgexnas import __version__
from edgexnas.device.monitoring.summary import clock_time
from edgexnas.device.monitoring.watch import Observation, ServiceWatch
from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.device.pva_records import PvaRecords
from edgexnas.errors import ConfigurationError

__all__ = ["PV_NAMES", "StatusPvs", "pv_values"]

_logger = logging.getLogger(__name__)

_NO_ALARM, _MINOR, _MAJOR = 0, 1, 2
_INT32_MAX = 2**31 - 1

Value = int | float | str


class PvValue(NamedTuple):
    """The value of a PV and how bad it is: 0 no alarm, 1 minor, 2 major."""

    value: Value
    severity: int = _NO_ALARM
    message: str = ""


class _Kind(NamedTuple):
    initial: Value
    units: str
    description: str


_PVS: Mapping[str, _Kind] = {
    # areaDetector's NDArrayBase and NDPluginBase
    "PluginType_RBV": _Kind("", "", "What this is"),
    "DriverVersion_RBV": _Kind("", "", "Version of edgexnas"),
    "PortName_RBV": _Kind("", "", "Model that runs"),
    "NDArrayPort_RBV": _Kind("", "", "Source of the frames"),
    "ArrayCounter_RBV": _Kind(0, "", "Frames received"),
    "ArrayRate_RBV": _Kind(0.0, "Hz", "Frames received a second"),
    "DroppedArrays_RBV": _Kind(0, "", "Frames that gave way to newer ones"),
    "UniqueId_RBV": _Kind(0, "", "Number of the newest committed frame"),
    "ArraySize0_RBV": _Kind(0, "", "Width of the newest frame"),
    "ArraySize1_RBV": _Kind(0, "", "Height of the newest frame"),
    "QueueSize": _Kind(0, "", "Frames that may wait in the fullest queue"),
    "QueueFree": _Kind(0, "", "Room left in the fullest queue"),
    "QueueUse": _Kind(0, "", "Frames that wait in the fullest queue"),
    "ExecutionTime_RBV": _Kind(0.0, "ms", "Arrival to result, median"),
    # the service's own
    "State_RBV": _Kind("", "", "State of the service"),
    "Status_RBV": _Kind("", "", "Whether it is healthy, in words"),
    "LastError_RBV": _Kind("", "", "Newest error, with its time"),
    "SourceConnected_RBV": _Kind(0, "", "1 while the source can deliver"),
    "SourceMissed_RBV": _Kind(0, "", "Frame numbers that the source skipped"),
    "SourceMalformed_RBV": _Kind(0, "", "Messages that could not be decoded"),
    "SourceReconnects_RBV": _Kind(0, "", "Times that the source came back"),
    "StoredResults_RBV": _Kind(0, "", "Results stored, by all sinks"),
    "RefusedResults_RBV": _Kind(0, "", "Results that a sink did not store"),
    "ProcessedArrays_RBV": _Kind(0, "", "Frames whose result is committed"),
    "ProcessedRate_RBV": _Kind(0.0, "Hz", "Results committed a second"),
    "FailedArrays_RBV": _Kind(0, "", "Frames not decoded, processed or stored"),
    "DuplicateArrays_RBV": _Kind(0, "", "Frames that came again"),
    "LostArrays_RBV": _Kind(0, "", "Frames that never came"),
    "PendingArrays_RBV": _Kind(0, "", "Frames in work"),
    "SpilledArrays_RBV": _Kind(0, "", "Frames waiting on disk"),
    "LatencyP95_RBV": _Kind(0.0, "ms", "Arrival to result, 95 % are faster"),
    "LatencyP99_RBV": _Kind(0.0, "ms", "Arrival to result, 99 % are faster"),
    "Peaks_RBV": _Kind(0, "", "Peaks of all committed frames"),
    "Watermark_RBV": _Kind(-1, "", "All frames up to it have ended; -1 for none"),
    "Series_RBV": _Kind("", "", "Newest series"),
    "ModulePower_RBV": _Kind(0.0, "W", "Power of the module; 0 without a sensor"),
}

PV_NAMES = tuple(_PVS)
"""Names of the status PVs, without prefix."""


def pv_values(observation: Observation) -> dict[str, PvValue]:
    """Give each status PV its value and alarm.

    Parameters
    ----------
    observation
        What is shown.

    Returns
    -------
    dict
        Name without prefix → value; all of `PV_NAMES`. Counters wrap to 0 after 2³¹ − 1, as those
        of areaDetector do not fit more either.
    """
    status, health = observation.status, observation.status.health
    counts, latency = status.counts, status.latency_ms
    result = status.last_result
    height, width = (0, 0) if result is None or result.pixels is None else result.pixels.shape
    fullest = max(
        status.queues.values(),
        key=lambda level: level.length / max(1, level.capacity),
        default=None,
    )
    waiting, capacity = fullest or (0, 0)
    # areaDetector warns when a quarter of the room is left, and alarms when none is.
    crowded = _NO_ALARM
    if capacity and waiting >= 0.75 * capacity:
        crowded = _MAJOR if waiting >= capacity else _MINOR
    queue = "queue is filling" if crowded == _MINOR else "queue is full" if crowded else ""
    engine = status.engine
    dropped, lost, failed = (counts.get(state, 0) for state in ("dropped", "lost", "failed"))
    severity = _MAJOR if not health.healthy else _MINOR if health.reasons else _NO_ALARM
    alarm = (severity, health.sentence if severity else "")
    error = status.last_error
    source = {name: n for name, n in status.source_counts.items() if isinstance(n, int)}
    return {
        "PluginType_RBV": PvValue("edgexnas"),
        "DriverVersion_RBV": PvValue(__version__),
        "PortName_RBV": PvValue(
            f"{status.model_id} {engine.name} {engine.precision}" if engine else status.model_id
        ),
        "NDArrayPort_RBV": PvValue(status.source),
        "ArrayCounter_RBV": PvValue(_int32(counts.get("received", 0))),
        "ArrayRate_RBV": PvValue(status.rates.received_per_s),
        "DroppedArrays_RBV": _counter(dropped, "frames were dropped"),
        "UniqueId_RBV": PvValue(_int32(result.number if result else 0)),
        "ArraySize0_RBV": PvValue(width),
        "ArraySize1_RBV": PvValue(height),
        "QueueSize": PvValue(capacity),
        "QueueFree": PvValue(capacity - waiting, crowded, queue),
        "QueueUse": PvValue(waiting, crowded, queue),
        "ExecutionTime_RBV": PvValue(latency.p50),
        "State_RBV": PvValue(health.state, *alarm),
        "Status_RBV": PvValue(health.sentence, *alarm),
        "LastError_RBV": PvValue(
            f"{clock_time(error.at_s)} {error.message}" if error else "",
            _MINOR if error and not error.gone else _NO_ALARM,
        ),
        "SourceConnected_RBV": PvValue(
            int(status.source_counts.get("connection", "connected") == "connected")
        ),
        "SourceMissed_RBV": _counter(source.get("missed", 0), "the source skipped frames"),
        "SourceMalformed_RBV": _counter(source.get("malformed", 0), "messages were malformed"),
        "SourceReconnects_RBV": PvValue(_int32(source.get("reconnects", 0))),
        "StoredResults_RBV": PvValue(_int32(sum(sink.stored for sink in status.sinks.values()))),
        "RefusedResults_RBV": _counter(
            sum(sink.refused for sink in status.sinks.values()), "a sink did not store results"
        ),
        "ProcessedArrays_RBV": PvValue(_int32(counts.get("done", 0))),
        "ProcessedRate_RBV": PvValue(status.rates.done_per_s),
        "FailedArrays_RBV": _counter(failed, "frames failed"),
        "DuplicateArrays_RBV": PvValue(_int32(counts.get("duplicate", 0))),
        "LostArrays_RBV": _counter(lost, "frames never came"),
        "PendingArrays_RBV": PvValue(_int32(counts.get("pending", 0))),
        "SpilledArrays_RBV": PvValue(_int32(counts.get("spilled", 0))),
        "LatencyP95_RBV": PvValue(latency.p95),
        "LatencyP99_RBV": PvValue(latency.p99),
        "Peaks_RBV": PvValue(_int32(status.peaks_total)),
        "Watermark_RBV": PvValue(-1 if status.watermark is None else _int32(status.watermark)),
        "Series_RBV": PvValue(status.series or ""),
        "ModulePower_RBV": PvValue(observation.sensors.module_w or 0.0),
    }


def _int32(count: int) -> int:
    return count & _INT32_MAX


def _counter(count: int, message: str) -> PvValue:
    return PvValue(_int32(count), _MINOR if count else _NO_ALARM, message if count else "")


class StatusPvs:
    """Serves a service's status as PVs.

    Parameters
    ----------
    watch
        Whose observations are shown.
    prefix
        What the names begin with, such as ``"EDGEX:"``.
    period_s
        How often the PVs change.

    Raises
    ------
    ConfigurationError
        For a prefix with blanks or other characters that EPICS names cannot have.
    MissingDependencyError
        When pvapy is not installed.
    """

    def __init__(self, watch: ServiceWatch, *, prefix: str, period_s: float = 0.5) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_\-:.\[\]<>;{}]+", prefix):
            raise ConfigurationError(
                f"{prefix!r} cannot begin the name of a PV: use letters, digits and _-:.[]<>;{{}}, "
                "such as EDGEX:"
            )
        self._pvaccess = pvaccess_module("status PVs")
        self._watch = watch
        self._prefix = prefix
        self._period_s = period_s
        self._shown: dict[str, PvValue] = {}
        self._records: PvaRecords | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve the PVs and keep them fresh."""
        if self._thread is not None or self._closing.is_set():
            return
        records = PvaRecords("status PVs")
        self._records = records
        for name, kind in _PVS.items():
            records.add(self._prefix + name, self._record(kind))
        self._post(records)
        self._thread = threading.Thread(
            target=self._run, args=(records,), name="edgexnas-pvs", daemon=True
        )
        self._thread.start()
        _logger.info("%d status PVs: %sArrayCounter_RBV ...", len(_PVS), self._prefix)

    def close(self) -> None:
        """Withdraw the PVs; closing again does nothing."""
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        records, self._records = self._records, None
        if records is not None:
            records.close()

    def _run(self, records: PvaRecords) -> None:
        complained = False
        going_on = True
        while going_on:
            going_on = not self._closing.wait(self._period_s)
            try:
                self._post(records)
            except Exception as error:
                if not complained:
                    _logger.warning("status PVs cannot be posted: %s", error)
                complained = True

    def _post(self, records: PvaRecords) -> None:
        """Post what has changed, as a record with monitors does."""
        values = pv_values(self._watch.observe())
        nanoseconds = time.time_ns()
        stamp = {"secondsPastEpoch": nanoseconds // 10**9, "nanoseconds": nanoseconds % 10**9}
        for name, shown in values.items():
            if self._shown.get(name) != shown:
                alarm = {"severity": shown.severity, "status": 0, "message": shown.message}
                fields = {"value": shown.value, "alarm": alarm, "timeStamp": stamp}
                records.update(self._prefix + name, fields)
        self._shown = values

    def _record(self, kind: _Kind) -> Any:
        """Make a normative scalar: value, alarm, time stamp and what a display needs."""
        pva = self._pvaccess
        kinds = {int: pva.INT, float: pva.DOUBLE, str: pva.STRING}
        record = pva.NtScalar(kinds[type(kind.initial)], kind.initial)
        # A display structure has one layout in pvapy, whose defaults are all that else is set.
        record.setStructure("display", {"units": kind.units, "description": kind.description})
        return record
