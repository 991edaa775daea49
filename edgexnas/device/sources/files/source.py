"""Frames of a file, given at a rate, also while another process is still writing them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgexnas.device.sources.compression import FrameMemory
from edgexnas.device.sources.encoded_frames import (
    Decoder,
    EncodedFrame,
    EncodedPixels,
    Payload,
    decoded_events,
)
from edgexnas.device.sources.events import (
    SeriesEnd,
    SeriesStart,
    SourceEvent,
    SourceFrame,
    SourceTrouble,
)
from edgexnas.device.sources.files.file_series import FileOptions, FileSeries
from edgexnas.device.sources.pacing import Pacer
from edgexnas.device.sources.source_url import SourceUrl
from edgexnas.errors import ConfigurationError, InputError, MissingFrameError, SourceError
from edgexnas.frames.reading import number_ranges

__all__ = ["FileSource"]

_POLL_S = 0.05
"""How often a file that grows is asked for new frames."""

_GAP_S = 2.0
"""How long a frame that was not written is waited for while later ones are there."""


class FileSource:
    """Frames of a file; see `edgexnas.device.sources.EventSource`.

    Chunks of HDF5 files are decoded directly (`ChunkReader`); other files are read as
    `edgexnas.frames.open_frames` does. A frame that cannot be read is a `SourceTrouble` with its
    number, and the file goes on. Frames that are not there are left out, so that they are lost, and
    a `SourceTrouble` without a number names them.
    """

    live = False

    def __init__(self, url: str, path: Path, options: FileOptions) -> None:
        self.url = url
        self._path = path
        self._options = options
        self._pacer = Pacer(options.rate)
        self._tick = 0
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    @classmethod
    def open(cls, url: SourceUrl, given: Mapping[str, Any]) -> FileSource:
        """Check a path or a file:// URL and that its frames can be found."""
        options = url.options(FileOptions, given)
        path = Path(url.place)
        if options.follow and options.repeat > 1:
            raise ConfigurationError(f"{url.text} is followed, so it cannot repeat; leave one out")
        if not options.follow:
            # Opened and closed at once, so that a wrong path is an error at the start and not in a
            # thread.
            FileSeries(path, options).close()
        return cls(url.text, path, options)

    def events(self) -> Iterator[SourceEvent]:
        """Iterate over the frames; ends with the file, or after `close`."""
        return decoded_events(self.encoded_events())

    def encoded_events(self) -> Iterator[SourceEvent | EncodedFrame]:
        """Iterate as `events` does, with compressed frames not decoded."""
        for turn in range(self._options.repeat):
            name = self._path.name + (f"#{turn + 1}" if self._options.repeat > 1 else "")
            series = self._wait_for_series()
            if series is None:
                return
            with closing(series):
                yield self._start(name, series, turn)
                following = 0
                for number in self._numbers(series):
                    yield from self._lost(name, range(following, number), series)
                    yield self._event(name, number, series)
                    following = number + 1
                if not self._pacer.closed:
                    yield from self._lost(name, range(following, len(series)), series)
                    following = len(series)
                    fault = series.why_it_ends() if self._options.follow else None
                    if fault is not None:
                        yield SourceTrouble(name, None, fault, time.monotonic_ns())
                # Not in a finally: a series whose file failed has not ended in order.
                yield SeriesEnd(name, following, time.monotonic_ns())
            if self._pacer.closed:
                return

    def close(self) -> None:
        """Let `events` end before its next frame."""
        self._pacer.close()

    def status(self) -> Mapping[str, int | str]:
        """Count frames, and those that could not be read."""
        names = ("frames", "missed", "malformed", "reconnects", "overruns")
        return {name: self._counts[name] for name in names}

    def _start(self, name: str, series: FileSeries, turn: int) -> SeriesStart:
        frames = series.frames
        metadata = {} if frames.identity is None else frames.identity.metadata()
        return SeriesStart(
            name,
            shape=frames.shape,
            dtype=frames.dtype,
            frames_expected=None if self._options.follow else len(series),
            mask=frames.mask,
            saturation=frames.saturation,
            identity=series.identity + (f"#{turn + 1}" if turn else ""),
            metadata={**metadata, "path": str(self._path)},
            arrival_ns=time.monotonic_ns(),
        )

    def _lost(self, name: str, numbers: range, series: FileSeries) -> Iterator[SourceTrouble]:
        """Name frames that are not there; without a number, for they are lost and not failed."""
        if numbers:
            self._count("missed", len(numbers))
            reason = series.why_missing(numbers[0])
            message = f"missing are {len(numbers)} frames of {self._path} (numbers "
            message += f"{number_ranges(numbers)}): {reason}; record or copy them again"
            yield SourceTrouble(name, None, message, time.monotonic_ns())

    def _event(
        self, name: str, index: int, series: FileSeries
    ) -> SourceFrame | EncodedFrame | SourceTrouble:
        try:
            pixels = series.read(index)
        except MissingFrameError as error:
            self._count("missed")
            return SourceTrouble(name, None, str(error), time.monotonic_ns())
        except SourceError as error:
            self._count("malformed")
            return SourceTrouble(name, index, str(error), time.monotonic_ns())
        self._count("frames")
        position, now_ns = series.position(index), time.monotonic_ns()
        if isinstance(pixels, EncodedPixels):
            counted = replace(pixels, decoder=partial(self._decode, pixels.decoder))
            return EncodedFrame(name, index, counted, now_ns, position_m=position)
        return SourceFrame(name, index, pixels, now_ns, position_m=position)

    def _decode(
        self, decoder: Decoder, payload: Payload, memory: FrameMemory | None
    ) -> npt.NDArray[Any]:
        """Decode the pixels of a frame, in the thread of who needs them."""
        try:
            return decoder(payload, memory)
        except InputError:
            self._count("malformed")
            self._count("frames", -1)
            raise

    def _count(self, what: str, change: int = 1) -> None:
        with self._counting:
            self._counts[what] += change

    def _numbers(self, series: FileSeries) -> Iterator[int]:
        """Numbers of the frames that are there, when they are due."""
        if self._options.follow:
            numbers = self._growing_numbers(series)
        else:
            missing = set(series.frames.missing.tolist())
            numbers = (number for number in range(len(series)) if number not in missing)
        for number in numbers:
            self._pacer.wait(self._tick)
            if self._pacer.closed:
                return
            yield number
            self._tick += 1

    def _growing_numbers(self, series: FileSeries) -> Iterator[int]:
        """Numbers of frames as they appear, until none did for `idle_s`."""
        number, last = 0, time.monotonic()
        given_up = last + _GAP_S
        while not self._pacer.closed:
            now = time.monotonic()
            if series.is_written(number):
                yield number
                number, last = number + 1, time.monotonic()
                given_up = last + _GAP_S
                continue
            idle = now > last + self._options.idle_s
            if now > given_up or idle:
                # Later frames may be there while this one never comes.
                later = series.next_written(number)
                if later is not None:
                    number = later
                    continue
                given_up = now + _GAP_S
            if idle:
                return
            self._pacer.pause(_POLL_S)
            # One that is being replaced, or locked by its writer, can be opened again soon.
            with suppress(SourceError):
                series.refresh()

    def _wait_for_series(self) -> FileSeries | None:
        """Open the file; one that is followed may still have to appear, and a frame in it.

        Its first frame is waited for, because it shows which pixels are gaps.
        """
        deadline = time.monotonic() + self._options.idle_s
        series: FileSeries | None = None
        while not self._pacer.closed:
            over = not self._options.follow or time.monotonic() > deadline
            try:
                if series is not None:
                    series.close()
                series = FileSeries(self._path, self._options)
                if over or series.next_written(0) is not None:
                    return series
            except SourceError:
                if over:
                    raise
            self._pacer.pause(_POLL_S)
        return None
