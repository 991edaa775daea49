"""What a search is asked to do, checked completely before anything trains."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgexnas.errors import ConfigurationError, SearchError
from edgexnas.host.data.dataset import Dataset
from edgexnas.host.measuring.measure_source import labelled, open_measure
from edgexnas.host.measuring.objectives import (
    Measure,
    Objective,
    check_constraints,
    resolve_objectives,
    violation,
)
from edgexnas.host.networks.hyperparameters import Choice, Configuration, is_number, is_whole
from edgexnas.host.networks.search_space import INPUT_SHAPES, ModelSize, SearchSpace
from edgexnas.host.networks.spaces import SPACES, resolve_space
from edgexnas.host.search.budget import parse_budget
from edgexnas.host.search.evaluation import EvaluationContext, evaluation_context
from edgexnas.host.search.evaluators import check_evaluator
from edgexnas.host.search.journal import NAME, read_journal
from edgexnas.host.search.priors import find_prior, known_step_cost
from edgexnas.host.search.step_cost import StepCost
from edgexnas.host.search.strategies import SearchProblem, Strategy, make_strategy
from edgexnas.host.search.tasks import PAPER, Task, expand_spaces, find_task

__all__ = ["SearchPlan"]

LEAST_FREE_BYTES = 16 << 20
"""Below this a run folder cannot even hold its journal and a few checkpoints."""

LEAST_STEPS = 30
"""A network that cannot take so many in its first training tells nothing there."""

OBJECTIVES_ONCE = ("error", "parameters")
DEFAULT_EVALUATIONS, DEFAULT_TIME_LIMIT_S = 100, 600.0
"""Of a search without a budget."""

MOST_WORKERS, WORKERS_A_GPU = 16, 4
"""Of a search with a budget that is told no number of workers."""

BUILD_TRIES = 50
"""Networks of which at least one must build, the smallest first."""

SpaceArgument = str | SearchSpace | Sequence[str | SearchSpace]


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The checked arguments of `edgexnas.host.search.optimization.optimize`; see there.

    `given` are the spaces as they were named, `spaces` what they stand for under the cap on
    epochs. With a `budget`, in seconds, `max_evals`, `timeout`, `epochs` and `time_limit_s` are
    None, and draws come from the priors of earlier runs where `priors` says so. `synthetic` is how
    many items the training part is filled up to, or None for what the task has.
    """

    task: str
    data: str | None
    dataset: Dataset
    context: EvaluationContext
    given: tuple[str | SearchSpace, ...]
    spaces: tuple[SearchSpace, ...]
    objectives: tuple[Objective, ...]
    constraints: dict[str, float]
    search: str
    search_options: dict[str, Any]
    budget: float | None
    synthetic: int | None
    priors: bool
    max_evals: int | None
    timeout: float | None
    workers: int
    evaluator: str
    seed: int
    output: Path
    epochs: int | None
    time_limit_s: float | None
    memory_limit_gb: float | None
    measure: Measure | None
    measure_source: str | None
    keep_checkpoints: str
    ray_address: str | None

    def step_cost(self) -> StepCost:
        """Start from what earlier runs tell of a step's time, where they had such networks."""
        from edgexnas.host.training.settings import training_device

        if all(find_prior(space) is None for space in self.spaces):
            return StepCost()
        return StepCost(known_step_cost(training_device(self.context.device).type))

    def strategies(self, cost: StepCost | None = None, first_slot_s: float = 0.0) -> list[Strategy]:
        """Make one strategy per space.

        Parameters
        ----------
        cost, first_slot_s
            Networks that could not take `LEAST_STEPS` in their first slot are not proposed, but for
            the smallest.
        """
        return [
            make_strategy(
                self.search,
                SearchProblem(
                    space,
                    len(self.objectives),
                    self.seed,
                    _Feasible(space, self.constraints, cost, first_slot_s),
                    find_prior(space) if self.priors else None,
                ),
                self.search_options,
            )
            for space in self.spaces
        ]

    def description(self) -> dict[str, Any]:
        """Describe what a resumed run must agree on, as plain values."""
        # Latencies of two devices, or measured and estimated ones, must not meet in one run.
        source: dict[str, Any] = (
            {} if self.measure_source is None else {"measure": self.measure_source}
        )
        if self.budget is not None:
            # Its slots follow from it.
            source |= {"budget": self.budget, "priors": self.priors}
        if self.budget is not None or self.synthetic is not None:
            source |= {"synthetic": self.synthetic}
        # Neither budget nor workers: a run may be resumed with more of them.
        return source | {
            "task": self.task,
            "data": self.dataset.digest,
            "spaces": [describe_space(space) for space in self.spaces],
            "objectives": [objective.name for objective in self.objectives],
            "constraints": self.constraints,
            "search": self.search,
            "search_options": self.search_options,
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "patience": self.context.patience,
        }


