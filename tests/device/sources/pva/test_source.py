"""Frames arrive over EPICS PV Access from servers that are processes of their own."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device import Predictor
from edgexnas.device.publishing.sending_order import Faults, sending_order
from edgexnas.device.serving.service import Service
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results_file import read_results
from edgexnas.device.sources import (
    SeriesEnd,
    SeriesStart,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
    open_event_source,
)
from edgexnas.device.sources.pva import source as pva_source
from edgexnas.device.sources.simulated import SimulatedOptions, simulate_frames
from edgexnas.errors import ConfigurationError

pytest.importorskip("pvaccess", reason="pvapy is not installed: pip install 'edgexnas[pva]'")
pytestmark = pytest.mark.usefixtures("epics_network")

SMALL = ("--shape", "96x128", "--peaks", 20)


def connected(receiver: Any) -> Callable[[], bool]:
    return lambda: receiver.source.status()["connection"] == "connected"


@pytest.mark.parametrize("codec", ["none", "bslz4"])
def test_every_frame_arrives_as_it_was_sent(codec: str, publish: Any, receive: Any) -> None:
    channel = f"T:{codec}:Image"
    options = SimulatedOptions(shape=(96, 128), peaks=20)
    sent = simulate_frames("hedm", options).stack
    with publish("pva", channel, *SMALL, "--rate", 500, "--frames", 60, "--codec", codec) as server:
        receiver = receive(open_event_source(f"pva://{channel}"))
        receiver.wait(connected(receiver))
        server.go()
        frames = receiver.wait_for(SourceFrame, 60)
    (start,) = receiver.of(SeriesStart)
    assert (start.shape, start.dtype) == ((96, 128), np.uint16)
    assert start.series.startswith(f"{channel}@20")
    for number, frame in enumerate(frames):
        assert (frame.series, frame.number) == (start.series, number)
        assert frame.detector_id == start.metadata["uniqueId"] + number
        np.testing.assert_array_equal(frame.pixels, sent[number % len(sent)])
    # The detector's times are as far apart as the frames.
    np.testing.assert_allclose(np.diff([f.timestamp_s for f in frames]), 0.002, atol=1e-6)
    status = receiver.source.status()
    assert (status["frames"], status["missed"], status["malformed"]) == (60, 0, 0)


def test_gaps_repetitions_and_late_frames_arrive_as_they_are(publish: Any, receive: Any) -> None:
    faults = ("--gap", 7, "--duplicate", 5, "--reorder", 11)
    expected = list(sending_order(50, Faults(7, 5, 11)))
    with publish("pva", "T:faults", *SMALL, "--rate", 200, "--frames", 50, *faults) as server:
        receiver = receive(open_event_source("pva://T:faults"))
        receiver.wait(connected(receiver))
        server.go()
        frames = receiver.wait_for(SourceFrame, len(expected))
    assert [frame.number for frame in frames] == expected
    assert len(receiver.of(SeriesStart)) == 1
    assert receiver.source.status()["missed"] == 50 - len(set(expected)) - (49 not in expected)


def test_damaged_frames_and_impossible_times_are_survived(publish: Any, receive: Any) -> None:
    faults = ("--garble", 5, "--bad-time", 1)
    with publish("pva", "T:odd", *SMALL, "--rate", 200, "--frames", 20, *faults) as server:
        receiver = receive(open_event_source("pva://T:odd"))
        receiver.wait(connected(receiver))
        server.go()
        receiver.wait(lambda: receiver.source.status()["malformed"] == 4)
    frames = receiver.of(SourceFrame)
    assert [frame.number for frame in frames] == [n for n in range(20) if n % 5 != 4]
    assert {frame.timestamp_s for frame in frames} == {None}


def test_a_counter_that_is_set_back_begins_another_series(publish: Any, receive: Any) -> None:
    series = ("--rate", 200, "--frames", 5, "--series", 3, "--pause", 0.05)
    with publish("pva", "T:series", *SMALL, *series) as server:
        receiver = receive(open_event_source("pva://T:series?idle_s=0.3"))
        receiver.wait(connected(receiver))
        server.go()
        receiver.wait_for(SeriesEnd, 3)
    names = [start.series for start in receiver.of(SeriesStart)]
    assert len(set(names)) == 3
    assert [end.series for end in receiver.of(SeriesEnd)] == names
    frames = [(frame.series, frame.number) for frame in receiver.of(SourceFrame)]
    assert frames == [(name, number) for name in names for number in range(5)]


def test_a_server_that_is_killed_and_comes_back_with_other_frames_begins_another_series(
    publish: Any, receive: Any
) -> None:
    receiver = receive(open_event_source("pva://T:back"))
    with publish("pva", "T:back", *SMALL, "--rate", 200, "--frames", 5) as server:
        receiver.wait(connected(receiver))
        server.go()
        receiver.wait_for(SourceFrame, 5)
    (trouble,) = receiver.wait_for(SourceTrouble)
    assert trouble.message == "the channel T:back is disconnected; it is waited for"
    other = ("--shape", "64x64", "--experiment", "ptycho", "--rate", 200, "--frames", 5)
    with publish("pva", "T:back", *other) as server:
        receiver.wait(connected(receiver))
        server.go()
        frames = receiver.wait_for(SourceFrame, 10)
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4] * 2
    assert [frame.pixels.shape for frame in frames] == [(96, 128)] * 5 + [(64, 64)] * 5
    assert [start.shape for start in receiver.of(SeriesStart)] == [(96, 128), (64, 64)]
    assert receiver.source.status()["reconnects"] == 1


def test_scan_positions_come_with_the_frames_as_attributes(publish: Any, receive: Any) -> None:
    options = ("--experiment", "ptycho", "--rate", 200, "--frames", 30)
    expected = simulate_frames("ptycho", SimulatedOptions(frames=30)).positions_m
    assert expected is not None
    with publish("pva", "T:scan", *options) as server:
        url = "pva://T:scan?row=PositionRow&col=PositionCol&unit=mm"
        receiver = receive(open_event_source(url))
        receiver.wait(connected(receiver))
        server.go()
        frames = receiver.wait_for(SourceFrame, 30)
    # The publisher sends metres, so that millimetres make them smaller.
    expected = np.resize(expected, (30, 2))
    np.testing.assert_allclose([f.position_m for f in frames], expected * 1e-3)


def test_scan_positions_come_on_a_second_channel(publish: Any, receive: Any) -> None:
    options = ("--experiment", "ptycho", "--rate", 100, "--frames", 30)
    expected = simulate_frames("ptycho", SimulatedOptions(frames=30)).positions_m
    assert expected is not None
    with publish("pva", "T:scan2", *options, "--positions", "T:stage") as server:
        receiver = receive(open_event_source("pva://T:scan2?positions=T:stage"))
        receiver.wait(connected(receiver))
        time.sleep(0.3)
        server.go()
        readings = receiver.wait_for(SourcePosition, 30)
    assert [reading.number for reading in readings] == list(range(30))
    np.testing.assert_allclose([r.position_m for r in readings], np.resize(expected, (30, 2)))
    assert {frame.position_m for frame in receiver.of(SourceFrame)} == {None}


def test_a_consumer_that_is_too_slow_sees_which_frames_it_missed(
    publish: Any, receive: Any
) -> None:
    with publish("pva", "T:slow", *SMALL, "--rate", 500, "--frames", 300) as server:
        receiver = receive(open_event_source("pva://T:slow?queue=4"), pause_s=0.01)
        receiver.wait(connected(receiver))
        server.go()
        assert server.report()["sent"] == 300
        # The newest frame is not the one that is lost.
        receiver.wait(lambda: any(f.number == 299 for f in receiver.of(SourceFrame)))
    status = receiver.source.status()
    assert status["missed"] > 50
    assert status["frames"] + status["missed"] == 300


def test_frames_that_nobody_takes_are_kept_by_their_memory_not_only_by_their_number(
    publish: Any, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two of 96×128 uint16.
    monkeypatch.setattr(pva_source, "_QUEUE_BYTES", 2 * 96 * 128 * 2)
    with publish("pva", "T:memory", *SMALL, "--rate", 500, "--frames", 100) as server:
        receiver = receive(open_event_source("pva://T:memory?queue=64"), pause_s=0.4)
        receiver.wait(connected(receiver))
        server.go()
        assert server.report()["sent"] == 100
        receiver.wait(lambda: any(f.number == 99 for f in receiver.of(SourceFrame)))
    # One was taken before, two waited and perhaps one more came while they did.
    assert len(receiver.of(SourceFrame)) <= 5
    assert receiver.source.status()["missed"] == 100 - len(receiver.of(SourceFrame))


def test_a_service_that_is_started_again_goes_on_with_the_series_and_counts_what_it_missed(
    publish: Any, bundle_path: Path, keys: Path, tmp_path: Path
) -> None:
    def serve(until: Callable[[Any], bool], go: Callable[[], None] | None = None) -> Any:
        source = open_event_source("pva://T:again")
        service = Service(model, source, [Hdf5Sink(tmp_path)])
        service.start()
        deadline = time.monotonic() + 30
        while not until(service) and time.monotonic() < deadline:
            if go is not None and source.status()["connection"] == "connected":
                go()
                go = None
            time.sleep(0.01)
        service.stop()
        service.wait()
        service.close()
        service.raise_failure()
        return service.status()

    rate = ("--rate", 50, "--frames", 250)
    with (
        publish("pva", "T:again", *SMALL, *rate) as server,
        Predictor(bundle_path, trust=keys) as model,
    ):
        first = serve(lambda service: service.status().counts["done"] >= 20, server.go)
        time.sleep(1.0)
        second = serve(lambda service: service.status().watermark == 249)
        third = serve(lambda service: service.status().counts["duplicate"] == 1)
    assert first.series == second.series == third.series
    frames = list(read_results(tmp_path))
    assert len({frame.series_identity for frame in frames}) == 1
    numbers = [frame.number for frame in frames]
    assert len(set(numbers)) == len(numbers) == first.counts["done"] + second.counts["done"]
    assert second.counts["lost"] == 250 - len(numbers) >= 40
    assert len({frame.detector_id - frame.number for frame in frames}) == 1
    assert third.counts["done"] == 0


STANDING = """
import sys, time, numpy as np, pvaccess as pva
server = pva.PvaServer()
server.addRecord("T:still", pva.NtNdArray(), None)
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    image = pva.NtNdArray()
    pixels = np.full((64, 32), number, "u2")
    image["value"] = {"ushortValue": pixels.ravel()}
    image["dimension"] = [pva.PvDimension(size, 0, size, 1, False) for size in (32, 64)]
    image["uncompressedSize"] = pixels.nbytes
    image["uniqueId"] = 5
    image["dataTimeStamp"] = pva.PvTimeStamp(1.7e9)
    server.update("T:still", image)
    time.sleep(0.02)
