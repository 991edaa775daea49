"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
