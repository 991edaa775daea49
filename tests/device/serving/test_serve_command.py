"""`edgexnas serve` as a process, as an operator and a service manager see it."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.cli import main
from edgexnas.cli.serve_command import _log_for_operators
from edgexnas.device.sinks.results_file import read_results

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

LIMIT_S = 200
"""A start of the service takes seconds, on a busy machine many."""

DEVICE = Path(__file__).resolve().parents[3] / "device"
UNIT = DEVICE / "edgexnas.service"
CONTAINER = DEVICE / "operation" / "edgexnas.container"
FRAMES = 240


@pytest.fixture(scope="module")
def frames_file(small_frames: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 frames of (96, 128)."""
    path = tmp_path_factory.mktemp("frames") / "scan.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.stack([small_frames[n % 8] for n in range(FRAMES)])
    return path


@pytest.fixture
def configure(
    tmp_path: Path, bundle_path: Path, keys: Path, frames_file: Path
) -> Callable[..., Path]:
    """`configure(source_options, more)` writes a configuration and returns its path."""

    def write(options: str = "", more: str = "", source: str | None = None) -> Path:
        path = tmp_path / "serve.toml"
        path.write_text(
            f'source = "{source or f"file://{frames_file}"}{options}"\n'
            f'[predictor]\nbundle = "{bundle_path}"\ntrust = "{keys}"\n'
            '[[sinks]]\nkind = "hdf5"\nfolder = "results"\n'
            f"[monitoring]\nport = 0\n{more}"
        )
        return path

    return write


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `edgexnas serve`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(
        path: Path, program: Sequence[str] = ("-m", "edgexnas.cli", "serve"), **environment: str
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *program, str(path)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def stored(folder: Path) -> list[int]:
    return [frame.number for frame in read_results(folder)]


def wait_for_segment(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    path = folder / f"results_{number:06d}.h5"
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def wait_for_frames(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until `count` frames are committed."""
    while len(stored(folder)) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_a_file_is_served_to_its_end(configure: Any, serve: Any, tmp_path: Path) -> None:
    process = serve(configure())
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert stored(tmp_path / "results") == list(range(FRAMES))
    assert f"{FRAMES} of {FRAMES} frames done, none lost" in log


def test_a_run_whose_frames_all_fail_ends_with_an_error(
    configure: Any, serve: Any, tmp_path: Path
) -> None:
    frames = np.full((4, 96, 128), 5, np.float32)
    for number, frame in enumerate(frames):
        frame[number, number] = np.nan
    with h5py.File(tmp_path / "nan.h5", "w") as file:
        file["entry/data/data"] = frames
    process = serve(configure(source=f"file://{tmp_path / 'nan.h5'}"))
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, log
    assert "none of 4 frames was stored" in log


def test_a_second_run_of_what_is_stored_ends_with_an_error(configure: Any, serve: Any) -> None:
    path = configure()
    codes = []
    for _ in range(2):
        process = serve(path)
        _, log = process.communicate(timeout=LIMIT_S)
        codes.append(process.returncode)
    assert codes == [0, 2], log
    assert "scan.h5" in log


def test_kill_9_loses_and_repeats_no_committed_frame(
    configure: Any, serve: Any, tmp_path: Path
) -> None:
    # So slow that a run is killed long before its last frame.
    configuration, folder = configure("?rate=2"), tmp_path / "results"
    committed: list[int] = []
    for run in (1, 2):
        process = serve(configuration)
        wait_for_segment(folder, run, process)
        wait_for_frames(folder, len(committed) + 4, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = stored(folder)
        assert now[: len(committed)] == committed
        committed = now
    assert 0 < len(committed) < FRAMES
    process = serve(configure())
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert "frames of earlier runs are stored and will not be repeated" in log
    repeats = [number for number, count in Counter(stored(folder)).items() if count > 1]
    assert repeats == []
    assert sorted(stored(folder)) == list(range(FRAMES))


def test_what_peaks_are_found_with_is_set_and_said(
    configure: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((96, 128), np.bool_)
    mask[0, :7] = True
    np.save(tmp_path / "mask.npy", mask)
    path = configure()
    table = 'mask = "mask.npy"\nsaturation = 4321\nminimum_counts = 123\nthreshold = 2'
    text = path.read_text().replace("[predictor]", f"[predictor]\n{table}\nmask_hot = false")
    path.write_text(text)
    assert main(["serve", str(path)]) == 0
    said = capfd.readouterr().err
    assert said.count("threshold 123 counts above background") == 1
    assert "saturation 4321 (from option), 7 pixels masked, 0 of them hot" in said


def test_sigterm_finishes_what_is_here(configure: Any, serve: Any, tmp_path: Path) -> None:
    process = serve(configure("?rate=2"))
    wait_for_segment(tmp_path / "results", 1, process)
    wait_for_frames(tmp_path / "results", 1, process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log
    assert "stopping: no more frames are taken" in log
    numbers = stored(tmp_path / "results")
    assert 0 < len(numbers) < FRAMES
    assert numbers == list(range(len(numbers)))
    assert f"{len(numbers)} of {len(numbers)} frames done" in log


def test_a_second_sigterm_stops_at_once_and_says_that_not_all_is_done(
    configure: Any, serve: Any, tmp_path: Path
) -> None:
    (tmp_path / "stuck.py").write_text("import time\ndef stuck(item): time.sleep(3)\n")
    callback = '[[sinks]]\nkind = "callback"\nfunction = "stuck:stuck"\npolicy = "block"\n'
    process = serve(configure("", callback))
    wait_for_segment(tmp_path / "results", 1, process)
    wait_for_frames(tmp_path / "results", 1, process)
    process.send_signal(signal.SIGTERM)
    # Two signals that come before the first is seen are one.
    assert process.stderr is not None
    for line in process.stderr:
        if "stopping: no more frames are taken" in line:
            break
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 4, log
    assert "stopping at once" in log


PATIENT = """
import sys
from edgexnas.cli import main
from edgexnas.device.monitoring import web_view
web_view._REQUEST_S = web_view._Handler.timeout = 9999.0
main(["serve", sys.argv[1]])
"""


def test_sigterm_waits_for_none_of_16_slow_http_clients(
    configure: Any, serve: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    pytest.importorskip("prometheus_client", reason="the page is the extra «monitor»")
    with ExitStack() as stack:
        port = free_port()
        path = configure("?rate=2")
        path.write_text(path.read_text().replace("port = 0", f"port = {port}"))
        # Clients have hours for their requests: who waited for one would not end.
        process = serve(path, program=("-c", PATIENT))
        wait_for_segment(tmp_path / "results", 1, process)
        wait_for_frames(tmp_path / "results", 1, process)
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(16)
        ]
        ended = threading.Event()

        def drip() -> None:
            # A byte now and then, so that no client looks dead, until the service has ended.
            while not ended.wait(0.2):
                for client in clients:
                    with suppress(OSError):
                        client.send(b"G")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
        finally:
            ended.set()
            dripping.join()


def test_the_service_manager_is_told_of_readiness_health_and_the_end(
    configure: Any, serve: Any
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # By no path: one of a file may be longer than a socket's name can be.
        manager.bind(f"\0edgexnas-test-serve-{os.getpid()}")
        manager.settimeout(LIMIT_S)
        environment = {
            "NOTIFY_SOCKET": f"@edgexnas-test-serve-{os.getpid()}",
            "WATCHDOG_USEC": "300000",
        }
        process = serve(configure("?rate=2"), **environment)
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=serving file://")
        # A machine that stands still for seconds is told without the watchdog.
        while not (message := manager.recv(1000)).startswith(b"WATCHDOG=1\nSTATUS="):
            assert message.startswith(b"STATUS=")
        process.send_signal(signal.SIGTERM)
        while (message := manager.recv(1000)) != b"STOPPING=1":
            assert message.startswith((b"WATCHDOG=1\nSTATUS=", b"STATUS="))
        assert process.wait(LIMIT_S) == 0


def test_check_validates_and_leaves_nothing(
    configure: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(configure()), "--check"]) == 0
    assert "centroid 1 with onnxruntime, int8, to hdf5" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_the_bundle_of_the_package_needs_a_name_and_no_trust(
    configure: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure()
    lines = path.read_text().splitlines()
    changed = ['bundle = "universal"' if x.startswith("bundle") else x for x in lines]
    path.write_text("\n".join(x for x in changed if not x.startswith("trust")) + "\n")
    assert main(["serve", str(path), "--check"]) == 0
    assert "universal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("file://", "files://"), 1, "unknown scheme files://"),
        (('.edgex"\n', '.edge"\n'), 2, "cannot be read"),
        (('folder = "results"', 'folder = "serve.toml"'), 5, "is not a folder or not yours"),
        (("port = 0", "port = 1"), 9, "port 1 of 127.0.0.1 cannot be used"),
        (("port = 0", 'port = "a"'), 9, "monitoring.port is 'a'"),
        (("file://", "sim://hedm?shape=0x0#"), 1, "greater than or equal to 1"),
        (
            ("file://", "simplon://no host:31001?exclusive=1&row=a&col="),
            1,
            "which is not a valid host",
        ),
        (("trust =", "batch = 1000000000\ntrust ="), 4, "predictor.batch is 1000000000"),
    ],
)
def test_check_refuses_with_file_and_line(
    configure: Any, capsys: pytest.CaptureFixture[str], change: Any, line: int, message: str
) -> None:
    if "port = 1" in change and os.geteuid() == 0:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            change = (change[0], f"port = {port}")
            message = message.replace("port 1", f"port {port}")
            refused(configure(), capsys, change, line, message)
    else:
        refused(configure(), capsys, change, line, message)


def test_frames_that_are_not_there_yet_are_told_with_their_line_and_may_come(
    configure: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2 the unit would not be started again."""
    path = configure(source="file:///nowhere/scan.h5")
    assert main(["serve", str(path), "--check"]) == 1
    assert f"{path}:1: there is no file /nowhere/scan.h5" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["configuration", "bundle", "mask", "source"])
def test_a_pipe_instead_of_a_file_is_refused_at_once(
    configure: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = configure(source=f"file://{pipe}" if what == "source" else None)
    if what == "bundle":
        path.write_text(re.sub('bundle = ".*"', f'bundle = "{pipe}"', path.read_text()))
    if what == "mask":
        path.write_text(path.read_text().replace("trust =", f'mask = "{pipe}"\ntrust ='))
    assert main(["serve", str(pipe if what == "configuration" else path), "--check"]) in (1, 2)
    assert "pipe" in capsys.readouterr().err


def test_check_says_which_extra_the_page_needs(
    configure: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("edgexnas.device.monitoring.web_view", "edgexnas.device.monitoring.metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    refused(configure(), capsys, ("port = 0", "port = 9108"), 8, "pip install 'edgexnas[monitor]'")


def test_check_says_that_a_host_has_no_address_now(
    configure: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(source="simplon://detector.invalid:31001?exclusive=1")
    assert main(["serve", str(path), "--check"]) == 1
    assert f"{path}:1: the host of simplon://detector.invalid" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "public"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_check_warns_of_a_sink_that_other_machines_can_reach(
    configure: Any,
    capsys: pytest.CaptureFixture[str],
    host: str,
    public: bool,
    free_port: Callable[[], int],
) -> None:
    port = free_port()
    path = configure("", f'[[sinks]]\nkind = "zmq"\naddress = "tcp://{host}:{port}"\n')
    assert main(["serve", str(path), "--check"]) == 0
    assert ("is open to other machines" in capsys.readouterr().err) == public


def test_control_characters_from_outside_do_not_reach_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _log_for_operators(quiet=False):
        logging.getLogger("edgexnas.x").warning("series %s", "a\x1b[2Jb\nc\x07é")
    assert capsys.readouterr().err.endswith(r"WARNING series a\x1b[2Jb\nc\x07é" + "\n")


def refused(path: Path, capsys: Any, change: tuple[str, str], line: int, message: str) -> None:
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    assert main(["serve", str(path), "--check"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"edgexnas serve: {path}:{line}: ")
    assert message in told


def test_a_callback_beside_the_configuration_is_called(configure: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "def note(item):\n"
        "    with open(Path(__file__).with_name('notes'), 'a') as file:\n"
        "        file.write(type(item).__name__ + '\\n')\n"
    )
    callback = '[[sinks]]\nkind = "callback"\nfunction = "mine:note"\npolicy = "block"\n'
    assert main(["serve", str(configure("", callback))]) == 0
    notes = (tmp_path / "notes").read_text().split()
    assert notes == ["SeriesBegun", *["FrameResult"] * FRAMES, "SeriesEnded"]


def test_a_sink_that_is_needed_ends_the_service_when_it_fails(
    configure: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure()
    more = 'folder = "results"\non_failure = "stop"\nleast_free_mib = 1e12\n'
    path.write_text(path.read_text().replace('folder = "results"\n', more))
    assert main(["serve", str(path)]) == 1
    assert "must stay free; free some space" in capsys.readouterr().err


@pytest.mark.parametrize("path", [UNIT, CONTAINER], ids=lambda path: path.suffix)
def test_a_unit_is_started_again_for_ever_unless_its_configuration_is_wrong(path: Path) -> None:
    unit = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    assert unit["Restart"] == "on-failure"
    assert unit["StartLimitIntervalSec"] == "0"
    assert unit["RestartPreventExitStatus"] == "2"
    # systemd looks at the status of the main process alone.
    assert "ExecStartPre" not in unit


def test_the_unit_is_what_systemd_understands(tmp_path: Path) -> None:
    if not Path("/usr/bin/systemd-analyze").exists():
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    unit = tmp_path / "edgexnas.service"
    unit.write_text(UNIT.read_text().replace("/opt/edgexnas/bin/edgexnas", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
