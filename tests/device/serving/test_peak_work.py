from __future__ import annotations

import time
from typing import Any

from edgexnas.device.bragg.predictor import PeakPredictor, lanes_of
from edgexnas.device.serving.ledger import SeriesLedger
from edgexnas.device.serving.peak_work import PeakWork
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sources.events import SeriesStart


def test_a_series_that_is_over_shows_its_background_in_all_its_frames(
    peak_predictor: PeakPredictor, small_frames: list[Any]
) -> None:
    settings = PipelineSettings(background_frames=8)
    run = SeriesRun(SeriesStart("a"), SeriesLedger("a"))
    run.work = series = PeakWork(lanes_of(peak_predictor), settings, StageTimes()).begin(run)
    for number in range(3):
        run.enter(number)
    run.over = True
    now_ns = time.monotonic_ns()
    tasks = [FrameTask(run, n, now_ns, small_frames[n]) for n in range(3)]
    released = []
    for task in tasks:
        assert series.ready(task) == []
        released.append(series.release(now_ns=now_ns))
    assert released == [[], [], tasks]


def test_frames_that_were_held_back_for_long_do_not_wait_for_the_rest(
    peak_predictor: PeakPredictor, small_frames: list[Any]
) -> None:
    settings = PipelineSettings(background_frames=8, background_wait_ms=500)
    run = SeriesRun(SeriesStart("a"), SeriesLedger("a"))
    run.work = series = PeakWork(lanes_of(peak_predictor), settings, StageTimes()).begin(run)
    run.enter(0)
    run.enter(1)
    task = FrameTask(run, 0, 0, small_frames[0])
    series.ready(task)
    assert series.release(now_ns=499_000_000) == []
    assert series.release(now_ns=500_000_000) == [task]
