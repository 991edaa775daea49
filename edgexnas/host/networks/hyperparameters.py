"""The kinds of hyperparameters that make up a search space.

Each kind maps the unit interval onto its values, so that sampling, mutation and scaling to a
surrogate model all follow from one function and its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Literal, TypeGuard, TypeVar

from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Choice", "Configuration", "Hyperparameter", "Integer", "Prior", "Real", "Scalar"]

Scalar = bool | int | float | str
Configuration = dict[str, Scalar]
Prior = Literal["uniform", "log-uniform"]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class _Range(Generic[Number]):
    """Numbers from `low` to `high`, both included, drawn by `prior`."""

    name: str
    low: Number
    high: Number
    prior: Prior = "uniform"

    def __post_init__(self) -> None:
        _check_bounds(self.name, self.low, self.high, self.prior)

    @property
    def fixed(self) -> bool:
        """Whether only one value is left."""
        return self.low == self.high

    @property
    def lowest(self) -> Number:
        """The smallest value."""
        return self.low

    def validate(self, value: object) -> Number:
        """Return `value` if it is one of this hyperparameter's, else raise ConfigurationError."""
        raise NotImplementedError

    def narrow(self, values: object) -> Self:
        """Restrict to (low, high) or to one value."""
        low, high = _as_range(self.name, values)
        return replace(self, low=self.validate(low), high=self.validate(high))


@dataclass(frozen=True)
class Integer(_Range[int]):
    """A whole number from `low` to `high`, both included.

    A log-uniform prior gives every factor the same weight: 1–10 is drawn as often as 10–100.
    """

    def __post_init__(self) -> None:
        if not (is_whole(self.low) and is_whole(self.high)):
            raise ConfigurationError(
                f"{self.name} runs from {self.low!r} to {self.high!r}; specify whole numbers"
            )
        super().__post_init__()

    def from_unit(self, u: float) -> int:
        """Value at `u` in [0, 1)."""
        # Each number owns an interval of its own length, so the range ends at high + 1.
        if self.prior == "log-uniform":
            span = math.log((self.high + 1) / self.low)
            value = math.floor(self.low * math.exp(u * span))
        else:
            value = math.floor(self.low + u * (self.high + 1 - self.low))
        return min(max(value, self.low), self.high)

    def to_unit(self, value: Scalar) -> float:
        """Middle of the part of [0, 1) that maps to `value`."""
        number = float(value)
        if self.prior == "log-uniform":
            span = math.log((self.high + 1) / self.low)
            return 0.5 * math.log(number * (number + 1) / self.low**2) / span
        return (number + 0.5 - self.low) / (self.high + 1 - self.low)

    def validate(self, value: object) -> int:
        """Return `value` if it is one of this hyperparameter's, else raise ConfigurationError."""
        if not is_whole(value) or not self.low <= value <= self.high:
            raise ConfigurationError(
                f"{self.name} is {value!r}; specify a whole number from {self.low} to {self.high}"
            )
        return value


@dataclass(frozen=True)
class Real(_Range[float]):
    """A real number from `low` to `high`."""

    def from_unit(self, u: float) -> float:
        """Value at `u` in [0, 1]."""
        if self.prior == "log-uniform":
            value = self.low * math.exp(u * math.log(self.high / self.low))
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def to_unit(self, value: Scalar) -> float:
        """Inverse of `from_unit`."""
        if self.fixed:
            return 0.5
        if self.prior == "log-uniform":
            return math.log(float(value) / self.low) / math.log(self.high / self.low)
        return (float(value) - self.low) / (self.high - self.low)

    def validate(self, value: object) -> float:
        """Return `value` if it is one of this hyperparameter's, else raise ConfigurationError."""
        if not is_number(value) or not self.low <= value <= self.high:
            raise ConfigurationError(
                f"{self.name} is {value!r}; specify a number from {self.low:g} to {self.high:g}"
            )
        return float(value)


@dataclass(frozen=True)
class Choice:
    """One of a few values, in the order given; numbers in increasing order are ordinal."""

    name: str
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        for value in self.values:
            # A journal holds JSON, which has neither other types nor NaN and infinity.
            if not isinstance(value, bool | str) and not (
                type(value) in (int, float) and math.isfinite(value)
            ):
                raise ConfigurationError(
                    f"{self.name} has the choice {value!r}; specify words, True, False and finite "
                    "numbers of Python's own"
                )
        if not self.values or len(set(self.values)) != len(self.values):
            raise ConfigurationError(
                f"{self.name} has the choices {self.values}; specify at least one and none twice"
            )

    @property
    def fixed(self) -> bool:
        """Whether only one value is left."""
        return len(self.values) == 1

    @property
    def lowest(self) -> Scalar:
        """The first value."""
        return self.values[0]

    def from_unit(self, u: float) -> Scalar:
        """Value at `u` in [0, 1)."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def to_unit(self, value: Scalar) -> float:
        """Middle of the part of [0, 1) that maps to `value`."""
        return (self.values.index(value) + 0.5) / len(self.values)

    def validate(self, value: object) -> Scalar:
        """Return `value` if it is one of this hyperparameter's, else raise ConfigurationError."""
        for known in self.values:
            # 1 == True and 1 == 1.0, but they are different values of a configuration.
            if known == value and type(known) is type(value):
                return known
        raise ConfigurationError(f"{self.name} is {value!r}; specify one of {list(self.values)}")

    def narrow(self, values: object) -> Choice:
        """Restrict to some of the values or to one of them."""
        wanted = (
            values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
        )
        return replace(self, values=tuple(self.validate(value) for value in wanted))


Hyperparameter = Integer | Real | Choice


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_bounds(name: str, low: float, high: float, prior: str) -> None:
    if not (is_number(low) and is_number(high) and math.isfinite(low) and math.isfinite(high)):
        raise ConfigurationError(f"{name} runs from {low!r} to {high!r}; specify finite numbers")
    if not low <= high:
        raise ConfigurationError(f"{name} runs from {low} to {high}; specify low ≤ high")
    if prior not in ("uniform", "log-uniform"):
        raise ConfigurationError(
            f"{name} has the prior {prior!r}; specify 'uniform' or 'log-uniform'"
        )
    if prior == "log-uniform" and low <= 0:
        raise ConfigurationError(
            f"{name} starts at {low} with a log-uniform prior; specify a low above 0"
        )


def _as_range(name: str, values: object) -> tuple[object, object]:
    if not isinstance(values, Sequence):
        return values, values
    if isinstance(values, str) or len(values) != 2:
        raise ConfigurationError(
            f"{name} is narrowed to {values!r}; specify (low, high) or one value"
        )
    return values[0], values[1]
