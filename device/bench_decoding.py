"""Measure how long a frame takes from its compressed bytes to pixels, beside other decoders.

    python device/bench_decoding.py --page docs/results/decoding.md

Others take part where they are installed (pip install dectris-compression bitshuffle lz4 blosc
cbor2); h5py with hdf5plugin, through a file in memory, always does. All run in turn, in one
thread, on the same bytes; a number is the median over all rounds.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from edgexnas.device.sources import SourceFrame, open_event_source
from edgexnas.device.sources.compression import compress, decompress
from edgexnas.device.sources.files.direct_chunks import ChunkReader
from edgexnas.device.sources.simplon.cbor import load_cbor
from edgexnas.device.sources.simplon.messages import ImageMessage, parse_message
from edgexnas.device.sources.simulated import SimulatedOptions, simulate_frames
from edgexnas.frames import open_frames
from edgexnas.frames.hdf5_layout import frame_axes
from edgexnas.whole_files import write_whole

Decoder = Callable[[], Any]
FILTERS = {
    "bslz4": hdf5plugin.Bitshuffle(cname="lz4"),
    "lz4": hdf5plugin.LZ4(nbytes=8192),
    "blosc": hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    parser.add_argument("--capture", type=Path, help="image message of a detector, .cbor")
    options = parser.parse_args()
    sent = simulate_frames("hedm", SimulatedOptions(shape=(1024, 1024), frames=8)).stack
    lines = introduction(options) + decoding(sent[0], options.rounds) + replaying(sent)
    if options.capture is not None:
        lines += reading(options.capture.read_bytes(), options.rounds)
    page = "\n".join(lines).rstrip() + "\n"
    print(page)
    if options.page is not None:
        write_whole(options.page, page.encode())


def introduction(options: argparse.Namespace) -> list[str]:
    capture = " --capture eiger16m_stream2_image.cbor" if options.capture else ""
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in facts if "model name" in line), platform.machine())
    return [
        "# From compressed bytes to pixels",
        "",
        f"`python device/bench_decoding.py{capture} --page docs/results/decoding.md`",
        "",
        f"{cpu}, {os.cpu_count()} cores, one thread, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, h5py {h5py.__version__}, hdf5plugin {hdf5plugin.version}. All "
        f"decoders in turn in one run, median of {options.rounds} rounds.",
        "",
    ]


def decoding(frame: np.ndarray, rounds: int) -> list[str]:
    """Compare decoders on a simulated frame of 1024×1024 uint16."""
    lines = [
        "## A frame of 1024×1024 uint16",
        "",
        "Simulated Bragg frame, about 100 peaks on 20 counts of background. «edgexnas» is what a "
        "source does with a message: check every size, then decode into new memory.",
        "",
        "| codec | smaller by | decoder | ms a frame | time, edgexnas = 1 |",
        "|---|---|---|---|---|",
    ]
    for codec in ("none", "lz4", "bslz4", "blosc"):
        payload = compress(codec, frame)
        decoders: dict[str, Decoder] = {
            "edgexnas": partial(decompress, codec, payload, frame.shape, frame.dtype)
        }
        decoders |= others(codec, frame, payload)
        times = measure(decoders, rounds)
        for name, milliseconds in times.items():
            # Below 1 the other one is faster.
            ratio = milliseconds / times["edgexnas"]
            lines.append(
                f"| {codec} | {frame.nbytes / len(payload):.2f} | {name} | "
                f"{milliseconds:.3f} | {ratio:.2f} |"
            )
    return [*lines, ""]


def others(codec: str, frame: np.ndarray, payload: bytes) -> dict[str, Decoder]:
    found: dict[str, Decoder] = {}
    if codec == "none":
        found["a copy"] = frame.copy
        return found
    with_header = payload if codec == "blosc" else compress(f"{codec}-hdf5", frame)
    file = h5py.File(f"{codec}-memory", "w", driver="core", backing_store=False)
    data = file.create_dataset(
        "d", frame.shape, frame.dtype, chunks=frame.shape, compression=FILTERS[codec]
    )

    def through_hdf5() -> np.ndarray:
        data.id.write_direct_chunk((0, 0), with_header)
        # Written again, the chunk is not in HDF5's cache.
        return np.asarray(data[()])

    found["h5py + hdf5plugin, file in memory"] = through_hdf5
    if codec == "bslz4" and (dectris := optional("dectris.compression")):
        found["dectris-compression"] = lambda: np.frombuffer(
            dectris.decompress(with_header, "bslz4", elem_size=2), "<u2"
        )
    if codec == "bslz4" and (bitshuffle := optional("bitshuffle")):
        packed = np.frombuffer(payload, np.uint8)
        found["bitshuffle, as pvapy calls it"] = lambda: bitshuffle.decompress_lz4(
            packed, (frame.size,), frame.dtype, 0
        )
    if codec == "lz4" and (lz4 := optional("lz4.block")):
        found["lz4, as pvapy calls it"] = lambda: np.frombuffer(
            lz4.decompress(bytearray(payload), uncompressed_size=frame.nbytes), "<u2"
        )
    if codec == "blosc" and (blosc := optional("blosc")):

        def with_blosc() -> np.ndarray:
            pixels = np.empty(frame.size, frame.dtype)
            blosc.decompress_ptr(bytearray(payload), pixels.ctypes.data)
            return pixels

        found["blosc, as pvapy calls it"] = with_blosc
    for name, decoder in found.items():
        if not np.array_equal(np.reshape(decoder(), frame.shape), frame):
            raise SystemExit(f"{name} does not decode {codec} to the frame")
    return found


def replaying(frames: np.ndarray) -> list[str]:
    """Compare the replay of a file with reading the same file frame by frame."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "entry/data/data",
                data=np.tile(frames, (24, 1, 1)),
                chunks=(1, *frames.shape[1:]),
                compression=FILTERS["bslz4"],
            )

        def source() -> int:
            return sum(isinstance(event, SourceFrame) for event in open_event_source(path).events())

        def series() -> int:
            with open_frames(path) as opened:
                return sum(1 for _ in opened)

        count = source()
        times = measure({"file:// source": source, "open_frames": series}, 5)
        with h5py.File(path) as file:
            data = file["entry/data/data"]
            chunks = ChunkReader(data, path, frame_axes(data, path))
            waits: dict[str, list[float]] = {"file:// source": [], "open_frames": []}
            for _ in range(3):
                waits["file:// source"] += waits_beside(lambda n: chunks.read(n % count))
                waits["open_frames"] += waits_beside(lambda n: data[n % count])
    return [
        f"## A file of {count} such frames (bslz4), in the page cache",
        "",
        "h5py lets one thread of a process into HDF5 at a time, so that a sink that writes results "
        "waits for the reader. A source reads a chunk there and decodes it outside. The wait is "
        "that of a write of 4 bytes to another file, in a second thread.",
        "",
        "| reader | frames a second | wait of a small write, ms: p50 | p95 | p99 |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {count / ms * 1e3:.0f} | "
            f"{' | '.join(f'{wait:.2f}' for wait in np.percentile(waits[name], (50, 95, 99)))} |"
            for name, ms in times.items()
        ),
        "",
    ]


