"""What a search minimises, what it may not exceed, and how a set of results is judged.

Every objective is minimised. *Exact* ones follow from the configuration and are known before
training; *measured* ones need the network but not its training; *learned* ones need both. Exact
and measured ones may also be constraints, since they can reject a configuration before it trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import is_number

if TYPE_CHECKING:
    from torch import nn

    from edgexnas.host.networks.search_space import ModelSize

__all__ = [
    "OBJECTIVES",
    "PTYCHO_OBJECTIVES",
    "Measure",
    "Objective",
    "check_constraints",
    "hypervolume",
    "hypervolume_curve",
    "pareto_front",
    "resolve_objectives",
    "violation",
]

Measure = Callable[["nn.Module"], Mapping[str, float]]
"""Measures an untrained network: returns ``{"latency": ms, "energy": mJ}`` or one of them."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """A number to minimise.

    Attributes
    ----------
    kind
        "exact", "measured" or "learned"; see the module.
    best, worst
        Ends of the fixed scale on which hypervolumes are computed, in the objective's unit. A
        value at `worst` or beyond contributes nothing, and a failed evaluation counts as `worst`.
    """

    name: str
    kind: Literal["exact", "measured", "learned"]
    unit: str
    best: float
    worst: float
    description: str

    @property
    def label(self) -> str:
        """Name with unit, for axes and headings."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def position(self, value: float) -> float:
        """Place on the logarithmic scale from `best` (0) to `worst` (1); never beyond 1."""
        if not math.isfinite(value):
            return 1.0
        span = math.log(self.worst / self.best)
        # 0 has no logarithm.
        return min(math.log(max(value, self.best * 1e-9) / self.best) / span, 1.0)


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("error", "learned", "px", 0.01, 1.0, "mean distance to the label"),
        Objective("int8_error", "learned", "px", 0.01, 1.0, "the same with INT8 rounding"),
        Objective("quantile_loss", "learned", "px", 0.001, 1.0, "mean pinball loss"),
        Objective("parameters", "exact", "", 1e2, 1e8, "trainable parameters, biases included"),
        Objective("macs", "exact", "", 1e2, 1e12, "multiply-accumulates of one inference"),
        Objective("latency", "measured", "ms", 1e-3, 1e3, "time of one batch on the device"),
        Objective("energy", "measured", "mJ", 1e-3, 1e4, "module energy of one batch"),
    )
}
"""Objectives of Bragg peaks by name."""

PTYCHO_OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("error", "learned", "rad", 0.01, 1.0, "mean absolute phase error"),
        Objective("int8_error", "learned", "rad", 0.01, 1.0, "the same with INT8 rounding"),
        Objective("amplitude_error", "learned", "", 0.001, 1.0, "mean relative amplitude error"),
        *(objective for objective in OBJECTIVES.values() if objective.kind != "learned"),
    )
}
"""Objectives of ptychography by name; phases are compared as `edgexnas.ptycho` says."""


def resolve_objectives(
    names: Sequence[str],
    *,
    measure: Measure | str | None = None,
    known: Mapping[str, Objective] = OBJECTIVES,
) -> tuple[Objective, ...]:
    """Look objectives up by name among those that are `known` to the task.

    Raises
    ------
    ConfigurationError
        If one is unknown, named twice, or measured without a `measure`.
    """
    if isinstance(names, str) or not names:
        raise ConfigurationError(
            f"objectives are {names!r}; specify a sequence of names, such as "
            "('error', 'parameters')"
        )
    if len(set(names)) != len(names):
        raise ConfigurationError(f"objectives are {tuple(names)}; name each of them once")
    return tuple(_resolve("objective", name, measure, known) for name in names)


