"""Frames that are simulated and encoded before they are sent, and sent at a rate."""

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

__all__ = ["PreparedFrames", "prepare", "send_all"]


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


def send_all(
    options: argparse.Namespace,
    *,
    begin: Callable[[int], None],
    send: Callable[[int, float], None],
    end: Callable[[int, int], None],
) -> None:
    """Send every series at the rate, with the faults that were requested, and report.

    Parameters
    ----------
    options
        Parsed arguments.
    begin, end
        Called with the number of the series, and `end` with how many frames it had.
    send
        Called with the number of the frame and the detector's time of it in Unix seconds.
    """
    # A line for programs that start this one: they connect when they read it.
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
                # By what was sent and not by number: a gap must not leave a hole in time.
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
    # Beforehand: compressing costs more than sending, and would set the rate.
    encoded = [] if codec == "none" else [compress(codec, frame) for frame in frames.stack]
    return PreparedFrames(frames, codec, encoded)
