"""Receivers that `bench_stream.py` compares, each a process of its own.

    python device/stream_receivers.py bare pva://BENCH:Image --output times.json

`service`
    edgexnas as `edgexnas serve` runs it: ledger, peaks, network, HDF5 file in SWMR mode, web page.
`threads`
    A pipeline as edgeBragg and edgePtychoNN have it: unbounded queues between threads, connected
    components, full batches only, a writer at the end. Same network on the same onnxruntime.
`bare`
    Takes frames and does nothing: what transport and library allow.

A receiver prints "ready" once it listens, ends on SIGTERM, and leaves times in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.device import PeakPredictor
from edgexnas.device.monitoring import open_views
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import FrameResult
from edgexnas.device.sources import SourceFrame, open_event_source
from edgexnas.device.sources.simplon.messages import ImageMessage, parse_message

EDGEBRAGG_BATCH = 32


class Times:
    """When each frame was sent, came, and had its result."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, float, float, float]] = []

    def add(self, number: int, sent_s: float | None, arrival_ns: int) -> None:
        """Note that the result of a frame is here."""
        done_ns, done_s = time.monotonic_ns(), time.time()
        sent = float("nan") if sent_s is None else (done_s - sent_s) * 1e3
        self._rows.append((number, sent, (done_ns - arrival_ns) / 1e6, done_s))

    def __len__(self) -> int:
        return len(self._rows)

    def report(self) -> dict[str, Any]:
        """Summarise: percentiles in ms over all frames and second by second."""
        rows = np.array(self._rows, np.float64).reshape(-1, 4)
        summary: dict[str, Any] = {
            "results": len(rows),
            "distinct": len(np.unique(rows[:, 0])),
            "first": int(rows[0, 0]) if len(rows) else None,
            "last": int(rows[:, 0].max()) if len(rows) else None,
        }
        for name, column in (("from_sending_ms", 1), ("from_arrival_ms", 2)):
            times = rows[:, column]
            times = times[np.isfinite(times)]
            if len(times):
                p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
                summary[name] = {"p50": p50, "p95": p95, "p99": p99, "max": float(times.max())}
        if len(rows):
            second = (rows[:, 3] - rows[0, 3]).astype(int)
            # Each second: how many, then p50 and p99 from sending and from arrival.
            summary["seconds"] = [
                [
                    int(s),
                    int(here.sum()),
                    *np.nanpercentile(rows[here, 1:3], (50, 99), 0).T.ravel().tolist(),
                ]
                for s in np.unique(second)
                for here in [second == s]
            ]
        return summary


class TimedSink(Hdf5Sink):
    """An HDF5 sink that notes when results are stored."""

    def __init__(self, folder: str, times: Times) -> None:
        super().__init__(folder)
        self._times = times

    def write(self, results: Sequence[FrameResult]) -> None:
        """Store results; when they are, their frames are done."""
        super().write(results)
        for result in results:
            self._times.add(result.number, result.timestamp_s, result.arrival_ns)


def run_service(options: argparse.Namespace, stop: threading.Event) -> dict[str, Any]:
    """Receive with edgexnas."""
    times = Times()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-stream-"))
        predictor = stack.enter_context(
            PeakPredictor(options.bundle, trust=options.trust, precision="float32")
        )
        sinks = [TimedSink(folder, times)]
        # Twice the usual queue: half a second of estimating the background is 100 frames.
        settings = PipelineSettings(queue_mib=384)
        service = Service(predictor, open_event_source(options.url), sinks, settings=settings)
        service.views = open_views(service, http_port=options.port, pv_prefix=None, terminal=False)
        threading.Thread(target=_after, args=(stop, service.stop), daemon=True).start()
        _ready()
        status = service.run()
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        **times.report(),
        "ledger": dict(status.counts),
        "peaks": status.peaks_total,
        "stage_ms": {name: [summary.p50, summary.p99] for name, summary in status.stage_ms.items()},
        "stored_bytes": stored,
        "last_error": status.last_error.message if status.last_error else None,
    }


def run_bare(options: argparse.Namespace, stop: threading.Event) -> dict[str, Any]:
    """Receive and do nothing: a pvapy callback, or a ZMQ socket of which headers are read."""
    times = Times()
    scheme, _, place = options.url.partition("://")
    place = place.partition("?")[0]
    if scheme == "pva":
        ids: list[int] = []

        def take(update: Any) -> None:
            arrival = time.monotonic_ns()
            if not update["value"][0]:
                return
            ids.append(update["uniqueId"])
            stamp = update["dataTimeStamp"]
            sent = stamp["secondsPastEpoch"] + stamp["nanoseconds"] * 1e-9
            times.add(ids[-1], sent, arrival)

        with _monitor(place, take, options.queue):
            _ready()
            stop.wait()
        return times.report()
    import zmq

    socket: Any = zmq.Context.instance().socket(zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, options.queue)
    socket.setsockopt(zmq.RCVTIMEO, 100)
    socket.connect(f"tcp://{place}")
    _ready()
    while not stop.is_set():
        try:
            message = socket.recv(copy=False)
        except zmq.Again:
            continue
        arrival = time.monotonic_ns()
        # The header alone: when it was sent. The image stays compressed.
        header = parse_message(message.buffer)
        if isinstance(header, ImageMessage):
            times.add(header.number, header.time_s, arrival)
    socket.close(0)
    return times.report()


