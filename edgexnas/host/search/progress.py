"""What a running search shows: a live table on a terminal, and elsewhere a line now and then."""

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

LINE_EVERY_S, LEAST_INTERVAL_S = 30.0, 10.0
"""How often a line is printed where there is no terminal."""


class SearchProgress:
    """Evaluations, failures by reason, best so far, hypervolume and time left.

    Parameters
    ----------
    enabled
        True shows the table, False nothing; None shows the table if standard error is a terminal,
        and lines if not.
    """

    def __init__(
        self, plan: SearchPlan, *, enabled: bool | None = None, console: Console | None = None
    ) -> None:
        from rich.console import Console

        self._plan = plan
        self._console = console or Console(stderr=True)
        self._enabled = self._console.is_terminal if enabled is None else enabled
        self._lines = enabled is None and not self._enabled
        self._line_at = time.monotonic() + self._interval
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

    @property
    def _interval(self) -> float:
        """Seconds between lines: some twenty of them in a budget."""
        longest = self._plan.budget or self._plan.timeout
        return LINE_EVERY_S if longest is None else max(LEAST_INTERVAL_S, longest / 20)

    def say(self, message: str) -> None:
        """Print a line, above the table if there is one."""
        if self._enabled or self._lines:
            where = str(self._plan.output)
            # Markup and wrapping are for terminals; what a file gets is a line as it is.
            self._console.print(f"{where}: {message}", markup=False, soft_wrap=True)

    def resumed(self, message: str) -> None:
        """Print a line; evaluations before it belong to earlier sessions."""
        self._at_start = self._done + self._failures.total()
        self.say(message)

    def add(self, trial: Trial, *, replayed: bool = False) -> None:
        """Record a finished evaluation; a dropped one is a line, unless an earlier session did."""
        if trial.status != "done":
            self._failures[trial.reason] += 1
            if not replayed:
                what = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                                 for k, v in trial.configuration.items())  # fmt: skip
                self.say(f"trial {trial.number} of {trial.space} dropped ({what}): "
                         f"{trial.reason}, {trial.message}")  # fmt: skip
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
        """Update the number of running evaluations; print a line if it is time for one."""
        self._running = running
        if self._lines and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + self._interval
            self.say(self._line())

    def _line(self) -> str:
        ended = self._done + self._failures.total()
        of = "" if self._plan.max_evals is None else f" of {self._plan.max_evals}"
        parts = [f"{ended}{of} trainings ended, {self._running} running"]
        for objective in self._plan.objectives:
            best = self._best.get(objective.name)
            if best is not None and objective.kind == "learned":
                value = f"{best.metrics[objective.name]:.4g} {objective.unit}".strip()
                parts.append(f"best {objective.name} {value} (trial {best.number})")
        parts.append(f"time left {_duration(self._time_left(ended))}")
        return ", ".join(parts)

    def render(self) -> Table:
        """Build the view."""
        from rich.table import Table

        plan = self._plan
        ended = self._done + self._failures.total()
        failures = ", ".join(f"{n} {reason}" for reason, n in sorted(self._failures.items()))
        table = Table(show_header=False, title=f"{plan.search} → {plan.output}", min_width=60)
        of = "" if plan.max_evals is None else f" of {plan.max_evals}"
        table.add_row("evaluations", f"{ended}{of}, {self._running} running")
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
        if new > 0 and self._plan.max_evals is not None:
            estimates.append(spent / new * (self._plan.max_evals - ended))
        for limit in (self._plan.timeout, self._plan.budget):
            if limit is not None:
                estimates.append(limit - spent)
        return max(0.0, min(estimates)) if estimates else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
