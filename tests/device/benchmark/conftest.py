"""Simulated Jetsons under load."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def jetson() -> ModuleType:
    """The module that builds Jetson trees and their clocks."""
    path = Path(__file__).parents[1] / "power" / "jetson_tree.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(jetson: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """`tree(module=..., jetpack=...)` builds a sysfs tree in a folder of its own."""
    return lambda **options: jetson.JetsonTree(tmp_path / "tree", **options)
