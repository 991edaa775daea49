"""An iterable of frames is a source like any other."""

from __future__ import annotations

from collections.abc import Iterator

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
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.frames import ArrayFrames

FRAMES = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)


def test_arrays_become_a_series_that_begins_and_ends() -> None:
    source = open_event_source(FRAMES, series="scan7")
    start, *frames, end = source.events()
    assert isinstance(start, SeriesStart)
    assert (start.series, start.shape, start.dtype) == ("scan7", (4, 5), np.uint16)
    assert start.frames_expected == 3
    assert [frame.number for frame in frames if isinstance(frame, SourceFrame)] == [0, 1, 2]
    assert isinstance(end, SeriesEnd)
    assert (end.series, end.frames_sent) == ("scan7", 3)
    assert source.status()["frames"] == 3


def test_pixels_are_contiguous_and_in_native_byte_order() -> None:
    swapped = FRAMES[:, ::2, ::2].astype(">u2")
    frames = [e for e in open_event_source(swapped).events() if isinstance(e, SourceFrame)]
    for frame, expected in zip(frames, swapped, strict=True):
        assert frame.pixels.flags.c_contiguous
        assert frame.pixels.dtype == np.dtype(np.uint16)
        np.testing.assert_array_equal(frame.pixels, expected)


def test_a_series_of_frames_brings_its_mask() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    start = next(open_event_source(ArrayFrames(FRAMES, mask=mask)).events())
    assert isinstance(start, SeriesStart)
    np.testing.assert_array_equal(start.mask, mask)


def test_pairs_carry_positions_in_metres() -> None:
    pairs = [(FRAMES[0], (1e-6, 2e-6)), (FRAMES[1], None)]
    frames = [e for e in open_event_source(pairs).events() if isinstance(e, SourceFrame)]
    assert [frame.position_m for frame in frames] == [(1e-6, 2e-6), None]


def test_an_item_that_is_no_frame_is_a_trouble_that_takes_its_number() -> None:
    items = [FRAMES[0], np.zeros(3), (FRAMES[1], (np.nan, 0)), "frame", FRAMES[2]]
    source = open_event_source(items)
    _, first, *troubles, last, end = source.events()
    assert isinstance(first, SourceFrame)
    assert isinstance(last, SourceFrame)
    assert [t.number for t in troubles if isinstance(t, SourceTrouble)] == [1, 2, 3]
    assert all(t.message.startswith("item ") for t in troubles if isinstance(t, SourceTrouble))
    assert last.number == 4
    assert isinstance(end, SeriesEnd)
    assert (source.status()["frames"], source.status()["malformed"]) == (2, 3)


def test_events_are_passed_on_as_they_are() -> None:
    events = [
        SeriesStart("a"),
        SourcePosition("a", 0, (0.0, 1.0), 5),
        SourceFrame("a", 0, FRAMES[0], 7),
        SeriesEnd("a", 1, 9),
    ]
    assert list(open_event_source(events).events()) == events


def test_what_the_iterable_raises_is_a_source_error_that_names_the_last_frame() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield FRAMES[0]
        raise RuntimeError("cable")

    events = open_event_source(frames()).events()
    with pytest.raises(SourceError, match=r"failed after frame 0 \(RuntimeError: cable\)"):
        list(events)


def test_closing_ends_an_endless_iterable() -> None:
    source = open_event_source(FRAMES[0] for _ in iter(int, 1))
    events = source.events()
    for _ in range(5):
        next(events)
    source.close()
    assert [type(event) for event in events] == [SeriesEnd]


def test_an_open_source_is_returned_as_it_is_and_takes_no_options() -> None:
    source = open_event_source(FRAMES)
    assert open_event_source(source) is source
    with pytest.raises(ConfigurationError, match="is open already and takes no 'rate'"):
        open_event_source(source, rate=5)


def test_an_unknown_option_names_those_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match="has no parameter 'rate'; it knows series"):
        open_event_source(FRAMES, rate=5)
