from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgexnas.device.monitoring.status import FamiliarityStatus, LatencySummary, ServiceStatus
from edgexnas.device.monitoring.summary import LEDGER_STATES, summarise
from edgexnas.device.monitoring.watch import ServiceWatch
from edgexnas.device.serving.ledger import STATES
from edgexnas.ptycho import ObjectImage


def _rows(watch: ServiceWatch, key: str) -> dict[str, tuple[str, ...]]:
    table = next(table for table in summarise(watch.observe()) if table.key == key)
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: row[1:] for row in table.rows}


def test_every_state_of_the_ledger_is_shown() -> None:
    assert {state for state, _ in LEDGER_STATES} == set(STATES)


def test_a_service_that_has_just_started_has_tables_without_made_up_numbers(
    source: Any, watch: ServiceWatch
) -> None:
    source.now = ServiceStatus()
    assert _rows(watch, "latency")["arrival → result"] == ("–", "–", "–", "–")
    assert _rows(watch, "flow")["Complete up to frame"] == ("–",)
    assert _rows(watch, "service")["Engine"] == ("–",)


def test_the_share_unlike_the_training_data_is_shown_where_it_is_known(
    source: Any, watch: ServiceWatch
) -> None:
    assert "Unlike the training data" not in _rows(watch, "flow")
    source.change(familiarity=FamiliarityStatus(200, 31, {"width_px": 31}))
    assert _rows(watch, "flow")["Unlike the training data"] == ("15.5%",)


def test_a_growing_object_has_no_peaks(source: Any, watch: ServiceWatch) -> None:
    assert _rows(watch, "flow")["Peaks so far"] == ("12\u202f345",)
    image = ObjectImage(np.ones((8, 8), np.complex64), np.ones((8, 8), np.float32), 0)
    source.change(last_result=replace(source.now.last_result, object_image=image))
    assert "Peaks so far" not in _rows(watch, "flow")


@pytest.mark.parametrize(
    ("time_ms", "shown"), [(0.123, "0.12"), (9.994, "9.99"), (123.44, "123.4")]
)
def test_latencies_have_three_or_four_digits(
    source: Any, watch: ServiceWatch, time_ms: float, shown: str
) -> None:
    source.change(stage_ms={"find": LatencySummary(time_ms, time_ms, time_ms, time_ms, 1)})
    assert _rows(watch, "latency")["find"][0] == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.9, "00:00:59"), (3661, "01:01:01"), (90_061, "1 d 01:01:01")]
)
def test_how_long_it_is_up_is_shown_in_days_and_hours(
    source: Any, watch: ServiceWatch, seconds: float, shown: str
) -> None:
    source.change(uptime_s=seconds)
    assert _rows(watch, "service")["Uptime"] == (shown,)
