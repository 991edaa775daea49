"""Tables and progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Step", "print_pairs", "print_table", "progress"]


class Step(Protocol):
    """Told how many of how many are done."""

    def __call__(self, done: int, total: int) -> None:
        """Show the new state."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table on standard output; numbers to the right."""
    # As Text, because brackets in a name or a path would be taken for markup.
    table = Table(title=Text(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    # A file or a pipe has no width of its own, and folded rows are hard to read back.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two aligned columns."""
    grid = Table.grid(padding=(0, 2))
    for name, value in pairs:
        grid.add_row(Text(name, style="bold"), Text(value))
    Console(width=None if sys.stdout.isatty() else 140).print(grid)


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """Show a bar on standard error, or single lines where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(Text(title))
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        # Without a total the bar pulses, until the first step tells one.
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