def check_constraints(
    constraints: Mapping[str, float] | None,
    *,
    measure: Measure | str | None = None,
    known: Mapping[str, Objective] = OBJECTIVES,
) -> dict[str, float]:
    """Check hard upper bounds, each on an exact or measured objective.

    Raises
    ------
    ConfigurationError
        If one is unknown, known only after training, not a positive number, or measured without
        a `measure`.
    """
    checked: dict[str, float] = {}
    for name, bound in (constraints or {}).items():
        objective = _resolve("constraint", name, measure, known)
        if objective.kind == "learned":
            possible = [o.name for o in known.values() if o.kind != "learned"]
            raise ConfigurationError(
                f"constraint {name!r} is known only after training and cannot reject a "
                f"configuration before it; constrain one of {possible}"
            )
        if not is_number(bound) or not bound > 0:
            raise ConfigurationError(f"constraint {name} is {bound!r}; specify a number above 0")
        checked[name] = bound
    return checked


def _resolve(
    role: str, name: str, measure: Measure | str | None, known: Mapping[str, Objective]
) -> Objective:
    if name not in known:
        other = name in OBJECTIVES or name in PTYCHO_OBJECTIVES
        fault = "belongs to another task" if other else "is unknown"
        raise ConfigurationError(f"{role} {name!r} {fault}; specify one of {list(known)}")
    objective = known[name]
    if objective.kind == "measured" and measure is None:
        raise ConfigurationError(
            f"{role} {name!r} has no source; specify measure='local', 'ssh://HOST', 'model', or a "
            f"function from a network to its {name} in {objective.unit}"
        )
    return objective


def violation(
    constraints: Mapping[str, float], known: Mapping[str, float] | ModelSize
) -> str | None:
    """Say which constraint the known values exceed, or return None."""
    for name, bound in constraints.items():
        value = known.get(name) if isinstance(known, Mapping) else getattr(known, name, None)
        if value is not None and not value <= bound:
            return f"{name} {value:g} > {bound:g}"
    return None


def as_array(rows: Collection[Mapping[str, float]], objectives: Sequence[Objective]) -> FloatArray:
    """Scale results to (n, objectives) float64 in [0, 1] on the objectives' fixed scales."""
    # Beyond `best` counts as `best`, so that no hypervolume exceeds 1.
    values = [[max(o.position(row[o.name]), 0.0) for o in objectives] for row in rows]
    return np.array(values, np.float64).reshape(len(values), len(objectives))


def pareto_front(values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Mark the rows that no other row dominates.

    Parameters
    ----------
    values
        (n, objectives), all minimised, all finite.

    Returns
    -------
    (n,) bool. Of identical rows all are marked.
    """
    import moocore  # type: ignore[import-untyped]

    rows = np.asarray(values, np.float64)
    if not len(rows):
        return np.zeros(0, np.bool_)
    front: npt.NDArray[np.bool_] = moocore.is_nondominated(rows, keep_weakly=True)
    return front


def hypervolume(rows: Collection[Mapping[str, float]], objectives: Sequence[Objective]) -> float:
    """Share of the objectives' fixed, logarithmic scales that the results dominate.

    The reference point is each objective's `worst`, the same for every run with the same
    objectives, so that runs can be compared; it never moves with the results. 0 is nothing, 1
    would be `best` in everything at once.
    """
    import moocore

    if not rows:
        return 0.0
    return float(moocore.hypervolume(as_array(rows, objectives), ref=np.ones(len(objectives))))


def hypervolume_curve(
    rows: Sequence[Mapping[str, float] | None], objectives: Sequence[Objective]
) -> list[float]:
    """Hypervolume after each evaluation; None stands for one that failed."""
    curve: list[float] = []
    front: list[Mapping[str, float]] = []
    for row in rows:
        if row is not None:
            candidates = [*front, row]
            keep = pareto_front(as_array(candidates, objectives))
            # A dominated newcomer changes nothing, and hypervolumes are costly.
            changed = bool(keep[-1])
            front = [kept for kept, mark in zip(candidates, keep, strict=True) if mark]
        if row is None or not changed:
            curve.append(curve[-1] if curve else 0.0)
        else:
            curve.append(hypervolume(front, objectives))
    return curve
