"""What a subscriber on the network gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgexnas.bragg import Peaks
from edgexnas.device.sinks.pva_sink import PvaSink
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    ServiceIdentity,
)
from edgexnas.device.sinks.zmq_sink import ZmqSink
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import ObjectImage

IDENTITY = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0")
POSITIONS = np.array([[1.25, 2.5], [30, 40]], np.float32)
IMAGE = ObjectImage(
    np.exp(1j * np.arange(12).reshape(3, 4) / 9).astype(np.complex64),
    np.ones((3, 4), np.float32),
    0,
    (5, -6),
)


def result(number: int) -> FrameResult:
    peaks = Peaks(
        positions_px=POSITIONS,
        intervals_px=POSITIONS / 10,
        quantiles_px=np.zeros((2, 2, 3), np.float32),
        maxima=np.zeros((2, 2), np.int32),
        intensities=np.array([100, 200], np.float32),
        flags=np.array([0, 4], np.uint8),
        frame_number=number,
        overflow=0,
    )
    return FrameResult("a", number, time.monotonic_ns(), 1.5, peaks)


class TestZmq:
    zmq = pytest.importorskip("zmq", reason="pyzmq is the extra «zmq»")

    @pytest.fixture
    def receive(self) -> Iterator[Callable[..., Any]]:
        """`receive(address, mode)` connects and gives a function that takes one message."""
        context = self.zmq.Context()
        sockets = []

        def connect(address: str, mode: str) -> Callable[[], Any]:
            socket = context.socket(self.zmq.SUB if mode == "pub" else self.zmq.PULL)
            sockets.append(socket)
            socket.rcvtimeo = 10_000
            if mode == "pub":
                socket.subscribe(b"edgexnas")
            socket.connect(address)

            def take() -> tuple[str, dict[str, Any], dict[str, Any]]:
                topic, header, *parts = socket.recv_multipart()
                told = json.loads(header)
                arrays = {
                    a["name"]: np.frombuffer(part, a["dtype"]).reshape(a["shape"])
                    for a, part in zip(told["arrays"], parts, strict=True)
                }
                return topic.decode(), told, arrays

            return take

        yield connect
        for opened in sockets:
            opened.close(linger=0)
        context.term()

    @pytest.fixture
    def sink(self, request: Any) -> Iterator[ZmqSink]:
        made = ZmqSink("tcp://127.0.0.1:*", mode=getattr(request, "param", "push"))
        made.open(IDENTITY)
        yield made
        made.close()

    def test_a_message_tells_frame_and_arrays(self, sink: ZmqSink, receive: Any) -> None:
        take = receive(sink.address, "push")
        sink.begin(SeriesBegun("a", {"energy_kev": 12.4, "axes": [1, 2]}))
        sink.write([result(7)])
        sink.end(SeriesEnded("a", {"done": 1}))
        topic, begin, _ = take()
        assert (topic, begin["metadata"]) == (
            "edgexnas.begin",
            {"energy_kev": 12.4, "axes": "[1, 2]"},
        )
        topic, header, arrays = take()
        assert topic == "edgexnas.peaks"
        assert (header["series"], header["number"], header["sent"]) == ("a", 7, 1)
        assert (header["timestamp_s"], header["error"], header["watermark"]) == (1.5, None, 7)
        np.testing.assert_array_equal(arrays["positions"], POSITIONS)
        np.testing.assert_array_equal(arrays["flags"], [0, 4])
        assert take()[1]["counts"] == {"done": 1}

    def test_a_patch_and_the_object_are_sent(self, sink: ZmqSink, receive: Any) -> None:
        take = receive(sink.address, "push")
        patch = np.ones((64, 64), np.float32)
        sink.write([FrameResult("s", 3, 0, amplitude=patch, phase_rad=-patch, position_px=(1, 2))])
        sink.show(ObjectSnapshot("s", 3, IMAGE, final=True))
        topic, _, arrays = take()
        assert topic == "edgexnas.patch"
        np.testing.assert_array_equal(arrays["position"], [1, 2])
        topic, header, arrays = take()
        assert (topic, header["origin"], header["final"]) == ("edgexnas.object", [5, -6], True)
        np.testing.assert_allclose(arrays["phase"], IMAGE.phase_rad)

    @pytest.mark.parametrize("sink", ["pub"], indirect=True)
    def test_every_subscriber_gets_everything(self, sink: ZmqSink, receive: Any) -> None:
        takers = [receive(sink.address, "pub") for _ in range(2)]
        # A subscription takes a moment to reach the publisher; what was sent before is lost.
        time.sleep(0.3)
        sink.write([result(0), result(1)])
        for take in takers:
            assert [take()[1]["number"] for _ in range(2)] == [0, 1]

    def test_a_push_without_a_peer_is_an_error_after_a_second(self, sink: ZmqSink) -> None:
        with pytest.raises(OSError, match="no peer took a message at tcp://127"):
            sink.write([result(0)])

    def test_an_address_that_is_taken_is_refused(self, sink: ZmqSink) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot bind tcp://127.*in use"):
            ZmqSink(sink.address).check()
        ZmqSink("tcp://127.0.0.1:*").check()


class TestPva:
    pva = pytest.importorskip("pvaccess", reason="pvapy is the extra «pva»")

    CLIENT = """
import json, sys, time
import pvaccess
channel = pvaccess.Channel(sys.argv[1], pvaccess.PVA)
channel.setTimeout(10)
got = channel.get("field()")
print(json.dumps({"id": got.getStructureDict() and got["uniqueId"], "value": str(got)[:40000]}))
if sys.argv[2] == "table":
    value = got["value"]
    print(json.dumps({name: [float(x) for x in column] for name, column in value.items()}))
    print(json.dumps([got["labels"], got["series"], got["sent"], got["error"]]))
else:
    print(json.dumps([float(x) for x in got["value"][0]["floatValue"]]))
    print(json.dumps([side["size"] for side in got["dimension"]]))
"""

    def client(self, name: str, kind: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", self.CLIENT, name, kind],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    @pytest.fixture
    def prefix(self, epics_network: dict[str, str]) -> str:
        return f"EDGEX{os.getpid()}:{time.monotonic_ns()}:"

    def test_peaks_are_a_table(self, prefix: str) -> None:
        sink = PvaSink(prefix)
        sink.check()
        sink.open(IDENTITY)
        try:
            sink.write([result(6), result(7)])
            told, columns, others = self.client(f"{prefix}Peaks", "table")
        finally:
            sink.close()
        assert told["id"] == 7
        assert "epics:nt/NTTable:1.0" in told["value"]
        assert columns["row_px"] == POSITIONS[:, 0].tolist()
        assert columns["flags"] == [0, 4]
        assert others == [list(columns), "a", 2, ""]

    def test_the_object_is_an_image(self, prefix: str) -> None:
        sink = PvaSink(prefix)
        sink.open(ServiceIdentity("ptycho", "m", 1, "onnxruntime", "int8", "told://", "0"))
        try:
            sink.show(ObjectSnapshot("s", 9, IMAGE, final=False))
            told, phase, sizes = self.client(f"{prefix}Object:Phase", "image")
        finally:
            sink.close()
        assert told["id"] == 9
        np.testing.assert_allclose(phase, IMAGE.phase_rad.ravel(), atol=1e-6)
        assert sizes == [4, 3]

    def test_a_second_sink_of_the_same_names_is_refused(self, prefix: str) -> None:
        first = PvaSink(prefix)
        first.open(IDENTITY)
        try:
            with pytest.raises(ConfigurationError, match="serves a PV"):
                PvaSink(prefix).open(IDENTITY)
        finally:
            first.close()
