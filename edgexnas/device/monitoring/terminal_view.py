"""A live view of the service on the terminal."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgexnas.device.monitoring.summary import SummaryTable, clock_time, summarise
from edgexnas.device.monitoring.watch import Observation, ServiceWatch

__all__ = ["TerminalView", "draw"]


class TerminalView:
    """Shows a service on standard error, so that results may go to standard output.

    Where standard error is no terminal it shows nothing: the service logs a line every 10 s.

    Parameters
    ----------
    watch
        Whose observations are shown.
    console
        Where to show them; standard error by default.
    period_s
        How often the view changes.
    """

    def __init__(
        self,
        watch: ServiceWatch,
        *,
        console: Console | None = None,
        period_s: float = 0.5,
    ) -> None:
        self._watch = watch
        self._console = console or Console(stderr=True)
        self._period_s = period_s
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to refresh the view."""
        if not self._console.is_terminal or self._thread is not None or self._closing.is_set():
            return
        self._thread = threading.Thread(target=self._show, name="edgexnas-terminal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the last view on the terminal; closing again does nothing."""
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _show(self) -> None:
        # Refreshed by this thread alone: rich's own would draw while a snapshot is taken.
        live = Live(console=self._console, auto_refresh=False, transient=False)
        with live:
            # Inside of `with live`, which is what replaces sys.stderr.
            moved = _follow_redirection()
            try:
                while True:
                    live.update(draw(self._watch.observe()), refresh=True)
                    if self._closing.wait(self._period_s):
                        break
                live.update(draw(self._watch.observe()), refresh=True)
            finally:
                for handler, stream in moved:
                    handler.setStream(stream)


def _follow_redirection() -> list[tuple[logging.StreamHandler[Any], Any]]:
    """Let log lines appear above the live view instead of in it.

    The live view replaces sys.stderr, but a log handler holds the stream that it was made with.
    """
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    for handler in [*logging.getLogger().handlers, *logging.getLogger("edgexnas").handlers]:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
            moved.append((handler, handler.setStream(sys.stderr)))
    return moved


def draw(observation: Observation) -> RenderableType:
    """Lay out an observation for a terminal.

    Parameters
    ----------
    observation
        What is shown.

    Returns
    -------
    RenderableType
        For `rich.console.Console.print`.
    """
    health = observation.status.health
    style = "bold red" if not health.healthy else "yellow" if health.reasons else "green"
    head = Text.assemble(
        ("edgexnas ", "bold"), observation.status.model_id, "  ", (health.sentence, style)
    )
    parts: list[RenderableType] = [head]
    error = observation.status.last_error
    if error is not None and not error.gone:
        parts.append(Text(f"{clock_time(error.at_s)}  {error.message}", "red"))
    tables = {table.key: table for table in summarise(observation)}
    order = ("flow", "latency", "ledger", "queues", "sinks", "source", "machine")
    small = [_table(tables[key]) for key in order if tables[key].rows]
    return Group(*parts, Columns(small, padding=(0, 3)), _table(tables["service"]))


def _table(summary: SummaryTable) -> Table:
    named = any(summary.columns)
    table = Table(title=summary.title, title_justify="left", show_header=named, box=None)
    table.min_width = len(summary.title)
    for index, column in enumerate(summary.columns):
        # What the service is are sentences, which are read from the left.
        left = index == 0 or summary.key == "service"
        table.add_column(escape(column), justify="left" if left else "right", overflow="fold")
    for row in summary.rows:
        # A ledger row explains itself on the page; there is space for its name alone here.
        name = row[0].partition(":")[0] if summary.key == "ledger" else row[0]
        # Escaped: names come from detectors, and rich reads brackets as styles.
        table.add_row(escape(name), *(escape(cell) for cell in row[1:]))
    return table