def waits_beside(read: Callable[[int], Any], seconds: float = 3.0) -> list[float]:
    """Time small writes, in ms, while another thread reads frame after frame."""
    ended = threading.Event()

    def read_on() -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            read(number)

    reader = threading.Thread(target=read_on)
    times = []
    with h5py.File("sink-memory", "w", driver="core", backing_store=False) as sink:
        rows = sink.create_dataset("rows", (10,), "f4")
        reader.start()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(0.003)
            began = time.perf_counter()
            rows[0] = 1.0
            times.append((time.perf_counter() - began) * 1e3)
        ended.set()
        reader.join()
    return times


def reading(message: bytes, rounds: int) -> list[str]:
    """Compare readers of CBOR, and decoders, on a message of a real detector."""
    readers: dict[str, Decoder] = {"edgexnas": lambda: load_cbor(message)}
    if cbor2 := optional("cbor2"):
        readers["cbor2"] = lambda: cbor2.loads(message)
    image = parse_message(message)
    if not isinstance(image, ImageMessage):
        raise SystemExit("the capture is not an image message; name one such as *_image.cbor")
    encoded = next(iter(image.data.values()))
    shape, typed = encoded.value
    payload = bytes(typed.value.value[2])
    dtype = np.dtype("<u2")
    decoders: dict[str, Decoder] = {
        "edgexnas": lambda: decompress("bslz4-hdf5", payload, tuple(shape), dtype),
    }
    if dectris := optional("dectris.compression"):
        decoders["dectris-compression"] = lambda: np.frombuffer(
            dectris.decompress(payload, "bslz4", elem_size=2), dtype
        )
    size = f"{shape[0]}×{shape[1]} uint16"
    return [
        f"## A real image message of {len(message)} bytes: EIGER2 16M, {size}",
        "",
        "| step | with | ms |",
        "|---|---|---|",
        *(f"| CBOR | {name} | {ms:.3f} |" for name, ms in measure(readers, rounds).items()),
        *(f"| bslz4 | {name} | {ms:.2f} |" for name, ms in measure(decoders, rounds).items()),
        "",
    ]


def measure(decoders: dict[str, Decoder], rounds: int) -> dict[str, float]:
    """Median time of each in ms, all in turn."""
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for turn in range(rounds + 3):
        for name, decoder in decoders.items():
            began = time.perf_counter()
            decoder()
            if turn >= 3:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