def run_threads(options: argparse.Namespace, stop: threading.Event) -> dict[str, Any]:
    """Receive as edgeBragg does, with threads instead of processes so that no frame is pickled."""
    import cv2
    import h5py
    import onnxruntime

    cv2.setNumThreads(1)
    times, troubles = Times(), []
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_model(options.bundle), settings)
    name = session.get_inputs()[0].name
    frames: queue.Queue[Any] = queue.Queue()
    batches: queue.Queue[Any] = queue.Queue()
    results: queue.Queue[Any] = queue.Queue()
    most = {"frames": 0}

    def process() -> None:
        patches: list[Any] = []
        owners: list[Any] = []
        while True:
            frame, about = frames.get()
            most["frames"] = max(most["frames"], frames.qsize())
            found = _connected_patches(cv2, frame, options.threshold)
            patches += found
            owners += [about] * len(found)
            # A rest that does not fill a batch waits for the next frame, as it does there.
            while len(patches) >= EDGEBRAGG_BATCH:
                batches.put((np.stack(patches[:EDGEBRAGG_BATCH]), owners[:EDGEBRAGG_BATCH]))
                del patches[:EDGEBRAGG_BATCH], owners[:EDGEBRAGG_BATCH]

    def infer() -> None:
        while True:
            batch, owners = batches.get()
            results.put((session.run(None, {name: batch[:, None]})[0], owners))

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder, h5py.File(f"{folder}/x.h5", "w") as file:
            kept: Any = None
            newest = None
            while True:
                rows, owners = results.get()
                rows = rows.reshape(len(rows), -1)
                if kept is None:
                    kept = file.create_dataset(
                        "peaks", (0, rows.shape[1]), "f4", maxshape=(None, rows.shape[1])
                    )
                kept.resize(len(kept) + len(rows), 0)
                kept[-len(rows) :] = rows
                # A frame has its result when a batch with peaks of the next one is written.
                for owner in owners:
                    if newest is not None and owner != newest:
                        times.add(*newest)
                    newest = owner

    def guarded(stage: Callable[[], None]) -> None:
        try:
            stage()
        except Exception as error:
            troubles.append(f"{stage.__name__}: {error}")

    for stage in (process, infer, write):
        threading.Thread(target=guarded, args=(stage,), daemon=True).start()
    _receive_simply(options, stop, lambda frame, about: frames.put((frame, about)))
    report = times.report()
    return {**report, "waiting_frames": frames.qsize(), "most_waiting_frames": most["frames"],
            "last_error": troubles[0] if troubles else None}  # fmt: skip


def _receive_simply(
    options: argparse.Namespace, stop: threading.Event, put: Callable[[Any, Any], None]
) -> None:
    if options.url.startswith("pva://"):
        place = options.url.partition("://")[2].partition("?")[0]

        def take(update: Any) -> None:
            arrival = time.monotonic_ns()
            if not update["value"][0]:
                return
            stamp = update["dataTimeStamp"]
            sent = stamp["secondsPastEpoch"] + stamp["nanoseconds"] * 1e-9
            width, height = (dimension["size"] for dimension in update["dimension"])
            frame = update["value"][0]["ushortValue"].reshape(height, width)
            put(frame, (update["uniqueId"], sent, arrival))

        with _monitor(place, take, options.queue):
            _ready()
            stop.wait()
        return
    # Stream V2: the same decoder as edgexnas', since theirs have none.
    source = open_event_source(options.url)
    threading.Thread(target=_after, args=(stop, source.close), daemon=True).start()
    _ready()
    for event in source.events():
        if isinstance(event, SourceFrame):
            put(event.pixels, (event.number, event.timestamp_s, event.arrival_ns))


class _monitor:  # noqa: N801
    """A pvapy monitor with a queue of its server's size, while the block runs."""

    def __init__(self, channel: str, take: Callable[[Any], None], size: int) -> None:
        import pvaccess

        self._channel = pvaccess.Channel(channel)
        self._take, self._size = take, size

    def __enter__(self) -> None:
        self._channel.monitor(self._take, f"record[queueSize={self._size}]field()")

    def __exit__(self, *_: object) -> None:
        self._channel.stopMonitor()


def _connected_patches(cv2: Any, frame: Any, threshold: int, size: int = 11) -> list[Any]:
    """Cut out connected components above a threshold, scaled, others masked."""
    mask = (frame > threshold).astype(np.uint8)
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask)
    height, width = frame.shape
    patches = []
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] == 1:
            continue
        if max(stats[label, cv2.CC_STAT_WIDTH], stats[label, cv2.CC_STAT_HEIGHT]) > size:
            continue
        col, row = (round(value) - size // 2 for value in centroids[label])
        if not (0 <= row <= height - size and 0 <= col <= width - size):
            continue
        window = slice(row, row + size), slice(col, col + size)
        patch = frame[window] * (labels[window] == label)
        low, high = patch.min(), patch.max()
        patches.append(((patch - low) / max(1, high - low)).astype(np.float32))
    return patches


def _model(bundle: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(bundle) as archive:
        return archive.read("model.onnx")


_READY = {"cpu_s": 0.0}


def _after(stop: threading.Event, end: Callable[[], None]) -> None:
    stop.wait()
    end()


def _ready() -> None:
    """Tell who waits, and charge no frame for imports and opening the model."""
    _READY["cpu_s"] = time.process_time()
    print("ready", flush=True)


RECEIVERS = {"service": run_service, "threads": run_threads, "bare": run_bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("receiver", choices=RECEIVERS)
    parser.add_argument("url")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--port", type=int, help="of the web page")
    parser.add_argument("--queue", type=int, default=100, help="updates or messages under way")
    parser.add_argument("--threshold", type=int, default=60, help="of connected components")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    report = RECEIVERS[options.receiver](options, stop)
    report |= {
        "cpu_s": time.process_time() - _READY["cpu_s"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    options.output.write_text(json.dumps(report))
    sys.stdout.flush()
    # Threads that wait for ever in a library end with the process, not before.
    os._exit(0)


if __name__ == "__main__":
    main()
