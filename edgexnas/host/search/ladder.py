"""Which training is next: a new network, one that goes on, or a finalist.

A ladder of times. A new network trains for the first slot; the best third of those that had a slot
go on from their weights for three times as long, and so on (asynchronous successive halving, Li et
al., MLSys 2020). Each slot ends with its learning rate at 0, so that every rung of a learning curve
is a finished network. Because slots are times and not epochs, what a network costs is part of how
it does: one that takes long for a step takes fewer of them. Where most take too few in the first
slot to tell them apart, as with ptychography on a CPU, new networks begin with a longer one.

The best third is that of a set, not of the error alone: first the network that is best by the first
objective, then whichever adds most hypervolume. DeepHyper's own stoppers compare one number, which
ends every small network, and those are half of a front: of forty trainings halving by the error
kept two of the final front's six. They also stop trainings for good, where here each is a
checkpoint from which it goes on; its learning-curve model takes seconds a decision.

When the search has had its share of the budget, finalists have the rest: a few networks along the
front, each trained on from its weights. The best by the first objective has a worker to itself all
that time, since it is the one that is asked for; workers that are left over train finalists anew
with other seeds. Where one fails, the next best has what is left of its time. The best by
validation stays.

Everything follows from the journal's trials, so that a resumed run decides as if it had gone on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from edgexnas.host.measuring.objectives import Objective, pareto_front
from edgexnas.host.search.budget import SLOT_FACTOR, TimeShares
from edgexnas.host.search.journal import Trial

__all__ = ["Job", "Ladder", "choose_space", "ranked"]

FINALISTS = 3

WORTH_GOING_ON = 4.0
"""What goes on is at most so many times worse, by the first objective, than the best that had as
long: a network of a hundred parameters is on a front whatever it errs."""

WORTH_A_FINAL = 2.0
"""Finalists are at most so many times worse than the best by the first objective: what is smaller
still will not do, however long it trains. Hypervolume counts from there, so that one that is
hardly worth it does not win by being tiny."""

TELLING_STEPS = 200
"""Trainings of fewer steps hardly differ from each other."""

TOLD_BY = 6
"""Networks of which half take fewer, to say that of a slot."""

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
        return self._finals.pop(0) if self._finals else self._follower(trials, elapsed_s)

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
        first = self._first_rung(searched)
        # From the top, so that what is almost done is done first.
        for rung in range(len(slots) - 2, first - 1, -1):
            if slots[rung + 1] > left:
                continue
            done = [t for t in searched if t.status == "done" and self.rung(t.slot_s) == rung]
            for trial in self._best_of(done, len(done) // SLOT_FACTOR, WORTH_GOING_ON):
                if trial.number not in went_on:
                    return Job("search", slots[rung + 1], parent=trial.number)
        if slots[first] <= left or not searched:
            # One network at least, however slow a start was.
            return Job("search", slots[first])
        failed = all(trial.status == "failed" for trial in searched)
        # Without any network there are no finalists either, whose time this then takes.
        return Job("search", slots[0]) if failed and self._has_time(elapsed_s) else None

    def _first_rung(self, searched: Sequence[Trial]) -> int:
        """Find the lowest rung on which half of the new networks take steps enough to tell."""
        highest = len(self.shares.slots_s) - 1
        for rung in range(highest):
            steps = [
                trial.metrics["steps"]
                for trial in searched
                if trial.parent is None and "steps" in trial.metrics
                and self.rung(trial.slot_s) == rung
            ]  # fmt: skip
            if len(steps) < TOLD_BY or median(steps) >= TELLING_STEPS:
                return rung
        return highest

    def _best_of(
        self, trials: Sequence[Trial], count: int, worth: float, *, front_only: bool = False
    ) -> list[Trial]:
        """Choose of the trials that are not `worth` times worse than the best; see `ranked`."""
        first = self._objectives[0]
        limit = worth * min((trial.metrics[first.name] for trial in trials), default=0.0)
        good = [trial for trial in trials if trial.metrics[first.name] <= limit]
        reference = (first.position(limit), *[1.0] * (len(self._objectives) - 1))
        places = ranked(
            [self.positions(t) for t in good], count, reference=reference, front_only=front_only
        )
        return [good[place] for place in places]

    def positions(self, trial: Trial) -> Positions:
        """Place of a trial on the objectives' logarithmic scales; below 0 beyond their best."""
        return tuple(o.position(trial.metrics[o.name]) for o in self._objectives)

    def _planned(self, trials: Mapping[int, Trial], elapsed_s: float) -> list[Job]:
        """Share what is left of the budget among finalists and seeds."""
        done = [t for t in trials.values() if t.stage == "search" and t.status == "done"]
        if not done:
            return []
        if not self._has_time(elapsed_s):
            return []
        left = self.shares.end_s - elapsed_s
        finalists = self._best_of(done, FINALISTS, WORTH_A_FINAL, front_only=True)
        shares = final_shares(len(finalists), self._workers)
        begun = sorted(
            (t for t in trials.values() if t.stage == "final"), key=lambda trial: trial.number
        )
        if begun:
            # A resumed run shares what there was, of which the first one tells.
            left = begun[0].slot_s / shares[0]
        jobs = [
            Job("final", share * left, parent=finalists[place].number)
            if place < len(finalists)
            else Job("final", share * left, repeats=finalists[place % len(finalists)].number)
            for place, share in enumerate(shares)
        ]
        return jobs[len(begun) :]

    def _follower(self, trials: Mapping[int, Trial], elapsed_s: float) -> Job | None:
        """Give what is left of a finalist that failed to the best network that is none yet."""
        finals = [trial for trial in trials.values() if trial.stage == "final"]
        chosen = {trial.parent for trial in finals} | {trial.repeats for trial in finals}
        done = [t for t in trials.values() if t.stage == "search" and t.status == "done"]
        finalists = self._best_of(done, FINALISTS, WORTH_A_FINAL, front_only=True)
        followers = max(0, len(finals) - len(final_shares(len(finalists), self._workers)))
        failed = sum(trial.status == "failed" for trial in finals)
        if followers >= failed or not self._has_time(elapsed_s):
            return None
        for trial in self._best_of(done, len(done), WORTH_A_FINAL):
            if trial.number not in chosen:
                return Job("final", self.shares.end_s - elapsed_s, parent=trial.number)
        return None

    def _has_time(self, elapsed_s: float) -> bool:
        """Whether more is left of the budget than a network's first training takes."""
        return self.shares.slots_s[0] < self.shares.end_s - elapsed_s


