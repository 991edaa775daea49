"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

ROOT = Path(__file__).resolve().parents[1]

LoadModule = Callable[[Path], ModuleType]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real measurements; see README, «Real data»."""
    folder = Path(os.environ.get("EDGEXNAS_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "hexrd_ruby_dexela").is_dir():
        reason = f"no real data at {folder}: set EDGEXNAS_REAL_DATA to the folder that holds it"
        if os.environ.get("EDGEXNAS_REQUIRE_REAL_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def load_module() -> LoadModule:
    """Load a Python file that lies outside all packages as a module."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def visible() -> ModuleType:
    """The module that builds a ptychography bundle and scan with known answers."""
    from edgexnas.testing import visible_bundle

    return visible_bundle


@pytest.fixture(scope="session")
def clocks(load_module: LoadModule) -> ModuleType:
    """The module of clocks that pass as fast as they can."""
    return load_module(ROOT / "tests" / "device" / "power" / "clocks.py")
