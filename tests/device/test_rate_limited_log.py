from __future__ import annotations

import logging

import pytest

from edgexnas.device.rate_limited_log import INTERVAL_S, LoggedWarning, RateLimitedLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the log sees, to be set by a test."""
    now = [1000.0]
    monkeypatch.setattr("edgexnas.device.rate_limited_log.time.monotonic", lambda: now[0])
    return now


def test_a_kind_is_logged_once_an_interval_with_the_count_of_the_others(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    log = RateLimitedLog(logging.getLogger("test"))
    for number in range(4):
        log.add("late", f"frame {number} is late")
    log.add("lost", "frame 9 is lost")
    clock[0] += INTERVAL_S
    log.add("late", "frame 5 is late")
    assert [record.getMessage() for record in caplog.records] == [
        "frame 0 is late",
        "frame 9 is lost",
        "frame 5 is late (and 3 more like it since)",
    ]


def test_the_newest_message_is_kept_though_it_is_not_logged(clock: list[float]) -> None:
    log = RateLimitedLog(logging.getLogger("test"))
    log.add("late", "first")
    log.add("late", "second")
    assert log.newest == log.last("late") == LoggedWarning("second", 1000.0)
    assert log.last("lost") is None
