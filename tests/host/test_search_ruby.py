"""The searches on ruby go on where they were stopped, and count what all sessions took."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def search_ruby(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(ROOT / "host/search_ruby.py")


def test_a_command_that_is_stopped_counts_when_it_is_run_again(
    search_ruby: ModuleType, tmp_path: Path
) -> None:
    log, spent = tmp_path / "log", tmp_path / "spent.json"
    with pytest.raises(subprocess.CalledProcessError):
        search_ruby.run(["no-command"], log, spent)
    first = json.loads(spent.read_text())
    assert first["sessions"] == 1
    assert first["wall_s"] > 0
    keys = ["keys", "generate", "--output", str(tmp_path / "keys"), "--name", "search"]
    both = search_ruby.run(keys, log, spent)
    assert both == json.loads(spent.read_text())
    assert both["sessions"] == 2
    assert both["wall_s"] > first["wall_s"]
    assert both["cpu_s"] > first["cpu_s"]


def test_a_search_that_was_stopped_goes_on(
    search_ruby: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(search_ruby, "run", lambda command, *_: commands.append(command))
    search_ruby.optimized(tmp_path / "peaks.h5", tmp_path, 3, "10min")
    (tmp_path / "seed-3").mkdir()
    (tmp_path / "seed-3" / "journal.jsonl").touch()
    search_ruby.optimized(tmp_path / "peaks.h5", tmp_path, 3, "10min")
    assert commands[1] == [*commands[0], "--resume"]
