"""What a service passes to its sinks: results in order, and where series begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks
    from edgexnas.merging import MergeSettings
    from edgexnas.ptycho import ObjectImage, Refinement
    from edgexnas.spots import Spots

__all__ = [
    "FRAME_STATES",
    "MERGE_STATES",
    "FrameFlag",
    "FrameResult",
    "FrameState",
    "MergeMark",
    "MergeState",
    "ObjectSnapshot",
    "SeriesBegun",
    "SeriesEnded",
    "SeriesKey",
    "SeriesSpots",
    "ServiceIdentity",
    "SinkItem",
    "stored_text",
]

FloatArray = npt.NDArray[np.float32]

NAME_BYTES = 256
"""Texts about series are cut to this many bytes: SWMR allows no strings of variable length."""

_DIGEST_DIGITS = 12
"""Hexadecimal digits that stand for what is cut off: 48 bits."""


def stored_text(text: str) -> str:
    """Return a text about a series as it is stored: at most `NAME_BYTES`, as valid UTF-8.

    Two texts that differ stay different: a digest stands for what is cut off.
    """
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) > NAME_BYTES:
        digest = sha256(encoded).hexdigest()[:_DIGEST_DIGITS].encode()
        kept = encoded[: NAME_BYTES - len(digest) - 1].decode(errors="ignore").encode()
        encoded = kept + b"~" + digest
    return encoded.decode()


class SeriesKey(NamedTuple):
    """Which results belong together: those of one series that one bundle made.

    Attributes
    ----------
    series
        Name of the series where nothing else identifies it; otherwise empty, because a name may
        be that of another series too, and a series may be opened under another name.
    identity
        As of `SeriesBegun`; empty if unknown.
    bundle_digest
        SHA-256 of the bundle's file; empty if unknown, as in files of version 1.
    """

    series: str
    identity: str
    bundle_digest: str

    @classmethod
    def of(cls, series: str, identity: str, bundle_digest: str) -> SeriesKey:
        """Make the key of a series' results by one bundle."""
        return cls("" if identity else stored_text(series), stored_text(identity), bundle_digest)


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """What made the results: bundle, engine and source.

    Attributes
    ----------
    task
        "bragg" or "ptycho".
    model_id, sequence
        Of the bundle.
    engine, precision
        What ran the model.
    source
        URL of the source.
    version
        Of edgexnas.
    bundle_digest
        SHA-256 of the bundle's file, 64 hexadecimal digits; empty if unknown.
    """

    task: Literal["bragg", "ptycho"]
    model_id: str
    sequence: int
    engine: str
    precision: str
    source: str
    version: str
    bundle_digest: str = ""


FrameState: TypeAlias = Literal["done", "failed", "dropped", "lost"]

FRAME_STATES: tuple[FrameState, ...] = ("done", "failed", "dropped", "lost")
"""How a frame ended, in the order of their codes 0 to 3 in files: processed; received without a
result; received and not processed; never received."""


class FrameFlag(IntFlag):
    """What holds for a whole frame."""

    UNFAMILIAR = 1
    """Its pattern, or more than a fifth of its peaks, is unlike those of the training data."""


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What became of one frame.

    Attributes
    ----------
    series, number
        Which frame.
    arrival_ns
        `time.monotonic_ns()` when it was in this process.
    timestamp_s
        The detector's own time in Unix seconds; None if it says none.
    peaks
        Its peaks; None for ptychography, or if it failed.
    amplitude, phase_rad
        (64, 64) float32 of the object under the probe; None for Bragg peaks, or if it failed.
    position_px
        (row, col) of the patch's first pixel in object pixels, NaN if not known when it was
        stitched; None for Bragg peaks.
    error
        Why it has no result, in one sentence; None if it has one.
    detector_id
        Number that the detector itself gave the frame: uniqueId of an NTNDArray, image_id of
        Stream V2; None if unknown.
    flags
        Bits that hold for the whole frame, `FrameFlag`.
    reason
        Why its pattern is unlike those of the training data, 0 if it is not; None where it was not
        looked at. See `edgexnas.familiarity.pattern_reason_name`.
    not_processed
        "dropped" or "lost" for a frame that no engine has seen; None for all others.
    made_by
        What made this result, where a bundle was replaced while the sink was open; None for what
        the sink was opened with.
    """

    series: str
    number: int
    arrival_ns: int
    timestamp_s: float | None = None
    peaks: Peaks | None = None
    amplitude: FloatArray | None = None
    phase_rad: FloatArray | None = None
    position_px: tuple[float, float] | None = None
    error: str | None = None
    detector_id: int | None = None
    flags: int = 0
    not_processed: Literal["dropped", "lost"] | None = None
    made_by: ServiceIdentity | None = None
    reason: int | None = None

    @property
    def state(self) -> FrameState:
        """How the frame ended."""
        return self.not_processed or ("done" if self.error is None else "failed")


@dataclass(frozen=True, slots=True)
class SeriesBegun:
    """The first result of a series follows.

    Attributes
    ----------
    series
        Name of the series.
    metadata
        What the source said about it.
    identity
        What tells the series from another of the same name, such as path, size and modification
        time of a file, or the detector's unique id; empty if unknown.
    """

    series: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""


@dataclass(frozen=True, slots=True)
class SeriesEnded:
    """The last result of a series has been given.

    Attributes
    ----------
    series
        Name of the series.
    counts
        Frames by ledger state as of now; what sinks still store is "pending".
    complete
        Whether the source has said that it ends. If not, the service has stopped, or cannot read
        the source any further, and a restart may go on with the series.
    """

    series: str
    counts: Mapping[str, int]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class ObjectSnapshot:
    """The object as far as it is stitched.

    Attributes
    ----------
    series, number
        Up to which frame.
    image
        The object as it was stitched.
    final
        Whether the series has ended.
    refinement
        What became of the object by refinement, in a further snapshot after the final one; None
        without.
    """

    series: str
    number: int
    image: ObjectImage
    final: bool
    refinement: Refinement | None = None

    @property
    def best(self) -> ObjectImage:
        """The refined object if there is one, else the stitched one."""
        return self.image if self.refinement is None else self.refinement.image


MergeState: TypeAlias = Literal["begun", "resumed", "ended"]

MERGE_STATES: tuple[MergeState, ...] = ("begun", "resumed", "ended")
"""What marks say of the merging of a series, in the order of their codes 0 to 2 in files: it begins
anew with the next frame; it goes on with it; all its spots are stored."""


@dataclass(frozen=True, slots=True)
class MergeMark:
    """Where the merging of a series begins, goes on or ends.

    Attributes
    ----------
    state
        Which of the three; see `MERGE_STATES`.
    settings
        How peaks are merged.
    coverage
        As of `SpotMerger`.
    """

    state: MergeState
    settings: MergeSettings
    coverage: float


@dataclass(frozen=True, slots=True)
class SeriesSpots:
    """Spots of one series that have ended.

    Attributes
    ----------
    series
        Name of the series.
    spots
        The spots.
    identity
        As of `SeriesBegun`.
    bundle_digest
        SHA-256 of the bundle that made their peaks; empty if unknown.
    mark
        What is true of the series once they are stored; None for nothing new. Only a sink that
        keeps results is given some, without a spot too.
    """

    series: str
    spots: Spots
    identity: str = ""
    bundle_digest: str = ""
    mark: MergeMark | None = None


SinkItem: TypeAlias = FrameResult | SeriesBegun | SeriesEnded | ObjectSnapshot
