"""Whatever a source tells, a service accounts for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgexnas.device import PeakPredictor
from edgexnas.device.serving.service import Service, ServiceError
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult
from edgexnas.device.sources.events import SeriesEnd, SeriesStart, SourceFrame, SourceTrouble

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

GOOD = np.zeros((24, 32), np.uint16)
TIMES = (None, 1.7e9, 0.0, -5.0, 1e300, float("nan"), float("inf"), 253_402_300_800.0)
KINDS = {"good": GOOD, "shape": GOOD[:7].copy(), "dtype": GOOD.astype(np.float64)}

series = st.sampled_from("ab")
numbers = st.integers(0, 12)
steps = st.one_of(
    st.tuples(st.just("frame"), series, numbers, st.sampled_from([*KINDS, "good", "good"])),
    st.tuples(st.just("frame"), st.just("a"), numbers, st.just("good")),
    st.tuples(st.just("start"), series),
    st.tuples(st.just("end"), series, st.sampled_from([None, 0, 5, 20])),
    st.tuples(st.just("trouble"), st.sampled_from(["a", "b", None]), numbers),
)


def events(told: list[Any]) -> Iterator[Any]:
    for step in told:
        if step[0] == "frame":
            time_s = TIMES[step[2] % len(TIMES)]
            yield SourceFrame(step[1], step[2], KINDS[step[3]], time.monotonic_ns(), time_s)
        elif step[0] == "start":
            yield SeriesStart(step[1])
        elif step[0] == "end":
            yield SeriesEnd(step[1], step[2], time.monotonic_ns())
        else:
            yield SourceTrouble(step[1], step[2], "it was garbled", time.monotonic_ns())


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(told=st.lists(steps, max_size=40), live=st.booleans(), workers=st.integers(1, 3))
def test_every_frame_ends_in_one_state_and_results_come_in_order_once(
    told: list[Any],
    live: bool,
    workers: int,
    peak_predictor: PeakPredictor,
    told_source: Callable[..., Any],
    adds_up: Callable[..., bool],
) -> None:
    items: list[Any] = []
    service = Service(
        peak_predictor,
        told_source(events(told), live=live),
        [CallbackSink(items.append, policy="block")],
        settings=PipelineSettings(
            workers=workers,
            queue_frames=3,
            policy="drop-oldest" if live else "block",
            reorder_wait_ms=1,
            background_frames=2,
            background_wait_ms=1,
        ),
    )
    try:
        service.run()
    except ServiceError:
        # So ends a run none of whose frames was stored.
        assert not service.status().counts["done"]
    counts = service.status().counts
    assert adds_up(counts)
    assert counts["pending"] == counts["spilled"] == 0
    assert counts["received"] == sum(step[0] in ("frame", "trouble") for step in told)
    results = [item for item in items if isinstance(item, FrameResult)]
    assert len({(r.series, r.number) for r in results}) == len(results)
    assert sum(r.error is None for r in results) == counts["done"]
    assert {r.timestamp_s for r in results} <= {None, 1.7e9}
    runs = [list[int]()]
    for item in items:
        if isinstance(item, FrameResult):
            runs[-1].append(item.number)
        else:
            runs.append([])
    for run in runs:
        assert run == sorted(run)