def final_shares(finalists: int, workers: int) -> list[float]:
    """Share of the time that is left for each final, in the order in which they start.

    The first has a worker to itself, or half of the time of the only one. The others share what
    remains; where there are more workers than finalists, there are more finals.
    """
    if workers == 1:
        others = finalists - 1
        return [0.5] + [0.5 / others] * others if others else [1.0]
    waves = max(1, -(-(finalists - 1) // (workers - 1)))
    return [1.0] + [1 / waves] * (waves * (workers - 1))


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


def ranked(
    positions: Sequence[Positions],
    count: int,
    *,
    reference: Positions | None = None,
    front_only: bool = False,
) -> list[int]:
    """Choose the best `count` of a set, best first.

    The first is the best by the first objective; each further one is of the first front and adds
    most hypervolume to those chosen. When a front is used up, the next one follows.

    Parameters
    ----------
    positions
        On scales where smaller is better.
    reference
        The worst that counts; None takes 1 on every scale.
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
    worst = np.ones(values.shape[1]) if reference is None else np.asarray(reference, np.float64)
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
                    moocore.hypervolume(values[[*picked, place]], ref=worst) for place in front
                ]
                best = front[int(np.argmax(gains))]
            front.remove(best)
            picked.append(best)
            chosen.append(best)
        if front_only:
            break
        rest = [place for place in rest if place not in chosen]
    return chosen
