"""Configuration files: the arguments of `optimize` as TOML.

::

    task = "bragg"
    data = "peaks.h5"                  # relative to this file
    output = "runs/bragg"              # relative to the working directory
    space = ["mlpBragg", "tiny"]
    objectives = ["error", "parameters"]
    max_evals = 100

    [constraints]
    parameters = 20000

    [spaces.tiny]                      # a narrowed space
    like = "cnnBragg"
    filters = [4, 16]
    layers = 3

Every run folder holds such a file, ``run.toml``, that reproduces the run.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from edgexnas.host.search.optimization import optimize
from edgexnas.host.search.run_folder import read_arguments

__all__ = ["load_configuration"]

NOT_IN_FILES = ("resume", "progress")
"""Arguments that are code, or belong to one call and not to the run."""


def load_configuration(path: str | Path) -> dict[str, Any]:
    """Read the arguments of `optimize`, ``task`` among them, from a TOML file.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or holds an unknown name.
    """
    parameters = inspect.signature(optimize).parameters
    return read_arguments(path, [name for name in parameters if name not in NOT_IN_FILES])
