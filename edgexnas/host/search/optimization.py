"""`optimize`: search neural architectures and hyperparameters for one task."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.host.measuring.objectives import Measure, violation
from edgexnas.host.networks.hyperparameters import Configuration
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.run_files import write_run_file
from edgexnas.host.search.evaluation import (
    EvaluationRequest,
    EvaluationResult,
    classify,
    trial_seed,
)
from edgexnas.host.search.evaluators import Evaluator, make_evaluator
from edgexnas.host.search.journal import Journal, Trial
from edgexnas.host.search.plan import SearchPlan, SpaceArgument, make_plan
from edgexnas.host.search.progress import SearchProgress
from edgexnas.host.search.result import Candidate, SearchResult, front_of
from edgexnas.host.search.run_folder import checkpoint_path, write_run
from edgexnas.host.search.strategies import Outcome, Proposal, Strategy

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset

__all__ = ["Candidate", "SearchResult", "optimize"]

logger = logging.getLogger(__name__)


def optimize(
    task: str,
    *,
    data: str | Path | Dataset,
    output: str | Path,
    space: SpaceArgument | None = None,
    objectives: Sequence[str] = ("error", "parameters"),
    constraints: Mapping[str, float] | None = None,
    search: str = "cbo",
    search_options: Mapping[str, Any] | None = None,
    max_evals: int = 100,
    timeout: float | None = None,
    workers: int = 1,
    evaluator: str = "process",
    seed: int = 0,
    resume: bool = False,
    epochs: int | None = None,
    patience: int | None = None,
    time_limit_s: float | None = 600.0,
    memory_limit_gb: float | None = None,
    device: str = "auto",
    measure: Measure | str | None = None,
    signing_key: str | Path | None = None,
    keep_checkpoints: str = "pareto",
    ray_address: str | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Search for networks that are accurate and small, and train them.

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
        `SearchSpace` objects. Several spaces take turns; None takes those of the task, for "bragg"
        mlpBraggSymmetric beside the two of the paper, since its networks err least.
    objectives
        What to minimise: names of `edgexnas.host.measuring.objectives.OBJECTIVES`, or of its
        `PTYCHO_OBJECTIVES` for "ptycho", where ``error`` is the mean absolute phase error. All
        errors are on the validation part of the data; neither the calibration nor the test part
        is touched.
    constraints
        Upper bounds on parameters, macs, latency or energy. They reject a configuration before it
        trains.
    search
        "cbo", "random", "evolution", "hyperband", "optuna-tpe" or "optuna-nsga2". All start from
        the same random points for one seed.
    search_options
        Options of that strategy's class in `edgexnas.host.search.strategies`.
    max_evals
        Evaluations in total, those of earlier sessions of the run included.
    timeout
        Seconds after which this session ends; running evaluations are left to the next one.
    workers
        Evaluations at once. With GPUs, worker k uses GPU k modulo their number.
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
        times as long plus 30 seconds is killed, unless `evaluator` is "serial".
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
        Show a live table; None shows it on a terminal.

    Raises
    ------
    ConfigurationError, InputError, MissingDependencyError
        If an argument is wrong, before anything is trained.
    SourceError
        If the data cannot be read.
    SearchError
        If the run folder cannot be written, is in use, or holds another run.
    """
    plan = make_plan(
        task, data=data, space=space, objectives=objectives, constraints=constraints,
        search=search, search_options=search_options, max_evals=max_evals, timeout=timeout,
        workers=workers, evaluator=evaluator, seed=seed, output=output, resume=resume,
        epochs=epochs, patience=patience, time_limit_s=time_limit_s,
        memory_limit_gb=memory_limit_gb, device=device, measure=measure, signing_key=signing_key,
        keep_checkpoints=keep_checkpoints, ray_address=ray_address,
    )  # fmt: skip
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(plan.output, plan.description()))
        # Under the journal's lock: another search must not replace the file of this run.
        write_run(plan)
        _log_to(plan.output / "search.log", stack)
        display = stack.enter_context(SearchProgress(plan, enabled=progress))
        run = _Run(plan, journal, display)
        run.replay()
        if len(journal.finished) < plan.max_evals:
            run.evaluate(stack)
        logger.info("%d evaluations, hypervolume %.4f", len(journal.finished), display.hypervolume)
    return SearchResult(
        plan.output,
        {space.name: space for space in plan.spaces},
        plan.objectives,
        tuple(journal.finished),
        plan.description(),
        run.kept,
        plan.dataset,
        signing_key,
    )


