"""`optimize`: search neural architectures and hyperparameters for one task."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import random
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.host.measuring.objectives import Measure, violation
from edgexnas.host.networks.hyperparameters import Configuration
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.run_files import write_run_file
from edgexnas.host.search.budget import SLOT_FACTOR, TimeShares
from edgexnas.host.search.evaluation import (
    EvaluationRequest,
    EvaluationResult,
    classify,
    evaluation_context,
    trial_seed,
)
from edgexnas.host.search.evaluators import Evaluator, make_evaluator
from edgexnas.host.search.journal import Journal, Trial
from edgexnas.host.search.ladder import Ladder, choose_space
from edgexnas.host.search.plan import SearchPlan, SpaceArgument, make_plan
from edgexnas.host.search.progress import SearchProgress
from edgexnas.host.search.result import Candidate, SearchResult, front_of
from edgexnas.host.search.run_folder import check_journalled, checkpoint_path, logged_to, write_run
from edgexnas.host.search.strategies import Outcome, Proposal, Strategy
from edgexnas.host.search.synthetic_data import fill_up, repeat_measured
from edgexnas.host.search.tasks import find_task

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset

__all__ = ["Candidate", "SearchResult", "optimize"]

logger = logging.getLogger(__name__)

KILL_AFTER_S = 10.0
"""How much longer than its slot a short training may run before it is killed."""

OVERTIME_S = 10.0
"""How long a search waits for finalists that score and save after the end of its budget: on a busy
machine that takes longer than was left for it, and half of the budget is in their weights."""

LONGER_RATE = 0.75
"""A training of three times the first slot has this share of its learning rate, one of nine times
this share of that, and so on: what is best for a short one is too high for a long one."""

ROUNDED_SHARE = 0.5
"""Of a finalist's time, in which it trains with INT8 rounding where that is what counts."""

HOPELESS_FAILURES = 30


