"""What counters of a service tell over time."""

from __future__ import annotations

from typing import Any

import pytest

from edgexnas.device.monitoring.health import IDLE_S, STUCK_S
from edgexnas.device.rate_limited_log import LoggedWarning
from edgexnas.device.serving.health_probe import HealthProbe
from edgexnas.device.serving.ledger import STATES


class Counters:
    """Counters that a test moves on, a second for each look."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.counts = dict.fromkeys(STATES, 0)
        self.source: dict[str, Any] = {"frames": 0, "connection": "connected"}
        self.error: LoggedWarning | None = None
        self.probe = HealthProbe("pva://X", clock=lambda: self.now_s)

    def look(self, seconds: float = 1.0, **risen: int) -> tuple[Any, Any]:
        self.now_s += seconds
        for name, count in risen.items():
            self.counts[name] += count
        self.source["frames"] += risen.get("done", 0)
        return self.probe.sample(self.counts, self.source, self.error)


@pytest.fixture
def counters() -> Counters:
    return Counters()


def test_frames_flow_since_the_first_after_a_pause(counters: Counters) -> None:
    assert counters.look()[0].last_frame_s is None
    counters.look(received=1, done=1)
    assert counters.look(received=1, done=1)[0].flowing_since_s == 102
    counters.look(IDLE_S, received=1, done=1)
    source, _ = counters.look(received=1, done=1)
    assert (source.flowing_since_s, source.last_frame_s) == (103 + IDLE_S, 104 + IDLE_S)


def test_the_time_of_a_connection_is_that_of_its_change(counters: Counters) -> None:
    counters.source["connection"] = "waiting"
    counters.look()
    source, _ = counters.look()
    assert (source.connected, source.since_s) == (False, 101)


def test_an_error_of_the_source_lasts_until_a_good_frame(counters: Counters) -> None:
    counters.error = LoggedWarning("malformed", 100.5)
    counters.look()
    counters.error = LoggedWarning("malformed again", 101.5)
    source, _ = counters.look()
    assert (source.error, source.error_since_s, source.error_s) == ("malformed again", 100.5, 101.5)
    assert counters.look(received=1, done=1)[0].error is None
    assert counters.look()[0].error is None
    counters.error = LoggedWarning("anew", 110.0)
    assert counters.look()[0].error_since_s == 110.0


def test_frames_are_unfinished_since_the_first_that_is_not_done(counters: Counters) -> None:
    counters.look(received=5, done=5)
    counters.look(received=1, failed=1)
    _, frames = counters.look(received=1, dropped=1)
    assert (frames.unfinished_since_s, frames.unfinished_s) == (102, 103)
    assert counters.look(received=1, done=1)[1].unfinished_since_s is None


def test_pending_frames_are_unfinished(counters: Counters) -> None:
    counters.look(received=3, pending=3)
    assert counters.look()[1].unfinished_since_s == 101
    counters.look(done=3, pending=-3)
    assert counters.look()[1].unfinished_since_s is None


def test_duplicates_are_not_unfinished(counters: Counters) -> None:
    assert counters.look(received=9, duplicate=9)[1].unfinished_since_s is None


def test_losses_are_counted_from_when_they_began(counters: Counters) -> None:
    counters.look(received=2, dropped=1, failed=1)
    _, frames = counters.look(received=1, dropped=1)
    assert (frames.losses, frames.lossy_since_s, frames.lossy_s) == (
        "2 dropped, 1 failed",
        101,
        102,
    )
    _, frames = counters.look(STUCK_S, received=1, dropped=1)
    assert (frames.losses, frames.lossy_since_s) == ("1 dropped", 102 + STUCK_S)


def test_a_frame_that_is_late_was_not_lost(counters: Counters) -> None:
    counters.look(received=1, lost=1)
    assert counters.look(received=1, lost=-1)[1].losses == ""
    counters.look(received=1, lost=1)
    assert counters.look(received=1)[1].losses == "1 lost"


def test_a_queue_only_drops_until_a_frame_is_processed(counters: Counters) -> None:
    counters.look(received=5, dropped=5)
    assert counters.look(received=5, dropped=5)[1].only_drops_since_s == 101
    assert counters.look(received=5, dropped=4, done=1)[1].only_drops_since_s is None
