"""What measuring recipes on a device came to: which precision and graph, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgexnas.bundle import MeasuredLatency, Precision
from edgexnas.host.exporting.quantisation import Recipe

__all__ = ["RecipeChoice", "RecipeTrial"]


@dataclass(frozen=True, kw_only=True)
class RecipeTrial:
    """One candidate of a recipe search.

    Attributes
    ----------
    name
        In words: "float16", "int8, attention in float, twin-blocks".
    rewrite
        Name of the rewrite of the network; None for the network as it is.
    recipe
        How it was quantised; None for float16.
    latency
        What was measured; None if it was not.
    refusal
        Why it was not measured, or cannot be used; None if it can.
    tuned
        Whether its weights are fine-tuned for INT8.
    """

    name: str
    precision: Precision
    rewrite: str | None
    recipe: Recipe | None
    latency: MeasuredLatency | None = None
    refusal: str | None = None
    tuned: bool = False


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """The recipe that a bundle is exported by.

    Attributes
    ----------
    precision
        The faster one: "int8", or "float16" where no INT8 within the accuracy gate is as fast.
    rewrite
        Of the network, for every precision of the bundle; None for the network as it is.
    int8
        Recipe of the bundle's INT8 model, the fastest that was measured; None leaves it to the
        accuracy alone.
    reason
        Why, in a sentence with the figures.
    trials
        All candidates in the order in which they were tried.
    tuned
        Float32 graph with the fine-tuned weights that `int8` quantises; None for the network's own.
    """

    precision: Precision
    rewrite: str | None
    int8: Recipe | None
    reason: str
    trials: tuple[RecipeTrial, ...]
    tuned: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The recipe in words."""
        recipe = str(self.int8) if self.precision == "int8" and self.int8 is not None else ""
        return ", ".join(part for part in (self.precision, recipe, self.rewrite) if part)
