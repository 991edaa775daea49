"""What a run folder holds beside its journal: arguments, data and weights, written and read back.

``run.toml`` is a configuration file that reproduces the run; see
`edgexnas.host.search.configuration` for the form.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.errors import ConfigurationError, SearchError
from edgexnas.host.networks.hyperparameters import Choice
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.networks.spaces import SPACES, import_space, resolve_space
from edgexnas.host.run_files import write_run_file
from edgexnas.host.search.journal import NAME as JOURNAL_FILE
from edgexnas.host.search.tasks import expand_spaces, find_task
from edgexnas.toml_files import read_toml

if TYPE_CHECKING:
    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.search.plan import SearchPlan

__all__ = [
    "check_journalled",
    "checkpoint_path",
    "handled",
    "load_run_dataset",
    "load_run_spaces",
    "logged_to",
    "read_arguments",
    "write_run",
]

RUN_FILE = "run.toml"
DATASET_FILE = "dataset.h5"
SYNTHETIC_FILE = "synthetic.h5"
CHECKPOINTS = "checkpoints"

OWN_FILES = (SYNTHETIC_FILE, DATASET_FILE, CHECKPOINTS)
"""What a run takes for its own where it finds it, beside its journal."""

AS_GIVEN = (
    "search", "budget", "synthetic", "max_evals", "timeout", "workers", "evaluator", "seed",
    "epochs", "time_limit_s", "memory_limit_gb", "keep_checkpoints", "ray_address",
)  # fmt: skip
"""Arguments that a plan holds as they were passed."""


def checkpoint_path(folder: Path, trial: int) -> Path:
    """Where the weights of a trial are."""
    return folder / CHECKPOINTS / f"{trial:06d}.pt"


def check_journalled(folder: Path) -> None:
    """Reject a folder that has data or weights of a run, and no journal of it.

    Raises
    ------
    SearchError
        If it does: a new run would take them for its own.
    """
    left = [name for name in OWN_FILES if (folder / name).exists()]
    journal = folder / JOURNAL_FILE
    if left and not (journal.exists() and journal.stat().st_size):
        raise SearchError(
            f"{folder} holds {left[0]} of a run whose {JOURNAL_FILE} is gone; delete the folder, "
            f"restore {JOURNAL_FILE}, or specify another output"
        )


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append this package's log to a file for the block's time."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with handled("edgexnas.host", handler):
        yield


@contextmanager
def handled(part: str, handler: logging.Handler) -> Iterator[None]:
    """Give what a part of the package logs to a handler for the block's time, and close that."""
    package = logging.getLogger(part)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def read_arguments(path: str | Path, known: Collection[str] | None = None) -> dict[str, Any]:
    """Read the arguments of a search from a TOML file; errors as of `load_configuration`.

    Parameters
    ----------
    known
        Names that the file may set; None takes any, as in a ``run.toml`` of another version.
    """
    place = Path(path)
    _, content = read_toml(place)
    tables = _tables(content.pop("spaces", {}), "spaces", place)
    for name in content:
        if known is not None and name not in known:
            raise ConfigurationError(f"{place} sets {name!r}, which is unknown; specify {known}")
    for name in ("constraints", "search_options"):
        _tables(content.get(name, {}), name, place, deep=False)
    for name in ("task", "data", "output", "search", "evaluator"):
        if not isinstance(content.get(name, ""), str):
            raise ConfigurationError(
                f"{place} sets {name} to {content[name]!r}; specify it as text"
            )
    if "data" in content:
        # A file moves with its data, whatever folder a command is run in.
        content["data"] = str(place.parent / content["data"])
    named = {name: _narrowed(name, table, place) for name, table in tables.items()}
    if "space" in content:
        given = content["space"]
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(
                f"{place} sets space to {given!r}; specify the name of a space or a list of names"
            )
        content["space"] = [named.get(name, name) for name in names]
    unused = set(named) - {s.name for s in content.get("space", []) if not isinstance(s, str)}
    if unused:
        raise ConfigurationError(
            f"{place} narrows the space {sorted(unused)[0]!r}, which its `space` does not list; "
            "list it"
        )
    return content


def _tables(value: Any, name: str, place: Path, *, deep: bool = True) -> dict[str, Any]:
    """Reject what is no table, or with `deep` no table of tables."""
    if not isinstance(value, dict):
        raise ConfigurationError(f"{place} sets {name} to {value!r}; specify a table [{name}]")
    if deep:
        for inner, table in value.items():
            _tables(table, f"{name}.{inner}", place, deep=False)
    return value


