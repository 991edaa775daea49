from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.protocol import Sink, SinkPolicy
from edgexnas.device.sinks.results import (
    FrameResult,
    SeriesBegun,
    SeriesEnded,
    ServiceIdentity,
)


class CountingSink(Sink):
    """All that a sink of one's own must have."""

    name = "counting"
    policy: SinkPolicy = "block"
    written = 0

    def write(self, results: Sequence[FrameResult]) -> None:
        self.written += len(results)


def test_what_a_sink_leaves_out_does_nothing() -> None:
    sink: Sink = CountingSink()
    sink.check()
    sink.open(ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0"))
    sink.begin(SeriesBegun("a"))
    sink.write([FrameResult("a", 0, 0)])
    sink.end(SeriesEnded("a", {}))
    sink.close()
    assert sink.committed() == {}
    assert sink.gather_s == 0
    assert CountingSink.written == 0
    assert isinstance(sink, CountingSink)
    assert sink.written == 1


def test_a_sink_that_cannot_write_is_none() -> None:
    class Deaf(Sink):
        name = "deaf"
        policy: SinkPolicy = "block"

    with pytest.raises(TypeError, match="abstract"):
        Deaf()  # type: ignore[abstract]


def test_a_callback_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(item: object) -> None:
        raise RuntimeError("no")

    sink = CallbackSink(fail)
    sink.write([FrameResult("a", 0, 0), FrameResult("a", 1, 0)])
    assert sink.exceptions == 2
    assert "callback raised RuntimeError: no" in caplog.text


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (FrameResult("a", 0, 0), "done"),
        (FrameResult("a", 0, 0, error="dark"), "failed"),
        (FrameResult("a", 0, 0, not_processed="lost"), "lost"),
    ],
)
def test_a_result_tells_how_its_frame_ended(result: FrameResult, state: str) -> None:
    assert result.state == state
