"""A simulated detector stands in for a beamline."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgexnas.device.sources import SeriesEnd, SeriesStart, SourceFrame, open_event_source
from edgexnas.errors import ConfigurationError
from edgexnas.peak_finding import FinderSettings, PeakFinder, estimate_background


def test_a_series_begins_has_its_frames_and_ends() -> None:
    source = open_event_source("sim://hedm?shape=96x128&frames=5&seed=3")
    start, *frames, end = source.events()
    assert isinstance(start, SeriesStart)
    assert (start.shape, start.dtype, start.frames_expected) == ((96, 128), np.uint16, 5)
    assert [f.number for f in frames if isinstance(f, SourceFrame)] == [0, 1, 2, 3, 4]
    assert isinstance(end, SeriesEnd)
    assert end.frames_sent == 5
    assert not source.live


def test_frames_hold_about_as_many_peaks_as_asked() -> None:
    source = open_event_source("sim://hedm?shape=512x512&frames=8&peaks=60")
    frames = [e.pixels for e in source.events() if isinstance(e, SourceFrame)]
    finder = PeakFinder(
        FinderSettings(), shape=(512, 512), background=estimate_background(frames), compiled=False
    )
    found = np.mean([len(finder.find(frame).maxima) for frame in frames])
    assert 30 < found < 90


def test_every_series_has_its_own_name_and_numbers_from_0() -> None:
    events = list(open_event_source("sim://hedm?shape=64x64&frames=2&series=3").events())
    starts = [e.series for e in events if isinstance(e, SeriesStart)]
    assert len(set(starts)) == 3
    frames = [(e.series, e.number) for e in events if isinstance(e, SourceFrame)]
    assert frames == [(name, number) for name in starts for number in range(2)]


def test_patterns_carry_their_scan_positions() -> None:
    source = open_event_source("sim://ptycho?frames=20&pixel_nm=5")
    start, *frames, _ = source.events()
    assert isinstance(start, SeriesStart)
    assert start.shape == (64, 64)
    positions = np.array([f.position_m for f in frames if isinstance(f, SourceFrame)])
    assert positions.shape == (20, 2)
    assert 1e-9 < np.ptp(positions) < 1e-5


def test_a_consumer_that_is_behind_loses_frames_as_on_a_real_detector() -> None:
    source = open_event_source("sim://hedm?shape=64x64&rate=1000&queue=10")
    assert source.live
    numbers = []
    for event in source.events():
        if isinstance(event, SourceFrame):
            numbers.append(event.number)
            if len(numbers) == 1:
                time.sleep(0.05)
            elif len(numbers) == 20:
                source.close()
    assert numbers[0] == 0
    assert numbers[1] > 20
    status = source.status()
    assert status["missed"] == numbers[-1] + 1 - len(numbers)
    assert status["frames"] == len(numbers)


def test_a_consumer_that_is_behind_loses_none_of_frames_that_the_queue_holds() -> None:
    source = open_event_source("sim://hedm?shape=64x64&rate=1000&frames=10&series=2&queue=19")
    numbers = []
    for event in source.events():
        if isinstance(event, SourceFrame):
            numbers.append(event.number)
            if len(numbers) == 1:
                time.sleep(0.1)
    assert numbers == [*range(10), *range(10)]
    assert source.status()["missed"] == 0


def test_a_waiting_frame_arrived_when_it_was_due() -> None:
    source = open_event_source("sim://hedm?shape=64x64&rate=1000&frames=20&queue=9999999")
    frames = []
    for event in source.events():
        if isinstance(event, SourceFrame):
            frames.append(event)
            if event.number == 4:
                time.sleep(0.01)
    gaps_ns = np.diff([frame.arrival_ns for frame in frames])
    np.testing.assert_allclose(gaps_ns, 1e6, atol=2)


def test_closing_ends_an_endless_series() -> None:
    source = open_event_source("sim://hedm?shape=64x64&rate=500")
    seen = []
    for event in source.events():
        seen.append(type(event))
        if len(seen) == 10:
            source.close()
    assert seen[-1] is SeriesEnd


def test_frames_are_not_to_be_written_to() -> None:
    source = open_event_source("sim://hedm?shape=64x64&frames=1")
    frame = next(e for e in source.events() if isinstance(e, SourceFrame))
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0] = 1


def test_an_unknown_experiment_names_those_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match="specify one of sim://hedm, sim://ptycho"):
        open_event_source("sim://saxs")
