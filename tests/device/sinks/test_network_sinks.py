"""What a subscriber on the network gets."""

from __future__ import annotations

import json
import os
import runpy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgexnas.bragg import Peaks
from edgexnas.device.sinks import zmq_sink
from edgexnas.device.sinks.pva_sink import PvaSink
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.device.sinks.zmq_sink import ZmqSink
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import ObjectImage
from edgexnas.spots import SPOT, SPOT_COLUMNS, Spots

ROOT = Path(__file__).resolve().parents[3]
IDENTITY = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0", "a" * 64)
SPOTS = np.zeros(2, SPOT)
SPOTS["omega_deg"], SPOTS["first_frame"] = (0.25, 0.5), (4, 5)
POSITIONS = np.array([[1.25, 2.5], [30, 40]], np.float32)
SAMPLE = SimpleNamespace(**runpy.run_path(str(ROOT / "samples/06_receive_results.py")))
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
    def receive(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
        """`receive(address, mode)` connects and gives a function that takes one message."""
        # A peer that connects is there after a while.
        monkeypatch.setattr(zmq_sink, "PEER_S", 120.0)
        context = self.zmq.Context()
        sockets = []

        def connect(address: str, mode: str) -> Callable[[], Any]:
            socket = context.socket(self.zmq.SUB if mode == "pub" else self.zmq.PULL)
            sockets.append(socket)
            socket.rcvtimeo = 120_000
            if mode == "pub":
                socket.subscribe(b"edgexnas")
            socket.connect(address)

            def take() -> tuple[str, dict[str, Any], dict[str, Any]]:
                parts = socket.recv_multipart()
                return parts[0].decode(), *SAMPLE.decode(parts)

            take.socket = socket  # type: ignore[attr-defined]
            return take

        yield connect
        for opened in sockets:
            opened.close(linger=0)
        context.term()

    @pytest.fixture
    def sink(self, request: Any, receive: Any) -> Iterator[ZmqSink]:
        made = ZmqSink("tcp://127.0.0.1:*", mode=getattr(request, "param", "push"))
        made.open(IDENTITY)
        yield made
        made.close()

    def test_a_message_tells_frame_and_arrays(self, sink: ZmqSink, receive: Any) -> None:
        take = receive(sink.address, "push")
        sink.begin(SeriesBegun("a", {"energy_kev": 12.4, "axes": [1, 2], "gain": np.nan}))
        sink.write([result(7)])
        sink.end(SeriesEnded("a", {"done": 1}))
        topic, begin, _ = take()
        assert (topic, begin["metadata"]) == (
            "edgexnas.begin",
            {"energy_kev": 12.4, "axes": "[1, 2]", "gain": "nan"},
        )
        assert begin["made_by"]["bundle_digest"] == "a" * 64
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

    def test_a_frame_is_sent_with_all_that_is_known_of_it(
        self, sink: ZmqSink, receive: Any
    ) -> None:
        take = receive(sink.address, "push")
        swapped = replace(IDENTITY, bundle_digest="b" * 64)
        sink.write([replace(result(7), detector_id=17, flags=5, made_by=swapped)])
        sink.write([FrameResult("a", 8, 0, not_processed="lost")])
        _, header, _ = take()
        assert (header["version"], header["detector_id"], header["flags"]) == (2, 17, 5)
        assert (header["state"], header["bundle_digest"]) == ("done", "b" * 64)
        topic, header, arrays = take()
        assert (topic, header["state"], header["detector_id"]) == ("edgexnas.peaks", "lost", None)
        assert (header["bundle_digest"], arrays) == ("a" * 64, {})

    def test_spots_are_sent_column_by_column(self, sink: ZmqSink, receive: Any) -> None:
        take = receive(sink.address, "push")
        sink.write_spots(SeriesSpots("a", Spots.from_table(SPOTS)))
        topic, header, arrays = take()
        assert (topic, header["series"], list(arrays)) == ("edgexnas.spots", "a", [*SPOT_COLUMNS])
        np.testing.assert_array_equal(arrays["omega_deg"], SPOTS["omega_deg"])

    def test_a_message_of_version_1_is_decoded(self) -> None:
        header = {
            "version": 1,
            "kind": "peaks",
            "series": "a",
            "number": 0,
            "arrays": [{"name": "flags", "dtype": "|u1", "shape": [2], "unit": "1"}],
        }
        told, arrays = SAMPLE.decode([b"edgexnas.peaks", json.dumps(header).encode(), b"\0\1"])
        assert told == header
        assert arrays["flags"].tolist() == [0, 1]

    def test_a_message_of_a_newer_version_is_refused(self) -> None:
        header = json.dumps({"version": 3, "arrays": []}).encode()
        with pytest.raises(ValueError, match="has version 3 and 2 is known"):
            SAMPLE.decode([b"edgexnas.peaks", header])

    @settings(deadline=None)
    @given(
        arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=2)),
        st.text(),
        st.none() | st.integers(0, 2**60),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
    def test_any_result_is_decoded_as_it_was_sent(
        self, positions: Any, series: str, detector_id: int | None, timestamp_s: float | None
    ) -> None:
        sent: list[list[bytes]] = []
        sink = ZmqSink("tcp://127.0.0.1:*")
        sink._identity, sink._socket = IDENTITY, SimpleNamespace(send_multipart=sent.append)
        peaks = replace(result(3).peaks, positions_px=positions)  # type: ignore[type-var]
        sink.write([FrameResult(series, 3, 0, timestamp_s, peaks, detector_id=detector_id)])
        header, decoded = SAMPLE.decode(sent[0])
        np.testing.assert_array_equal(decoded["positions"], positions)
        assert (header["series"], header["timestamp_s"]) == (series, timestamp_s)
        assert header["detector_id"] == detector_id

    @pytest.mark.parametrize("sink", ["pub"], indirect=True)
    def test_every_subscriber_gets_everything(self, sink: ZmqSink, receive: Any) -> None:
        takers = [receive(sink.address, "pub") for _ in range(2)]
        # A subscription takes a moment to reach the publisher; what was sent before is lost.
        for take in takers:
            while not take.socket.poll(100):
                sink.end(SeriesEnded("before", {}))
        sink.write([result(0), result(1)])
        for take in takers:
            while (message := take())[0] == "edgexnas.end":
                pass
            assert [message[1]["number"], take()[1]["number"]] == [0, 1]

    def test_a_push_without_a_peer_is_an_error_after_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(zmq_sink, "PEER_S", 0.2)
        sink = ZmqSink("tcp://127.0.0.1:*", mode="push")
        sink.open(IDENTITY)
        try:
            with pytest.raises(OSError, match=r"no peer took a message at tcp://127.* for 0\.2 s"):
                sink.write([result(0)])
        finally:
            sink.close()

    def test_an_address_that_is_taken_is_refused(self, sink: ZmqSink) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot bind tcp://127.*in use"):
            ZmqSink(sink.address).check()
        ZmqSink("tcp://127.0.0.1:*").check()