class _Run:
    """The loop between strategies, evaluator and journal."""

    def __init__(self, plan: SearchPlan, journal: Journal, display: SearchProgress) -> None:
        self._plan, self._journal, self._display = plan, journal, display
        self._strategies = plan.strategies()
        self._proposals: dict[int, Proposal] = {}
        self._measured: dict[int, dict[str, float]] = {}
        self._running: set[int] = set()
        self._began = time.monotonic()
        # `finished` counts the search's own time, without the pauses between sessions.
        self._before = max((trial.finished for trial in journal.finished), default=0.0)
        self.kept = len(journal.finished)

    def replay(self) -> None:
        """Replay the journal into the strategies."""
        # In the journal's order, because a proposal depends on what was told before it.
        for event, number in self._journal.events:
            trial = self._journal.trials[number]
            if event == "start":
                self._proposals[number] = self._strategy(number).replay(trial.configuration)
            else:
                self._tell(trial)
                self._display.add(trial)
        if self._journal.events:
            again = sum(trial.order < 0 for trial in self._journal.trials.values())
            message = f"kept {self.kept} evaluations, {again} interrupted ones restart"
            logger.info("resumed: %s", message)
            self._display.say(message)

    def evaluate(self, stack: ExitStack) -> None:
        """Evaluate until the plan's budget is spent."""
        plan = self._plan
        evaluator = make_evaluator(
            plan.evaluator,
            plan.context,
            workers=min(plan.workers, plan.max_evals),
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
                if interrupted:
                    self._launch(interrupted.pop(0), evaluator)
                elif len(self._journal.trials) < plan.max_evals:
                    self._launch(self._propose(), evaluator)
                else:
                    break
            if not self._running:
                break
            # At most a second, so that the view and the time-out stay current.
            for result in evaluator.collect(min(self._left(), 1.0)):
                self._record(result)
            self._display.refresh(len(self._running))

    def _left(self) -> float:
        """Seconds until the session's time-out."""
        timeout = self._plan.timeout
        spent = time.monotonic() - self._began
        return float("inf") if timeout is None else timeout - spent

    def _strategy(self, number: int) -> Strategy:
        # By number alone, so that a resumed run gives a trial to the strategy that proposed it.
        return self._strategies[number % len(self._strategies)]

    def _space(self, number: int) -> SearchSpace:
        return self._plan.spaces[number % len(self._plan.spaces)]

    def _propose(self) -> int:
        number = len(self._journal.trials)
        proposal = self._proposals[number] = self._strategy(number).ask()
        # On disk before it runs: if this process dies, the next session evaluates it again.
        self._journal.start(number, self._space(number).name, proposal.configuration)
        return number

    def _launch(self, number: int, evaluator: Evaluator) -> None:
        proposal, space = self._proposals[number], self._space(number)
        self._measured[number] = {}
        # What the size or a measurement decides needs no training.
        rejected = self._measure(number, space, proposal.configuration)
        if rejected is not None:
            self._record(rejected)
            return
        request = EvaluationRequest(
            number,
            space,
            proposal.configuration,
            trial_seed(self._plan.seed, number),
            proposal.stop_above,
            self._plan.time_limit_s,
        )
        self._running.add(number)
        evaluator.submit(request)

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
            finished=round(self._before + time.monotonic() - self._began, 3),
        )
        logger.info("trial %d in %s %s %s", number, trial.space, trial.status, trial.reason)
        self._tell(trial)
        self._display.add(trial)
        if self._plan.keep_checkpoints == "pareto" and trial.status == "done":
            self._drop_dominated(trial.space)

    def _tell(self, trial: Trial) -> None:
        # 1 is the worst of a scale: strategies learn to avoid what fails.
        values = tuple(
            o.position(trial.metrics[o.name])
            if o.name in trial.metrics and (trial.status == "done" or o.kind != "learned")
            else 1.0
            for o in self._plan.objectives
        )
        proposal = self._proposals[trial.number]
        outcome = Outcome(proposal.configuration, values, trial.rungs)
        self._strategy(trial.number).tell(proposal.number, outcome)

    def _drop_dominated(self, space: str) -> None:
        """Delete checkpoints of candidates that are dominated within their space."""
        names = [objective.name for objective in self._plan.objectives]
        done = [
            Candidate(t.number, t.space, {}, {n: t.metrics[n] for n in names}, {}, None)
            for t in self._journal.finished
            if t.status == "done" and t.space == space
        ]
        front = {candidate.trial for candidate in front_of(done, self._plan.objectives)}
        for candidate in done:
            if candidate.trial not in front:
                checkpoint_path(self._plan.output, candidate.trial).unlink(missing_ok=True)


def _memory_limit(plan: SearchPlan) -> int:
    if plan.memory_limit_gb is not None:
        return int(plan.memory_limit_gb * 1e9)
    # The last tenth is for the search itself and the page cache.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(0.9 * total / plan.workers)


def _log_to(path: Path, stack: ExitStack) -> None:
    """Append this package's log to a file while the stack lives."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("edgexnas.host")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)

    def detach() -> None:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()

    stack.callback(detach)