def load_run_spaces(folder: Path) -> dict[str, SearchSpace]:
    """Spaces of a run folder that its ``run.toml`` can name; others are left out."""
    content = read_arguments(folder / RUN_FILE)
    found: dict[str, SearchSpace] = {}
    for item in expand_spaces(content["space"], find_task(content["task"])):
        try:
            space = resolve_space(item, task=content["task"])
        except ConfigurationError:
            continue
        found[space.name] = space
    return found


def load_run_dataset(folder: Path, digest: str) -> Dataset:
    """Load the data that a run was made with, with the synthetic items that it drew.

    Raises
    ------
    SearchError
        If the file holds other data by now.
    """
    content = read_arguments(folder / RUN_FILE)
    filled = folder / SYNTHETIC_FILE
    if filled.exists():
        return find_task(content["task"]).load(filled)
    path = content["data"]
    dataset = find_task(content["task"]).load(path)
    if dataset.digest != digest:
        raise SearchError(f"{path} has changed since the run {folder}; restore it")
    return dataset


def write_run(plan: SearchPlan) -> None:
    """Write ``run.toml`` to the run folder, and the data where they came as an object."""
    data = plan.data
    if data is None:
        data = DATASET_FILE
        # A copy that is there is this run's: the journal has compared the digest of the data.
        if not (plan.output / DATASET_FILE).exists():
            plan.dataset.save(plan.output / DATASET_FILE)
    values: dict[str, Any] = {
        "task": plan.task,
        "data": data,
        "output": str(plan.output),
        "space": [item if isinstance(item, str) else item.name for item in plan.given],
        "objectives": [objective.name for objective in plan.objectives],
        **{name: getattr(plan, name) for name in AS_GIVEN},
        "patience": plan.context.patience,
        "device": plan.context.device,
        "measure": plan.measure_source,
    }
    tables: dict[str, Mapping[str, Any]] = {
        "constraints": plan.constraints,
        "search_options": plan.search_options,
    }
    for space in plan.given:
        if isinstance(space, SearchSpace) and (narrowed := _as_table(space)):
            tables[f"spaces.{_key(space.name)}"] = narrowed
    write_run_file(plan.output / RUN_FILE, _to_toml(values, tables).encode())


def _narrowed(name: str, table: Mapping[str, Any], place: Path) -> SearchSpace:
    ranges = dict(table)
    like = str(ranges.pop("like", name))
    if ":" in like:
        return import_space(like).narrow(name=name, **ranges)
    if like not in SPACES:
        raise ConfigurationError(
            f"{place} derives the space {name!r} from {like!r}, which is unknown; specify "
            f"like = one of {list(SPACES)}"
        )
    return SPACES[like].narrow(name=name, **ranges)


def _origin(space: SearchSpace) -> SearchSpace | None:
    """Return the space of Table 1 that `space` narrows."""
    for known in SPACES.values():
        # `narrow` keeps both, and every space of Table 1 has a builder object of its own.
        if known.builder is space.builder and known.sizer is space.sizer:
            return known
    return None


def _as_table(space: SearchSpace) -> dict[str, Any] | None:
    """Describe a narrowed space by its origin; None if there is nothing to tell."""
    origin = _origin(space)
    if origin is None or origin == space:
        return None
    ranges: dict[str, Any] = {}
    for parameter in space.hyperparameters:
        if parameter != origin[parameter.name]:
            if isinstance(parameter, Choice):
                ranges[parameter.name] = list(parameter.values)
            else:
                ranges[parameter.name] = [parameter.low, parameter.high]
    return {"like": origin.name, **ranges}


def _key(name: str) -> str:
    bare = all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if bare else json.dumps(name, ensure_ascii=False)


def _to_toml(values: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    for heading, table in tables.items():
        if table:
            lines += ["", f"[{heading}]"]
            lines += [f"{_key(name)} = {_toml(value)}" for name, value in table.items()]
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    # Before numbers: True is an int, and its repr() is no TOML.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # What JSON escapes in a string TOML reads alike.
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Sequence):
        return f"[{', '.join(_toml(item) for item in value)}]"
    raise ConfigurationError(f"{value!r} cannot be written to TOML; specify a number or a string")
