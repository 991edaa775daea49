"""Each script of host/, device/ and tools/ tells its options, and its parts can be imported.

All of a folder start in one process, so that torch and the others are imported once.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    path for name in ("host", "device", "tools") for path in sorted((ROOT / name).glob("*.py"))
]
START = """
import contextlib, io, json, runpy, sys, traceback
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
said = {}
for path in sorted(folder.glob("*.py")):
    program = "ArgumentParser" in path.read_text()
    sys.argv, shown = [str(path), "--help"], io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            runpy.run_path(str(path), run_name="__main__" if program else path.stem)
            shown.write("" if program else "imported")
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
    said[path.name] = shown.getvalue()
print(json.dumps(said))
"""


@cache
def started(folder: Path) -> dict[str, str]:
    """What each script of a folder says to --help, or that it was imported."""
    done = subprocess.run([sys.executable, "-c", START, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_each_script_starts(path: Path) -> None:
    if path.stem == "imaged11_grains" and importlib.util.find_spec("ImageD11") is None:
        pytest.skip("ImageD11 is not installed, whose Python runs this script")
    said = started(path.parent)[path.name]
    expected = f"usage: {path.name}" if "ArgumentParser" in path.read_text() else "imported"
    assert said.startswith(expected), said
