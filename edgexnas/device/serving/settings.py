"""How the stages of a service work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgexnas.device.ptycho.scan import check_object_pixel
from edgexnas.errors import ConfigurationError

__all__ = ["PipelineSettings", "Policy"]

Policy = Literal["drop-oldest", "block", "spill"]
"""What happens to frames that come faster than they are processed."""

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """How the stages of a service work.

    Attributes
    ----------
    policy
        "drop-oldest": the oldest waiting frame makes room, so that results are of the newest
        frames. "block": the source waits. "spill": frames wait on disk, in order. None for
        "drop-oldest" with a live source and "block" with a file.
    queue_frames, queue_mib
        Most frames that wait to be processed, in number and in MiB.
    max_age_ms
        With "drop-oldest": frames that have waited longer than this are dropped as well.
    workers
        Threads that find peaks, and as many that decode frames where these come encoded; the
        engine has its own. With two or more a GPU never waits for the next frame.
    deadline_ms
        How long after its arrival a frame may wait for others to share a run of the engine.
    reorder_wait_ms
        How long after its arrival a frame waits for missing ones before it; they are lost then.
    drain_s
        How long a service that was asked to stop may finish what it has.
    background_frames, background_mib
        Most first frames of a series that show its background, in number and in MiB, at least one.
    background_wait_ms
        How long the first frame waits for the others of these.
    spill_folder, spill_mib
        Where frames wait with "spill", and how many MiB of them.
    object_pixel_m
        (row, col) size of an object pixel in metres, for scan positions, negative where the
        motor runs against the pixels; None if unknown.
    snapshot_s
        How often the object image is given to sinks.

    Raises
    ------
    ConfigurationError
        If a value is out of range, or "spill" has no folder.
    """

    policy: Policy | None = None
    queue_frames: int = 256
    queue_mib: float = 80.0
    max_age_ms: float = 1000.0
    workers: int = 1
    deadline_ms: float = 5.0
    reorder_wait_ms: float = 20.0
    drain_s: float = 30.0
    background_frames: int = 16
    background_mib: float = 4.0
    background_wait_ms: float = 500.0
    spill_folder: Path | None = None
    spill_mib: float = 4096.0
    object_pixel_m: tuple[float, float] | None = None
    snapshot_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("queue_frames", "workers", "background_frames"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("queue_mib", "max_age_ms", "drain_s", "spill_mib", "snapshot_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; give more than 0")
        for name in ("deadline_ms", "reorder_wait_ms", "background_mib", "background_wait_ms"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; give at least 0")
        if self.policy == "spill" and self.spill_folder is None:
            raise ConfigurationError("the policy is spill without a spill_folder; give one")
        if self.object_pixel_m is not None:
            check_object_pixel(self.object_pixel_m)
