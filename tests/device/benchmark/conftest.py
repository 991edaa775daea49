"""Simulated Jetsons under load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def tree(jetson: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """`tree(module=..., jetpack=...)` builds a sysfs tree in a folder of its own."""
    return lambda **options: jetson.JetsonTree(tmp_path / "tree", **options)
