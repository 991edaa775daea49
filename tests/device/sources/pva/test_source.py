"""Frames arrive over EPICS PV Access from servers that are processes of their own."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgexnas.device import Predictor
from edgexnas.device.publishing.sending_order import Faults, sending_order
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
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


def hours_later(patch: pytest.MonkeyPatch) -> None:
    """Let two hours pass for sources."""
    later = {"monotonic": lambda: time.monotonic() + 7200, "monotonic_ns": time.monotonic_ns}
    patch.setattr(pva_source, "time", SimpleNamespace(**later))


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
        receiver = receive(open_event_source("pva://T:series"))
        receiver.wait(connected(receiver))
        server.go()
        receiver.wait_for(SourceFrame, 15)
        receiver.close()
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
        # The second channel tells its first value, which is of no frame.
        receiver.wait(lambda: len(receiver.source._waiting_positions) > 0)
        server.go()
        readings = receiver.wait_for(SourcePosition, 30)
    assert [reading.number for reading in readings] == list(range(30))
    np.testing.assert_allclose([r.position_m for r in readings], np.resize(expected, (30, 2)))
    assert {frame.position_m for frame in receiver.of(SourceFrame)} == {None}


def test_a_consumer_that_is_too_slow_sees_which_frames_it_missed(
    publish: Any, receive: Any
) -> None:
    all_sent = threading.Event()
    with publish("pva", "T:slow", *SMALL, "--rate", 500, "--frames", 300) as server:
        receiver = receive(open_event_source("pva://T:slow?queue=4"), go_on=all_sent)
        receiver.wait(connected(receiver))
        server.go()
        assert server.report()["sent"] == 300
        all_sent.set()
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
    source, all_here, arrived = open_event_source("pva://T:memory?queue=64"), threading.Event(), []
    put = source._put

    def note(content: Any, arrival_ns: int) -> None:
        put(content, arrival_ns)
        arrived.append(content.unique_id)

    monkeypatch.setattr(source, "_put", note)
    with publish("pva", "T:memory", *SMALL, "--rate", 500, "--frames", 100) as server:
        receiver = receive(source, go_on=all_here)
        receiver.wait(connected(receiver))
        server.go()
        # The detector's ids begin at 1.
        receiver.wait(lambda: 100 in arrived)
        all_here.set()
        receiver.wait(lambda: any(f.number == 99 for f in receiver.of(SourceFrame)))
    # One was taken before, and two waited.
    assert len(receiver.of(SourceFrame)) == 3
    assert receiver.source.status()["missed"] == 100 - len(receiver.of(SourceFrame))


IN_PARTS = """
import sys, time, numpy as np, pvaccess as pva
server = pva.PvaServer()
server.addRecord("T:again", pva.NtNdArray(), None)
print("ready", flush=True)
for part in range(3):
    sys.stdin.readline()
    for number in range(40 * part, 40 * part + 40):
        image = pva.NtNdArray()
        pixels = np.random.default_rng(number).poisson(5, (96, 128)).astype("u2")
        image["value"] = {"ushortValue": pixels.ravel()}
        image["dimension"] = [pva.PvDimension(size, 0, size, 1, False) for size in (128, 96)]
        image["uncompressedSize"] = pixels.nbytes
        image["uniqueId"] = number + 1
        image["dataTimeStamp"] = pva.PvTimeStamp(1.7e9 + number)
        server.update("T:again", image)
        time.sleep(0.005)
    print("{}", flush=True)
sys.stdin.readline()
"""


def test_a_service_that_is_started_again_goes_on_with_the_series_and_counts_what_it_missed(
    start_process: Any, bundle_path: Path, keys: Path, tmp_path: Path
) -> None:
    def serve(until: Callable[[Any], bool], go: Callable[[], None] | None = None) -> Any:
        source = open_event_source("pva://T:again")
        settings = PipelineSettings(max_age_ms=1e6)
        service = Service(model, source, [Hdf5Sink(tmp_path)], settings=settings)
        service.start()
        deadline = time.monotonic() + 180
        while not until(service):
            assert time.monotonic() < deadline, (source.status(), service.status())
            if go is not None and source.status()["connection"] == "connected":
                go()
                go = None
            time.sleep(0.01)
        service.stop()
        service.wait()
        service.close()
        service.raise_failure()
        return service.status()

    with (
        start_process([sys.executable, "-c", IN_PARTS]) as server,
        Predictor(bundle_path, trust=keys) as model,
    ):
        server.wait_until_ready()
        first = serve(lambda service: service.status().counts["done"] == 40, server.go)
        server.report()
        # Nobody takes these, and the channel keeps the last of them.
        server.go()
        server.report()
        second = serve(lambda service: service.status().watermark == 119, server.go)
        third = serve(lambda service: service.status().counts["duplicate"] == 1)
    assert first.series == second.series == third.series
    frames = list(read_results(tmp_path))
    assert len({frame.series_identity for frame in frames}) == 1
    numbers = [frame.number for frame in frames]
    assert len(set(numbers)) == len(numbers) == first.counts["done"] + second.counts["done"]
    assert second.counts["lost"] == 120 - len(numbers) == 39
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
    # It sends until it is ended, whenever it is found.
    command = [program, "--channel-name", channel, "--frame-rate", 100, "--runtime", 9999]
    command += [*source, "--start-delay", 0.5, "--disable-curses"]
    receiver = receive(open_event_source(f"pva://{channel}"))
    with start_process([str(part) for part in command]):
        frames = receiver.wait_for(SourceFrame, 50)
    first = next(n for n in range(12) if np.array_equal(sent[n], frames[0].pixels))
    assert len(receiver.of(SeriesStart)) == 1
    for frame in frames:
        np.testing.assert_array_equal(frame.pixels, sent[(first + frame.number) % 12])


def test_a_predictor_streams_the_peaks_of_a_channel_until_it_falls_silent(
    publish: Any, bundle_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = ("--shape", "96x128", "--peaks", 10, "--rate", 100, "--frames", 20)
    source = open_event_source("pva://T:peaks?idle_s=3600")
    with publish("pva", "T:peaks", *series) as server, Predictor(bundle_path, trust=keys) as model:

        def start() -> None:
            while source.status()["connection"] != "connected":
                time.sleep(0.01)
            server.go()
            while source.status()["frames"] < 20:
                time.sleep(0.01)
            hours_later(monkeypatch)

        threading.Thread(target=start).start()
        peaks = list(model.stream(source))
    assert [found.frame_number for found in peaks] == list(range(20))
    assert sum(len(found) for found in peaks) > 50


def test_closing_ends_a_source_whose_channel_never_appeared(receive: Any) -> None:
    receiver = receive(open_event_source("pva://T:nowhere"))
    time.sleep(0.1)
    receiver.close()
    assert receiver.events == []
    assert receiver.source.status()["connection"] == "waiting"


def test_one_of_row_and_col_alone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="names one of row and col; name both, or neither"):
        open_event_source("pva://T:x?row=A")