sys.stdin.readline()
"""


def test_a_server_that_stands_still_is_numbered_as_frames_arrive_and_that_is_said_once(
    start_process: Any, receive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with start_process([sys.executable, "-c", STANDING]) as server:
        server.wait_until_ready()
        receiver = receive(open_event_source("pva://T:still"))
        receiver.wait(connected(receiver))
        server.go()
        frames = receiver.wait_for(SourceFrame, 10)
    assert [frame.number for frame in frames] == list(range(10))
    assert len(receiver.of(SeriesStart)) == 1
    assert receiver.source.status()["numbering"] == "arrival"
    assert caplog.text.count("uniqueId of T:still stands still") == 1


CODECS = """
import sys, time, numpy as np, pvaccess as pva
from edgexnas.device.sources.compression import compress
server = pva.PvaServer()
server.addRecord("T:codecs", pva.NtNdArray(), None)
print("ready", flush=True)
sys.stdin.readline()
for number, codec in enumerate(["lz4", "bslz4", "blosc"] * 2 + ["lz4"]):
    pixels = np.random.default_rng(number).poisson(3, (50, 70)).astype("i4")
    image = pva.NtNdArray()
    packed = np.frombuffer(compress(codec, pixels), "u1")
    image["value"] = {"ubyteValue": packed[: -9 if number == 6 else None]}
    image["codec"] = pva.PvCodec(codec, pva.PvInt(int(pva.INT)))
    image["dimension"] = [pva.PvDimension(size, 0, size, 1, False) for size in (70, 50)]
    image["uncompressedSize"] = pixels.nbytes
    image["uniqueId"] = number
    image["dataTimeStamp"] = pva.PvTimeStamp(time.time())
    server.update("T:codecs", image)
    time.sleep(0.02)
