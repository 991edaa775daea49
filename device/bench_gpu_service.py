"""Measure a service whose engine runs on a GPU: frames/s of compressed and of plain frames.

    python device/bench_gpu_service.py runs/demo --output docs/results/gpu-service.md

Takes the bundle and keys that `make demo` leaves. TensorRT is not needed: torch stands in for the
bundle's network, which the page says. The frames are in this process already, compressed as a
DECTRIS detector sends them or plain, and come as fast as the service takes them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from gpu_timings import CODEC, PATCH, SHAPE, SIZES
from made_frames import spotty_frame
from torch_stand_in import TorchStandIn

from edgexnas.device import PeakPredictor
from edgexnas.device.cuda import CudaSession
from edgexnas.device.serving import peak_work
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.results import FrameResult
from edgexnas.device.sources.compression import FrameMemory, compress, decompress
from edgexnas.device.sources.encoded_frames import (
    EncodedFrame,
    EncodedPixels,
    Payload,
    decoded_events,
)
from edgexnas.device.sources.events import SeriesEnd, SeriesStart, SourceEvent, SourceFrame
from edgexnas.host.networks.bragg_models import MlpBragg
from edgexnas.whole_files import write_whole

WORKERS = (1, 4, 12)
FRAMES = 200
"""Frames of a run, for each worker."""

WARM = 0.2
"""Share of them after which the rate is measured."""

WHERE = {
    "there": "bitshuffle/LZ4, decoded where the GPU reads",
    "elsewhere": "bitshuffle/LZ4, decoded in other memory and copied",
    "plain": "not compressed, in other memory, copied",
}


class Frames:
    """A source of frames that are here already."""

    url, live = "memory://", False

    def __init__(self, frames: list[np.ndarray], payloads: list[bytes] | None, count: int) -> None:
        self._frames = frames
        self._payloads = payloads
        self._count = count

    def encoded_events(self) -> Iterator[SourceEvent | EncodedFrame]:
        """Iterate over frames, compressed if there are payloads."""
        yield SeriesStart("bench", SHAPE, self._frames[0].dtype, self._count)
        for number in range(self._count):
            now_ns, turn = time.monotonic_ns(), number % len(self._frames)
            if self._payloads is None:
                yield SourceFrame("bench", number, self._frames[turn], now_ns)
            else:
                payload = self._payloads[turn]
                encoded = EncodedPixels(payload, decode, len(payload))
                yield EncodedFrame("bench", number, encoded, now_ns)
        yield SeriesEnd("bench", self._count, time.monotonic_ns())

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over decoded frames."""
        return decoded_events(self.encoded_events())

    def close(self) -> None:
        """Do nothing: frames end by themselves."""

    def status(self) -> Mapping[str, int | str]:
        """Count nothing."""
        return {}


def decode(payload: Payload, memory: FrameMemory | None) -> np.ndarray:
    return decompress(CODEC, payload, SHAPE, np.uint16, memory)


def run(predictor: PeakPredictor, source: Frames, workers: int) -> dict[str, Any]:
    """Let a service take all frames; give its rate and what its stages take."""
    ended: list[float] = []
    peaks: list[int] = []

    def take(item: object) -> None:
        if isinstance(item, FrameResult):
            ended.append(time.perf_counter())
            peaks.append(len(item.peaks) if item.peaks is not None else -1)

    service = Service(
        predictor,
        source,
        [CallbackSink(take, policy="block")],
        settings=PipelineSettings(workers=workers, background_frames=1),
    )
    counts = service.run().counts
    if counts["done"] != FRAMES * workers or -1 in peaks:
        raise SystemExit(f"not all frames were done: {dict(counts)}")
    warm = int(WARM * len(ended))
    stages = service.status().stage_ms
    return {
        "workers": workers,
        "frames/s": (len(ended) - 1 - warm) / (ended[-1] - ended[warm]),
        "peaks": round(statistics.mean(peaks)),
        "decode ms": stages["decode"].p50 if "decode" in stages else 0.0,
        "find ms": stages["find"].p50,
    }


def measure(predictor: PeakPredictor, keep: Callable[[str, dict[str, Any]], None]) -> None:
    """Run every case for every number of workers."""
    first, _ = spotty_frame(SHAPE, 500, 0)
    frames = [np.roll(first, 37 * turn, axis=(0, 1)) for turn in range(4)]
    payloads = [compress(CODEC, frame) for frame in frames]
    for workers in WORKERS:
        for where in WHERE:
            source = Frames(frames, None if where == "plain" else payloads, FRAMES * workers)
            if where == "there":
                keep(where, run(predictor, source, workers))
            else:
                with patch.object(peak_work.PeakWork, "spare_frames", lambda *_: 0):
                    keep(where, run(predictor, source, workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `make demo` left")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    lines: list[str] = []
    # Frames of uint32, for which a service warms up too, do not come.
    peak_work.USUAL_DTYPES = (np.uint16,)
    with (
        TemporaryDirectory() as cache,
        CudaSession() as session,
        PeakPredictor(
            options.demo / "bragg.edgex",
            trust=options.demo / "keys",
            engine="onnxruntime",
            cache=cache,
        ) as predictor,
    ):
        predictor.engine.close()
        levels = predictor.manifest.quantile_levels
        predictor._shared.engine = TorchStandIn(
            MlpBragg(50, 5, levels).eval(), PATCH, session=session, sizes=SIZES, graph=False
        )

        def keep(where: str, row: dict[str, Any]) -> None:
            decoding = "" if where == "plain" else f"{row['decode ms']:.1f}"
            lines.append(
                f"| {WHERE[where]} | {row['workers']} | {row['frames/s']:,.0f} | {decoding} "
                f"| {row['find ms']:.2f} |"
            )
            print(lines[-1], row["peaks"], "peaks", flush=True)

        try:
            measure(predictor, keep)
        finally:
            if options.output is not None:
                write_whole(options.output, page(session, lines).encode())


def page(session: CudaSession, lines: list[str]) -> str:
    """Lay the rows out."""
    head = [
        "# A service on a GPU",
        "",
        f"`python device/bench_gpu_service.py runs/demo` on {session.name}, {session.capability}, "
        f"CUDA {session.driver}. A `Service` takes frames of 2048×2048 uint16 with about 500 peaks "
        f"from memory as fast as it can and gives the peaks to a callback; {FRAMES} frames a "
        "worker, one thread of each to decode and one to find. TensorRT does not run there: "
        "mlpBragg 50×5 in torch stands in. Medians of a frame in a stage.",
        "",
        "| frames | workers | frames/s | decode, ms | copy to the GPU, find and predict, ms |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
    main()
