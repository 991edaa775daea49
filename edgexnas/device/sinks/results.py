"""What a service hands to its sinks: results in order, and where series begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks
    from edgexnas.ptycho import ObjectImage

__all__ = [
    "FrameResult",
    "ObjectSnapshot",
    "SeriesBegun",
    "SeriesEnded",
    "ServiceIdentity",
    "SinkItem",
]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """Who made the results, for files and messages.

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
    """

    task: Literal["bragg", "ptycho"]
    model_id: str
    sequence: int
    engine: str
    precision: str
    source: str
    version: str


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
        Why it failed, in one sentence; None if it did not.
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


@dataclass(frozen=True, slots=True)
class SeriesBegun:
    """The first result of a series follows.

    Attributes
    ----------
    series
        Name of the series.
    metadata
        What the source said about it.
    """

    series: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeriesEnded:
    """The last result of a series has been given.

    Attributes
    ----------
    series
        Name of the series.
    counts
        Frames by ledger state as of now; what sinks still store is "pending".
    """

    series: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ObjectSnapshot:
    """The object as far as it is stitched.

    Attributes
    ----------
    series, number
        Up to which frame.
    image
        The object.
    final
        Whether the series has ended.
    """

    series: str
    number: int
    image: ObjectImage
    final: bool


SinkItem: TypeAlias = FrameResult | SeriesBegun | SeriesEnded | ObjectSnapshot
