"""A source that tells what a test says, and a service around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from edgexnas.bundle import Bundle
from edgexnas.device import PeakPredictor
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult, SinkItem
from edgexnas.device.sources.events import SourceEvent, SourceFrame


class ToldSource:
    """An event source that gives the events of an iterable."""

    url = "told://"

    def __init__(self, events: Iterable[SourceEvent], *, live: bool = False) -> None:
        self._events = events
        self._closed = threading.Event()
        self.live = live

    def events(self) -> Iterator[SourceEvent]:
        for event in self._events:
            if self._closed.is_set():
                return
            yield event

    def close(self) -> None:
        self._closed.set()

    def status(self) -> Mapping[str, int | str]:
        return {}


class Seen:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self.items: list[SinkItem] = []

    def __call__(self, item: SinkItem) -> None:
        self.items.append(item)

    @property
    def results(self) -> list[FrameResult]:
        return [item for item in self.items if isinstance(item, FrameResult)]

    @property
    def numbers(self) -> list[int]:
        return [result.number for result in self.results]


def _frame(number: int, pixels: Any, *, series: str = "a", **fields: Any) -> SourceFrame:
    return SourceFrame(series, number, pixels, time.monotonic_ns(), **fields)


@pytest.fixture(scope="package", autouse=True)
def _only_dtype_of_these_frames() -> Iterator[None]:
    """Compile no finder that no test of a service in this process uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgexnas.device.serving.peak_work.USUAL_DTYPES", (np.uint16,))
        yield


@pytest.fixture(scope="session")
def told_source() -> type[ToldSource]:
    """`told_source(events, live=False)` is an event source."""
    return ToldSource


@pytest.fixture
def seen() -> Seen:
    """A callback that keeps what it is called with: `items`, `results`, `numbers`."""
    return Seen()


@pytest.fixture(scope="session")
def frame_of() -> Callable[..., SourceFrame]:
    """`frame_of(number, pixels, series="a")` is a frame that arrives when it is made."""
    return _frame


@pytest.fixture(scope="session")
def small_frames(spot_frame: Callable[..., Any]) -> list[Any]:
    """Eight (96, 128) uint16 frames with three spots each; not to be written to."""
    return [spot_frame(seed=seed) for seed in range(8)]


@pytest.fixture
def peak_predictor(bundle: Bundle) -> Iterator[PeakPredictor]:
    with PeakPredictor(bundle) as opened:
        yield opened


@pytest.fixture(scope="session")
def adds_up() -> Callable[[Mapping[str, int]], bool]:
    """Tell whether every frame that came is in exactly one state."""

    def check(counts: Mapping[str, int]) -> bool:
        ended = ("done", "dropped", "duplicate", "failed", "pending", "spilled")
        return counts["received"] == sum(counts[state] for state in ended)

    return check


@pytest.fixture(scope="session")
def empty_frame() -> Any:
    """(96, 128) uint16 without peaks."""
    return np.zeros((96, 128), np.uint16)


@pytest.fixture
def serve(
    peak_predictor: PeakPredictor,
    told_source: Callable[..., Any],
    seen: Seen,
    adds_up: Callable[..., bool],
) -> Callable[..., dict[str, int]]:
    """Run a service over events until they end and return the counts, which must add up."""

    def run(events: Any, *, live: bool = False, **settings: Any) -> Any:
        sink = CallbackSink(seen, policy="block")
        service = Service(
            peak_predictor,
            told_source(events, live=live),
            [sink],
            settings=PipelineSettings(**settings),
        )
        counts = dict(service.run().counts)
        assert adds_up(counts)
        assert counts["pending"] == counts["spilled"] == 0
        return counts

    return run
