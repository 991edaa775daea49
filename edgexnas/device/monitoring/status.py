"""What the service is doing: one frozen snapshot, which every view of the service reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.device.monitoring.health import Health, HealthState

if TYPE_CHECKING:
    from edgexnas.ptycho import ObjectImage, Refinement

__all__ = [
    "EngineStatus",
    "FamiliarityStatus",
    "LastError",
    "LastResult",
    "LatencySummary",
    "PeakSums",
    "QueueLevel",
    "Rates",
    "ServiceStatus",
    "SinkCounts",
    "StatusSource",
    "StatusView",
]


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """How long something took, in milliseconds, over the last frames or calls.

    Attributes
    ----------
    p50, p95, p99
        Percentiles; 0 where nothing was measured so far.
    max
        The longest.
    count
        Number of measurements that these are taken from.
    """

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, times_ms: Iterable[float]) -> LatencySummary:
        """Summarise measurements in milliseconds."""
        times = np.fromiter(times_ms, np.float64)
        if not len(times):
            return cls()
        p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
        return cls(p50, p95, p99, float(times.max()), len(times))


class QueueLevel(NamedTuple):
    """How full a queue is."""

    length: int
    capacity: int


class EngineStatus(NamedTuple):
    """Which engine runs, and why."""

    name: str
    precision: str
    reason: str


class PeakSums(NamedTuple):
    """Sums over all committed frames, replaced as a whole: its fields are of the same frames.

    Attributes
    ----------
    frames
        Committed frames.
    peaks
        Their peaks.
    intensity_counts
        Sum of the peaks' intensities, in counts above background.
    """

    frames: int = 0
    peaks: int = 0
    intensity_counts: float = 0.0


class FamiliarityStatus(NamedTuple):
    """How much of the committed results is unlike the training data.

    Attributes
    ----------
    judged
        Peaks, or patterns, that were looked at.
    unfamiliar
        How many of them are unlike the training data.
    reasons
        What makes them so → how many.
    """

    judged: int = 0
    unfamiliar: int = 0
    reasons: Mapping[str, int] = {}


class Rates(NamedTuple):
    """Frames a second, over the last seconds."""

    received_per_s: float = 0.0
    done_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LastResult:
    """The newest result that was committed, for showing.

    Attributes
    ----------
    series, number
        Which frame.
    arrival_s
        When it came, on the monotonic clock; None if not known.
    pixels
        (H, W) counts of the frame: a reference, not to be written to; None if not kept.
    positions_px
        (n, 2), (row, col) of the peaks; None for ptychography.
    object_image
        The object as it is stitched so far; None for Bragg peaks, and before the first patch.
    refinement
        What became of it by refinement; None before.
    """

    series: str
    number: int
    pixels: npt.NDArray[Any] | None = None
    positions_px: npt.NDArray[np.float32] | None = None
    object_image: ObjectImage | None = None
    arrival_s: float | None = None
    refinement: Refinement | None = None


class LastError(NamedTuple):
    """The newest warning of the service.

    Attributes
    ----------
    message
        One sentence.
    at_s
        When it came, in Unix seconds.
    gone
        Whether nothing is wrong any more.
    """

    message: str
    at_s: float
    gone: bool


class SinkCounts(NamedTuple):
    """Results that a sink has stored, those it did not store, and those dropped before it."""

    stored: int
    refused: int
    dropped: int


STARTING = Health("starting", (), 0.0, False, True, 0.0)


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A snapshot of the service.

    Attributes
    ----------
    health
        Its state, why, since when, and whether somebody has to look at it.
    model_id
        Name of the model in its manifest.
    engine
        Which engine runs; None while starting.
    source
        The source's URL.
    series
        The newest series seen; None before the first frame.
    detection
        By which limits its peaks are found, in words; None before that is known.
    began_at_s
        When the service started, in Unix seconds: another one means another run.
    uptime_s
        Seconds since the start, on the monotonic clock.
    counts
        Frames of all series by ledger state: "received" = "done" + "dropped" + "duplicate" +
        "failed" + "pending" + "spilled"; frames that never came are "lost".
    series_counts
        The same of the newest series.
    rates
        Frames a second that came and that were committed.
    queues
        Stage → how many wait for it, and how many may.
    latency_ms
        From the arrival of a frame to the commit of its result.
    stage_ms
        Stage → time that one frame or one batch spends in it.
    sums
        Peaks and their intensities, over all committed frames.
    familiarity
        How much of the results is unlike the training data.
    watermark
        Frames up to this number have all ended in the newest series; None before the first.
    last_error
        The newest warning; None if there was none.
    source_counts
        What the source says of itself; see `EventSource.status`.
    sinks
        Name of a sink → what became of the results that it was given.
    last_result
        The newest result; None before the first.
    """

    health: Health = STARTING
    model_id: str = ""
    engine: EngineStatus | None = None
    source: str = ""
    series: str | None = None
    detection: str | None = None
    began_at_s: float = 0.0
    uptime_s: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    series_counts: Mapping[str, int] = field(default_factory=dict)
    rates: Rates = field(default_factory=Rates)
    queues: Mapping[str, QueueLevel] = field(default_factory=dict)
    latency_ms: LatencySummary = field(default_factory=LatencySummary)
    stage_ms: Mapping[str, LatencySummary] = field(default_factory=dict)
    sums: PeakSums = field(default_factory=PeakSums)
    familiarity: FamiliarityStatus = field(default_factory=FamiliarityStatus)
    watermark: int | None = None
    last_error: LastError | None = None
    source_counts: Mapping[str, int | str] = field(default_factory=dict)
    sinks: Mapping[str, SinkCounts] = field(default_factory=dict)

    @property
    def state(self) -> HealthState:
        """State of the service; see `edgexnas.device.monitoring.health.STATES`."""
        return self.health.state

    @property
    def peaks_total(self) -> int:
        """Peaks of all committed frames."""
        return self.sums.peaks

    last_result: LastResult | None = None


class StatusSource(Protocol):
    """What a view reads from."""

    def status(self) -> ServiceStatus:
        """Take a snapshot; cheap, from any thread."""


class StatusView(Protocol):
    """Metrics, status PVs, terminal view, web page: started and closed by the service."""

    def start(self) -> None:
        """Begin to show; returns at once."""

    def close(self) -> None:
        """Stop and release ports; closing again does nothing."""
