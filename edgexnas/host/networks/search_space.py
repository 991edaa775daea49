"""A set of networks and training settings that a search may choose from.

A space of one's own is a `SearchSpace` with its hyperparameters and its builder; `narrow` and
`extend` derive one from another.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import (
    Choice,
    Configuration,
    Hyperparameter,
    Integer,
    Real,
    Scalar,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["INPUT_SHAPES", "TRAINING", "ModelSize", "SearchSpace"]

INPUT_SHAPES = {"bragg": (1, 11, 11), "ptycho": (1, 64, 64)}
"""Shape of one network input for each task, without the batch axis."""

TRAINING: tuple[Hyperparameter, ...] = (
    Integer("epochs", 1, 1000, "log-uniform"),
    Choice("batch_size", (8, 16, 32, 64)),
    Real("learning_rate", 1e-3, 1.0, "log-uniform"),
)
"""Training hyperparameters of Table 1, part of every space."""


@dataclass(frozen=True)
class ModelSize:
    """Size of a network that need not be built.

    Attributes
    ----------
    parameters
        All trainable parameters, biases included.
    macs
        Multiply-accumulates for one input.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class SearchSpace:
    """A set of networks with their training settings.

    Attributes
    ----------
    name
        Name in tables and on the command line.
    task
        "bragg" or "ptycho".
    hyperparameters
        What may vary. Those of `TRAINING` that are missing are added with Table 1's ranges.
    builder
        Makes a network from a configuration: for "bragg" from (n, 1, 11, 11) to quantiles
        (n, 2, 3), for "ptycho" from (n, 1, 64, 64) to (n, 2, 64, 64). Training hyperparameters
        do not change the network.
    sizer
        Counts a network's size from its configuration without building it; None builds it on
        torch's meta device, which allocates nothing but takes milliseconds.
    """

    name: str
    task: str
    hyperparameters: tuple[Hyperparameter, ...]
    builder: Callable[[Configuration], nn.Module]
    sizer: Callable[[Configuration], ModelSize] | None = None

    def __post_init__(self) -> None:
        if self.task not in INPUT_SHAPES:
            raise ConfigurationError(
                f"space {self.name} has the task {self.task!r}; specify one of {list(INPUT_SHAPES)}"
            )
        own = tuple(self.hyperparameters)
        names = [parameter.name for parameter in own]
        if len(set(names)) != len(names):
            raise ConfigurationError(
                f"space {self.name} has the hyperparameters {names}; name each of them once"
            )
        missing = tuple(parameter for parameter in TRAINING if parameter.name not in names)
        # The way to set a field of a frozen dataclass while it is made.
        object.__setattr__(self, "hyperparameters", own + missing)

    def __getitem__(self, name: str) -> Hyperparameter:
        for parameter in self.hyperparameters:
            if parameter.name == name:
                return parameter
        known = [parameter.name for parameter in self.hyperparameters]
        raise ConfigurationError(
            f"space {self.name} has no hyperparameter {name!r}; specify one of {known}"
        )

    @property
    def free(self) -> tuple[Hyperparameter, ...]:
        """The hyperparameters that have more than one value."""
        return tuple(parameter for parameter in self.hyperparameters if not parameter.fixed)

    @property
    def smallest(self) -> Configuration:
        """The configuration with the lowest value of everything."""
        return {parameter.name: parameter.lowest for parameter in self.hyperparameters}

    def sample(self, rng: random.Random) -> Configuration:
        """Draw a configuration from the priors."""
        return {p.name: p.from_unit(rng.random()) for p in self.hyperparameters}

    def validate(self, configuration: Mapping[str, object]) -> Configuration:
        """Return the configuration in the space's order.

        Raises
        ------
        ConfigurationError
            If a value is missing, unknown or out of its range.
        """
        names = [parameter.name for parameter in self.hyperparameters]
        for name in [*names, *configuration]:
            if name not in configuration:
                raise ConfigurationError(f"space {self.name} needs a value for {name}; specify one")
            if name not in names:
                self[name]
        return {p.name: p.validate(configuration[p.name]) for p in self.hyperparameters}

    def build(self, configuration: Mapping[str, object]) -> nn.Module:
        """Make the network of a configuration, with fresh weights."""
        from torch import nn

        model = self.builder(self.validate(configuration))
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                f"the builder of space {self.name} returned {type(model).__name__}; "
                "return a torch.nn.Module"
            )
        return model

    def size(self, configuration: Mapping[str, object]) -> ModelSize:
        """Count parameters and multiply-accumulates without allocating the network."""
        valid = self.validate(configuration)
        if self.sizer is not None:
            return self.sizer(valid)
        # They change no size, and without them more configurations share an entry of the cache.
        trained = {parameter.name for parameter in TRAINING}
        return _measured_size(self, tuple((k, v) for k, v in valid.items() if k not in trained))

    def narrow(self, *, name: str | None = None, **ranges: object) -> SearchSpace:
        """Restrict hyperparameters: ``space.narrow(units=(8, 64), batch_size=(32, 64), layers=2)``.

        Parameters
        ----------
        name
            Name of the new space; None keeps the old one.
        ranges
            (low, high) for numbers, some of the values for choices, or one value to fix it.
        """
        changed = {key: self[key].narrow(values) for key, values in ranges.items()}
        narrowed = tuple(changed.get(p.name, p) for p in self.hyperparameters)
        return replace(self, name=name or self.name, hyperparameters=narrowed)

    def extend(
        self,
        *hyperparameters: Hyperparameter,
        name: str,
        builder: Callable[[Configuration], nn.Module] | None = None,
    ) -> SearchSpace:
        """Add hyperparameters, or replace those of the same name; sizes are then measured.

        A builder that knows nothing of the new hyperparameters ignores them.
        """
        new = {parameter.name: parameter for parameter in hyperparameters}
        kept = tuple(p for p in self.hyperparameters if p.name not in new)
        return replace(
            self,
            name=name,
            hyperparameters=kept + tuple(new.values()),
            builder=builder or self.builder,
            sizer=None,
        )


@functools.lru_cache(maxsize=4096)
def _measured_size(space: SearchSpace, architecture: tuple[tuple[str, Scalar], ...]) -> ModelSize:
    import torch

    from edgexnas.host.networks.bragg_models import count_macs, count_parameters

    with torch.device("meta"):
        model = space.build(space.smallest | dict(architecture))
    return ModelSize(count_parameters(model), count_macs(model, INPUT_SHAPES[space.task]))
