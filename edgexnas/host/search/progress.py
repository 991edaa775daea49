"""A live view of a running search."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from edgexnas.host.measuring.objectives import as_array, hypervolume, pareto_front
from edgexnas.host.search.journal import Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from edgexnas.host.search.plan import SearchPlan

__all__ = ["SearchProgress"]


class SearchProgress:
    """Evaluations, failures by reason, best so far, hypervolume and time left.

    Parameters
    ----------
    enabled
        None shows the view if standard error is a terminal.
    """

    def __init__(
        self, plan: SearchPlan, *, enabled: bool | None = None, console: Console | None = None
    ) -> None:
        from rich.console import Console

        self._plan = plan
        self._console = console or Console(stderr=True)
        self._enabled = self._console.is_terminal if enabled is None else enabled
        self._live: Live | None = None
        self._began = time.monotonic()
        self._done = self._at_start = 0
        self._failures: Counter[str] = Counter()
        self._best: dict[str, Trial] = {}
        self._front: list[dict[str, float]] = []
        self._running = 0
        self.hypervolume = 0.0

    def __enter__(self) -> SearchProgress:
        if self._enabled:
            from rich.live import Live

            self._live = Live(
                get_renderable=self.render, console=self._console, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """Print a line above the view; evaluations before it belong to earlier sessions."""
        self._at_start = self._done + self._failures.total()
        if self._enabled:
            self._console.print(f"[bold]{self._plan.output}[/bold]: {message}")

    def add(self, trial: Trial) -> None:
        """Record a finished evaluation."""
        if trial.status != "done":
            self._failures[trial.reason] += 1
            return
        self._done += 1
        objectives = self._plan.objectives
        for objective in objectives:
            best = self._best.get(objective.name)
            if best is None or trial.metrics[objective.name] < best.metrics[objective.name]:
                self._best[objective.name] = trial
        candidates = [*self._front, {o.name: trial.metrics[o.name] for o in objectives}]
        marks = pareto_front(as_array(candidates, objectives))
        self._front = [row for row, mark in zip(candidates, marks, strict=True) if mark]
        # Hypervolume changes only if the newest candidate is on the front.
        if marks[-1]:
            self.hypervolume = hypervolume(self._front, objectives)

    def refresh(self, running: int) -> None:
        """Update the number of running evaluations."""
        self._running = running

    def render(self) -> Table:
        """Build the view."""
        from rich.table import Table

        plan = self._plan
        ended = self._done + self._failures.total()
        failures = ", ".join(f"{n} {reason}" for reason, n in sorted(self._failures.items()))
        table = Table(show_header=False, title=f"{plan.search} → {plan.output}", min_width=60)
        table.add_row("evaluations", f"{ended} of {plan.max_evals}, {self._running} running")
        table.add_row("failed", failures or "none")
        for objective in plan.objectives:
            best = self._best.get(objective.name)
            if best is not None:
                value = best.metrics[objective.name]
                place = f"{value:.4g} {objective.unit}".strip()
                table.add_row(f"best {objective.name}", f"{place} (trial {best.number})")
        table.add_row("front", f"{len(self._front)} candidates, hypervolume {self.hypervolume:.4f}")
        table.add_row("time left", _duration(self._time_left(ended)))
        return table

    def _time_left(self, ended: int) -> float | None:
        """Seconds until the evaluations or the session's time are used up."""
        spent = time.monotonic() - self._began
        new = ended - self._at_start
        estimates = []
        if new > 0:
            estimates.append(spent / new * (self._plan.max_evals - ended))
        if self._plan.timeout is not None:
            estimates.append(self._plan.timeout - spent)
        return max(0.0, min(estimates)) if estimates else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
