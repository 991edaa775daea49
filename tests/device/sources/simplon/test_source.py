"""Frames arrive as Stream V2 over ZMQ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device.publishing.sending_order import Faults, sending_order
from edgexnas.device.sources import (
    SeriesEnd,
    SeriesStart,
    SourceFrame,
    SourceTrouble,
    open_event_source,
)
from edgexnas.device.sources.compression import compress
from edgexnas.device.sources.encoded_frames import EncodedFrame
from edgexnas.device.sources.simplon.cbor import Tagged, dump_cbor
from edgexnas.device.sources.simplon.source import SimplonSource
from edgexnas.device.sources.simulated import SimulatedOptions, simulate_frames
from edgexnas.errors import ConfigurationError

zmq = pytest.importorskip("zmq", reason="pyzmq is not installed: pip install 'edgexnas[zmq]'")

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4)
SMALL = ("--shape", "96x128", "--peaks", 20)


def array(values: np.ndarray, tag: int = 69) -> Tagged:
    return Tagged(40, [list(values.shape), Tagged(tag, values.tobytes())])


def start(series: str = "a", **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "type": "start",
        "series_unique_id": series,
        "channels": ["threshold_1"],
        "image_size_x": 4,
        "image_size_y": 3,
        "image_dtype": "uint16",
        "number_of_images": 10,
    }
    return dump_cbor(fields | changes)


def image(number: int, series: str = "a", data: Any = None, **more: Any) -> bytes:
    content = {"threshold_1": array(PIXELS + np.uint16(number))} if data is None else data
    fields = {"type": "image", "series_unique_id": series, "image_id": number, "data": content}
    return dump_cbor(fields | more)


def end(series: str = "a") -> bytes:
    return dump_cbor({"type": "end", "series_unique_id": series})


@pytest.fixture
def detector() -> Iterator[Any]:
    """A PUSH socket on a free port, with its `url`."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        yield socket, f"simplon://127.0.0.1:{port}?exclusive=1"


def connected(receiver: Any) -> Callable[[], bool]:
    return lambda: receiver.source.status()["connection"] == "connected"


@pytest.mark.parametrize("codec", ["lz4", "bslz4"])
def test_every_frame_of_a_publisher_arrives_as_it_was_sent(
    codec: str, publish: Any, receive: Any, free_port: Any
) -> None:
    frames = simulate_frames("hedm", SimulatedOptions(shape=(96, 128), peaks=20, frames=20))
    place = f"127.0.0.1:{free_port()}"
    options = (*SMALL, "--rate", 500, "--frames", 20, "--series", 2, "--codec", codec)
    with publish("simplon", f"tcp://{place}", *options) as detector:
        receiver = receive(open_event_source(f"simplon://{place}?exclusive=1"))
        receiver.wait(connected(receiver))
        detector.go()
        receiver.wait_for(SeriesEnd, 2)
        assert receiver.of(SourceTrouble) == []
    starts, received = receiver.of(SeriesStart), receiver.of(SourceFrame)
    assert [(s.shape, s.dtype, s.frames_expected) for s in starts] == [
        ((96, 128), np.uint16, 20)
    ] * 2
    if frames.mask is not None:
        np.testing.assert_array_equal(starts[0].mask, frames.mask)
    expected = [(s.series, number) for s in starts for number in range(20)]
    assert [(frame.series, frame.number) for frame in received] == expected
    for frame in received:
        np.testing.assert_array_equal(frame.pixels, frames.stack[frame.number])
        assert frame.detector_id == frame.number
    np.testing.assert_allclose(np.diff([f.timestamp_s for f in received[:20]]), 0.002, atol=1e-6)
    assert [e.series for e in receiver.of(SeriesEnd)] == [s.series for s in starts]


def test_gaps_repetitions_late_frames_and_positions_arrive_as_they_are(
    publish: Any, receive: Any, free_port: Any
) -> None:
    place = f"127.0.0.1:{free_port()}"
    options = ("--experiment", "ptycho", "--rate", 500, "--frames", 50)
    faults = ("--gap", 7, "--duplicate", 5, "--reorder", 11)
    expected = list(sending_order(50, Faults(7, 5, 11)))
    positions = simulate_frames("ptycho", SimulatedOptions(frames=50)).positions_m
    assert positions is not None
    with publish("simplon", f"tcp://{place}", *options, *faults) as detector:
        receiver = receive(open_event_source(f"simplon://{place}?exclusive=1&row=row&col=col"))
        receiver.wait(connected(receiver))
        detector.go()
        receiver.wait_for(SeriesEnd)
    frames = receiver.of(SourceFrame)
    assert [frame.number for frame in frames] == expected
    for frame in frames:
        assert frame.position_m == pytest.approx(tuple(positions[frame.number % len(positions)]))
    assert receiver.source.status()["missed"] == 50 - len(set(expected)) - (49 not in expected)


