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
from typing import Any, NamedTuple

from edgexnas import __version__
from edgexnas.device.monitoring.sensors import SensorReading
from edgexnas.device.monitoring.status import ServiceStatus
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


class Pv(NamedTuple):
    """What a PV shows.

    Attributes
    ----------
    value
        Always of one type: int, float or str.
    description
        For displays.
    severity
        0 no alarm, 1 minor, 2 major.
    message
        Why there is an alarm.
    units
        Of the value.
    """

    value: Value
    description: str
    severity: int = _NO_ALARM
    message: str = ""
    units: str = ""


def pv_values(observation: Observation) -> dict[str, Pv]:
    """Assign each status PV its value and alarm.

    Parameters
    ----------
    observation
        What is shown.

    Returns
    -------
    dict
        Name without prefix → what it shows; all of `PV_NAMES`. Counters wrap to 0 after 2³¹ − 1,
        as those of areaDetector do not fit more either.
    """
    status, health = observation.status, observation.status.health
    counts, latency, rates = status.counts, status.latency_ms, status.rates
    result = status.last_result
    height, width = (0, 0) if result is None or result.pixels is None else result.pixels.shape
    fullest = max(
        status.queues.values(),
        key=lambda level: level.length / max(1, level.capacity),
        default=None,
    )
    waiting, capacity = fullest or (0, 0)
    # areaDetector warns when a quarter of the queue is free, and alarms when none is.
    crowded = _NO_ALARM
    if capacity and waiting >= 0.75 * capacity:
        crowded = _MAJOR if waiting >= capacity else _MINOR
    queue = (crowded, ("", "queue is filling", "queue is full")[crowded])
    severity = _MAJOR if not health.healthy else _MINOR if health.reasons else _NO_ALARM
    alarm = (severity, health.sentence if severity else "")
    error, engine = status.last_error, status.engine
    newest = f"{clock_time(error.at_s)} {error.message}" if error else ""
    model = f"{status.model_id} {engine.name} {engine.precision}" if engine else status.model_id
    connected = status.source_counts.get("connection", "connected") == "connected"
    source = {name: n for name, n in status.source_counts.items() if isinstance(n, int)}
    stored, refused = (
        sum(getattr(sink, name) for sink in status.sinks.values()) for name in ("stored", "refused")
    )

    def frames(state: str, description: str, raised: str = "") -> Pv:
        return _count(counts.get(state, 0), description, raised)

    return {
        # areaDetector's NDArrayBase and NDPluginBase
        "PluginType_RBV": Pv("edgexnas", "What this is"),
        "DriverVersion_RBV": Pv(__version__, "Version of edgexnas"),
        "PortName_RBV": Pv(model, "Model that runs"),
        "NDArrayPort_RBV": Pv(status.source, "Source of the frames"),
        "ArrayCounter_RBV": frames("received", "Frames received"),
        "ArrayRate_RBV": _measured(rates.received_per_s, "Hz", "Frames received a second"),
        "DroppedArrays_RBV": frames(
            "dropped", "Frames displaced by newer ones", "frames were dropped"
        ),
        "UniqueId_RBV": _count(result.number if result else 0, "Newest committed frame"),
        "ArraySize0_RBV": Pv(width, "Width of the newest frame"),
        "ArraySize1_RBV": Pv(height, "Height of the newest frame"),
        "QueueSize": Pv(capacity, "Capacity of the fullest queue"),
        "QueueFree": Pv(capacity - waiting, "Free capacity of the fullest queue", *queue),
        "QueueUse": Pv(waiting, "Frames in the fullest queue", *queue),
        "ExecutionTime_RBV": _measured(latency.p50, "ms", "Arrival to result, median"),
        # the service's own
        "State_RBV": Pv(health.state, "State of the service", *alarm),
        "Status_RBV": Pv(health.sentence, "Whether it is healthy, in words", *alarm),
        "LastError_RBV": Pv(
            newest, "Newest error, with its time", _MINOR if error and not error.gone else _NO_ALARM
        ),
        "SourceConnected_RBV": Pv(int(connected), "1 while the source can deliver"),
        "SourceMissed_RBV": _count(
            source.get("missed", 0),
            "Frame numbers that the source skipped",
            "the source skipped frames",
        ),
        "SourceMalformed_RBV": _count(
            source.get("malformed", 0),
            "Messages that could not be decoded",
            "messages were malformed",
        ),
        "SourceReconnects_RBV": _count(source.get("reconnects", 0), "Reconnections of the source"),
        "StoredResults_RBV": _count(stored, "Results stored, by all sinks"),
        "RefusedResults_RBV": _count(
            refused, "Results that a sink did not store", "a sink did not store results"
        ),
        "ProcessedArrays_RBV": frames("done", "Frames whose result is committed"),
        "ProcessedRate_RBV": _measured(rates.done_per_s, "Hz", "Results committed a second"),
        "FailedArrays_RBV": frames(
            "failed", "Frames not decoded, processed or stored", "frames failed"
        ),
        "DuplicateArrays_RBV": frames("duplicate", "Frames received again"),
        "LostArrays_RBV": frames("lost", "Frames never received", "frames were never received"),
        "PendingArrays_RBV": frames("pending", "Frames in progress"),
        "SpilledArrays_RBV": frames("spilled", "Frames waiting on disk"),
        "LatencyP95_RBV": _measured(latency.p95, "ms", "Arrival to result, 95 % are faster"),
        "LatencyP99_RBV": _measured(latency.p99, "ms", "Arrival to result, 99 % are faster"),
        "Peaks_RBV": _count(status.peaks_total, "Peaks of all committed frames"),
        "Watermark_RBV": Pv(
            -1 if status.watermark is None else _int32(status.watermark),
            "All frames up to this number have ended; -1 for none",
        ),
        "Series_RBV": Pv(status.series or "", "Newest series"),
        "ModulePower_RBV": _measured(
            # A PV has one type and always a value: "unknown" must be a number.
            observation.sensors.module_w or 0.0,
            "W",
            "Power of the module; 0 without a sensor",
        ),
    }