sys.stdin.readline()
"""


def test_each_of_areadetectors_codecs_is_decoded_also_when_they_alternate_and_one_is_damaged(
    start_process: Any, receive: Any
) -> None:
    with start_process([sys.executable, "-c", CODECS]) as server:
        server.wait_until_ready()
        receiver = receive(open_event_source("pva://T:codecs"))
        receiver.wait(connected(receiver))
        server.go()
        (trouble,) = receiver.wait_for(SourceTrouble, 1)
    frames = receiver.of(SourceFrame)
    assert len(frames) == 6
    assert trouble.number == 6
    assert trouble.message.startswith("frame 6 of T:codecs: lz4 data of ")
    status = receiver.source.status()
    assert (status["frames"], status["malformed"]) == (6, 1)
    for number, frame in enumerate(frames):
        expected = np.random.default_rng(number).poisson(3, (50, 70)).astype("i4")
        np.testing.assert_array_equal(frame.pixels, expected)


SWITCHING = """
import sys, time, numpy as np, pvaccess as pva
server = pva.PvaServer()
server.addRecord("T:switch", pva.NtNdArray(), None)
print("ready", flush=True)
sys.stdin.readline()
kinds = [((64, 64), "u2")] * 2 + [((64, 32), "u2")] * 2 + [((64, 32), "f4")] * 2 + [None]
kinds += [((64, 32), "f4")]
for number, kind in enumerate(kinds):
    image = pva.NtNdArray()
    shape, dtype = kind or ((64, 32), "f4")
    field = {"u2": "ushortValue", "f4": "floatValue"}[dtype]
    pixels = np.full(shape, number, dtype)
    image["value"] = {field: pixels.ravel()[: 10 if kind is None else None]}
    image["dimension"] = [pva.PvDimension(size, 0, size, 1, False) for size in reversed(shape)]
    image["uncompressedSize"] = pixels.nbytes
    image["uniqueId"] = number
    image["dataTimeStamp"] = pva.PvTimeStamp(time.time())
    server.update("T:switch", image)
    time.sleep(0.02)