@dataclass(frozen=True)
class _Feasible:
    """Whether a configuration keeps the constraints that its size alone decides."""

    space: SearchSpace
    constraints: Mapping[str, float]
    cost: StepCost | None = None
    first_slot_s: float = 0.0

    def __call__(self, configuration: Configuration) -> bool:
        # Latency and energy are measured when a candidate is launched.
        if not {"parameters", "macs"} & self.constraints.keys() and self.cost is None:
            return True
        try:
            size = self.space.size(configuration)
        except Exception:
            # What cannot be built keeps no bound on its size.
            return False
        if violation(self.constraints, size) is not None:
            return False
        # However slow a machine turns out to be, one network is left to propose.
        if self.cost is None or configuration == self.space.smallest:
            return True
        step = self.cost.predict(size, int(configuration["batch_size"]))
        return step is None or step * LEAST_STEPS <= self.first_slot_s


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """Name and ranges of a space as plain values."""
    parameters = [
        {"kind": type(p).__name__, **dataclasses.asdict(p)} for p in space.hyperparameters
    ]
    return {"name": space.name, "hyperparameters": parameters}


def make_plan(
    task: str,
    *,
    data: str | Path | Dataset,
    space: SpaceArgument | None,
    objectives: Sequence[str] | None,
    constraints: Mapping[str, float] | None,
    search: str,
    search_options: Mapping[str, Any] | None,
    evaluator: str,
    workers: int | None,
    budget: str | float | None,
    max_evals: int | None,
    timeout: float | None,
    time_limit_s: float | None,
    output: str | Path,
    resume: bool,
    epochs: int | None,
    measure: Measure | str | None,
    device: str,
    patience: int | None,
    signing_key: str | Path | None,
    **rest: Any,
) -> SearchPlan:
    """Check every argument of `optimize`; cheap checks come first, the data last."""
    application = find_task(task)
    for name, table in {"constraints": constraints, "search_options": search_options}.items():
        if table is not None and not isinstance(table, Mapping):
            raise ConfigurationError(f"{name} is {table!r}; specify a dictionary")
    limits: dict[str, Any] = {
        "max_evals": max_evals, "timeout": timeout, "epochs": epochs, "patience": patience,
        "time_limit_s": time_limit_s,
    }  # fmt: skip
    seconds = _budget(budget, limits, search, application)
    if seconds is None:
        max_evals = DEFAULT_EVALUATIONS if max_evals is None else max_evals
        time_limit_s = DEFAULT_TIME_LIMIT_S if time_limit_s is None else time_limit_s
    if objectives is None:
        objectives = OBJECTIVES_ONCE if seconds is None else application.objectives_of_budget
    space = application.spaces if space is None else space
    if not isinstance(space, str | SearchSpace | Iterable):
        raise ConfigurationError(
            f"space {space!r} is a {type(space).__name__}; specify a name, a SearchSpace or several"
        )
    given = (space,) if isinstance(space, str | SearchSpace) else tuple(space)
    spaces = _spaces(given, application, epochs)
    if seconds is not None:
        # The time decides, so the number of epochs is nothing to choose.
        spaces = tuple(item.narrow(epochs=item["epochs"].from_unit(1.0)) for item in spaces)
    source = measure if isinstance(measure, str) else None
    resolved = tuple(
        labelled(objective, source)
        for objective in resolve_objectives(
            objectives, measure=measure, known=application.objectives
        )
    )
    bounds = check_constraints(constraints, measure=measure, known=application.objectives)
    if workers is None:
        workers = 1 if seconds is None or evaluator == "serial" else _workers(device)
    check_evaluator(evaluator, workers)
    limits |= {"max_evals": max_evals, "time_limit_s": time_limit_s}
    _check_numbers(limits | rest)
    # Cheap checks first: a mistyped name must not cost the reading of data.
    _check_device(device)
    check_reachable(spaces, bounds)
    if signing_key is not None:
        from edgexnas.bundle import load_signing_key

        load_signing_key(signing_key)
    folder = Path(output)
    _check_folder(folder, resume=resume)
    if isinstance(measure, str):
        # Reaching a device takes seconds, so what is cheap to reject has been rejected before.
        measure = open_measure(
            measure,
            task=task,
            wanted=(*objectives, *bounds),
            workers=workers,
            signing_key=signing_key,
            cache=folder / "measurements",
        )
    dataset, path = _load(data, application)
    context = evaluation_context(dataset, dataset.split(), device=device, patience=patience)
    context = dataclasses.replace(context, int8="int8_error" in objectives)
    plan = SearchPlan(
        task=task, data=path, dataset=dataset, context=context, given=given, spaces=spaces,
        objectives=resolved, constraints=bounds, search=search,
        search_options=dict(search_options or {}), evaluator=evaluator, workers=workers,
        output=folder, epochs=epochs, measure=measure, measure_source=source, budget=seconds,
        priors=seconds is not None and PAPER not in given, max_evals=max_evals, timeout=timeout,
        time_limit_s=time_limit_s, **rest,
    )  # fmt: skip
    # Strategies check their own options and whether they are installed.
    plan.strategies()
    check_exportable(spaces)
    return plan


