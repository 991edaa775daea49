"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

ROOT = Path(__file__).resolve().parents[1]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

Browse = Callable[..., subprocess.CompletedProcess[bytes]]
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


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Run a headless Chromium until the page has had some seconds of its own time."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    command = [
        program,
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=8000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    if os.getuid() == 0:
        command.append("--no-sandbox")

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, timeout=120, cwd=tmp_path
        )

    return run


@pytest.fixture
def page_width(browse: Browse, tmp_path: Path) -> Callable[[str, int], int]:
    """`page_width(page, width)` is how wide an HTML page is in a frame of a width, in pixels."""
    script = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"

    def measure(page: str, width: int) -> int:
        # A window of Chromium is never narrower than 500 pixels; a frame inside one is.
        (tmp_path / "framed.html").write_text(page.replace("</body>", f"{script}</body>"), "utf-8")
        (tmp_path / "frame.html").write_text(
            "<script>onmessage = event => { document.title = 'width ' + event.data; }</script>"
            f'<iframe src="framed.html" width="{width}" height="900" frameborder="0"></iframe>'
        )
        run = browse("--window-size=2000,1000", "--dump-dom", f"file://{tmp_path}/frame.html")
        found = re.search(r"<title>width (\d+)</title>", run.stdout.decode())
        assert found, run.stdout
        return int(found[1])

    return measure
