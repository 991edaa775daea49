"""What a service does with frames: the steps of an application, each for one stage."""

from __future__ import annotations

from typing import Protocol

from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.sinks.results import ObjectSnapshot

__all__ = ["Work"]


class Work(Protocol):
    """The steps of an application.

    A step that fails for one frame sets its `error`; a step that raises fails all it was given.
    """

    def warm_up(self) -> None:
        """Compile and load what the first frame would wait for; called before any is taken."""

    def begin(self, run: SeriesRun) -> None:
        """Prepare for a series; called before its first frame, in the receiving thread."""

    def prepare(self, task: FrameTask) -> list[FrameTask]:
        """Take in a frame and return those that are ready for the engine, or have failed.

        Called from several threads. Frames may be held back, and come with a later call.
        """

    def release(self, run: SeriesRun, *, now_ns: int) -> list[FrameTask]:
        """Return frames that were held back long enough, or whose series is over."""

    def size(self, task: FrameTask) -> int:
        """How many items of the engine's batch a prepared frame takes."""

    def predict(self, tasks: list[FrameTask]) -> None:
        """Run the engine and set the frames' results; in one thread."""

    def place(self, task: FrameTask) -> None:
        """Complete a result, in the order of frame numbers."""

    def snapshot(self, run: SeriesRun, *, final: bool) -> ObjectSnapshot | None:
        """Show what grows over a series, if it is time to; None otherwise."""

    def end(self, run: SeriesRun) -> None:
        """Give back what was taken for a series; called after its last frame was delivered."""