sys.stdin.readline()
"""


def test_another_shape_or_dtype_begins_a_series_and_a_broken_frame_does_not(
    start_process: Any, receive: Any
) -> None:
    with start_process([sys.executable, "-c", SWITCHING]) as server:
        server.wait_until_ready()
        receiver = receive(open_event_source("pva://T:switch"))
        receiver.wait(connected(receiver))
        server.go()
        frames = receiver.wait_for(SourceFrame, 7)
    starts = [(start.shape, start.dtype) for start in receiver.of(SeriesStart)]
    assert starts == [((64, 64), np.uint16), ((64, 32), np.uint16), ((64, 32), np.float32)]
    assert [frame.number for frame in frames] == [0, 1, 0, 1, 0, 1, 3]
    trouble = receiver.of(SourceTrouble)[0]
    assert (trouble.series, trouble.number) == (frames[-1].series, 2)
    assert "came with 40 bytes, not 8192" in trouble.message


@pytest.mark.parametrize("compressed", [False, True])
def test_pvapys_own_simulated_detector_is_received(
    compressed: bool, tmp_path: Path, start_process: Any, receive: Any
) -> None:
    program = shutil.which("pvapy-ad-sim-server", path=str(Path(sys.executable).parent))
    assert program is not None
    rng = np.random.default_rng(0)
    sent = rng.poisson(5, (12, 80, 100)).astype(np.uint16)
    if compressed:
        import h5py
        import hdf5plugin

        with h5py.File(tmp_path / "f.h5", "w") as file:
            codec = hdf5plugin.Blosc(cname="lz4")
            file.create_dataset("data", data=sent, chunks=(1, 80, 100), compression=codec)
        source = ["--input-file", tmp_path / "f.h5", "--hdf-dataset", "data"]
        source += ["--hdf-compression-mode"]
    else:
        np.save(tmp_path / "f.npy", sent)
        source = ["--input-file", tmp_path / "f.npy"]
    channel = f"T:sim{int(compressed)}"
    command = [program, "--channel-name", channel, "--frame-rate", 100, "--runtime", 4]
    command += [*source, "--start-delay", 0.5, "--disable-curses"]
    receiver = receive(open_event_source(f"pva://{channel}"))
    with start_process([str(part) for part in command]):
        frames = receiver.wait_for(SourceFrame, 50)
    first = next(n for n in range(12) if np.array_equal(sent[n], frames[0].pixels))
    assert len(receiver.of(SeriesStart)) == 1
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, sent[(first + frame.number) % 12])


def test_a_predictor_streams_the_peaks_of_a_channel_until_it_falls_silent(
    publish: Any, bundle_path: Path, keys: Path
) -> None:
    series = ("--shape", "96x128", "--peaks", 10, "--rate", 100, "--frames", 20)
    source = open_event_source("pva://T:peaks?idle_s=0.5")
    with publish("pva", "T:peaks", *series) as server, Predictor(bundle_path, trust=keys) as model:

        def start() -> None:
            while source.status()["connection"] != "connected":
                time.sleep(0.01)
            server.go()

        threading.Thread(target=start).start()
        peaks = list(model.stream(source))
    assert [found.frame_number for found in peaks] == list(range(20))
    assert sum(len(found) for found in peaks) > 50


def test_closing_ends_a_source_whose_channel_never_appeared(receive: Any) -> None:
    receiver = receive(open_event_source("pva://T:nowhere"))
    time.sleep(0.1)
    began = time.monotonic()
    receiver.close()
    assert time.monotonic() - began < 5
    assert receiver.events == []
    assert receiver.source.status()["connection"] == "waiting"


def test_one_of_row_and_col_alone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="names one of row and col; name both, or neither"):
        open_event_source("pva://T:x?row=A")
