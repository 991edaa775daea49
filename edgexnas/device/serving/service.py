"""The streaming service: opened, run until its source ends or it is told to stop, and closed."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgexnas import __version__
from edgexnas.device.monitoring.health import (
    Health,
    HealthObservation,
    ThreadObservation,
    judge,
)
from edgexnas.device.monitoring.status import (
    EngineStatus,
    LastError,
    ServiceStatus,
    SinkCounts,
    StatusView,
)
from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.health_probe import HealthProbe
from edgexnas.device.serving.ledger import Ledger
from edgexnas.device.serving.pipeline import Pipeline
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.stage_times import RateMeter, StageTimes
from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results import SeriesKey, ServiceIdentity
from edgexnas.errors import ConfigurationError, EdgexnasError

if TYPE_CHECKING:
    from pathlib import Path

    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.device.ptycho.predictor import PtychoPredictor
    from edgexnas.device.serving.series_run import Work
    from edgexnas.device.sinks.protocol import Sink
    from edgexnas.device.sources.events import EventSource

__all__ = ["Service", "ServiceError", "StoredAlreadyError"]

STAGES = ("wait", "decode", "find", "bin", "network", "gpu", "deliver", "latency")
"""What is timed: on the CPU finding or binning and the network, on a GPU all of it as one."""

REPORT_S = 10.0
REMIND_S = 60.0
"""How often a service that is not healthy says so again."""
ABORT_S = 2.0
"""How long stages have to end after an abort; a sink that hangs is left behind."""

_log = logging.getLogger("edgexnas.device.serving")


class ServiceError(EdgexnasError):
    """A service could not go on."""


class StoredAlreadyError(ServiceError, ConfigurationError):
    """Earlier runs have stored every frame that came, so that starting again is of no use."""


class Service:
    """From a source's frames to results in sinks.

    ::

        with Predictor("bragg.edgex", trust="keys/") as predictor:
            service = Service(predictor, open_event_source("pva://GE1:Pva1:Image"), sinks)
            service.run()

    Parameters
    ----------
    predictor
        An open predictor, of Bragg peaks or of ptychography; it is not closed here, unless
        `replace_predictor` replaces it.
    source
        Where frames come from; closed at the end.
    sinks
        Where results go; opened by `run` and closed at the end.
    settings
        How the stages work; None for the defaults.
    views
        What shows the service; started by `run` and closed at the end.
    sink_queue
        Most results that wait for one sink.
    sink_retry_s
        How long after a failure a sink is opened again.
    stop_on_sink_failure
        Names of sinks without which the service does not go on.
    source_timeout_s
        How long the source may be away before the service is not healthy.

    Raises
    ------
    ConfigurationError
        If two sinks have one name, or a setting does not fit the application.
    """

    def __init__(
        self,
        predictor: PeakPredictor | PtychoPredictor,
        source: EventSource,
        sinks: Sequence[Sink] = (),
        *,
        settings: PipelineSettings | None = None,
        views: Sequence[StatusView] = (),
        sink_queue: int = 1024,
        sink_retry_s: float = 5.0,
        stop_on_sink_failure: Sequence[str] = (),
        source_timeout_s: float = 20.0,
    ) -> None:
        self.settings = settings = settings or PipelineSettings()
        self.views = list(views)
        self._predictor = predictor
        self._source = source
        self._complaints = RateLimitedLog(_log)
        self._times = StageTimes(*STAGES, *(sink.name for sink in sinks))
        # Beside the results of a sink without which no frame counts as stored.
        folders = [getattr(sink, "folder", None) for sink in sinks if sink.policy == "block"]
        self._kept_in: Path | None = next((folder for folder in folders if folder), None)
        self._work = _work_of(predictor, settings, self._times, self._kept_in)
        self._meter = RateMeter()
        self._replacing = threading.Lock()
        self._retired: deque[PeakPredictor | PtychoPredictor] = deque()
        self._own: list[PeakPredictor | PtychoPredictor] = []
        names = [sink.name for sink in sinks]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"sinks are named {names}; give each a name of its own")
        self._source_timeout_s = source_timeout_s
        self._probe = HealthProbe(source.url)
        self._shown: Health | None = None
        self._shown_s = 0.0
        self._began = time.monotonic()
        self._began_at_s = time.time()
        self._started = False
        self._ended_s: float | None = None
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._aborting = threading.Event()
        self._changed = threading.Event()
        self._needed = frozenset(stop_on_sink_failure)
        self._ledger = Ledger(bundle_digest=predictor.bundle_digest)
        self._stored_already: str | None = None
        self._pipeline = Pipeline(
            source,
            self._work,
            sinks,
            ledger=self._ledger,
            settings=settings,
            sink_queue=sink_queue,
            sink_retry_s=sink_retry_s,
            complaints=self._complaints,
            times=self._times,
            failed=self._fail,
            sink_failed=self._sink_failed,
        )

    def run(self) -> ServiceStatus:
        """Serve until the source ends or `stop` is called, and return the last status.

        Raises
        ------
        ServiceError
            If the source, a stage, or a sink that is needed failed; `StoredAlreadyError` if the
            source ended and brought only frames that earlier runs have stored.
        EdgexnasError
            If a sink or a view cannot be opened.
        """
        try:
            self.start()
            self.wait()
        finally:
            self.close()
        self.raise_failure()
        return self.status()

    def raise_failure(self) -> None:
        """Raise `ServiceError` if the service has failed."""
        if self._stored_already is not None:
            raise StoredAlreadyError(self._stored_already)
        if self._failure is not None:
            raise ServiceError(self._failure)

    def start(self) -> None:
        """Open sinks, views and stages; returns once frames are taken.

        Raises
        ------
        EdgexnasError
            If a sink or a view cannot be opened.
        """
        self._work.warm_up()
        identity = self.identity
        for sink in self._pipeline.sinks:
            try:
                sink.start(identity)
            except OSError as error:
                if isinstance(error, EdgexnasError):
                    raise
                raise ServiceError(f"{sink.sink.name} cannot be opened: {error}") from error
        self._recall()
        for view in self.views:
            view.start()
        self._pipeline.start()
        self._started = True
        engine = self._predictor.engine
        _log.info(
            "serving %s with %s (%s, %s), policy %s",
            self._source.url,
            identity.model_id,
            engine.name,
            engine.precision,
            self._pipeline.intake.policy,
        )

    def replace_predictor(self, predictor: PeakPredictor | PtychoPredictor) -> None:
        """Let another predictor have the frames that come, without losing one; from any thread.

        Frames that are here stay with the predictor that has them, and each result says which
        bundle made it. For ptychography the next series is the first with the new predictor.

        Parameters
        ----------
        predictor
            Of the same application and of a bundle of a higher sequence. It is closed by the
            service, as soon as its last frame is done once another has taken its place.

        Raises
        ------
        ConfigurationError
            If it is for the other application, or its sequence is not higher.
        """
        before, after = self._predictor.manifest, predictor.manifest
        if after.task != before.task:
            raise ConfigurationError(
                f"{after.model_id} is for {after.task} and the service for {before.task}; start "
                "another service for it"
            )
        if after.sequence <= before.sequence:
            raise ConfigurationError(
                f"sequence {after.sequence} of {after.model_id} is not above {before.sequence}, "
                "which runs; export it with a higher one"
            )
        work = _work_of(predictor, self.settings, self._times, self._kept_in)
        work.warm_up()
        with self._replacing:
            retired, retired_work = self._predictor, self._work
            self._predictor, self._work = predictor, work
            # What the bundle before has stored of a series says nothing of what this one has.
            self._ledger.bundle_digest = predictor.bundle_digest
            self._own.append(predictor)
            self._pipeline.replace_work(work, self.identity)
            # Each series and each frame that it has holds its work.
            weakref.finalize(retired_work, self._retired.append, retired)
        _log.info("%s %d takes over from %d", after.model_id, after.sequence, before.sequence)

    def note(self, message: str) -> None:
        """Log a warning, and show it as the newest error."""
        self._complaints.add(message, message)

    def wait(self) -> None:
        """Wait until all is done; log a line every 10 s."""
        next_report = time.monotonic() + REPORT_S
        drain_by: float | None = None
        while not self._pipeline.join(0.0):
            self._changed.wait(0.1)
            self._changed.clear()
            self._sample()
            if time.monotonic() >= next_report:
                next_report += REPORT_S
                self._report()
            if self._stopping.is_set() and drain_by is None:
                drain_by = time.monotonic() + self.settings.drain_s
            if drain_by is not None and time.monotonic() >= drain_by:
                self._complaints.add("drain", f"not done {self.settings.drain_s:g} s after stop")
                self.abort()
            if self._aborting.is_set():
                self._pipeline.join(ABORT_S)
                return

    def close(self) -> None:
        """Close everything; closing again does nothing."""
        if self._ended_s is not None:
            return
        # Not the state: `stop` may have come before `start`, or while it failed.
        running = self._pipeline.started and not self._pipeline.join(0.0)
        if running and not self._aborting.is_set():
            self._pipeline.abort()
            self._pipeline.join(ABORT_S)
        for sink in self._pipeline.sinks:
            sink.abandon()
        self._source.close()
        self._pipeline.intake.close()
        counts = self._ledger.counts
        stored_none = counts["failed"] and not counts["done"]
        if self._failure is None and stored_none and not self._aborting.is_set():
            newest = self._complaints.newest
            why = f"; the last error: {newest.message}" if newest else ""
            self._failure = f"none of {counts['received']} frames was stored{why}"
        if self._failure is None and 0 < counts["received"] == counts["duplicate"]:
            stored = self._where_stored(counts["received"])
            if self._source.live and self._stopping.is_set():
                # What a detector showed last came again, and nothing else.
                _log.warning("%s", stored)
            else:
                self._failure = self._stored_already = stored
        self._ended_s = time.monotonic()
        for predictor in (*self._retired, *self._own):
            predictor.close()
        for view in self.views:
            view.close()
        self._report()

    def stop(self) -> None:
        """Take no more frames and finish those that are here; from any thread."""
        if not self._stopping.is_set():
            self._stopping.set()
            _log.info("stopping: no more frames are taken, those that are here are finished")
            self._source.close()
            self._changed.set()

    def abort(self) -> None:
        """Stop soon; frames that are not stored yet are dropped. From any thread."""
        self._stopping.set()
        self._aborting.set()
        _log.warning("stopping at once: frames that are not stored yet are dropped")
        self._pipeline.abort()
        self._changed.set()

    @property
    def complete(self) -> bool:
        """Whether every frame that came has ended."""
        counts = self._ledger.counts
        return not counts["pending"] and not counts["spilled"] and not self._aborting.is_set()

    @property
    def health(self) -> Health:
        """Judge how the service is; cheap, from any thread."""
        source_error = self._complaints.last("source")
        source, frames = self._probe.sample(
            self._ledger.counts, self._source.status(), source_error
        )
        now_s = time.monotonic()
        sinks = [sink.observe(now_s) for sink in self._pipeline.sinks]
        stages = [
            ThreadObservation(name, min(now_s, beat_ns / 1e9))
            for name, beat_ns in self._pipeline.beats_ns.items()
        ]
        observation = HealthObservation(
            now_s,
            self._began,
            self._started,
            self._stopping.is_set(),
            self._ended_s,
            self._failure,
            source,
            frames,
            tuple(sink for sink, _ in sinks),
            (*stages, *(thread for _, thread in sinks)),
            self._pipeline.data.observe(),
        )
        return judge(observation, source_timeout_s=self._source_timeout_s)

    @property
    def identity(self) -> ServiceIdentity:
        """Who makes the results."""
        manifest, engine = self._predictor.manifest, self._predictor.engine
        return ServiceIdentity(
            manifest.task,
            manifest.model_id,
            manifest.sequence,
            engine.name,
            engine.precision,
            self._source.url,
            __version__,
            self._predictor.bundle_digest,
        )

    def status(self) -> ServiceStatus:
        """Take a snapshot; cheap, from any thread."""
        pipeline, engine, run = self._pipeline, self._predictor.engine, self._pipeline.intake.run
        error, health = self._complaints.newest, self.health
        ago_s = 0.0 if error is None else time.monotonic() - error.at_s
        return ServiceStatus(
            health=health,
            model_id=self._predictor.manifest.model_id,
            engine=EngineStatus(engine.name, engine.precision, engine.reason),
            source=self._source.url,
            series=None if run is None else run.series,
            detection=None if run is None else run.detection,
            began_at_s=self._began_at_s,
            uptime_s=time.monotonic() - self._began,
            counts=self._ledger.counts,
            series_counts={} if run is None else run.ledger.counts,
            rates=self._meter.rates,
            queues=pipeline.queues,
            latency_ms=self._times.summary("latency"),
            stage_ms=self._times.summaries(leave_out="latency"),
            sums=pipeline.sums,
            familiarity=pipeline.data.status(),
            watermark=None if run is None else run.ledger.watermark,
            last_error=None
            if error is None
            else LastError(error.message, time.time() - ago_s, gone=not health.reasons),
            source_counts=self._source.status(),
            sinks=self.sink_counts(),
            last_result=pipeline.last_result,
        )

    def sink_counts(self) -> dict[str, SinkCounts]:
        """Count what each sink has stored, refused and dropped."""
        return {
            sink.sink.name: SinkCounts(sink.stored, sink.refused, sink.dropped)
            for sink in self._pipeline.sinks
        }

    def _recall(self) -> None:
        """Learn from the open sinks what earlier runs have stored."""
        stored = [sink.sink.committed() for sink in self._pipeline.sinks if sink.required]
        committed = _committed_by_all(stored)
        self._ledger.remember(committed)
        if committed:
            total = sum(kept.total for kept in committed.values())
            _log.info("%d frames of earlier runs are stored and will not be repeated", total)
        resume = getattr(self._source, "resume", None)
        if resume is not None:
            # Of any bundle: a detector's numbers go on whatever makes the results.
            highest: dict[str, int] = {}
            for key, kept in (item for one in stored for item in one.items()):
                if kept.last is not None:
                    highest[key.identity] = max(kept.last, highest.get(key.identity, 0))
            resume(highest)

    def _where_stored(self, frames: int) -> str:
        run, manifest = self._pipeline.intake.run, self._predictor.manifest
        places = ", ".join(sink.sink.name for sink in self._pipeline.sinks if sink.required)
        series = "?" if run is None else run.start.identity or run.series
        return (
            f"nothing was processed: all {frames} frames of {self._source.url} (series {series}) "
            f"are stored already in {places}, by the same bundle ({manifest.model_id} "
            f"{manifest.sequence}, {self._predictor.bundle_digest[:12]}…); specify another folder "
            "to process them again"
        )

    def _sample(self) -> None:
        while self._retired:
            self._retired.popleft().close()
        counts = self._ledger.counts
        self._meter.sample(counts["received"], counts["done"])
        self._log_health(self.health)

    def _log_health(self, health: Health) -> None:
        """Log each change of the state, and again every minute while it is not healthy."""
        before, self._shown = self._shown, health
        changed = before is None or (health.state, health.healthy) != (before.state, before.healthy)
        if changed or (not health.healthy and health.now_s - self._shown_s >= REMIND_S):
            self._shown_s = health.now_s
            quiet = health.healthy and not health.reasons
            _log.log(logging.INFO if quiet else logging.WARNING, "%s", health.sentence)

    def _report(self) -> None:
        counts, rates = self._ledger.counts, self._meter.rates
        latency = self._times.summary("latency")
        troubles = [
            f"{counts[state]} {state}"
            for state in ("lost", "dropped", "failed", "duplicate", "spilled")
            if counts[state]
        ]
        _log.info(
            "%.1f frames/s in, %.1f/s done; %d of %d frames done, %s; latency p50 %.1f ms, "
            "p99 %.1f ms; %d peaks",
            rates.received_per_s,
            rates.done_per_s,
            counts["done"],
            counts["received"],
            ", ".join(troubles) or "none lost",
            latency.p50,
            latency.p99,
            self._pipeline.sums.peaks,
        )

    def _sink_failed(self, name: str, message: str) -> None:
        if name in self._needed:
            self._fail(message)

    def _fail(self, message: str) -> None:
        if self._failure is None:
            self._failure = message
            _log.error("the service cannot go on: %s", message)
        self.stop()


def _work_of(
    predictor: PeakPredictor | PtychoPredictor,
    settings: PipelineSettings,
    times: StageTimes,
    kept_in: Path | None,
) -> Work:
    # Imported late, so that only the application that is served is loaded.
    if predictor.task == "bragg":
        from edgexnas.device.bragg.predictor import PeakPredictor
        from edgexnas.device.bragg.predictor import lanes_of as peak_lanes
        from edgexnas.device.serving.kept_backgrounds import KeptBackgrounds
        from edgexnas.device.serving.peak_work import PeakWork

        assert isinstance(predictor, PeakPredictor)
        return PeakWork(
            peak_lanes(predictor),
            settings,
            times,
            bundle_digest=predictor.bundle_digest,
            kept=None if kept_in is None else KeptBackgrounds(kept_in / "backgrounds"),
        )
    from edgexnas.device.ptycho.predictor import PtychoPredictor
    from edgexnas.device.ptycho.predictor import lanes_of as pattern_lanes
    from edgexnas.device.serving.pattern_work import PatternWork

    assert isinstance(predictor, PtychoPredictor)
    refiner = predictor.refiner(settings.refine) if settings.refine else None
    return PatternWork(pattern_lanes(predictor), settings, times, refiner)


def _committed_by_all(
    stored: Sequence[dict[SeriesKey, NumberRanges]],
) -> dict[SeriesKey, NumberRanges]:
    """Frames that every sink which must have them has stored before."""
    if not stored:
        return {}
    common = set.intersection(*(set(kept) for kept in stored))
    result: dict[SeriesKey, NumberRanges] = {}
    for key in common:
        kept = stored[0][key]
        for other in stored[1:]:
            kept = kept.intersection(other[key])
        if kept:
            result[key] = kept
    return result
