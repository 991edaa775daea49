"""Which training is next: a new network, one that goes on, or a finalist.

A ladder of times. A new network trains for the first slot; the best third of those that had a slot
go on from their weights for three times as long, and so on (asynchronous successive halving, Li et
al., MLSys 2020). Each slot ends with its learning rate at 0, so that every rung of a learning curve
is a finished network. Because slots are times and not epochs, what a network costs is part of how
it does: one that takes long for a step takes fewer of them.

The best third is that of a set, not of the error alone: first the network that is best by the first
objective, then whichever adds most hypervolume. DeepHyper's own stoppers compare one number, which
ends every small network, and those are half of a front: of forty trainings halving by the error
kept two of the final front's six. They also stop trainings for good, where here each is a
checkpoint from which it goes on; its learning-curve model takes seconds a decision.

When the search has had its share of the budget, finalists have the rest: a few networks along the
front, each trained on from its weights and the first of them anew with other seeds as well. The
best by validation stays.

Everything follows from the journal's trials, so that a resumed run decides as if it had gone on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgexnas.host.measuring.objectives import Objective, pareto_front
from edgexnas.host.search.budget import SLOT_FACTOR, TimeShares
from edgexnas.host.search.journal import Trial

__all__ = ["Job", "Ladder", "choose_space", "ranked"]

FINALS = 6
"""Trainings of finalists, or as many as there are workers."""

MOST_FINALISTS = 3

GOING_ON_SHARE = 2 / 3
"""Of the finalists' trainings go on from the weights there are; the others train the first ones
anew with another seed."""

WORTH_GOING_ON = 10.0
"""What goes on is at most so many times worse, by the first objective, than the best that had as
long: a network of a hundred parameters is on a front whatever it errs."""

WORTH_A_FINAL = 2.0
"""Finalists are at most so many times worse than the best by the first objective: what is smaller
still will not do, however long it trains."""

Positions = tuple[float, ...]


@dataclass(frozen=True)
class Job:
    """A training to start.

    Attributes
    ----------
    stage
        "search" or "final".
    seconds
        How long it may train.
    parent
        Trial whose weights it goes on from.
    repeats
        Trial whose network it trains anew, with another seed.
    """

    stage: Literal["search", "final"]
    seconds: float
    parent: int | None = None
    repeats: int | None = None


class Ladder:
    """Decides what a budget is spent on.

    Parameters
    ----------
    shares
        Of the budget.
    objectives
        What is minimised; the first one decides who is best.
    workers
        Trainings at once.
    """

    def __init__(self, shares: TimeShares, objectives: Sequence[Objective], workers: int) -> None:
        self.shares, self._objectives, self._workers = shares, tuple(objectives), workers
        self._finals: list[Job] | None = None

    def next(self, trials: Mapping[int, Trial], running: int, elapsed_s: float) -> Job | None:
        """Choose what to start now; None if a training that runs has to end first.

        Parameters
        ----------
        trials
            All trials of the journal, running ones too.
        running
            How many of them run in this session.
        elapsed_s
            Since the budget began.
        """
        if self._finals is None:
            if any(trial.stage == "final" for trial in trials.values()):
                # A resumed run was among its finalists.
                self._finals = self._planned(trials, elapsed_s)
            else:
                job = self._search_job(trials, elapsed_s)
                if job is not None or running:
                    return job
                self._finals = self._planned(trials, elapsed_s)
        return self._finals.pop(0) if self._finals else None

    @property
    def finals_began(self) -> bool:
        """Whether the search is over."""
        return self._finals is not None

    def rung(self, seconds: float) -> int:
        """Place of a slot on the ladder."""
        return min(range(len(self.shares.slots_s)),
                   key=lambda k: abs(self.shares.slots_s[k] - seconds))  # fmt: skip

    def fidelity(self, seconds: float) -> float:
        """Place of a slot from 0, the first, to 1, the longest."""
        return self.rung(seconds) / max(1, len(self.shares.slots_s) - 1)

    def _search_job(self, trials: Mapping[int, Trial], elapsed_s: float) -> Job | None:
        slots, left = self.shares.slots_s, self.shares.search_end_s - elapsed_s
        searched = [trial for trial in trials.values() if trial.stage == "search"]
        went_on = {trial.parent for trial in searched}
        # From the top, so that what is almost done is done first.
        for rung in range(len(slots) - 2, -1, -1):
            if slots[rung + 1] > left:
                continue
            done = [t for t in searched if t.status == "done" and self.rung(t.slot_s) == rung]
            good = self._worth(done, WORTH_GOING_ON)
            best = ranked([self.positions(t) for t in good], len(done) // SLOT_FACTOR)
            for place in best:
                if good[place].number not in went_on:
                    return Job("search", slots[rung + 1], parent=good[place].number)
        # One network at least, however slow a start was.
        return Job("search", slots[0]) if slots[0] <= left or not searched else None

    def _worth(self, trials: Sequence[Trial], factor: float) -> list[Trial]:
        """Keep the trials that are not much worse than the best of them."""
        name = self._objectives[0].name
        least = min((trial.metrics[name] for trial in trials), default=0.0)
        return [trial for trial in trials if trial.metrics[name] <= factor * least]

    def positions(self, trial: Trial) -> Positions:
        """Place of a trial on the objectives' logarithmic scales; below 0 beyond their best."""
        return tuple(o.position(trial.metrics[o.name]) for o in self._objectives)

    def _planned(self, trials: Mapping[int, Trial], elapsed_s: float) -> list[Job]:
        """Share what is left of the budget among finalists and seeds."""
        done = [t for t in trials.values() if t.stage == "search" and t.status == "done"]
        if not done:
            return []
        waves = max(1, round(FINALS / self._workers))
        count = waves * self._workers
        left = self.shares.end_s - elapsed_s
        good = self._worth(done, WORTH_A_FINAL)
        most = min(MOST_FINALISTS, max(1, int(count * GOING_ON_SHARE)))
        finalists = [
            good[place]
            for place in ranked([self.positions(t) for t in good], most, front_only=True)
        ]
        # What a resumed run has trained or begun already.
        begun = [t for t in trials.values() if t.stage == "final"]
        chosen: list[tuple[Trial, bool]] = [
            (finalists[number % len(finalists)], number < len(finalists)) for number in range(count)
        ][len(begun) :]
        waves_left = -(-len(chosen) // self._workers)
        if left <= self.shares.slots_s[0] or not chosen:
            return []
        seconds = left / waves_left
        return [
            Job("final", seconds, parent=trial.number)
            if on
            else Job("final", seconds, repeats=trial.number)
            for trial, on in chosen
        ]


def choose_space(trials: Sequence[Trial], spaces: Sequence[str], rng: random.Random) -> str:
    """Choose the space of a new network by how many of its networks went on.

    By Thompson sampling: a space that few of go on is asked ever less, and never quite given up.
    """
    searched = [trial for trial in trials if trial.stage == "search"]
    went_on = {trial.parent for trial in searched}
    drawn: dict[str, float] = {}
    for name in spaces:
        tried = [trial for trial in searched if trial.space == name and trial.parent is None]
        if not tried:
            return name
        good = sum(trial.number in went_on for trial in tried)
        drawn[name] = rng.betavariate(1 + good, 1 + len(tried) - good)
    return max(drawn, key=lambda name: drawn[name])


def ranked(positions: Sequence[Positions], count: int, *, front_only: bool = False) -> list[int]:
    """Choose the best `count` of a set, best first.

    The first is the best by the first objective; each further one is of the first front and adds
    most hypervolume to those chosen. When a front is used up, the next one follows.

    Parameters
    ----------
    positions
        On scales where 1 is the worst that counts; smaller is better.
    front_only
        Choose from the first front alone.

    Returns
    -------
    Indices into `positions`, `count` of them or fewer.
    """
    import moocore  # type: ignore[import-untyped]
    import numpy as np

    if not positions:
        return []
    values = np.asarray(positions, np.float64)
    chosen: list[int] = []
    rest = list(range(len(values)))
    while rest and len(chosen) < count:
        marks = pareto_front(values[rest])
        front = [place for place, mark in zip(rest, marks, strict=True) if mark]
        picked: list[int] = []
        while front and len(chosen) < count:
            if not chosen:
                best = min(front, key=lambda place: positions[place])
            else:
                gains = [
                    moocore.hypervolume(values[[*picked, place]], ref=np.ones(values.shape[1]))
                    for place in front
                ]
                best = front[int(np.argmax(gains))]
            front.remove(best)
            picked.append(best)
            chosen.append(best)
        if front_only:
            break
        rest = [place for place in rest if place not in chosen]
    return chosen
