"""A load: one network that a benchmark runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Load"]


@dataclass(frozen=True)
class Load:
    """One network, ready to run.

    Attributes
    ----------
    name
        Under which it stands in tables.
    run
        Does one inference of `items` items and returns when its results are there.
    items
        Patches or patterns of one inference: the batch.
    """

    name: str
    run: Callable[[], object]
    items: int
