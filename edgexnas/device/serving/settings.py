"""How the stages of a service work; the same for a TOML file and for a Python program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from edgexnas.device.ptycho.scan import check_object_pixel
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho.refinement import MOST_SWEEPS

__all__ = ["PipelineSettings", "Policy"]

Policy = Literal["drop-oldest", "block", "spill"]
"""What happens to frames that come faster than they are processed."""

MEBIBYTE = 2**20

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """Settings that may stand in one table of a TOML file; immutable, no unknown keys."""

    # Strict, so that "8" is not a number; the few types that TOML lacks are marked below.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _pixel_pair(value: Any) -> Any:
    """Check the size of an object pixel; TOML has lists, Python users have tuples."""
    check_object_pixel(value)
    return tuple(map(float, value))


class PipelineTable(Table):
    """The table ``[pipeline]``; see `PipelineSettings`."""

    policy: Policy | None = None
    queue_frames: Count = 256
    queue_mib: Positive = 80.0
    largest_frame_mib: Positive = 1024.0
    max_age_ms: Positive = 1000.0
    # Each has a finder's buffers of the size of a frame.
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    deadline_ms: NotNegative = 5.0
    reorder_wait_ms: NotNegative = 20.0
    drain_s: Positive = 30.0
    spill_folder: Annotated[Path, Field(strict=False)] | None = None
    spill_mib: Positive = 4096.0

    @model_validator(mode="after")
    def _check_spill(self) -> PipelineTable:
        if self.policy == "spill" and self.spill_folder is None:
            raise ValueError("the policy is spill without a spill_folder; specify one")
        return self


class BackgroundTable(Table):
    """The table ``[background]``, whose keys lack the prefix; see `PipelineSettings`."""

    background_frames: Count = Field(default=16, validation_alias="frames")
    background_mib: NotNegative = Field(default=4.0, validation_alias="mib")
    background_wait_ms: NotNegative = Field(default=500.0, validation_alias="wait_ms")


class PtychoTable(Table):
    """The table ``[ptycho]``; see `PipelineSettings`."""

    object_pixel_m: Annotated[tuple[float, float], BeforeValidator(_pixel_pair)] | None = None
    snapshot_s: Positive = 2.0
    refine: Annotated[int, Field(ge=0, le=MOST_SWEEPS)] = 0


class PipelineSettings(PipelineTable, BackgroundTable, PtychoTable):
    """How the stages of a service work.

    Attributes
    ----------
    policy
        "drop-oldest": the oldest queued frame is dropped for a new one, so that results are of
        the newest frames. "block": the source waits. "spill": frames are queued on disk, in
        order. None for "drop-oldest" with a live source and "block" with a file.
    largest_frame_mib
        Decoded size above which a frame fails instead of being decoded.
    queue_frames, queue_mib
        Capacity of the queue of frames to be processed, in frames and in MiB.
    max_age_ms
        With "drop-oldest": frames queued for longer than this are dropped as well.
    workers
        Threads that find peaks, and as many that decode frames where these come encoded; the
        engine has its own. With two or more a GPU never waits for the next frame.
    deadline_ms
        How long after its arrival a frame may wait for others to share a run of the engine.
    reorder_wait_ms
        How long after its arrival a frame waits for missing ones before it; they are lost then.
    drain_s
        How long a service that was asked to stop may take to finish the frames it has.
    background_frames, background_mib
        Most first frames of a series that the background is estimated from, in number and in
        MiB; at least one is used.
    background_wait_ms
        How long the first frame waits for the others of these.
    spill_folder, spill_mib
        Folder in which frames are queued with "spill", and its capacity in MiB.
    object_pixel_m
        (row, col) size of an object pixel in metres, to convert scan positions; negative where
        the motor runs against the pixels; None if unknown.
    snapshot_s
        Interval in seconds at which the object image is passed to sinks.
    refine
        Sweeps of phase retrieval by which the object of a scan is refined after its last pattern,
        beside the frames of the next; 0 for none.

    Raises
    ------
    ConfigurationError
        If a value is out of range, or "spill" has no folder.
    """

    # Python users write background_frames=..., the keys of the TOML table are not accepted here.
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)

    if not TYPE_CHECKING:
        # Type checkers see the keywords of the fields instead.
        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                fault = error.errors()[0]
                name = ".".join(map(str, fault["loc"]))
                raise ConfigurationError(explain_fault(fault, name)) from None


def explain_fault(fault: Mapping[str, Any], name: str) -> str:
    """Say in one sentence what pydantic found wrong with the setting of this name."""
    if fault["type"] == "value_error":
        # Our own validators name the setting and the remedy.
        return f"{name.rpartition('.')[0]}.{fault['ctx']['error']}".lstrip(".")
    if fault["type"] == "extra_forbidden":
        return f"{name} is unknown; leave it out"
    wanted = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{name} is {fault['input']!r}; {wanted}"
