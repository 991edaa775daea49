"""Foreign data is announced once, as soon as it shows."""

from __future__ import annotations

import logging
from operator import attrgetter

import numpy as np
import pytest

from edgexnas.device.announcement import Announcement
from edgexnas.familiarity import UnfamiliarTally


def announcement(enough: int | None = None) -> Announcement:
    return Announcement(
        "scan.h5", UnfamiliarTally(), foreign=attrgetter("foreign"), advice="look", enough=enough
    )


def reasons(unfamiliar: int, familiar: int) -> np.ndarray:
    return np.repeat(np.array([1, 0], np.uint8), [unfamiliar, familiar])


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    told = announcement()
    with caplog.at_level(logging.WARNING):
        told.add(reasons(0, 8))
        assert not told.done
        for _ in range(3):
            told.add(reasons(10, 0))
    assert told.done
    (record,) = caplog.records
    assert record.getMessage() == (
        "scan.h5: 10 of 18 peaks (56%) are unlike the training data (by width_px 10); look"
    )


def test_familiar_data_is_looked_at_no_more_after_enough(caplog: pytest.LogCaptureFixture) -> None:
    told = announcement(enough=100)
    told.add(reasons(0, 100))
    assert told.done
    told.add(reasons(100, 0))
    assert not caplog.records
    assert told.tally.total == 100


def test_what_is_counted_elsewhere_is_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    told = announcement()
    told.tally.add(reasons(10, 0))
    told.look()
    told.look()
    assert len(caplog.records) == 1


def test_data_that_nobody_can_judge_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told = announcement()
    told.add(None)
    assert not told.done
    assert not caplog.records
