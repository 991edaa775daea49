"""Diamond's EIGER simulator (tickit-devices) is received over Stream V2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device.sources import SeriesEnd, SeriesStart, SourceFrame, open_event_source

pytest.importorskip("zmq", reason="pyzmq is not installed: pip install 'edgexnas[zmq]'")

# It crashes with cbor2 6, so that it cannot share our environment.
PACKAGES = ("tickit-devices==0.4.1", "cbor2<6")
SHAPE = (4362, 4148)

# tickit 0.4.3 lets its PUSH socket bind an address and connect to it too, so that it deals some of
# its messages to itself and they are lost; here it only binds.
PROGRAM = """
import aiozmq
from tickit.cli import main

create = aiozmq.create_zmq_stream
aiozmq.create_zmq_stream = lambda kind, *, bind, connect: create(kind, bind=bind)
main()
"""


@pytest.fixture(scope="session")
def tickit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the simulator; EDGEXNAS_TICKIT names one where it is installed already."""
    if "EDGEXNAS_TICKIT" in os.environ:
        return os.environ["EDGEXNAS_TICKIT"]
    place = tmp_path_factory.mktemp("tickit")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    install = [str(place / "bin" / "pip"), "install", "--quiet", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"tickit-devices cannot be installed here: {done.stderr.strip()[-300:]}")
    return str(place / "bin" / "python")


def put(port: int, path: str, value: object = None) -> None:
    body = b"" if value is None else json.dumps({"value": value}).encode()
    url = f"http://127.0.0.1:{port}/{path}"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
    urllib.request.urlopen(request, timeout=20).read()


def wait_for_server(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(
                f"http://127.0.0.1:{port}/detector/api/1.8.0/status/state", timeout=2
            ).read()
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, "the simulator did not start"
            time.sleep(0.2)


@pytest.mark.long
def test_an_acquisition_of_the_eiger_simulator_is_received(
    tickit: str, tmp_path: Path, start_process: Any, receive: Any, free_port: Callable[[], int]
) -> None:
    rest, legacy, stream = free_port(), free_port(), free_port()
    # Its REST server would listen on every interface.
    settings = {"host": "127.0.0.1", "port": rest, "stream_host": "127.0.0.1"}
    settings |= {"stream_legacy_port": legacy, "stream_cbor_port": stream}
    lines = [f"  {name}: {value}" for name, value in settings.items()]
    configuration = ["- type: tickit_devices.eiger.Eiger", "  name: eiger", "  inputs: {}", *lines]
    (tmp_path / "eiger.yaml").write_text("\n".join(configuration) + "\n")
    command = [tickit, "-c", PROGRAM, "--log-level", "ERROR", "all", str(tmp_path / "eiger.yaml")]
    with start_process(command):
        wait_for_server(rest)
        receiver = receive(open_event_source(f"simplon://127.0.0.1:{stream}?exclusive=1"))
        receiver.wait(lambda: receiver.source.status()["connection"] == "connected")
        put(rest, "stream/api/1.8.0/config/format", "cbor")
        detector = {"nimages": 5, "ntrigger": 1, "frame_time": 0.2, "trigger_mode": "ints"}
        for name, value in detector.items():
            put(rest, f"detector/api/1.8.0/config/{name}", value)
        for order in ("initialize", "arm", "trigger"):
            put(rest, f"detector/api/1.8.0/command/{order}")
        receiver.wait_for(SeriesEnd)
    (begun,) = receiver.of(SeriesStart)
    assert (begun.shape, begun.frames_expected) == (SHAPE, 5)
    frames = receiver.of(SourceFrame)
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    for frame in frames:
        assert (frame.pixels.shape, frame.pixels.dtype) == (SHAPE, np.uint16)
        np.testing.assert_array_equal(frame.pixels, frames[0].pixels)
    status = receiver.source.status()
    assert (status["missed"], status["malformed"]) == (0, 0)
