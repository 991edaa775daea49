"""Frames of one series, for who wants no events."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from edgexnas.device.sources import (
    SeriesEnd,
    SeriesStart,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
    open_event_source,
)
from edgexnas.device.sources.series_frames import SeriesFrames

PIXELS = np.zeros((2, 3), np.uint16)
MASK = np.ones((2, 3), bool)


def numbers(*events: Any) -> list[int]:
    return [number for number, _ in SeriesFrames(open_event_source(list(events))).numbered()]


def frame(number: int, series: str = "a") -> SourceFrame:
    return SourceFrame(series, number, PIXELS, 0)


def test_frames_come_with_their_numbers_until_the_series_ends() -> None:
    end = SeriesEnd("a", 3, 0)
    assert numbers(SeriesStart("a"), frame(0), frame(2), frame(1), end, frame(0, "b")) == [0, 2, 1]


def test_the_next_series_ends_one_that_did_not_say_so() -> None:
    assert numbers(SeriesStart("a"), frame(0), SeriesStart("b"), frame(0, "b")) == [0]


def test_a_series_without_frames_is_passed_over() -> None:
    empty = (SeriesStart("a"), SeriesEnd("a", 0, 0))
    assert numbers(*empty, SeriesStart("b"), frame(4, "b")) == [4]


def test_the_mask_is_known_with_the_first_frame() -> None:
    frames = SeriesFrames(open_event_source([SeriesStart("a", mask=MASK), frame(0)]))
    assert frames.mask is None
    next(frames.numbered())
    assert frames.mask is MASK


def test_troubles_are_logged_and_positions_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    trouble = SourceTrouble("a", 1, "frame 1 of pva: it is damaged", 0)
    reading = SourcePosition("a", 1, (0.0, 0.0), 0)
    with caplog.at_level(logging.WARNING):
        assert numbers(SeriesStart("a"), frame(0), trouble, reading, frame(2)) == [0, 2]
    assert caplog.messages == ["frame 1 of pva: it is damaged"]


def test_the_source_is_closed_when_the_frames_are_left() -> None:
    source = open_event_source("sim://hedm?shape=64x64&rate=1000")
    frames = SeriesFrames(source).numbered()
    next(frames)
    frames.close()
    assert list(source.events())[-1].__class__ is SeriesEnd