def check_reachable(spaces: Sequence[SearchSpace], constraints: Mapping[str, float]) -> None:
    """Reject a space of which nothing can be built, or nothing within the constraints.

    Raises
    ------
    ConfigurationError
        Naming the space and its smallest network.
    """
    for space in spaces:
        problem = SearchProblem(space, 1, 0, _Feasible(space, constraints))
        smallest = _smallest_size(problem)
        try:
            problem.draw(problem.generator("reachable"))
        except ConfigurationError as error:
            bounds = " and ".join(f"{name} ≤ {bound:g}" for name, bound in constraints.items())
            raise ConfigurationError(
                f"space {space.name} has no network with {bounds}: its smallest has "
                f"{smallest.parameters} parameters and {smallest.macs} macs; relax the constraints"
            ) from error


def check_exportable(spaces: Sequence[SearchSpace]) -> None:
    """Reject a space of one's own whose networks train but cannot become a bundle.

    Its smallest network is exported in float16, the precision that takes least, and so is one for
    each other value of a choice of words or switches. Other ranges change sizes, not operations.

    Raises
    ------
    ConfigurationError
        Naming the space, the choice and the operation.
    """
    built_in = {space.builder for space in SPACES.values()}
    for space in spaces:
        if space.builder in built_in:
            continue
        variants = [space.smallest]
        for parameter in space.free:
            values = parameter.values if isinstance(parameter, Choice) else ()
            variants += [
                {**space.smallest, parameter.name: value}
                for value in values
                if isinstance(value, bool | str) and value != parameter.lowest
            ]
        for variant in variants:
            _export_once(space, variant)


def _export_once(space: SearchSpace, configuration: Configuration) -> None:
    import torch

    from edgexnas.host.exporting.onnx_export import to_onnx

    try:
        # The caller's own random numbers are left as they were.
        with torch.random.fork_rng(devices=()):
            model = space.build(configuration).eval()
    except Exception:
        # One that cannot be built is a row of the search with its reason.
        return
    try:
        to_onnx(model, torch.zeros(4, *INPUT_SHAPES[space.task]), half=True)
    except ConfigurationError as error:
        chosen = {p.name: configuration[p.name] for p in space.free if isinstance(p, Choice)}
        which = f" with {chosen}" if chosen else ""
        raise ConfigurationError(f"space {space.name}{which}: {error}") from error


def _smallest_size(problem: SearchProblem) -> ModelSize:
    """Size of the first network that can be built, from the smallest up."""
    space, rng = problem.space, problem.generator("buildable")
    first: Exception | None = None
    for _ in range(BUILD_TRIES):
        try:
            return space.size(space.smallest if first is None else space.sample(rng))
        except Exception as error:
            first = first or error
    raise ConfigurationError(
        f"space {space.name} cannot build any of {BUILD_TRIES} networks "
        f"({type(first).__name__}: {first}); fix its builder"
    ) from first


