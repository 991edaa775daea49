"""A service takes a newer bundle while frames come."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.bundle import open_bundle
from edgexnas.device import PeakPredictor
from edgexnas.device.serving.bundle_watch import BundleWatch
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.errors import ConfigurationError
from edgexnas.testing import write_centroid_bundle

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

SWAPS = 100


@pytest.fixture(scope="module")
def bundles(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`bundles(sequence)` is the path of a bundle; intervals are wider where it is odd."""
    from edgexnas.testing import centroid_bundle

    folder = tmp_path_factory.mktemp("bundles")

    def write(sequence: int) -> Path:
        path = folder / f"{sequence}.edgex"
        if not path.exists():
            with pytest.MonkeyPatch.context() as patch:
                spread = centroid_bundle.SPREAD_PX * (2 if sequence % 2 else 1)
                patch.setattr(centroid_bundle, "SPREAD_PX", spread.astype(np.float32))
                key = keys / "edgexnas.key.pem"
                write_centroid_bundle(path, signing_key=key, sequence=sequence)
        return path

    return write


@pytest.fixture
def predictor_of(bundles: Callable[[int], Path], keys: Path) -> Callable[[int], PeakPredictor]:
    def opened(sequence: int) -> PeakPredictor:
        return PeakPredictor(open_bundle(bundles(sequence), trust=keys), precision="float32")

    return opened


@pytest.fixture
def frames(small_frames: list[Any], frame_of: Any) -> Callable[[threading.Event], Iterator[Any]]:
    """Frames of one series, a few hundred a second, until an event is set."""

    def give(enough: threading.Event) -> Iterator[Any]:
        number = 0
        while not enough.wait(0.003):
            yield frame_of(number, small_frames[number % 8])
            number += 1

    return give


def widths(result: Any) -> set[float]:
    return {round(width, 3) for width in result.peaks.intervals_px.ravel().tolist()}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_hundred_bundles_under_load_lose_no_frame_and_mix_no_result(
    predictor_of: Callable[[int], PeakPredictor],
    told_source: Callable[..., Any],
    frames: Any,
    seen: Any,
    adds_up: Any,
    workers: int,
) -> None:
    enough = threading.Event()
    first = predictor_of(1)
    settings = PipelineSettings(workers=workers, background_frames=4, background_wait_ms=20)
    sink = CallbackSink(seen, policy="block")
    service = Service(first, told_source(frames(enough)), [sink], settings=settings)
    service.start()
    waiting = threading.Thread(target=service.wait)
    waiting.start()
    newest = first
    for sequence in range(2, SWAPS + 2):
        newest = predictor_of(sequence)
        service.replace_predictor(newest)
    done = service.status().counts["done"]
    while service.status().counts["done"] < done + 200:
        time.sleep(0.01)
    enough.set()
    waiting.join()
    # All that were replaced are closed while the service runs on.
    assert len(service._own) == SWAPS
    service.close()
    counts = service.status().counts
    assert adds_up(counts)
    assert counts["done"] == counts["received"]
    assert seen.numbers == list(range(counts["done"]))
    made_by = {result.made_by.sequence if result.made_by else 1 for result in seen.results}
    assert max(made_by) == SWAPS + 1
    for result in seen.results:
        sequence = result.made_by.sequence if result.made_by else 1
        assert widths(result) == {0.4 if sequence % 2 else 0.2}
    assert all(predictor._shared.closed for predictor in (first, *service._own))


def test_replaced_predictors_are_closed_while_a_series_goes_on(
    predictor_of: Callable[[int], PeakPredictor],
    told_source: Callable[..., Any],
    frames: Any,
    seen: Any,
) -> None:
    enough = threading.Event()
    first = predictor_of(1)
    service = Service(first, told_source(frames(enough)), [CallbackSink(seen, policy="block")])
    service.start()
    waiting = threading.Thread(target=service.wait)
    waiting.start()
    service.replace_predictor(predictor_of(2))
    end_s = time.monotonic() + 120
    while not first._shared.closed:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    enough.set()
    waiting.join()
    service.close()


def test_a_bundle_that_is_no_newer_is_refused(
    predictor_of: Callable[[int], PeakPredictor], told_source: Callable[..., Any]
) -> None:
    with predictor_of(3) as running, predictor_of(3) as same:
        service = Service(running, told_source([]))
        with pytest.raises(ConfigurationError, match="sequence 3 of centroid is not above 3"):
            service.replace_predictor(same)


def test_a_file_that_was_replaced_takes_over_and_one_that_is_damaged_does_not(
    bundles: Callable[[int], Path],
    keys: Path,
    told_source: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "model.edgex"

    def put(source: Path | None) -> None:
        draft = tmp_path / "draft"
        if source is None:
            draft.write_bytes(b"damaged")
        else:
            shutil.copy(source, draft)
        draft.replace(path)

    def opened() -> PeakPredictor:
        return PeakPredictor(open_bundle(path, trust=keys))

    def until(happened: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 120
        while not happened():
            assert time.monotonic() < end_s
            time.sleep(0.01)

    put(bundles(1))
    service = Service(opened(), told_source([]))
    watch = BundleWatch(path, service, opened, period_s=0.02)
    watch.start()
    try:
        put(None)
        until(lambda: "is not taken" in caplog.text)
        assert service.identity.sequence == 1
        put(bundles(2))
        until(lambda: service.identity.sequence == 2)
        put(bundles(1))
        until(lambda: "sequence 1 of centroid is not above 2" in caplog.text)
        assert service.identity.sequence == 2
        caplog.set_level("INFO")
        put(bundles(2))
        watch.look()
        until(lambda: "is the bundle that runs" in caplog.text)
    finally:
        watch.close()
        service.close()