def _int32(count: int) -> int:
    # Positive: Channel Access has no unsigned 32-bit type, and displays show negative counters.
    return count & _INT32_MAX


def _count(number: int, description: str, raised: str = "") -> Pv:
    """Show a counter; `raised` is the alarm while it is not 0."""
    alarm = (_MINOR, raised) if raised and number else (_NO_ALARM, "")
    return Pv(_int32(number), description, *alarm)


def _measured(number: float, units: str, description: str) -> Pv:
    return Pv(float(number), description, units=units)


# Names and types are read off an empty observation, so that no second list can differ.
_NOTHING_YET = pv_values(Observation(ServiceStatus(), (), SensorReading()))
PV_NAMES = tuple(_NOTHING_YET)
"""Names of the status PVs, without prefix."""


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
        self._shown: dict[str, Pv] = {}
        self._records: PvaRecords | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve the PVs and update them."""
        if self._thread is not None or self._closing.is_set():
            return
        records = PvaRecords("status PVs")
        self._records = records
        for name, shown in _NOTHING_YET.items():
            records.add(self._prefix + name, self._record(shown))
        self._post(records)
        self._thread = threading.Thread(
            target=self._run, args=(records,), name="edgexnas-pvs", daemon=True
        )
        self._thread.start()
        _logger.info("%d status PVs: %sArrayCounter_RBV ...", len(PV_NAMES), self._prefix)

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
        warned = False
        going_on = True
        while going_on:
            # Posts once more after closing, so that the last values are those of the end.
            going_on = not self._closing.wait(self._period_s)
            try:
                self._post(records)
            except Exception as error:
                if not warned:
                    _logger.warning("status PVs cannot be posted: %s", error)
                warned = True

    def _post(self, records: PvaRecords) -> None:
        """Post what has changed, as a record with monitors does."""
        values = pv_values(self._watch.observe())
        nanoseconds = time.time_ns()
        stamp = {"secondsPastEpoch": nanoseconds // 10**9, "nanoseconds": nanoseconds % 10**9}
        for name, shown in values.items():
            # Unchanged PVs keep their time stamp, by which operators see when something changed.
            if self._shown.get(name) != shown:
                alarm = {"severity": shown.severity, "status": 0, "message": shown.message}
                fields = {"value": shown.value, "alarm": alarm, "timeStamp": stamp}
                records.update(self._prefix + name, fields)
        self._shown = values

    def _record(self, shown: Pv) -> Any:
        """Make a normative scalar: value, alarm, time stamp and what a display needs."""
        pva = self._pvaccess
        kinds = {int: pva.INT, float: pva.DOUBLE, str: pva.STRING}
        record = pva.NtScalar(kinds[type(shown.value)], shown.value)
        # A display structure has one layout in pvapy, whose defaults are all that else is set.
        record.setStructure("display", {"units": shown.units, "description": shown.description})
        return record
