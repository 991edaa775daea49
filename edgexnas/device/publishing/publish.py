"""A detector to try a service with: python -m edgexnas.device.publishing.publish pva|simplon ...

It sends simulated frames at a rate, over EPICS PV Access as areaDetector does, or over ZMQ as a
DECTRIS detector does. Frames are made and compressed before the first is sent. It prints "ready"
when it can be connected to, and at the end what it sent, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.publishing.sending_order import Faults, sending_order
from edgexnas.device.sources.compression import compress
from edgexnas.device.sources.pacing import Pacer
from edgexnas.device.sources.simulated import (
    SimulatedFrames,
    SimulatedOptions,
    simulate_frames,
)
from edgexnas.device.sources.source_url import checked_options
from edgexnas.errors import EdgexnasError

__all__ = ["PreparedFrames", "main", "send_all"]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedFrames:
    """Frames ready for sending, which repeat.

    Attributes
    ----------
    frames
        What was simulated.
    codec
        One of `edgexnas.device.sources.compression.CODECS`.
    payloads
        Encoded frames; empty with codec "none".
    """

    frames: SimulatedFrames
    codec: str
    payloads: Sequence[bytes]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.frames.stack.shape[1], self.frames.stack.shape[2]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self.frames.stack.dtype

    def __len__(self) -> int:
        return len(self.frames.stack)

    def data(self, number: int) -> npt.NDArray[Any]:
        """Frame `number` of a series as it is sent: (H, W) pixels, or its encoded bytes."""
        index = number % len(self)
        if self.codec == "none":
            frame: npt.NDArray[Any] = self.frames.stack[index]
            return frame
        return np.frombuffer(self.payloads[index], np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.send(options)
    except EdgexnasError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def send_all(
    options: argparse.Namespace,
    *,
    begin: Callable[[int], None],
    send: Callable[[int, float], None],
    end: Callable[[int, int], None],
) -> None:
    """Send every series at the rate, with the faults that were asked for, and report.

    Parameters
    ----------
    options
        Parsed arguments.
    begin, end
        Called with the number of the series, and `end` with how many frames it had.
    send
        Called with the number of the frame and the detector's time of it in Unix seconds.
    """
    print("ready", flush=True)  # noqa: T201
    if options.hold:
        sys.stdin.readline()
    time.sleep(options.delay)
    pacer = Pacer(options.rate)
    faults = Faults(options.gap, options.duplicate, options.reorder)
    sent = 0
    began, cpu = time.perf_counter(), time.process_time()
    with suppress(KeyboardInterrupt):
        for series in range(options.series):
            if series:
                time.sleep(options.pause)
            begin(series)
            # Every frame has its own time, which a repetition repeats.
            start_s, period_s = time.time(), 1 / (options.rate or 1000.0)
            before = sent
            for number in sending_order(options.frames, faults):
                pacer.wait(sent)
                send(number, start_s + number * period_s)
                sent += 1
            end(series, sent - before)
    seconds = time.perf_counter() - began
    report = {
        "sent": sent,
        "seconds": round(seconds, 3),
        "rate": round(sent / seconds, 1),
        "cpu_ms_per_frame": round((time.process_time() - cpu) * 1e3 / max(1, sent), 3),
    }
    print(json.dumps(report), flush=True)  # noqa: T201
    # What is on its way is not lost with the process.
    time.sleep(options.linger)


def prepare(options: argparse.Namespace, codec: str) -> PreparedFrames:
    """Simulate and encode the frames that are sent."""
    given = {name: getattr(options, name) for name in ("shape", "seed", "peaks", "frames")}
    given = {name: value for name, value in given.items() if value is not None}
    checked = checked_options("the publisher", SimulatedOptions, given, {})
    frames = simulate_frames(options.experiment, checked)
    if options.dtype is not None:
        stack = frames.stack.astype(options.dtype)
        frames = SimulatedFrames(stack, frames.mask, frames.positions_m)
    encoded = [] if codec == "none" else [compress(codec, frame) for frame in frames.stack]
    return PreparedFrames(frames, codec, encoded)


def _send_pva(options: argparse.Namespace) -> None:
    from edgexnas.device.publishing.pva import send_pva

    send_pva(options, prepare(options, options.codec))


def _send_simplon(options: argparse.Namespace) -> None:
    from edgexnas.device.publishing.simplon import send_simplon

    codec = options.codec if options.codec == "none" else f"{options.codec}-hdf5"
    send_simplon(options, prepare(options, codec))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgexnas.device.publishing.publish", description=__doc__.split("\n")[0]
    )
    kinds = parser.add_subparsers(required=True, metavar="pva|simplon")
    pva = kinds.add_parser("pva", help="NTNDArray over EPICS PV Access")
    pva.add_argument("channel", nargs="?", default="EDGEX:SIM:Image", help="name of the PV")
    pva.add_argument("--positions", metavar="CHANNEL", help="send scan positions on another PV")
    pva.add_argument("--codec", choices=["none", "lz4", "bslz4", "blosc"], default="none")
    pva.add_argument("--linger", type=float, default=1.0, help="seconds to stay after the end")
    pva.set_defaults(send=_send_pva)
    simplon = kinds.add_parser("simplon", help="DECTRIS Stream V2 over ZMQ PUSH")
    simplon.add_argument("address", nargs="?", default="tcp://127.0.0.1:31001")
    simplon.add_argument("--codec", choices=["none", "lz4", "bslz4"], default="bslz4")
    simplon.add_argument("--queue", type=int, default=100, help="messages that may wait")
    simplon.add_argument("--linger", type=float, default=5.0, help="seconds to wait for a receiver")
    simplon.set_defaults(send=_send_simplon)
    for kind in (pva, simplon):
        kind.add_argument("--experiment", choices=["hedm", "ptycho"], default="hedm")
        kind.add_argument("--shape", help="rows x columns, such as 1024x1024")
        kind.add_argument("--dtype", choices=["uint8", "uint16", "uint32", "int32", "float32"])
        kind.add_argument("--rate", type=float, help="frames a second; as fast as it goes if unset")
        kind.add_argument("--frames", type=int, help="frames of a series; endless if unset")
        kind.add_argument("--series", type=int, default=1, help="number of series")
        kind.add_argument("--pause", type=float, default=0.0, help="seconds between series")
        kind.add_argument("--peaks", type=int, help="about how many peaks a frame has")
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--gap", type=int, default=0, metavar="N", help="leave out every N-th")
        kind.add_argument("--duplicate", type=int, default=0, metavar="N", help="send it twice")
        kind.add_argument("--reorder", type=int, default=0, metavar="N", help="send it late")
        kind.add_argument("--delay", type=float, default=0.0, help="seconds to wait after «ready»")
        kind.add_argument("--hold", action="store_true", help="wait for a line on standard input")
    return parser


if __name__ == "__main__":
    sys.exit(main())