@pytest.mark.real
def test_damaged_frames_and_impossible_times_are_survived(
    publish: Any, receive: Any, free_port: Callable[[], int]
) -> None:
    port = free_port()
    arguments = (f"tcp://127.0.0.1:{port}", *SMALL, "--rate", 200, "--frames", 20)
    with publish("simplon", *arguments, "--garble", 5, "--bad-time", 1) as server:
        receiver = receive(open_event_source(f"simplon://127.0.0.1:{port}?exclusive=1"))
        receiver.wait(connected(receiver))
        server.go()
        receiver.wait_for(SeriesEnd)
    frames = receiver.of(SourceFrame)
    assert [frame.number for frame in frames] == [n for n in range(20) if n % 5 != 4]
    assert {frame.timestamp_s for frame in frames} == {None}
    assert receiver.source.status()["malformed"] == 4


def test_the_messages_of_a_real_eiger_become_events(
    real_data: Path, detector: Any, receive: Any
) -> None:
    socket, url = detector
    receiver = receive(open_event_source(url))
    for name in ("start", "image", "end"):
        path = real_data / "wire_captures" / f"eiger16m_stream2_{name}.cbor"
        socket.send(path.read_bytes())
    receiver.wait_for(SeriesEnd)
    (begun,) = receiver.of(SeriesStart)
    # This firmware does not say the type of its pixels before the first image.
    assert (begun.shape, begun.dtype) == ((4362, 4148), None)
    assert begun.metadata["detector_description"] == "Dectris EIGER2 Si 16M"
    (frame,) = receiver.of(SourceFrame)
    assert (frame.pixels.dtype, frame.series) == (np.uint16, begun.series)
    # The capture's calibration tables were shortened to four bytes.
    (trouble,) = receiver.of(SourceTrouble)
    assert "the pixel mask cannot be used" in trouble.message


def test_what_is_malformed_is_a_trouble_and_the_stream_goes_on(detector: Any, receive: Any) -> None:
    socket, url = detector
    receiver = receive(open_event_source(url))
    wrong = Tagged(56500, ["bslz4", 2, compress("bslz4-hdf5", PIXELS)[:-1]])
    for message in (
        start(),
        image(0),
        b"\xff\x00",
        image(1, data={"threshold_1": array(PIXELS[:2])}),
        image(2, data={"threshold_1": array(PIXELS.astype(np.uint32), 70)}),
        image(3, data={"threshold_1": Tagged(40, [[3, 4], Tagged(69, wrong)])}),
        image(4, data={}),
        dump_cbor({"type": "event"}),
        image(5),
        end(),
    ):
        socket.send(message)
    socket.send_multipart([b'{"htype":"dheader-1.0"}', b"{}"])
    socket.send(start("b"))
    receiver.wait_for(SeriesStart, 2)
    assert [frame.number for frame in receiver.of(SourceFrame)] == [0, 5]
    troubles = receiver.of(SourceTrouble)
    assert [t.number for t in troubles] == [None, 1, 2, 3, 4, None, None]
    sentences = [
        "a break out of place",
        "has shape (2, 4), its series (3, 4)",
        "has dtype uint32, its series uint16",
        "do not hold the",
        "has no data",
        "has the type 'event'",
        "has 2 parts that begin with JSON, as in Stream V1",
    ]
    for trouble, words in zip(troubles, sentences, strict=True):
        assert words in trouble.message
    assert receiver.source.status()["malformed"] == 7
    assert receiver.source.status()["missed"] == 0


