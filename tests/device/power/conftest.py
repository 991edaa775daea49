"""Simulated Jetsons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgexnas.testing import JetsonTree


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Any]:
    """`tree(module=..., jetpack=...)` builds a sysfs tree in a folder of its own."""
    made = 0

    def build(**options: Any) -> Any:
        nonlocal made
        made += 1
        return JetsonTree(tmp_path / f"tree{made}", **options)

    return build
