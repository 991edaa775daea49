"""A file is replayed as if a detector sent it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from edgexnas.device.sources import (
    SeriesEnd,
    SeriesStart,
    SourceFrame,
    SourceTrouble,
    open_event_source,
)
from edgexnas.device.sources.encoded_frames import EncodedFrame, leaves_decoding
from edgexnas.device.sources.files.direct_chunks import ChunkReader
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.frames import open_frames
from edgexnas.frames.hdf5_layout import frame_axes

FRAMES = np.random.default_rng(1).poisson(5, (6, 40, 50)).astype(np.uint16)
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (1, 40, 50)},
    "bitshuffle": {"chunks": (1, 40, 50), "compression": hdf5plugin.Bitshuffle(cname="lz4")},
    "lz4": {"chunks": (1, 40, 50), "compression": hdf5plugin.LZ4()},
    "blosc": {"chunks": (1, 40, 50), "compression": hdf5plugin.Blosc(cname="lz4")},
    "zstd": {"chunks": (1, 40, 50), "compression": hdf5plugin.Bitshuffle(cname="zstd")},
    "gzip": {"chunks": (1, 40, 50), "compression": "gzip", "shuffle": True},
    "several in a chunk": {"chunks": (2, 40, 50), "compression": hdf5plugin.Bitshuffle()},
    "parts in a chunk": {"chunks": (1, 16, 16), "compression": hdf5plugin.Bitshuffle()},
}
DIRECT = {"chunked": "none", "bitshuffle": "bslz4-hdf5", "lz4": "lz4-hdf5", "blosc": "blosc"}


def write(path: Path, frames: np.ndarray = FRAMES, **layout: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", data=frames, **layout)
    return path


def pixels(source: Any) -> list[np.ndarray]:
    return [event.pixels for event in source.events() if isinstance(event, SourceFrame)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_come_out_whatever_their_layout_in_the_file(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", **LAYOUTS[layout])
    start, *frames, end = open_event_source(path).events()
    assert isinstance(start, SeriesStart)
    assert (start.series, start.shape, start.dtype) == ("scan.h5", (40, 50), np.uint16)
    assert start.frames_expected == 6
    for number, event in enumerate(frames):
        assert isinstance(event, SourceFrame)
        assert event.number == number
        np.testing.assert_array_equal(event.pixels, FRAMES[number])
    assert isinstance(end, SeriesEnd)
    assert end.frames_sent == 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_that_are_whole_chunks_are_decoded_directly(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", **LAYOUTS[layout])
    with h5py.File(path) as file:
        data = file["entry/data/data"]
        assert ChunkReader(data, path, frame_axes(data, path)).codec == DIRECT.get(layout)


def test_frames_that_were_never_written_are_lost_and_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("entry/data/data", (5, 40, 50), np.uint16, chunks=(1, 40, 50))
        data[1] = FRAMES[1]
    source = open_event_source(path)
    events = list(source.events())
    assert [e.number for e in events if isinstance(e, SourceFrame)] == [1]
    troubles = [event for event in events if isinstance(event, SourceTrouble)]
    assert [trouble.number for trouble in troubles] == [None, None]
    assert f"missing are 1 frames of {path} (numbers 0): " in troubles[0].message
    assert f"missing are 3 frames of {path} (numbers 2-4): " in troubles[1].message
    assert isinstance(events[-1], SeriesEnd)
    assert events[-1].frames_sent == 5
    assert source.status()["missed"] == 4


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["lambda_m1_part00000.nxs", "AgBehenate_228.hdf5", "ceria_Pilatus2M_powder.hdf5"],
)
def test_files_of_real_detectors_are_read_as_by_open_frames(real_data: Path, name: str) -> None:
    path = real_data / "nexus_detector_files" / name
    with open_frames(path) as series:
        frames = pixels(open_event_source(f"file://{path}"))
        assert len(frames) == len(series) > 0
        for read, expected in zip(frames, series, strict=True):
            np.testing.assert_array_equal(read, expected)


def test_other_formats_are_read_too(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", FRAMES)
    np.testing.assert_array_equal(pixels(open_event_source(tmp_path / "scan.npy")), FRAMES)


def test_a_rate_is_kept_and_nothing_is_lost_when_the_consumer_is_slow(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5")
    source = open_event_source(f"file://{path}?rate=100")
    assert not source.live
    arrivals = []
    began_ns = time.monotonic_ns()
    for event in source.events():
        if isinstance(event, SourceFrame):
            arrivals.append(event.arrival_ns)
            if event.number == 1:
                time.sleep(0.03)
    assert len(arrivals) == 6
    # Six frames at 100 a second take five periods at least, even if one of them was taken late.
    assert arrivals[-1] - began_ns >= 50e6


def test_a_file_can_be_repeated_as_further_series(tmp_path: Path) -> None:
    events = list(open_event_source(write(tmp_path / "a.h5"), repeat=2).events())
    starts = [event.series for event in events if isinstance(event, SeriesStart)]
    assert starts == ["a.h5#1", "a.h5#2"]
    frames = [(e.series, e.number) for e in events if isinstance(e, SourceFrame)]
    assert frames == [(name, number) for name in starts for number in range(6)]


def test_a_mask_comes_with_the_series(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), np.uint32)
    mask[3, 4] = 8
    with h5py.File(write(tmp_path / "a.h5"), "r+") as file:
        file["entry/data/pixel_mask"] = mask
    start = next(open_event_source(tmp_path / "a.h5").events())
    assert isinstance(start, SeriesStart)
    np.testing.assert_array_equal(start.mask, mask != 0)


def test_scan_positions_come_with_the_frames_in_metres(tmp_path: Path) -> None:
    places = np.arange(12.0).reshape(6, 2)
    places[2] = np.nan
    with h5py.File(write(tmp_path / "a.h5"), "r+") as file:
        file["entry/data/positions_px"] = places
        file["stage"] = places * 1e-6
    for options in ({"pixel_nm": 1000.0}, {"positions": "stage"}):
        source = open_event_source(tmp_path / "a.h5", **options)
        found = [e.position_m for e in source.events() if isinstance(e, SourceFrame)]
        assert found[2] is None
        assert found[5] == pytest.approx((10e-6, 11e-6))


def test_a_damaged_frame_is_a_trouble_with_its_number_and_the_rest_is_given(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.h5", **LAYOUTS["bitshuffle"])
    with h5py.File(path) as file:
        chunk = file["entry/data/data"].id.get_chunk_info(3)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = open_event_source(path)
    _, *frames, _ = source.events()
    troubles = [event for event in frames if isinstance(event, SourceTrouble)]
    assert [trouble.number for trouble in troubles] == [3]
    assert troubles[0].message.startswith(f"frame 3 of /entry/data/data in {path} is damaged: ")
    assert (source.status()["frames"], source.status()["malformed"]) == (5, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_chunks_can_be_decoded_elsewhere_once_the_file_is_closed(
    layout: str, tmp_path: Path
) -> None:
    source = open_event_source(write(tmp_path / "scan.h5", **LAYOUTS[layout]))
    assert leaves_decoding(source)
    _, *frames, _ = source.encoded_events()
    for number, frame in enumerate(frames):
        place = np.empty(FRAMES.shape[1:], np.uint16)
        if layout in DIRECT:
            assert isinstance(frame, EncodedFrame)
            frame = frame.decoded(lambda shape, dtype, place=place: place)
            assert isinstance(frame, SourceFrame)
            assert (frame.pixels is place) == (layout != "chunked")
        assert frame.number == number
        np.testing.assert_array_equal(frame.pixels, FRAMES[number])


WRITER = """
import sys, time, h5py, hdf5plugin, numpy as np
path, count = sys.argv[1], int(sys.argv[2])
with h5py.File(path, "w", libver="latest") as file:
    data = file.create_dataset("entry/data/data", (0, 40, 50), "u2", maxshape=(None, 40, 50),
                               chunks=(1, 40, 50), compression=hdf5plugin.Bitshuffle())
    file.swmr_mode = True
    for number in range(count):
        data.resize(number + 1, axis=0)
        data[number] = np.full((40, 50), number, "u2")
        data.flush()
        time.sleep(0.02)