def test_frames_can_be_taken_without_decoding_them(
    detector: Any, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, url = detector
    source = open_event_source(url)
    assert isinstance(source, SimplonSource)
    monkeypatch.setattr(source, "events", source.encoded_events)
    receiver = receive(source)
    packed = compress("bslz4-hdf5", PIXELS)
    contents = (packed, packed[:-1], PIXELS.astype(">u2").tobytes())
    tags = (Tagged(69, Tagged(56500, ["bslz4", 2, contents[0]])),
            Tagged(69, Tagged(56500, ["bslz4", 2, contents[1]])),
            Tagged(65, contents[2]))  # fmt: skip
    messages = [
        image(number, data={"threshold_1": Tagged(40, [[3, 4], values])})
        for number, values in enumerate(tags)
    ]
    for message in (start(), *messages, end()):
        socket.send(message)
    receiver.wait_for(SeriesEnd)
    frames = receiver.events[1:-1]
    encoded = [frame for frame in frames if isinstance(frame, EncodedFrame)]
    assert [frame.number for frame in encoded] == [0, 1, 2]
    assert [bytes(frame.encoded.payload) for frame in encoded] == list(contents)
    assert [frame.encoded.nbytes for frame in encoded] == [len(message) for message in messages]
    assert source.status()["malformed"] == 0
    first, second, third = (frame.decoded() for frame in encoded)
    for frame in (first, third):
        assert isinstance(frame, SourceFrame)
        np.testing.assert_array_equal(frame.pixels, PIXELS)
        assert frame.pixels.dtype == np.uint16
    assert isinstance(second, SourceTrouble)
    assert second.number == 1
    assert second.message.startswith("frame 1 of tcp://127.0.0.1:")
    assert source.status()["malformed"] == 1


def test_a_series_that_does_not_say_its_type_takes_that_of_the_first_sound_image(
    detector: Any, receive: Any
) -> None:
    socket, url = detector
    receiver = receive(open_event_source(url))
    damaged = Tagged(40, [[3, 4], Tagged(70, Tagged(56500, ["bslz4", 4, b"damaged"]))])
    wide = array(PIXELS.astype(np.uint32), 70)
    for message in (
        start(image_dtype=None),
        image(0, data={"threshold_1": damaged}),
        image(1),
        image(2, data={"threshold_1": wide}),
        end(),
    ):
        socket.send(message)
    receiver.wait_for(SeriesEnd)
    assert [frame.number for frame in receiver.of(SourceFrame)] == [1]
    assert [trouble.number for trouble in receiver.of(SourceTrouble)] == [0, 2]
    assert "has dtype uint32, its series uint16" in receiver.of(SourceTrouble)[1].message


def test_messages_that_were_joined_to_one_are_all_taken(detector: Any, receive: Any) -> None:
    # Diamond's simulator does so when it was busy.
    socket, url = detector
    receiver = receive(open_event_source(url))
    socket.send_multipart([start(), image(0), b"\xff", image(1)])
    socket.send_multipart([image(2), end()])
    receiver.wait_for(SeriesEnd)
    (begun,) = receiver.of(SeriesStart)
    assert begun.shape == (3, 4)
    assert [frame.number for frame in receiver.of(SourceFrame)] == [0, 1, 2]
    (trouble,) = receiver.of(SourceTrouble)
    assert "a break out of place" in trouble.message


def test_a_series_that_was_joined_late_begins_with_its_first_image(
    detector: Any, receive: Any
) -> None:
    socket, url = detector
    receiver = receive(open_event_source(url))
    for message in (image(7), image(9), start("b"), image(0, "b"), end("b")):
        socket.send(message)
    receiver.wait_for(SeriesEnd, 2)
    assert [(f.series, f.number) for f in receiver.of(SourceFrame)] == [
        ("a", 7),
        ("a", 9),
        ("b", 0),
    ]
    assert [(s.series, s.shape) for s in receiver.of(SeriesStart)] == [("a", None), ("b", (3, 4))]
    assert receiver.source.status()["missed"] == 1


def test_a_pixel_mask_and_the_chosen_channel_are_taken(detector: Any, receive: Any) -> None:
    socket, url = detector
    mask = np.zeros((3, 4), np.uint32)
    mask[1, 2] = 2
    masks = {"threshold_1": array(mask * 0, 70), "threshold_2": array(mask, 70)}
    data = {"threshold_1": array(PIXELS), "threshold_2": array(PIXELS * np.uint16(2))}
    receiver = receive(open_event_source(f"{url}&channel=threshold_2"))
    socket.send(start(pixel_mask=masks, channels=["threshold_1", "threshold_2"]))
    socket.send(image(0, data=data))
    (frame,) = receiver.wait_for(SourceFrame)
    np.testing.assert_array_equal(frame.pixels, PIXELS * 2)
    np.testing.assert_array_equal(receiver.of(SeriesStart)[0].mask, mask != 0)
    socket.send(image(1))
    (trouble,) = receiver.wait_for(SourceTrouble)
    assert "has no channel 'threshold_2', only threshold_1" in trouble.message


def test_one_channel_is_taken_in_whatever_order_messages_have_them(
    detector: Any, receive: Any
) -> None:
    socket, url = detector
    one, two = array(PIXELS), array(PIXELS * np.uint16(2))
    receiver = receive(open_event_source(url))
    socket.send(start(channels=["threshold_2", "threshold_1"]))
    socket.send(image(0, data={"threshold_1": one, "threshold_2": two}))
    socket.send(image(1, data={"threshold_2": two, "threshold_1": one}))
    # Without a start it is that of the first image.
    socket.send(image(0, "b", data={"threshold_1": one, "threshold_2": two}))
    socket.send(image(1, "b", data={"threshold_2": two, "threshold_1": one}))
    frames = receiver.wait_for(SourceFrame, 4)
    for frame, expected in zip(frames, (2, 2, 1, 1), strict=True):
        np.testing.assert_array_equal(frame.pixels, PIXELS * expected)
    assert receiver.of(SeriesStart)[0].metadata["channel"] == "threshold_2"


def test_a_channel_that_a_series_does_not_have_is_refused_at_its_start(
    detector: Any, receive: Any
) -> None:
    socket, url = detector
    receiver = receive(open_event_source(f"{url}&channel=difference"))
    socket.send(start(channels=["threshold_1", "threshold_2"]))
    (trouble,) = receiver.wait_for(SourceTrouble)
    assert "has no channel 'difference', only threshold_1, threshold_2" in trouble.message
    assert trouble.number is None


def test_a_series_is_identified_by_its_unique_id_and_one_with_a_number_alone_by_its_arrival(
    detector: Any, receive: Any
) -> None:
    socket, url = detector
    receiver = receive(open_event_source(url))
    for series in ("01A", None, None):
        socket.send(start(series_unique_id=series, series_id=1))
        socket.send(image(0, series_unique_id=series, series_id=1))
        socket.send(dump_cbor({"type": "end", "series_unique_id": series, "series_id": 1}))
    receiver.wait_for(SeriesEnd, 3)
    starts = receiver.of(SeriesStart)
    assert [begun.series for begun in starts] == ["01A", "1", "1"]
    assert starts[0].identity == "01A"
    assert len({begun.identity for begun in starts}) == 3


def test_a_second_receiver_is_noticed(detector: Any, receive: Any) -> None:
    socket, url = detector
    first, second = receive(open_event_source(url)), receive(open_event_source(url))
    # A receiver may know that it is connected before the detector does.
    for number in count():
        if first.of(SourceFrame) and second.of(SourceFrame):
            break
        socket.send(image(number, "before"))
        time.sleep(0.01)
    for number in range(200):
        socket.send(image(number))
    (trouble,) = first.wait_for(SourceTrouble)
    assert "another receiver is probably connected" in trouble.message

    def received() -> int:
        frames = first.of(SourceFrame) + second.of(SourceFrame)
        return sum(frame.series == "a" for frame in frames)

    first.wait(lambda: received() == 200)


def test_a_detector_that_comes_back_is_received_again(receive: Any, free_port: Any) -> None:
    place = f"127.0.0.1:{free_port()}"
    receiver = receive(open_event_source(f"simplon://{place}?exclusive=1"))
    for turn, series in enumerate(("a", "b"), start=1):
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.bind(f"tcp://{place}")
            for message in (start(series), image(0, series)):
                socket.send(message)
            receiver.wait_for(SourceFrame, turn)
        receiver.wait_for(SourceTrouble, turn)
    assert all("is disconnected; it is waited for" in t.message for t in receiver.of(SourceTrouble))
    assert [end.series for end in receiver.of(SeriesEnd)] == ["a"]
    assert receiver.source.status()["reconnects"] == 1


def test_no_detector_is_connected_to_unless_this_is_the_only_receiver() -> None:
    with pytest.raises(ConfigurationError, match=r"takes every other frame .* add exclusive=1"):
        open_event_source("simplon://detector:31001")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("simplon://detector:http?exclusive=1", "has the port 'http'; specify 1 to 65535"),
        ("simplon://detector:0?exclusive=1", "has the port '0'"),
        ("simplon://detector?exclusive=maybe", "parameter exclusive 'maybe' of .* is invalid"),
        ("simplon://detector?exclusive=1&row=a", "names one of row and col"),
        ("simplon://detector?exclusive=1&hwm=4", "no parameter 'hwm'; it knows exclusive, queue"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_connected(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        open_event_source(url)


def test_closing_ends_a_source_whose_detector_never_appeared(receive: Any, free_port: Any) -> None:
    receiver = receive(open_event_source(f"simplon://127.0.0.1:{free_port()}?exclusive=1"))
    time.sleep(0.1)
    receiver.close()
    assert receiver.events == []