def _budget(
    budget: str | float | None, limits: Mapping[str, Any], search: str, task: Task
) -> float | None:
    """Seconds of the budget, the task's own where nothing else bounds the search."""
    given = [name for name, value in limits.items() if value is not None]
    if budget is None:
        stops_by_epochs = search == "hyperband"
        return None if given or stops_by_epochs else parse_budget(task.budget)
    seconds = parse_budget(budget)
    if given:
        raise ConfigurationError(
            f"budget is {budget!r} and {given[0]} is {limits[given[0]]!r}; specify one of both: a "
            "budget decides how many networks are trained and for how long"
        )
    if search == "hyperband":
        raise ConfigurationError(
            "search 'hyperband' stops trainings by epochs and a budget by time; specify another "
            "search, or max_evals"
        )
    return seconds


def _workers(device: str) -> int:
    """One a core that this process may use, or a few a GPU."""
    import torch

    from edgexnas.host.training.settings import training_device

    cores = len(os.sched_getaffinity(0))
    if training_device(device).type == "cuda":
        return max(1, min(cores, WORKERS_A_GPU * torch.cuda.device_count()))
    return min(cores, MOST_WORKERS)


def _spaces(
    given: Sequence[str | SearchSpace], task: Task, epochs: int | None
) -> tuple[SearchSpace, ...]:
    if not given:
        raise ConfigurationError("space is empty; specify at least one space")
    spaces = [resolve_space(item, task=task.name) for item in expand_spaces(given, task)]
    names = [item.name for item in spaces]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"spaces are named {names}; specify unique names")
    if epochs is None:
        return tuple(spaces)
    return tuple(_capped(item, epochs) for item in spaces)


def _capped(space: SearchSpace, epochs: int) -> SearchSpace:
    parameter = space["epochs"]
    values = getattr(parameter, "values", None)
    if values is not None:
        return space.narrow(epochs=tuple(value for value in values if value <= epochs))
    low, high = parameter.lowest, parameter.from_unit(1.0)
    if not is_whole(epochs) or epochs < float(low):
        raise ConfigurationError(
            f"epochs is {epochs!r} and space {space.name} starts at {low}; specify a whole number "
            "from there"
        )
    return space.narrow(epochs=(low, min(high, epochs)))


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name in ("max_evals", "patience", "epochs", "synthetic"):
        count = values[name]
        least = 0 if name == "synthetic" else 1
        if count is not None and (not is_whole(count) or count < least):
            raise ConfigurationError(f"{name} is {count!r}; specify a whole number from {least}")
    seed, kept = values["seed"], values["keep_checkpoints"]
    if not is_whole(seed) or seed < 0:
        raise ConfigurationError(f"seed is {seed!r}; specify a whole number from 0")
    for name in ("timeout", "time_limit_s", "memory_limit_gb"):
        limit = values[name]
        if limit is not None and (not is_number(limit) or not limit > 0):
            raise ConfigurationError(f"{name} is {limit!r}; specify a number above 0 or None")
    if kept not in ("pareto", "all"):
        raise ConfigurationError(f"keep_checkpoints is {kept!r}; specify 'pareto' or 'all'")


def _check_device(device: str) -> None:
    import torch

    from edgexnas.host.training.settings import training_device

    if training_device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device is {device!r} and torch finds no GPU; specify 'auto'")


def _check_folder(folder: Path, *, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"output {folder} is a file; specify a folder")
    if (folder / NAME).exists() and not resume:
        _, trials = read_journal(folder)
        raise SearchError(
            f"{folder} already holds a run with {len(trials)} evaluations; specify resume=True "
            "(--resume) or another output"
        )
    # The folder may not exist yet; its disk is then that of the nearest parent.
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents)
                    if path.exists())  # fmt: skip
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        raise SearchError(
            f"the disk of {folder} has {free / 1e6:.0f} MB left and a run needs "
            f"{LEAST_FREE_BYTES / 1e6:.0f} MB; free some space or specify another output"
        )


def _load(data: str | Path | Dataset, task: Task) -> tuple[Dataset, str | None]:
    if isinstance(data, str | Path):
        return task.load(data), str(Path(data).absolute())
    # By its attribute: a dataset of one's own need not inherit from anything.
    if not hasattr(data, "task"):
        raise ConfigurationError(
            f"data is {type(data).__name__}; specify the file of labelled data, or a dataset"
        )
    if data.task != task.name:
        raise ConfigurationError(
            f"the data are for task {data.task!r} and {task.name!r} is searched; specify its data"
        )
    return data, None