class TestPva:
    pva = pytest.importorskip("pvaccess", reason="pvapy is the extra «pva»")

    @pytest.fixture
    def prefix(self, epics_network: dict[str, str]) -> str:
        return f"EDGEX{os.getpid()}:{time.monotonic_ns()}:"

    def test_peaks_are_a_table(self, prefix: str, read_pvs: Any) -> None:
        sink = PvaSink(prefix)
        sink.check()
        sink.open(IDENTITY)
        try:
            sink.write([result(6), replace(result(7), detector_id=17, flags=5)])
            told = read_pvs(f"{prefix}Peaks")[f"{prefix}Peaks"]
        finally:
            sink.close()
        columns, others = told["fields"].pop("value"), told["fields"]
        assert "epics:nt/NTTable:1.0" in told["text"]
        assert columns["row_px"] == POSITIONS[:, 0].tolist()
        assert columns["flags"] == [0, 4]
        assert {name: others[name] for name in others if name not in ("alarm", "timeStamp")} == {
            "labels": list(columns),
            "descriptor": "Bragg peaks of one frame",
            "version": 2,
            "series": "a",
            "uniqueId": 7,
            "detectorId": 17,
            "sent": 2,
            "flags": 5,
            "state": "done",
            "error": "",
            "bundleDigest": "a" * 64,
        }

    def test_spots_are_a_table_of_their_own(self, prefix: str, read_pvs: Any) -> None:
        sink = PvaSink(prefix, spots=True)
        sink.open(IDENTITY)
        try:
            sink.write_spots(SeriesSpots("a", Spots.from_table(SPOTS)))
            fields = read_pvs(f"{prefix}Spots")[f"{prefix}Spots"]["fields"]
        finally:
            sink.close()
        columns = fields["value"]
        assert list(columns) == list(SPOT_COLUMNS)
        assert columns["omega_deg"] == SPOTS["omega_deg"].tolist()
        assert columns["first_frame"] == [4, 5]
        assert (fields["series"], fields["version"]) == ("a", 2)

    def test_the_object_is_an_image(self, prefix: str, read_pvs: Any) -> None:
        sink = PvaSink(prefix)
        sink.open(ServiceIdentity("ptycho", "m", 1, "onnxruntime", "int8", "told://", "0"))
        try:
            sink.show(ObjectSnapshot("s", 9, IMAGE, final=False))
            name = f"{prefix}Object:Phase"
            fields = read_pvs(name)[name]["fields"]
        finally:
            sink.close()
        assert fields["uniqueId"] == 9
        phase = fields["value"][0]["floatValue"]
        np.testing.assert_allclose(phase, IMAGE.phase_rad.ravel(), atol=1e-6)
        assert [side["size"] for side in fields["dimension"]] == [4, 3]

    def test_a_second_sink_of_the_same_names_is_refused(self, prefix: str) -> None:
        first = PvaSink(prefix)
        first.open(IDENTITY)
        try:
            with pytest.raises(ConfigurationError, match="serves a PV"):
                PvaSink(prefix).open(IDENTITY)
        finally:
            first.close()
