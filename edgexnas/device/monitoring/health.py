"""Whether the service does its work: one state machine, a pure function of an observation.

The page, ``/healthz``, ``/status.json``, ``/metrics``, the status PVs, the service manager, the log
and the exit status all show what `judge` returns. The states are in `STATES`; ``docs/health.md``
describes them for operators.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "STATES",
    "STUCK_S",
    "DataObservation",
    "FrameObservation",
    "Health",
    "HealthObservation",
    "HealthState",
    "Reason",
    "SinkObservation",
    "SourceObservation",
    "ThreadObservation",
    "judge",
]

HealthState: TypeAlias = Literal[
    "starting", "waiting", "idle", "running", "degraded", "failing", "stopped"
]

STUCK_S = 10.0
"""What has not moved for this long is stuck: for page, ``/healthz`` and watchdog alike.

Well above the slowest step that is sound (a new file, an engine call after a pause), and such that
whoever polls each second knows within 20 s.
"""

IDLE_S = 5.0
"""A connected source without a frame for this long is idle."""

CONTINUED_S = 60.0
"""How long failing frames are held against the service after the last one came.

A detector of one frame in 30 s whose frames all fail is failing between them too; a service whose
last frame failed before the night is not.
"""


class StateRow(NamedTuple):
    """What a state means: for people, for HTTP, and for the watchdog."""

    meaning: str
    healthy: str
    """When ``/healthz`` answers 200."""


STATES: Mapping[HealthState, StateRow] = {
    "starting": StateRow("the bundle is verified, the engine opened and checked", "never"),
    "waiting": StateRow(
        "the source is not connected: which one, and since when", "for `source_timeout_s`, then not"
    ),
    "idle": StateRow("the source is connected and sends no frames", "always"),
    "running": StateRow("frames come and their results are stored", "always"),
    "degraded": StateRow(
        "results are stored, and something else is wrong: an optional sink, dropped, lost or "
        "failed frames, a short failure of a required sink, data unlike the training data",
        "always",
    ),
    "failing": StateRow(
        "frames come and nothing is stored, a required sink is down, or a thread does not move",
        "never",
    ),
    "stopped": StateRow("the service has ended, or failed for good", "never"),
}
"""The states, mildest cause first; the table of ``docs/health.md``."""


@dataclass(frozen=True, slots=True)
class SourceObservation:
    """What the source is doing.

    Attributes
    ----------
    name
        Its URL.
    connected
        Whether it can deliver: an open file and a simulation always can.
    since_s
        When `connected` last changed.
    last_frame_s
        When the newest frame came; None before the first.
    flowing_since_s
        When frames began to come after the last pause; None before the first.
    error
        Its newest error since the last good frame; None if there is none.
    error_since_s, error_s
        When the first and the newest error since the last good frame came.
    """

    name: str = "source"
    connected: bool = True
    since_s: float = 0.0
    last_frame_s: float | None = None
    flowing_since_s: float | None = None
    error: str | None = None
    error_since_s: float = 0.0
    error_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FrameObservation:
    """How frames end.

    Attributes
    ----------
    pending
        Frames that are in the service.
    unfinished_since_s
        When the oldest frame came that is not done, counted since the newest frame that is; None
        while every frame is done. Duplicates do not count.
    unfinished_s
        When the newest such frame came.
    lossy_since_s, lossy_s
        When frames began to be dropped, to fail or to be lost, and when this happened last; None if
        never.
    losses
        What happens to them, such as "31 dropped, 2 failed".
    only_drops_since_s
        Since when the intake queue has only dropped frames, and passed none on; None if it does.
    """

    pending: int = 0
    unfinished_since_s: float | None = None
    unfinished_s: float = 0.0
    lossy_since_s: float | None = None
    lossy_s: float = 0.0
    losses: str = ""
    only_drops_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class SinkObservation:
    """What a sink is doing.

    Attributes
    ----------
    name
        Its name.
    required
        Whether a frame is done only once this sink has stored it.
    opened
        Whether it is open; False while it is down and waits to be opened again.
    stored
        Results stored so far.
    last_stored_s
        When it last stored something; None if never.
    unstored_since_s
        When the first result was handed to it that it has not stored, counted since it last stored
        one; None if it has stored the newest.
    last_given_s
        When the newest result was handed to it; None if none was.
    queued
        Results that wait for it.
    failing_since_s, error
        When it failed first since it last stored something, and how; None if it has not.
    dropping_since_s
        When its oldest results began to be dropped; None if none was for `STUCK_S`.
    """

    name: str
    required: bool = True
    opened: bool = True
    stored: int = 0
    last_stored_s: float | None = None
    unstored_since_s: float | None = None
    last_given_s: float | None = None
    queued: int = 0
    failing_since_s: float | None = None
    error: str | None = None
    dropping_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class ThreadObservation:
    """What a thread of a stage or a sink is doing.

    Attributes
    ----------
    name
        Its name.
    beat_s
        When it last looked for work.
    alive
        False once it died; one that has ended in order is not observed.
    waiting_on
        What outside the service it waits for, such as "hdf5 results"; None while it runs our own
        code. A thread that waits for another of ours looks for work meanwhile.
    required
        False if frames are stored without it.
    """

    name: str
    beat_s: float
    alive: bool = True
    waiting_on: str | None = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class DataObservation:
    """How the newest data is unlike what the network was trained on.

    Attributes
    ----------
    what
        A clause that says it.
    foreign_since_s
        When too much of it began to be; None while it is not.
    last_s
        When a result was judged last.
    """

    what: str = ""
    foreign_since_s: float | None = None
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HealthObservation:
    """Everything that the health of a service depends on.

    Attributes
    ----------
    now_s
        When it was observed.
    began_s
        When the service was made.
    started
        Whether frames are taken.
    draining
        Whether it was asked to stop and finishes what it has.
    ended_s, failure
        When it ended, and why it could not go on; None if it has not, or ended in order.
    source, frames, sinks, threads
        Its parts.
    data
        What comes, as far as the network's training data tells.
    """

    now_s: float
    began_s: float = 0.0
    started: bool = True
    draining: bool = False
    ended_s: float | None = None
    failure: str | None = None
    source: SourceObservation = field(default_factory=SourceObservation)
    frames: FrameObservation = field(default_factory=FrameObservation)
    sinks: tuple[SinkObservation, ...] = ()
    threads: tuple[ThreadObservation, ...] = ()
    data: DataObservation = field(default_factory=DataObservation)


class Reason(NamedTuple):
    """One thing that is wrong.

    Attributes
    ----------
    what
        A clause without its time.
    since_s
        When it began.
    failing
        Whether results that must be stored are not, because of it.
    """

    what: str
    since_s: float
    failing: bool


@dataclass(frozen=True, slots=True)
class Health:
    """What is shown of a service.

    Attributes
    ----------
    state
        One of `STATES`.
    reasons
        What is wrong, the gravest and oldest first; empty while nothing is.
    since_s
        When the state began, as far as the observation tells.
    healthy
        Whether ``/healthz`` answers 200.
    watchdog
        Whether the service manager is notified. False only while a thread of our own is dead or
        stuck: restarting the service does not mend a disk, a network or a detector.
    now_s
        When it was judged.
    """

    state: HealthState
    reasons: tuple[Reason, ...]
    since_s: float
    healthy: bool
    watchdog: bool
    now_s: float

    @property
    def for_s(self) -> float:
        """For how long the state has lasted."""
        return max(0.0, self.now_s - self.since_s)

    @property
    def sentence(self) -> str:
        """The state and why, in one sentence."""
        return f"{self.state}{':' if self.reasons else ''} {self.why}"

    @property
    def why(self) -> str:
        """What is wrong and for how long, or for how long nothing is."""
        if not self.reasons:
            return f"for {_duration(self.for_s)}"
        return "; ".join(
            f"{reason.what} for {_duration(self.now_s - reason.since_s)}" for reason in self.reasons
        )


def judge(seen: HealthObservation, *, source_timeout_s: float = 20.0) -> Health:
    """Judge an observation.

    Parameters
    ----------
    seen
        What was observed.
    source_timeout_s
        For how long a source may be away before the service is not healthy.
    """
    if seen.ended_s is not None:
        ended = () if seen.failure is None else (Reason(seen.failure, seen.ended_s, True),)
        return Health("stopped", ended, seen.ended_s, False, True, seen.now_s)
    if not seen.started:
        return Health("starting", (), seen.began_s, False, True, seen.now_s)
    own = _own_threads(seen)
    reasons = sorted(
        [
            *own,
            *_sinks(seen),
            *_outside_threads(seen),
            *_frames(seen),
            *_source_errors(seen),
            *_data(seen),
        ],
        key=lambda reason: (not reason.failing, reason.since_s),
    )
    since_s: float
    healthy = True
    if any(reason.failing for reason in reasons):
        state: HealthState = "failing"
        since_s = min(reason.since_s for reason in reasons if reason.failing)
        healthy = False
    elif not seen.source.connected and not seen.draining:
        state, since_s = "waiting", seen.source.since_s
        healthy = seen.now_s - since_s < source_timeout_s
        reasons.insert(0, Reason(f"{seen.source.name} is not connected", since_s, False))
    elif reasons:
        state, since_s = "degraded", min(reason.since_s for reason in reasons)
    else:
        state, since_s = _quiet_state(seen)
    return Health(state, tuple(reasons), since_s, healthy, not own, seen.now_s)


def _quiet_state(seen: HealthObservation) -> tuple[HealthState, float]:
    """Tell running, while frames come or are in the service, from idle."""
    last, flowing = seen.source.last_frame_s, seen.source.flowing_since_s
    if last is None or flowing is None:
        return "idle", max(seen.began_s, seen.source.since_s)
    if seen.now_s - last < IDLE_S or seen.frames.pending:
        return "running", flowing
    return "idle", last


def _own_threads(seen: HealthObservation) -> Iterable[Reason]:
    found = []
    for thread in seen.threads:
        if not thread.alive:
            found.append(Reason(f"thread {thread.name} has died", thread.beat_s, True))
        elif thread.waiting_on is None and _stuck(seen, thread.beat_s):
            found.append(Reason(f"thread {thread.name} is stuck", thread.beat_s, True))
    return found


def _outside_threads(seen: HealthObservation) -> Iterable[Reason]:
    for thread in seen.threads:
        if thread.alive and thread.waiting_on is not None and _stuck(seen, thread.beat_s):
            what = f"thread {thread.name} waits for {thread.waiting_on}"
            yield Reason(what, thread.beat_s, thread.required)


def _sinks(seen: HealthObservation) -> Iterable[Reason]:
    for sink in seen.sinks:
        after = f" ({sink.error})" if sink.error else ""
        unstored, failing = sink.unstored_since_s, sink.failing_since_s
        wanted = sink.queued > 0 or (
            sink.last_given_s is not None and not _stuck(seen, sink.last_given_s)
        )
        # Opening a sink again is no proof that it stores: only storing is, unless nothing comes.
        if unstored is not None and _stuck(seen, unstored) and (wanted or not sink.opened):
            drops = "" if sink.dropping_since_s is None else ", its queue only drops"
            what = f"sink {sink.name} has stored nothing{drops}{after}"
            yield Reason(what, unstored, sink.required)
        elif failing is not None and (not sink.opened or wanted):
            down = sink.required and not sink.opened and _stuck(seen, failing)
            yield Reason(f"sink {sink.name} is down{after}", failing, down)
        elif sink.dropping_since_s is not None:
            what = f"sink {sink.name} is slow and drops results"
            yield Reason(what, sink.dropping_since_s, False)


def _frames(seen: HealthObservation) -> Iterable[Reason]:
    frames = seen.frames
    since = frames.unfinished_since_s
    if frames.only_drops_since_s is not None and _stuck(seen, frames.only_drops_since_s):
        what = "the intake queue only drops frames"
        yield Reason(what, frames.only_drops_since_s, True)
    if since is not None and _stuck(seen, since):
        # One bad frame at the end of a run is no failure; bad frames over a while are.
        # Where a sink was at fault, the sink is judged, which may be open again by now.
        continued = (
            frames.unfinished_s - since >= STUCK_S
            and seen.now_s - frames.unfinished_s < CONTINUED_S
            and not any(sink.required and sink.failing_since_s is not None for sink in seen.sinks)
        )
        if frames.pending or continued:
            after = f" ({frames.losses})" if frames.losses else ""
            yield Reason(f"frames come and none is done{after}", since, True)
            return
    if frames.lossy_since_s is not None and not _stuck(seen, frames.lossy_s):
        yield Reason(f"frames are lost: {frames.losses}", frames.lossy_since_s, False)


def _source_errors(seen: HealthObservation) -> Iterable[Reason]:
    source = seen.source
    if source.error is None or not source.connected:
        return
    # A source that sends nothing but what cannot be read delivers no frames to store.
    if _stuck(seen, source.error_since_s) and not _stuck(seen, source.error_s):
        yield Reason(source.error, source.error_since_s, True)
    elif not _stuck(seen, source.error_s):
        yield Reason(source.error, source.error_since_s, False)


def _data(seen: HealthObservation) -> Iterable[Reason]:
    data = seen.data
    # Of data that came a while ago nothing is wrong any more.
    if data.foreign_since_s is not None and not _stuck(seen, data.last_s):
        yield Reason(data.what, data.foreign_since_s, False)


def _stuck(seen: HealthObservation, since_s: float) -> bool:
    return seen.now_s - since_s >= STUCK_S


def _duration(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