def optimize(
    task: str,
    *,
    data: str | Path | Dataset,
    output: str | Path,
    space: SpaceArgument | None = None,
    objectives: Sequence[str] | None = None,
    constraints: Mapping[str, float] | None = None,
    search: str = "cbo",
    search_options: Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    synthetic: int | None = None,
    max_evals: int | None = None,
    timeout: float | None = None,
    workers: int | None = None,
    evaluator: str = "process",
    seed: int = 0,
    resume: bool = False,
    epochs: int | None = None,
    patience: int | None = None,
    time_limit_s: float | None = None,
    memory_limit_gb: float | None = None,
    device: str = "auto",
    measure: Measure | str | None = None,
    signing_key: str | Path | None = None,
    keep_checkpoints: str = "pareto",
    ray_address: str | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Search for networks that are accurate and small, and train them.

    With a budget in time, the default, short trainings of many networks tell which ones go on, a
    network that would take too few steps is not proposed, and no training of the search takes more
    than a fifteenth of the budget at once; when half of it is spent, a few finalists along the
    front train on, the best of them on a worker of its own. With `max_evals` every network is
    trained once, for the epochs that its configuration says.

    A run is a folder. Killing the search at any moment, with ``kill -9`` too, loses at most the
    evaluations under way; they are evaluated again when the run is resumed. An evaluation that
    fails is a row with its reason and never ends the search. With ``evaluator="serial"`` two runs
    with one seed give the same table, but for wall times.

    Parameters
    ----------
    task
        "bragg" or "ptycho".
    data
        Labelled data: a `PeakDataset` for "bragg", a `PtychoDataset` for "ptycho", or the file
        that its `save` wrote.
    output
        The run folder.
    space
        One or more of `edgexnas.host.networks.spaces.SPACES` by name, ``"module:ATTRIBUTE"``, or
        `SearchSpace` objects. ``"paper"`` stands for those of the paper's Table 1, drawn from all
        of their ranges, where other searches with a budget begin near what earlier runs found
        good. Several spaces take turns, with a budget by how many of their networks went on. None
        takes those of the task, for "bragg" mlpBraggMirrored beside the two of the paper, since
        its networks err least.
    objectives
        What to minimise: names of `edgexnas.host.measuring.objectives.OBJECTIVES`, or of its
        `PTYCHO_OBJECTIVES` for "ptycho", where ``error`` is the mean absolute phase error. All
        errors are on the validation part of the data; neither the calibration nor the test part
        is touched. None takes error and parameters; for "bragg" with a budget int8_error, the
        error with INT8 rounding as a device has it, and parameters. With a budget the first one
        says what is best: only networks that are at most four times worse by it go on, and at most
        twice worse are finalists, so an error comes first.
    constraints
        Upper bounds on parameters, macs, latency or energy. They reject a configuration before it
        trains.
    search
        "cbo", "random", "evolution", "hyperband", "optuna-tpe", "optuna-gp" or
        "optuna-nsga2". All start from the same random points for one seed.
    search_options
        Options of that strategy's class in `edgexnas.host.search.strategies`.
    budget
        Time for everything up to the result, all sessions of the run together: seconds, or text
        such as "90s", "30min", "2h". The call returns within it, plus a few seconds that starting
        and ending take, at most ten for finalists that are late, or when a first network is
        trained, however long the start took. None takes "10min" for "bragg" and
        "30min" for "ptycho", unless `max_evals`, `timeout`, `epochs`, `patience` or `time_limit_s`
        is given or `search` is "hyperband", none of which goes with a budget.
    synthetic
        Add synthetic peaks to the training part until it has so many; None takes 100,000 with a
        budget, as far as a twentieth of it suffices to draw them, and none without. 0 adds none.
        They are resampled from the training part, see
        `edgexnas.host.data.synthetic_peaks.with_synthetic_peaks`, and trainings see measured ones
        every fifth time. No part but the training part changes.
    max_evals
        Evaluations in total, those of earlier sessions of the run included; 100 in a search
        without a budget.
    timeout
        Seconds after which this session ends; running evaluations are left to the next one.
    workers
        Evaluations at once. With GPUs, worker k uses GPU k modulo their number. None takes one;
        with a budget one a core, at most 16, or four a GPU.
    evaluator
        "process", "serial" or "ray".
    resume
        Continue the run in `output`, if there is one.
    epochs
        Cap on the epochs of every training.
    patience
        Epochs without improvement after which a training stops; None never stops early, so that
        every training reaches the end of its learning-rate schedule.
    time_limit_s
        A training ends after the epoch that passes this; one that still runs after one and a half
        times as long plus 30 seconds is killed, unless `evaluator` is "serial"; 600 in a search
        without a budget.
    memory_limit_gb
        GB of host memory a worker process may allocate; None takes its share of nine tenths of the
        machine's. "serial" has no limit, and with "ray" the cluster's own applies.
    device
        Where to train: "auto", "cpu", "cuda", ...
    measure
        Where latency in ms and energy in mJ of a candidate come from, one candidate at a time:
        "local" (this machine's CPU or GPU, by a process of its own), "ssh://orin" (a device that
        has edgexnas installed, over the system's ssh), "model" (an estimate for a Jetson AGX Orin),
        each with options as `edgexnas.host.measuring.measure_source` says, or a
        function of the untrained network.
    signing_key
        Private key for `SearchResult.export`, checked before the search.
    keep_checkpoints
        "pareto" keeps the weights of each space's front only, "all" keeps everything.
    ray_address
        Address of the cluster for evaluator "ray"; None takes the environment's ``RAY_ADDRESS``
        or starts one on this machine.
    progress
        Show a live table; None shows it on a terminal, and elsewhere a line now and then on
        standard error. False shows nothing.

    Raises
    ------
    ConfigurationError, InputError, MissingDependencyError
        If an argument is wrong, before anything is trained.
    SourceError
        If the data cannot be read.
    SearchError
        If the run folder cannot be written, is in use, or holds another run.
    """
    began = time.monotonic()
    plan = make_plan(
        task, data=data, space=space, objectives=objectives, constraints=constraints,
        search=search, search_options=search_options, budget=budget, synthetic=synthetic,
        max_evals=max_evals, timeout=timeout, workers=workers, evaluator=evaluator, seed=seed,
        output=output, resume=resume, epochs=epochs, patience=patience, time_limit_s=time_limit_s,
        memory_limit_gb=memory_limit_gb, device=device, measure=measure, signing_key=signing_key,
        keep_checkpoints=keep_checkpoints, ray_address=ray_address,
    )  # fmt: skip
    description = plan.description()
    check_journalled(plan.output)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(plan.output, description))
        # Under the journal's lock: another search must not replace the file of this run.
        write_run(plan)
        stack.enter_context(logged_to(plan.output / "search.log"))
        display = stack.enter_context(SearchProgress(plan, enabled=progress))
        plan = _filled_up(plan, display)
        run = (_Run if plan.budget is None else _BudgetedRun)(plan, journal, display, began)
        run.replay()
        if run.unfinished:
            run.evaluate(stack)
        run.close()
        logger.info("%d evaluations, hypervolume %.4f", len(journal.finished), display.hypervolume)
    return SearchResult(
        plan.output,
        {space.name: space for space in plan.spaces},
        plan.objectives,
        tuple(journal.finished),
        description,
        run.kept,
        plan.dataset,
        signing_key,
    )


def _filled_up(plan: SearchPlan, display: SearchProgress) -> SearchPlan:
    """Add synthetic items to what the trainings see, if the plan wants some."""
    count = plan.synthetic
    if count is None:
        count = 0 if plan.budget is None else find_task(plan.task).synthetic
    if not count:
        return plan
    filled = fill_up(
        plan.dataset,
        plan.output,
        count,
        seed=plan.seed,
        seconds=None if plan.budget is None else TimeShares.of(plan.budget).preparation_s,
        say=display.say,
    )
    if filled is plan.dataset:
        return plan
    context = evaluation_context(
        filled, filled.split(), device=plan.context.device, patience=plan.context.patience
    )
    context = dataclasses.replace(context, int8=plan.context.int8)
    return dataclasses.replace(plan, dataset=filled, context=repeat_measured(context, plan.context))


class _Run:
    """The loop between strategies, evaluator and journal, for a number of evaluations."""

    def __init__(
        self, plan: SearchPlan, journal: Journal, display: SearchProgress, began: float
    ) -> None:
        self._plan, self._journal, self._display = plan, journal, display
        self._strategies = dict(zip((s.name for s in plan.spaces), self._made(), strict=True))
        self._spaces = {space.name: space for space in plan.spaces}
        self._proposals: dict[int, Proposal] = {}
        self._measured: dict[int, dict[str, float]] = {}
        self._running: set[int] = set()
        self._began = began
        # `finished` counts the search's own time, without the pauses between sessions.
        self._before = max((trial.finished for trial in journal.finished), default=0.0)
        self.kept = len(journal.finished)

    def _made(self) -> list[Strategy]:
        return self._plan.strategies()

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to evaluate."""
        assert self._plan.max_evals is not None
        return len(self._journal.finished) < self._plan.max_evals

    def close(self) -> None:
        """End the run: nothing is left to do."""

    def replay(self) -> None:
        """Replay the journal into the strategies."""
        # In the journal's order, because a proposal depends on what was told before it.
        for event, number in self._journal.events:
            trial = self._journal.trials[number]
            known = self._known_proposal(trial)
            if event == "start" and known is not None:
                self._proposals[number] = known
            elif event == "start":
                strategy = self._strategies[trial.space]
                self._proposals[number] = strategy.replay(trial.configuration)
            else:
                self._tell(trial)
                self._display.add(trial, replayed=True)
        if self._journal.events:
            again = sum(trial.order < 0 for trial in self._journal.trials.values())
            message = f"kept {self.kept} evaluations, {again} interrupted ones restart"
            logger.info("resumed: %s", message)
            self._display.resumed(message)

    def _known_proposal(self, trial: Trial) -> Proposal | None:
        """Return the proposal of the trial that this one goes on from or repeats."""
        origin = trial.parent if trial.parent is not None else trial.repeats
        return None if origin is None else self._proposals[origin]

    def evaluate(self, stack: ExitStack) -> None:
        """Evaluate until the plan's budget is spent."""
        plan = self._plan
        most = plan.workers if plan.max_evals is None else min(plan.workers, plan.max_evals)
        evaluator = make_evaluator(
            plan.evaluator,
            plan.context,
            workers=most,
            kill_after_s=None if plan.time_limit_s is None else 1.5 * plan.time_limit_s + 30,
            memory_limit=_memory_limit(plan),
            log=plan.output / "workers.log",
            ray_address=plan.ray_address,
        )
        stack.callback(evaluator.close)
        # They have their number, proposal and seed already, so they come first.
        interrupted = [t.number for t in self._journal.trials.values() if t.order < 0]
        while self._left() > 0:
            while len(self._running) < evaluator.capacity and self._left() > 0:
                number = interrupted.pop(0) if interrupted else self._next()
                if number is None:
                    break
                self._launch(number, evaluator)
            if not self._running:
                break
            # At most a second, so that the view and the time-out stay current.
            for result in evaluator.collect(max(0.0, min(self._left(), 1.0))):
                self._record(result)
            self._display.refresh(len(self._running))

    def _elapsed(self) -> float:
        """Seconds that this session has taken."""
        return time.monotonic() - self._began

    def _left(self) -> float:
        """Seconds until the session's time-out."""
        timeout = self._plan.timeout
        return float("inf") if timeout is None else timeout - self._elapsed()

    def _next(self) -> int | None:
        """Begin the next trial; None if there is none to begin."""
        number = len(self._journal.trials)
        if number >= (self._plan.max_evals or 0):
            return None
        # By number alone, so that spaces take turns.
        return self._propose(self._plan.spaces[number % len(self._plan.spaces)].name)

    def _propose(self, space: str, **more: Any) -> int:
        number = len(self._journal.trials)
        proposal = self._proposals[number] = self._strategies[space].ask()
        # On disk before it runs: if this process dies, the next session evaluates it again.
        self._journal.start(number, space, proposal.configuration, **more)
        return number

    def _request(self, number: int) -> EvaluationRequest:
        proposal, trial = self._proposals[number], self._journal.trials[number]
        return EvaluationRequest(
            number,
            self._spaces[trial.space],
            proposal.configuration,
            trial_seed(self._plan.seed, number),
            proposal.stop_above,
            self._plan.time_limit_s,
        )

    def _launch(self, number: int, evaluator: Evaluator) -> None:
        proposal = self._proposals[number]
        space = self._spaces[self._journal.trials[number].space]
        self._measured[number] = {}
        # What the size or a measurement decides needs no training.
        rejected = self._measure(number, space, proposal.configuration)
        if rejected is not None:
            self._record(rejected)
            return
        self._running.add(number)
        evaluator.submit(self._request(number))

    def _measure(
        self, number: int, space: SearchSpace, configuration: Configuration
    ) -> EvaluationResult | None:
        """Determine size and measurements; return a result if they reject the candidate."""
        plan, known = self._plan, self._measured[number]
        try:
            known |= vars(space.size(configuration))
        except Exception as error:
            return EvaluationResult(number, *classify(error))
        wanted = {o.name for o in plan.objectives if o.kind == "measured"}
        wanted |= {"latency", "energy"} & plan.constraints.keys()
        if plan.measure is None or not wanted:
            return None
        try:
            measured = plan.measure(space.build(configuration).eval())
            values = {name: float(measured[name]) for name in wanted}
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return EvaluationResult(number, "measure", message)
        if not all(math.isfinite(value) for value in values.values()):
            return EvaluationResult(number, "measure", f"measured {values}")
        known |= values
        excess = violation(plan.constraints, known)
        return None if excess is None else EvaluationResult(number, "constraint", excess)

    def _record(self, result: EvaluationResult) -> None:
        number = result.trial
        self._running.discard(number)
        if result.checkpoint is not None:
            path = checkpoint_path(self._plan.output, number)
            path.parent.mkdir(exist_ok=True)
            # Before the journal says "done", so that whatever is done has its weights.
            write_run_file(path, result.checkpoint)
        trial = self._journal.finish(
            number,
            status="failed" if result.reason else "done",
            reason=result.reason,
            message=result.message,
            metrics={**self._measured.pop(number), **result.metrics},
            rungs=dict(result.rungs),
            seconds=round(result.seconds, 3),
            finished=round(self._before + self._elapsed(), 3),
        )
        logger.info("trial %d in %s %s %s", number, trial.space, trial.status, trial.reason)
        self._tell(trial)
        self._display.add(trial)
        if self._plan.keep_checkpoints == "pareto" and trial.status == "done":
            self._drop_dominated(trial.space)

    def _fidelity(self, trial: Trial) -> float:
        """How far up the ladder of times a trial was."""
        return 1.0

    def _tell(self, trial: Trial) -> None:
        # 1 is the worst of a scale: strategies learn to avoid what fails.
        values = tuple(
            o.position(trial.metrics[o.name])
            if o.name in trial.metrics and (trial.status == "done" or o.kind != "learned")
            else 1.0
            for o in self._plan.objectives
        )
        proposal = self._proposals[trial.number]
        outcome = Outcome(proposal.configuration, values, trial.rungs, self._fidelity(trial))
        self._strategies[trial.space].tell(proposal.number, outcome)

    def _drop_dominated(self, space: str, kept: Container[int | None] = ()) -> None:
        """Delete checkpoints of candidates that are dominated within their space, but `kept`."""
        names = [objective.name for objective in self._plan.objectives]
        done = [
            Candidate(t.number, t.space, {}, {n: t.metrics[n] for n in names}, {}, None)
            for t in self._journal.finished
            if t.status == "done" and t.space == space
        ]
        front = {candidate.trial for candidate in front_of(done, self._plan.objectives)}
        for candidate in done:
            if candidate.trial not in front and candidate.trial not in kept:
                checkpoint_path(self._plan.output, candidate.trial).unlink(missing_ok=True)


class _BudgetedRun(_Run):
    """The same loop for a budget in time; a `Ladder` says what is trained and for how long."""

    def __init__(
        self, plan: SearchPlan, journal: Journal, display: SearchProgress, began: float
    ) -> None:
        assert plan.budget is not None
        self._shares = TimeShares.of(plan.budget)
        self._cost = plan.step_cost()
        self._ladder = Ladder(self._shares, plan.objectives, plan.workers)
        super().__init__(plan, journal, display, began)
        self._waiting_for_finals = True

    def _made(self) -> list[Strategy]:
        return self._plan.strategies(self._cost, self._shares.slots_s[0])

    @property
    def unfinished(self) -> bool:
        """Whether time is left."""
        return self._nothing_done or self._until_end() > 0

    def close(self) -> None:
        """Delete the weights that only a training that might have gone on needed."""
        if self._plan.keep_checkpoints == "pareto":
            # One that had no time to end goes on if the run is resumed.
            kept = {t.parent for t in self._journal.trials.values() if t.order < 0}
            for space in self._spaces:
                super()._drop_dominated(space, kept)

    def _drop_dominated(self, space: str, kept: Container[int | None] = ()) -> None:
        # A training may yet go on from them.
        pass

    @property
    def _nothing_done(self) -> bool:
        """Whether a first network is still to be trained, however long the start has taken."""
        return not any(trial.status == "done" for trial in self._journal.trials.values())

    def _until_end(self) -> float:
        """Seconds until the last training ends."""
        return self._shares.end_s - self._before - self._elapsed()

    def _left(self) -> float:
        if self._nothing_done:
            return math.inf
        return self._until_end() + self._shares.budget_s - self._shares.end_s + OVERTIME_S

    def _next(self) -> int | None:
        trials = self._journal.trials
        if _hopeless(trials):
            return None
        elapsed = self._before + self._elapsed()
        job = self._ladder.next(trials, len(self._running), elapsed)
        if self._ladder.finals_began and self._waiting_for_finals:
            self._waiting_for_finals = False
            self._display.say(f"search ended after {len(trials)} trainings, finalists train on")
        if job is None:
            return None
        seconds = job.seconds if self._nothing_done else min(job.seconds, self._until_end())
        if seconds < min(job.seconds, self._shares.slots_s[0]):
            return None
        # Rounded down, so that the journal never promises more than there is.
        more = {"slot_s": math.floor(1000 * seconds) / 1000, "stage": job.stage}
        origin = job.parent if job.parent is not None else job.repeats
        if origin is None:
            rng = random.Random(f"{self._plan.seed}/space/{len(trials)}")
            space = choose_space(list(trials.values()), list(self._spaces), rng)
            return self._propose(space, **more)
        number = len(trials)
        self._proposals[number] = self._proposals[origin]
        known = {"parent": job.parent} if job.repeats is None else {"repeats": job.repeats}
        self._journal.start(
            number, trials[origin].space, self._proposals[origin].configuration, **more, **known
        )
        return number

    def _request(self, number: int) -> EvaluationRequest:
        trial = self._journal.trials[number]
        seconds = trial.slot_s
        if not self._nothing_done:
            # An interrupted one of a resumed run may have less left than it was to have.
            seconds = max(min(seconds, self._until_end()), 0.1)
        weights = None
        if trial.parent is not None:
            path = checkpoint_path(self._plan.output, trial.parent)
            # `close` keeps them; where they are lost after all, it has no more than its own time.
            weights = path.read_bytes() if path.exists() else None
            if weights is None:
                logger.warning("trial %d trains anew, as %s is gone", number, path)
        longer = max(1.0, trial.slot_s / self._shares.slots_s[0])
        return dataclasses.replace(
            super()._request(number),
            seconds=seconds,
            time_limit_s=None,
            # A single step may take longer than its slot.
            kill_after_s=min(seconds + max(KILL_AFTER_S, seconds / 2), max(self._left(), 0.1)),
            weights=weights,
            rate_share=LONGER_RATE ** math.log(longer, SLOT_FACTOR),
            rounded_share=ROUNDED_SHARE if trial.stage == "final" else 0.0,
        )

    def _fidelity(self, trial: Trial) -> float:
        return self._ladder.fidelity(trial.slot_s)

    def _tell(self, trial: Trial) -> None:
        self._observe_cost(trial)
        # Finalists come after the last proposal, and their times are none of the ladder's.
        if trial.stage == "search":
            super()._tell(trial)

    def _observe_cost(self, trial: Trial) -> None:
        steps = trial.metrics.get("steps", 0.0)
        if trial.status == "done" and steps > 0:
            size = self._spaces[trial.space].size(trial.configuration)
            batch = int(trial.configuration["batch_size"])
            self._cost.observe(size, batch, trial.slot_s / steps)


def _hopeless(trials: Mapping[int, Trial]) -> bool:
    """Whether so many trainings failed, and none did not, that no other one will do better."""
    failed = sum(trial.status == "failed" for trial in trials.values())
    return failed >= HOPELESS_FAILURES and not any(t.status == "done" for t in trials.values())


def _memory_limit(plan: SearchPlan) -> int:
    if plan.memory_limit_gb is not None:
        return int(plan.memory_limit_gb * 1e9)
    # The last tenth is for the search itself and the page cache.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(0.9 * total / plan.workers)
