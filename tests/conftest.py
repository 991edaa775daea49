"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code, and an example that nobody
# has seen before says nothing of the change that is tested: `make test-long` looks for those.
settings.register_profile(
    "new-examples", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("same", settings.get_profile("new-examples"), derandomize=True)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parents[1]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

Browse = Callable[..., subprocess.CompletedProcess[bytes]]
LoadModule = Callable[[Path], ModuleType]


TRANSLATIONS = "torch.onnx._internal.exporter._registration"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same whatever ran before, and keep what torch would make anew."""
    random.seed(0)
    for name, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if module := sys.modules.get(name):
            getattr(module, seed)(0)
    # Its table of ONNX translations takes 1.7 s for each export.
    registration = sys.modules.get(TRANSLATIONS)
    table = getattr(registration, "ONNXRegistry", None)
    if table is not None and not hasattr(table.from_torchlib, "cache_info"):
        table.from_torchlib = staticmethod(cache(table.from_torchlib))


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
def free_port() -> Iterator[Callable[[], int]]:
    """`free_port()` is a TCP port of 127.0.0.1 that nobody else gets until the session ends.

    It lies below those that the system hands out, to who asks for any and to who connects: one of
    those may be taken before the test uses it, by a client that tries it, too. Other sessions see
    that it is taken by the UDP port of its number.
    """
    numbers = iter(random.Random(os.getpid()).sample(range(12_000, 20_000), 8_000))
    with ExitStack() as held:

        def find() -> int:
            for number in numbers:
                with suppress(OSError), socket.socket() as free, ExitStack() as mine:
                    mark = mine.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    mark.bind(("127.0.0.1", number))
                    free.bind(("", number))
                    held.push(mine.pop_all())
                    return number
            pytest.fail("no TCP port from 12000 to 19999 is free")

        yield find


@pytest.fixture(scope="session")
def visible() -> ModuleType:
    """The module that builds a ptychography bundle and scan with known answers."""
    from edgexnas.testing import visible_bundle

    return visible_bundle


@pytest.fixture(scope="session")
def clocks(load_module: LoadModule) -> ModuleType:
    """The module of clocks that pass as fast as they can."""
    return load_module(ROOT / "tests" / "device" / "power" / "clocks.py")


@pytest.fixture(scope="session")
def run_undisturbed() -> Callable[..., str]:
    """Run a program that measures power until no reading was late; give what it prints.

    What else a machine does makes readings late, and the program says that they are missing.
    """

    def run(*command: object) -> str:
        while True:
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout
            assert "power readings" in done.stderr, done.stderr

    return run


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
        return subprocess.run([*command, *arguments], check=True, capture_output=True, cwd=tmp_path)

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


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head and a second node as processes of this machine, with one CPU each."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    if ray is None:
        pytest.skip("ray is not installed: run pip install 'edgexnas[ray]'")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as nodes:
        start = [ray, "start", "--num-cpus=1", "--block"]
        _start_node(nodes, [*start, "--head", f"--port={port}", "--include-dashboard=false"])
        _start_node(nodes, [*start, f"--address=127.0.0.1:{port}"])
        yield f"127.0.0.1:{port}"


def _start_node(nodes: ExitStack, command: list[str]) -> None:
    """Start a node, wait until it is up, and kill its whole process group in the end."""
    node = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    nodes.enter_context(node)
    nodes.callback(os.killpg, node.pid, signal.SIGKILL)
    assert node.stdout is not None
    said = []
    for line in node.stdout:
        said.append(line)
        if "runtime started" in line:
            return
    pytest.fail("".join(said))
