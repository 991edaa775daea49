"""Frames that a source leaves encoded are decoded behind the queue, each for itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device import PeakPredictor
from edgexnas.device.serving.ledger import SeriesLedger
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.spill import SpillFolder
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sources.compression import compress, decompress
from edgexnas.device.sources.encoded_frames import EncodedFrame, EncodedPixels
from edgexnas.device.sources.events import SeriesStart
from edgexnas.errors import InputError

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

Make = Callable[..., Any]


class Decoder:
    """Decodes bslz4, and keeps which frames it decoded, and in which threads."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.threads: set[str] = set()

    def of(
        self,
        number: int,
        pixels: Any,
        *,
        damaged: bool = False,
        first: Callable[[], object] = lambda: None,
    ) -> EncodedFrame:
        """Encode a frame that arrives now; `first` is called before it is decoded."""
        content = compress("bslz4-hdf5", pixels)[: -1 if damaged else None]

        def decode(payload: Any, memory: Any) -> Any:
            first()
            self.numbers.append(number)
            self.threads.add(threading.current_thread().name)
            try:
                return decompress("bslz4-hdf5", payload, pixels.shape, pixels.dtype, memory)
            except InputError as error:
                raise InputError(f"frame {number} of the wire: {error}") from error

        encoded = EncodedPixels(memoryview(content), decode, len(content))
        return EncodedFrame("a", number, encoded, time.monotonic_ns())


def test_a_frame_that_is_larger_than_the_largest_fails_and_is_not_decoded(
    serve: Any, frame_of: Any, small_frames: list[Any]
) -> None:
    def decode(payload: Any, memory: Any) -> Any:
        raise AssertionError("it was decoded")

    huge = EncodedPixels(b"small", decode, 5, decoded_nbytes=2**28)
    events = [
        frame_of(0, small_frames[0]),
        EncodedFrame("a", 1, huge, time.monotonic_ns()),
        frame_of(2, np.zeros((800, 800), np.uint16)),
        frame_of(3, small_frames[1]),
    ]
    counts = serve(events, largest_frame_mib=1.0)
    assert (counts["done"], counts["failed"]) == (2, 2)


def one_held_up(decoder: Decoder, frames: list[Any]) -> Iterator[EncodedFrame]:
    """Frames of which the first is in the middle of its decoding while all others come."""
    held, come = threading.Event(), threading.Event()
    yield decoder.of(0, frames[0], first=lambda: (held.set(), come.wait(120)))
    held.wait(120)
    for number, pixels in enumerate(frames[1:], start=1):
        yield decoder.of(number, pixels)
    come.set()


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


@pytest.fixture
def serve_encoded(
    serve: Make, told_source: type, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, int]]:
    """Serve the events of a source that leaves frames encoded."""
    monkeypatch.setattr(told_source, "encoded_events", told_source.events, raising=False)
    monkeypatch.setattr(told_source, "events", None)
    return serve


@pytest.mark.parametrize("workers", [1, 3])
def test_frames_are_decoded_in_threads_of_their_own_and_results_come_in_order(
    serve_encoded: Make, seen: Any, decoder: Decoder, small_frames: list[Any], workers: int
) -> None:
    counts = serve_encoded((decoder.of(n, small_frames[n % 8]) for n in range(40)), workers=workers)
    assert counts["done"] == 40
    assert seen.numbers == list(range(40))
    assert decoder.threads <= {f"decode {index}" for index in range(workers)}
    for result in seen.results[8:]:
        first = seen.results[result.number % 8].peaks
        np.testing.assert_array_equal(result.peaks.positions_px, first.positions_px)


def test_a_frame_that_cannot_be_decoded_fails_in_its_turn_and_is_named(
    serve_encoded: Make, seen: Any, decoder: Decoder, small_frames: list[Any]
) -> None:
    counts = serve_encoded(decoder.of(n, small_frames[n], damaged=n in (0, 3)) for n in range(8))
    assert (counts["done"], counts["failed"]) == (6, 2)
    assert seen.numbers == list(range(8))
    failed = [result for result in seen.results if result.error is not None]
    assert [result.number for result in failed] == [0, 3]
    for result in failed:
        assert result.error.startswith(f"frame {result.number} of the wire: bitshuffle data")


def test_what_is_dropped_was_never_decoded(
    serve_encoded: Make, decoder: Decoder, small_frames: list[Any]
) -> None:
    """All frames come while the first is decoded, so that most find no room."""
    counts = serve_encoded(
        one_held_up(decoder, [small_frames[n % 8] for n in range(200)]),
        live=True,
        queue_frames=4,
        max_age_ms=1e6,
    )
    assert (counts["done"], counts["dropped"]) == (5, 195)
    assert decoder.numbers == [0, *range(196, 200)]


def test_frames_that_wait_take_the_memory_of_their_message(
    serve_encoded: Make, decoder: Decoder, empty_frame: Any
) -> None:
    """A queue for one decoded frame has room for hundreds of empty ones that are not decoded."""
    one = decoder.of(0, empty_frame)
    assert one.encoded.nbytes < empty_frame.nbytes / 50
    mib = empty_frame.nbytes / 2**20
    counts = serve_encoded(
        one_held_up(decoder, [empty_frame] * 40),
        live=True,
        queue_mib=mib,
        max_age_ms=1e6,
    )
    assert (counts["done"], counts["dropped"]) == (40, 0)


def test_frames_wait_on_disk_as_they_came(
    serve_encoded: Make, seen: Any, decoder: Decoder, small_frames: list[Any], tmp_path: Path
) -> None:
    counts = serve_encoded(
        (decoder.of(n, small_frames[n % 8], damaged=n == 77) for n in range(100)),
        live=True,
        policy="spill",
        queue_frames=4,
        spill_folder=tmp_path,
    )
    assert (counts["done"], counts["failed"]) == (99, 1)
    assert seen.numbers == list(range(100))
    assert decoder.threads == {"decode 0"}
    assert list(tmp_path.iterdir()) == []


def test_a_frame_on_disk_takes_the_bytes_of_its_message(
    decoder: Decoder, small_frames: list[Any], tmp_path: Path
) -> None:
    folder = SpillFolder(tmp_path, 10**6)
    frame = decoder.of(0, small_frames[0])
    run = SeriesRun(SeriesStart("a"), SeriesLedger("a"))
    assert folder.put(FrameTask(run, 0, 0, None, encoded=frame.encoded))
    (path,) = folder.folder.iterdir()
    assert path.stat().st_size == len(bytes(frame.encoded.payload))
    taken = folder.take()
    assert taken is not None
    taken.decode()
    np.testing.assert_array_equal(taken.pixels, small_frames[0])
    folder.close()


def test_an_abort_drops_what_was_decoded_and_what_was_not(
    serve_encoded: Make,
    decoder: Decoder,
    small_frames: list[Any],
    peak_predictor: PeakPredictor,
    told_source: Make,
    adds_up: Make,
) -> None:
    released = threading.Event()
    sink = CallbackSink(lambda item: released.wait(120), policy="block")
    frames = (decoder.of(n, small_frames[n % 8]) for n in range(5000))
    service = Service(peak_predictor, told_source(frames), [sink], sink_queue=4)
    service.start()
    end = time.monotonic() + 120
    while service.status().queues["decoded"].length == 0 and time.monotonic() < end:
        time.sleep(0.001)
    service.abort()
    released.set()
    service.wait()
    service.close()
    counts = service.status().counts
    assert service.status().queues["decoded"].length == 0
    assert adds_up(counts)
    assert counts["dropped"] > 0
