"""Progress of an engine's build, on the terminal or in the log: on a Jetson it takes minutes."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.device.engines.tensorrt_library import Progress

__all__ = ["build_progress"]

_log = logging.getLogger(__name__)


@contextmanager
def build_progress(title: str) -> Iterator[Progress]:
    """Show phases and steps under a title while the block runs.

    On a terminal (standard error) a bar for each phase, removed at the end; elsewhere one line in
    the log for each phase.
    """
    if not sys.stderr.isatty():
        yield _logged(title)
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    with Bars(console=Console(stderr=True), transient=True) as bars:
        bars.add_task(title, total=None)
        tasks: dict[str, TaskID] = {}
        lock = threading.Lock()

        def show(phase: str, done: int, steps: int) -> None:
            with lock:
                if phase not in tasks:
                    tasks[phase] = bars.add_task(f"  {phase}", total=steps)
                bars.update(tasks[phase], completed=done, total=steps)
                if done >= steps:
                    bars.remove_task(tasks.pop(phase))

        yield show


def _logged(title: str) -> Progress:
    seen: set[str] = set()

    def note(phase: str, done: int, steps: int) -> None:
        if phase not in seen:
            seen.add(phase)
            _log.info("%s: %s, %d steps", title, phase, steps)

    return note
