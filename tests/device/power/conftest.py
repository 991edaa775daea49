"""Simulated Jetsons."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_jetson_tree() -> ModuleType:
    path = Path(__file__).with_name("jetson_tree.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def jetson() -> ModuleType:
    """The module that builds Jetson trees and their clock."""
    return load_jetson_tree()


@pytest.fixture
def tree(jetson: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """`tree(module=..., jetpack=...)` builds a sysfs tree in a folder of its own."""
    made = 0

    def build(**options: Any) -> Any:
        nonlocal made
        made += 1
        return jetson.JetsonTree(tmp_path / f"tree{made}", **options)

    return build
