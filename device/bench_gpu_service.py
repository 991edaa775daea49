"""Measure a service whose engine runs on a GPU, against what copying and a stream allow.

    python device/gpu_bundles.py --output bundles
    python device/bench_gpu_service.py --bundles bundles --output docs/results/gpu-service.md

Frames run through the fused engine; scans are served where `--plans` names the plans of TensorRT
that `bench_gpu_engines.py --one-size` has built. Frames are in this process already: in
`frame_buffers`, compressed as a DECTRIS detector sends them, or plain; they come as fast as the
service takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from gpu_scans import SCANNED, plan_of, predictor_on, raster, rate
from gpu_timings import CODEC, NETWORKS, SHAPE, SPOTS, bandwidth
from made_frames import spotty_frame

from edgexnas.device import PeakPredictor, PtychoPredictor
from edgexnas.device.cuda import CudaSession
from edgexnas.device.serving import pattern_work, peak_work
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
from edgexnas.scans import Scan
from edgexnas.whole_files import write_whole

DECODERS = (1, 4, 12)
FRAMES = 400
"""Frames of a run, for each thread that decodes."""

REPEATS = 7
"""Runs of which the median and the range are given: threads that share one interpreter vary."""

PATTERNS = 16_384
WARM = 0.2
"""Share of them after which the rate is measured."""

WHERE = {
    "ring": "in `frame_buffers`",
    "there": "bitshuffle/LZ4, decoded where the GPU reads",
    "elsewhere": "bitshuffle/LZ4, decoded in other memory and copied",
    "plain": "not compressed, in other memory, copied",
}

Row = dict[str, Any]


class Frames:
    """A source of frames that are here already."""

    url, live = "memory://", False

    def __init__(self, frames: Any, payloads: list[bytes] | None, count: int) -> None:
        self._frames = frames
        self._payloads = payloads
        self._count = count
        # Without payloads there is nothing to decode, and a service starts no thread for it.
        self.encoded_events = None if payloads is None else self._in_order

    def _in_order(self) -> Iterator[SourceEvent | EncodedFrame]:
        """Iterate over frames, compressed if there are payloads."""
        yield SeriesStart("bench", self._frames[0].shape, self._frames[0].dtype, self._count)
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
        return decoded_events(self._in_order())

    def close(self) -> None:
        """Do nothing: frames end by themselves."""

    def status(self) -> Mapping[str, int | str]:
        """Count nothing."""
        return {}


class ScanFrames(Frames):
    """The patterns of a scan with their positions in metres, one metre a pixel."""

    def __init__(self, scan: Scan) -> None:
        super().__init__(scan.patterns, None, len(scan.patterns))
        self._positions = scan.positions_px.tolist()

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over patterns."""
        for event in super().events():
            if isinstance(event, SourceFrame):
                row, col = self._positions[event.number]
                yield SourceFrame(
                    event.series, event.number, event.pixels, event.arrival_ns,
                    position_m=(row * PIXEL_M, col * PIXEL_M),
                )  # fmt: skip
            else:
                yield event


PIXEL_M = 1e-8


def decode(payload: Payload, memory: FrameMemory | None) -> np.ndarray:
    return decompress(CODEC, payload, SHAPE, np.uint16, memory)