"""


def test_a_file_is_followed_while_another_process_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "grows.h5"
    source = open_event_source(f"file://{path}?follow=1&idle_s=9999")
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), "25"]
    with subprocess.Popen(command) as writer:
        numbers = []
        for event in source.events():
            if isinstance(event, SourceFrame):
                assert (event.pixels == event.number).all()
                numbers.append(event.number)
                if len(numbers) == 25:
                    source.close()
    assert writer.returncode == 0
    assert numbers == list(range(25))


def test_a_followed_file_that_stays_idle_ends(tmp_path: Path) -> None:
    path = tmp_path / "grows.h5"
    subprocess.run([sys.executable, "-c", WRITER, str(path), "3"], check=True)
    *_, end = open_event_source(f"file://{path}?follow=1&idle_s=0.2").events()
    assert isinstance(end, SeriesEnd)
    assert end.frames_sent == 3


def test_closing_from_another_thread_ends_a_slow_replay(tmp_path: Path) -> None:
    # The second frame would be due in hours.
    source = open_event_source(write(tmp_path / "a.h5"), rate=1e-4)
    events = source.events()
    assert isinstance(next(events), SeriesStart)
    assert isinstance(next(events), SourceFrame)
    threading.Timer(0.1, source.close).start()
    assert [type(event) for event in events] == [SeriesEnd]


def test_a_file_that_is_not_there_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*absent\.h5; check the path"):
        open_event_source(tmp_path / "absent.h5")


def test_wrong_combinations_of_parameters_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with pytest.raises(ConfigurationError, match="is followed, so it cannot repeat"):
        open_event_source(f"file://{path}?follow=1&repeat=2")
    with pytest.raises(SourceError, match="has no positions 'stage' of shape"):
        open_event_source(path, positions="stage")
    np.save(tmp_path / "a.npy", FRAMES)
    with pytest.raises(ConfigurationError, match="is not HDF5, so it holds no positions"):
        open_event_source(tmp_path / "a.npy", pixel_nm=1)
