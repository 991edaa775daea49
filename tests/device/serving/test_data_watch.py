"""How much of what a service gets is unlike the training data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgexnas.bragg import Peaks
from edgexnas.device.serving.data_watch import WINDOW, DataWatch
from edgexnas.device.sinks.results import FrameResult


def peaks(familiar: int, unfamiliar: int) -> Peaks:
    count = familiar + unfamiliar
    reasons = np.array([0] * familiar + [1] * unfamiliar, np.uint8)
    pairs = np.zeros((count, 2), np.float32)
    return Peaks(
        pairs, pairs, np.zeros((count, 2, 3), np.float32), pairs.astype(np.int32),
        np.zeros(count, np.float32), np.zeros(count, np.uint8), 0, 0, reasons=reasons,
    )  # fmt: skip


def result(familiar: int = 0, unfamiliar: int = 0, *, series: str = "a") -> FrameResult:
    return FrameResult(series, 0, 0, peaks=peaks(familiar, unfamiliar))


@pytest.fixture
def watch() -> DataWatch:
    return DataWatch()


def test_familiar_data_is_nothing_to_tell(watch):
    watch.add(result(95, 5))
    assert watch.observe().foreign_since_s is None
    assert watch.status() == (100, 5, {"width_px": 5})


def test_foreign_data_is_told_with_what_makes_it_so(watch):
    watch.add(result(10, 90))
    seen = watch.observe()
    assert seen.foreign_since_s is not None
    assert seen.what == "90% of the newest data is unlike the training data, most by width_px"


def test_since_when_it_is_foreign_stays(watch):
    watch.add(result(0, 100))
    since = watch.observe().foreign_since_s
    watch.add(result(0, 100))
    assert watch.observe().foreign_since_s == since


def test_it_recovers_once_the_newest_data_is_familiar(watch):
    watch.add(result(0, 500, series="foreign"))
    for _ in range(3):
        watch.add(result(WINDOW // 2, 0, series="ours"))
    assert watch.observe().foreign_since_s is None
    assert watch.status().unfamiliar == 500


def test_patterns_are_counted_where_they_were_looked_at(watch):
    for reason in (None, 0, 1, None):
        watch.add(FrameResult("scan", 0, 0, reason=reason))
    assert watch.status() == (2, 1, {"brightness_counts": 1})


def test_bundles_that_do_not_tell_are_not_counted(watch):
    watch.add(FrameResult("a", 0, 0, peaks=replace(peaks(5, 5), reasons=None)))
    assert watch.status().judged == 0


def test_frames_without_peaks_tell_nothing_and_are_not_kept(watch):
    watch.add(result(0, 100))
    before = watch.observe()
    for _ in range(3):
        watch.add(result(0, 0))
    assert watch.observe() == before
    assert len(watch._recent) == 1


def test_a_series_that_has_only_begun_names_no_reason(watch):
    watch.add(result(0, 100, series="foreign"))
    watch.add(result(50, 0, series="ours"))
    assert watch.observe().what == "67% of the newest data is unlike the training data"


def pattern(reason: int | None, series: str) -> FrameResult:
    return FrameResult(series, 0, 0, amplitude=np.ones((64, 64), np.float32), reason=reason)


def test_a_foreign_scan_tells_nothing_of_the_next_one(watch):
    for _ in range(4):
        watch.add(pattern(1, "foreign"))
    assert watch.observe().foreign_since_s is not None
    watch.add(pattern(0, "ours"))
    assert watch.observe().foreign_since_s is None
    assert watch.status().unfamiliar == 4


def test_patterns_that_are_not_looked_at_keep_what_was_said_of_their_scan(watch):
    for _ in range(4):
        watch.add(pattern(1, "scan"))
    before = watch.observe()
    watch.add(pattern(None, "another"))
    assert watch.observe() == before
    watch.add(pattern(None, "scan"))
    after = watch.observe()
    assert after.last_s > before.last_s
    assert after.foreign_since_s == before.foreign_since_s
