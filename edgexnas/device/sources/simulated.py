"""A simulated detector that runs at a rate, so that a service can be tried without a beamline."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgexnas.device.sources.events import SeriesEnd, SeriesStart, SourceEvent, SourceFrame
from edgexnas.device.sources.pacing import Pacer
from edgexnas.device.sources.source_url import FrameShape, SourceOptions, SourceUrl
from edgexnas.errors import ConfigurationError

__all__ = ["SimulatedFrames", "SimulatedOptions", "SimulatedSource", "simulate_frames"]

Experiment: TypeAlias = Literal["hedm", "ptycho"]

DISTINCT_BYTES = 64 * 1024 * 1024
"""Frames are made before the first is sent, as many as fit here, and repeated."""

DISTINCT_FRAMES = 32

# Enough that the number of peaks they give tells how many grains are needed.
FEW_GRAINS = 16
DETECTOR_MM = 205.0


class SimulatedOptions(SourceOptions):
    """Parameters of a simulated detector.

    Attributes
    ----------
    shape
        (rows, columns); a ptychography pattern is square, its side a multiple of 64.
    rate
        Frames a second, whether they are taken or not; None for as fast as they are taken.
    frames
        Frames of a series; None for no end.
    series
        Number of series, one after the other.
    queue
        How many frames may wait for a consumer that is behind; further ones are lost, as on a
        real detector.
    seed
        Equal seeds give equal frames.
    peaks
        About how many peaks a frame has on average (hedm).
    pixel_nm
        Side of a pixel of the object in nanometres, which scales positions (ptycho).
    """

    shape: FrameShape | None = None
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    frames: Annotated[int, Field(ge=1)] | None = None
    series: Annotated[int, Field(ge=1)] = 1
    queue: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0)] = 0
    peaks: Annotated[int, Field(ge=1)] = 100
    pixel_nm: Annotated[float, Field(gt=0)] = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedFrames:
    """Frames that repeat.

    Attributes
    ----------
    stack
        (n, H, W) counts.
    mask
        (H, W) bool, True where a pixel is unusable; None if all are usable.
    positions_m
        (n, 2), (row, col) in metres; None for Bragg frames.
    """

    stack: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_] | None = None
    positions_m: npt.NDArray[np.float64] | None = None

    def position(self, number: int) -> tuple[float, float] | None:
        """Position of frame `number` of a series."""
        if self.positions_m is None:
            return None
        row, col = self.positions_m[number % len(self.stack)].tolist()
        return row, col


class SimulatedSource:
    """A simulated detector; see `edgexnas.device.sources.EventSource`.

    Frames are simulated when `events` is first asked, then repeated, so that the rate is limited
    by who takes them. With a rate, frames are due whether they are taken or not.
    """

    def __init__(self, url: str, experiment: Experiment, options: SimulatedOptions) -> None:
        self.url = url
        self.live = options.rate is not None
        self._experiment = experiment
        self._options = options
        ticks = None if options.frames is None else options.frames * options.series
        self._pacer = Pacer(options.rate, backlog=options.queue, ticks=ticks)
        self._counts: Counter[str] = Counter()

    @classmethod
    def open(cls, url: SourceUrl, given: Mapping[str, Any]) -> SimulatedSource:
        """Check a URL sim://hedm or sim://ptycho; `given` are further parameters."""
        experiment = next((name for name in _MAKERS if name == url.place), None)
        if experiment is None:
            raise ConfigurationError(
                f"{url.text} names no simulated experiment; specify one of "
                f"{', '.join(f'sim://{name}' for name in _MAKERS)}"
            )
        return cls(url.text, experiment, url.options(SimulatedOptions, given))

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over frames until the last series ends, or `close`."""
        frames = simulate_frames(self._experiment, self._options)
        tick = 0
        # Equal frames, whatever the rate and however many series.
        unlike = {"rate", "queue", "series"}
        about = self._options.model_dump_json(exclude=unlike, exclude_defaults=True)
        for turn in range(self._options.series):
            name = f"{self._experiment}-{self._options.seed}-{turn + 1:06d}"
            yield SeriesStart(
                name,
                identity=f"{name} {about}",
                shape=frames.stack.shape[1:],
                dtype=frames.stack.dtype,
                frames_expected=self._options.frames,
                mask=frames.mask,
                metadata={"experiment": self._experiment, "seed": self._options.seed},
                arrival_ns=time.monotonic_ns(),
            )
            number = 0
            while self._options.frames is None or number < self._options.frames:
                due_ns = self._pacer.wait(tick)
                if self._pacer.closed:
                    break
                if due_ns is None:
                    self._counts["missed"] += 1
                else:
                    self._counts["frames"] += 1
                    yield self._frame(name, number, frames, due_ns)
                number += 1
                tick += 1
            yield SeriesEnd(name, number, time.monotonic_ns())
            if self._pacer.closed:
                return

    def _frame(self, series: str, number: int, frames: SimulatedFrames, due_ns: int) -> SourceFrame:
        # The detector's time is when the frame was due, not when somebody took it.
        late_s = (time.monotonic_ns() - due_ns) / 1e9
        return SourceFrame(
            series,
            number,
            # Not copied: the stack is read-only, and copying would limit the rate.
            frames.stack[number % len(frames.stack)],
            due_ns,
            timestamp_s=time.time() - late_s,
            position_m=frames.position(number),
        )

    def close(self) -> None:
        """Let `events` end soon."""
        self._pacer.close()

    def status(self) -> Mapping[str, int | str]:
        """Count frames that were taken, and missed ones that were not taken in time."""
        names = ("frames", "missed", "malformed", "reconnects", "overruns")
        return {name: self._counts[name] for name in names}


def simulate_frames(experiment: Experiment, options: SimulatedOptions) -> SimulatedFrames:
    """Make the frames that a simulated detector repeats.

    Raises
    ------
    ConfigurationError
        If the options do not suit the experiment; it names the field.
    """
    frames = _MAKERS[experiment](options)
    # Whoever takes a frame must not change the ones to come.
    frames.stack.flags.writeable = False
    return frames


def _hedm(options: SimulatedOptions) -> SimulatedFrames:
    # Imported late: only who simulates needs it.
    from edgexnas.simulate import HedmSettings, simulate_hedm

    shape = options.shape or (1024, 1024)
    fitting = max(1, min(DISTINCT_FRAMES, DISTINCT_BYTES // (2 * shape[0] * shape[1])))
    count = min(fitting, options.frames or fitting)
    # Peaks grow with grains, so a few grains tell how many are needed.
    # The detector keeps its size in millimetres, so that the same rings lie on any shape.
    few = HedmSettings(
        shape=shape, frames=count, grains=FEW_GRAINS, pixel_mm=DETECTOR_MM / min(shape)
    )
    truth = simulate_hedm(few, seed=options.seed).truth
    grains = round(FEW_GRAINS * options.peaks * count / max(1, len(truth)))
    series = simulate_hedm(replace(few, grains=max(1, grains)), seed=options.seed)
    return SimulatedFrames(np.stack(list(series)), mask=series.mask)


def _ptycho(options: SimulatedOptions) -> SimulatedFrames:
    from edgexnas.simulate import PtychographySettings, simulate_scan

    rows, cols = options.shape or (64, 64)
    if rows != cols:
        raise ConfigurationError(f"shape {rows}x{cols} is not square, as patterns are; specify one")
    settings = PtychographySettings(pattern_size=rows)
    if options.frames is not None:
        # No more positions than there are frames, but a scan in two directions.
        side = settings.step_px * max(1, math.isqrt(options.frames))
        smaller = min(int(side), settings.scan_shape_px[0])
        settings = replace(settings, scan_shape_px=(smaller, smaller))
    scan = simulate_scan(settings, seed=options.seed)
    return SimulatedFrames(
        scan.patterns, mask=scan.mask, positions_m=scan.positions_px * options.pixel_nm * 1e-9
    )


_MAKERS: dict[Experiment, Callable[[SimulatedOptions], SimulatedFrames]] = {
    "hedm": _hedm,
    "ptycho": _ptycho,
}