def repeat(predictor: Any, source: Frames, **settings: Any) -> Row:
    """Run often; give the run of the median rate, and all rates."""
    rows = [run(predictor, source, **settings) for _ in range(REPEATS)]
    rows.sort(key=lambda row: row["frames/s"])
    return rows[len(rows) // 2] | {"all frames/s": [round(row["frames/s"]) for row in rows]}


def run(predictor: Any, source: Frames, **settings: Any) -> Row:
    """Let a service take all frames; give its rate and what its stages take."""
    ended: list[float] = []
    peaks: list[int] = []

    def take(item: object) -> None:
        if isinstance(item, FrameResult):
            ended.append(time.perf_counter())
            if item.peaks is not None:
                peaks.append(len(item.peaks))

    service = Service(
        predictor,
        source,
        [CallbackSink(take, policy="block")],
        settings=PipelineSettings(background_frames=1, **settings),
    )
    counts = service.run().counts
    if counts["done"] != source._count:
        raise SystemExit(f"not all frames were done: {dict(counts)}, {service.status().last_error}")
    warm = int(WARM * len(ended))
    stages = service.status().stage_ms
    return {
        "frames/s": (len(ended) - 1 - warm) / (ended[-1] - ended[warm]),
        "peaks": round(statistics.mean(peaks)) if peaks else 0,
        "decode ms": stages["decode"].p50 if "decode" in stages else 0.0,
        "gpu ms": stages["gpu"].p50 if "gpu" in stages else 0.0,
    }


def measure(predictor: PeakPredictor, keep: Callable[[str, Row], None]) -> None:
    """Run every case: frames in a ring at each number of peaks, others for more decoders too."""
    for spots in SPOTS:
        first, _ = spotty_frame(SHAPE, spots, 0)
        frames = [np.roll(first, 37 * turn, axis=(0, 1)) for turn in range(4)]
        ring = predictor.frame_buffers(len(frames), SHAPE, np.uint16)
        ring[:] = frames
        keep("ring", {"decoders": 0} | repeat(predictor, Frames(ring, None, FRAMES * 4)))
        if spots != SPOTS[0]:
            continue
        payloads = [compress(CODEC, frame) for frame in frames]
        for decoders in DECODERS:
            for where in ("there", "elsewhere"):
                lent = peak_work.PeakWork.spare_frames if where == "there" else lambda *_: 0
                with patch.object(peak_work.PeakWork, "spare_frames", lent):
                    source = Frames(frames, payloads, FRAMES * decoders)
                    keep(where, {"decoders": decoders} | run(predictor, source, workers=decoders))
        keep("plain", {"decoders": 0} | run(predictor, Frames(frames, None, FRAMES * 4)))


def measure_scans(
    session: CudaSession, bundles: Path, plans: Path, keep: Callable[[str, Row], None]
) -> None:
    """Run a scan through a stream and through a service, with each network."""
    scan = raster(PATTERNS, 256)
    for name in SCANNED:
        with plan_of(session, bundles, plans, name) as engine, predictor_on(engine) as predictor:
            streamed = rate(predictor, scan)
            row = serve_scan(predictor, scan)
        keep(name, {"stream/s": streamed} | row)


def serve_scan(predictor: PtychoPredictor, scan: Scan) -> Row:
    """Let a service take a scan."""
    return repeat(predictor, ScanFrames(scan), object_pixel_m=(PIXEL_M, PIXEL_M), snapshot_s=3600.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=Path, required=True, help="that gpu_bundles.py wrote")
    parser.add_argument("--plans", type=Path, help="cache folder of bench_gpu_engines.py")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    frames: list[str] = []
    scans: list[str] = []
    rows: list[Row] = []
    # Frames of uint32, for which a service warms up too, do not come.
    peak_work.USUAL_DTYPES = pattern_work.USUAL_DTYPES = (np.uint16,)
    with (
        TemporaryDirectory() as cache,
        CudaSession() as session,
        PeakPredictor(
            options.bundles / NETWORKS["mlpBragg 50×5"],
            trust=options.bundles / "keys",
            engine="fused",
            cache=cache,
        ) as predictor,
    ):
        engine = predictor.engine.describe()
        limit = bandwidth(session) / (2 * SHAPE[0] * SHAPE[1])

        def keep_frames(where: str, row: Row) -> None:
            rows.append({"frames": where, "limit/s": limit} | row)
            decoding = f"{row['decode ms']:.1f}" if row["decoders"] else ""
            frames.append(
                f"| {WHERE[where]} | {row['peaks']:,} | {row['decoders'] or ''} "
                f"| {row['frames/s']:,.0f} | {spread(row, limit)} | {decoding} "
                f"| {row['gpu ms']:.2f} |"
            )
            print(frames[-1], flush=True)

        def keep_scans(name: str, row: Row) -> None:
            rows.append({"network": name} | row)
            scans.append(
                f"| {name} | {row['stream/s']:,.0f} | {row['frames/s']:,.0f} "
                f"| {spread(row, row['stream/s'])} |"
            )
            print(scans[-1], flush=True)

        try:
            measure(predictor, keep_frames)
            if options.plans is not None:
                measure_scans(session, options.bundles, options.plans, keep_scans)
        finally:
            if options.output is not None:
                write_whole(options.output, page(session, engine, limit, frames, scans).encode())
                found = json.dumps(rows, indent=1) + "\n"
                write_whole(options.output.with_suffix(".json"), found.encode())


def spread(row: Row, whole: float) -> str:
    """Say what share of a limit the median is, and the range of all runs."""
    rates = row.get("all frames/s", [])
    ends = f" ({rates[0] / whole:.0%} to {rates[-1] / whole:.0%})" if rates else ""
    return f"{row['frames/s'] / whole:.0%}{ends}"


def page(
    session: CudaSession,
    engine: Mapping[str, object],
    limit: float,
    frames: list[str],
    scans: list[str],
) -> str:
    """Lay the rows out."""
    lines = [
        "# A service on a GPU",
        "",
        f"`python device/bench_gpu_service.py --bundles bundles` on {session.name}, "
        f"{session.capability}, CUDA {session.driver}. A `Service` takes frames from memory as "
        "fast as it can and gives results to a callback; one thread drives the GPU, others decode. "
        f"It may use {len(os.sched_getaffinity(0))} cores. Rates in brackets are the range of "
        f"{REPEATS} runs, of which the median is given; stages are medians of a frame.",
        "",
        f"Frames of 2048×2048 uint16, mlpBragg 50×5, {engine['engine']} {engine['precision']}. "
        f"Copying them from pinned memory allows {limit:,.0f} frames/s.",
        "",
        "| frames | peaks | decoders | frames/s | of the limit | decode, ms | GPU, ms |",
        "|---|---|---|---|---|---|---|",
        *frames,
    ]
    if scans:
        lines += [
            "",
            f"Scans of {PATTERNS:,} patterns of 256×256 uint16, stitched, the final image included "
            "in that of the stream.",
            "",
            "| network | patterns/s, stream | patterns/s, service | of the stream |",
            "|---|---|---|---|",
            *scans,
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
