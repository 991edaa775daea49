"""A predictor of patches takes scans from wherever patterns and positions come."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgexnas.device import PtychoPredictor
from edgexnas.device.sources import SeriesEnd, SourceFrame, SourcePosition, open_event_source
from edgexnas.device.sources.simulated import SimulatedOptions, simulate_frames
from edgexnas.ptycho import ObjectImage

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

FRAMES = 36
PIXEL_M = (1e-8, 1e-8)


@pytest.fixture(scope="module")
def predictor(
    visible: ModuleType, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PtychoPredictor]:
    path = tmp_path_factory.mktemp("ptycho") / "visible.edgex"
    visible.write_visible_bundle(path, signing_key=keys / "edgexnas.key.pem")
    with PtychoPredictor(path, trust=keys, precision="float32", batch=8) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(predictor: PtychoPredictor) -> ObjectImage:
    """The object from the very patterns and positions that simulated detectors send."""
    frames = simulate_frames("ptycho", SimulatedOptions(frames=FRAMES))
    assert frames.positions_m is not None
    numbers = np.arange(FRAMES) % len(frames.stack)
    positions = frames.positions_m[numbers] / PIXEL_M
    stream = predictor.stream(zip(frames.stack[numbers], positions, strict=True))
    assert sum(len(patches) for patches in stream) == FRAMES
    return stream.image()


def assert_same(image: ObjectImage, expected: ObjectImage) -> None:
    assert image.origin_px == expected.origin_px
    np.testing.assert_allclose(image.coverage, expected.coverage, atol=1e-4)
    np.testing.assert_allclose(image.values, expected.values, atol=1e-4)


def test_a_simulated_detector_gives_the_object_of_its_patterns(
    predictor: PtychoPredictor, expected: ObjectImage
) -> None:
    stream = predictor.stream(f"sim://ptycho?frames={FRAMES}", object_pixel_m=PIXEL_M)
    numbers = np.concatenate([patches.frame_numbers for patches in stream])
    np.testing.assert_array_equal(numbers, np.arange(FRAMES))
    assert_same(stream.image(), expected)


def test_patches_keep_the_numbers_that_a_detector_gave_them(predictor: PtychoPredictor) -> None:
    pattern, now = np.ones((64, 64), np.uint16), time.monotonic_ns()
    events = [
        SourcePosition(None, 2, (0.0, 3e-8), now),
        SourceFrame("scan", 0, pattern, now, position_m=(0.0, 0.0)),
        SourceFrame("scan", 2, pattern, now),
        SourceFrame("scan", 5, pattern, now),
        SourcePosition("other", 5, (0.0, 0.0), now),
        SourcePosition("scan", 5, (0.0, 6e-8), now),
        SourceFrame("other", 6, pattern, now, position_m=(0.0, 0.0)),
        SeriesEnd("scan", 3, now),
        SourceFrame("scan", 7, pattern, now, position_m=(0.0, 0.0)),
    ]
    stream = predictor.stream(open_event_source(events), object_pixel_m=PIXEL_M)
    (patches,) = stream
    assert patches.frame_numbers.tolist() == [0, 2, 5]
    np.testing.assert_allclose(patches.positions_px[:2], [(0, 0), (0, 3)])
    assert (stream.counts.stitched, stream.counts.unused_positions) == (3, 0)
    assert stream.image().values.shape == (64, 70)


@pytest.mark.usefixtures("epics_network")
@pytest.mark.parametrize("positions", ["row=PositionRow&col=PositionCol", "positions=T:stage"])
def test_a_scan_over_pva_is_stitched_by_the_positions_that_come_with_it_or_beside_it(
    positions: str, publish: Any, predictor: PtychoPredictor, expected: ObjectImage
) -> None:
    pytest.importorskip("pvaccess", reason="pvapy is the extra «pva»")
    apart = "stage" in positions
    second = ("--positions", "T:stage") if apart else ()
    options = ("--experiment", "ptycho", "--rate", 100, "--frames", FRAMES)
    with publish("pva", "T:scan", *options, *second) as server:
        source = open_event_source(f"pva://T:scan?{positions}")
        end_with_scan(source, apart)
        go = threading.Thread(target=send_when_connected, args=(source, server, apart))
        go.start()
        stream = predictor.stream(source, object_pixel_m=PIXEL_M)
        for _ in stream:
            pass
        go.join()
    assert stream.counts.stitched == FRAMES
    assert_same(stream.image(), expected)


def send_when_connected(source: Any, server: Any, apart: bool) -> None:
    # The second channel is connected once it has told its first value, which is of no frame.
    while source.status()["connection"] != "connected" or (apart and not source._waiting_positions):
        time.sleep(0.01)
    server.go()


def end_with_scan(source: Any, apart: bool) -> None:
    """Let a source end once all frames of the scan came, and their positions if they are apart."""
    encoded_events, kinds = source.encoded_events, Counter[type]()

    def events() -> Iterator[Any]:
        for event in encoded_events():
            kinds[type(event)] += 1
            if kinds[SourceFrame] == FRAMES and kinds[SourcePosition] == FRAMES * apart:
                source.close()
            yield event

    source.encoded_events = events
