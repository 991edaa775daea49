"""Measure the streaming service on one machine: a publisher, and a receiver beside it.

    make demo                                        # makes the bundle that is used
    python device/bench_stream.py soak --minutes 10  # 200 frames/s of 1024×1024 uint16
    python device/bench_stream.py rates              # highest rates without loss
    python device/bench_stream.py overload           # twice what can be sustained
    python device/bench_stream.py page               # docs/results/streaming.md and .png

Each part adds its runs to one JSON file, from which `page` writes the page. The publisher is
`python -m edgexnas.device.publishing` in a process of its own; receivers are those of
`stream_receivers.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgexnas.whole_files import write_whole

HERE = Path(__file__).resolve().parent
RECEIVERS = ("service", "threads", "bare")
TRANSPORTS = ("pva", "simplon")
RATE = 200.0
SHAPE = "1024x1024"
FIRST_TRIES = {"service": 250.0, "threads": 80.0, "bare": 400.0}
STEP = 1.25
ACCURACY = 0.07
"""The highest rate without loss is found to this fraction."""

Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["soak", "rates", "overload", "page"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of the service's soak")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each other run")
    parser.add_argument("--rate", type=float, default=RATE, help="of the soak, frames/s")
    parser.add_argument("--peaks", type=int, default=100, help="about how many a frame has")
    parser.add_argument("--transport", choices=TRANSPORTS, action="append", help="default: both")
    parser.add_argument("--receiver", choices=RECEIVERS, action="append", help="default: all")
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bragg.edgex"))
    parser.add_argument("--trust", type=Path, default=Path("runs/demo/keys"))
    parser.add_argument("--pin", action="store_true", help="publisher and receiver on own cores")
    parser.add_argument("--results", type=Path, default=Path("runs/bench_stream.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/streaming.md"))
    options = parser.parse_args()
    options.transport = options.transport or list(TRANSPORTS)
    options.receiver = options.receiver or list(RECEIVERS)
    known: dict[str, Any] = {"runs": {}}
    if options.results.exists():
        known = json.loads(options.results.read_text())
    if options.part == "page":
        from stream_page import write_page

        write_page(known, options.page)
        return
    parts = {"soak": soak, "rates": rates, "overload": overload}
    for key, run in parts[options.part](options, known["runs"]):
        known["runs"][key] = run
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.results, json.dumps(known, indent=1).encode())
        print(f"{key}: {_line(run)}", flush=True)


def soak(options: argparse.Namespace, _: dict[str, Run]) -> Iterator[tuple[str, Run]]:
    """Run the service for long, and the others for a minute at most."""
    for transport in options.transport:
        for receiver in options.receiver:
            minutes = options.minutes if receiver == "service" else min(1.0, options.minutes)
            run = measure(options, transport, receiver, options.rate, minutes * 60)
            yield f"soak/{transport}/{receiver}", run


def rates(options: argparse.Namespace, _: dict[str, Run]) -> Iterator[tuple[str, Run]]:
    """Find the highest rate without loss of each receiver, by steps and then by halves."""
    for transport in options.transport:
        for receiver in options.receiver:

            def attempt(rate: float, transport: str = transport, receiver: str = receiver) -> Run:
                return measure(options, transport, receiver, rate, options.seconds)

            yield f"rates/{transport}/{receiver}", _highest(attempt, FIRST_TRIES[receiver])


def overload(options: argparse.Namespace, runs: dict[str, Run]) -> Iterator[tuple[str, Run]]:
    """Send the service twice what it can sustain."""
    for transport in options.transport:
        found = runs.get(f"rates/{transport}/service")
        if found is None:
            sys.exit("run the part rates first: it finds what can be sustained")
        rate = 2 * found["sustained"]
        run = measure(options, transport, "service", rate, max(20.0, options.seconds))
        yield f"overload/{transport}/service", run | {"sustained": found["sustained"]}


def _highest(attempt: Callable[[float], Run], start: float) -> Run:
    low, high, best = 0.0, None, None
    rate, tried = start, []
    while high is None or (high - low) / high > ACCURACY:
        run = attempt(rate)
        # A publisher that lags by itself shows nothing about the receiver.
        kept_pace = run["sent_rate"] >= 0.98 * rate
        # The last batch of queues and threads is never flushed, with the last frame in it.
        unflushed = 1 if run["receiver"] == "threads" else 0
        good = run["missing"] <= unflushed and kept_pace
        tried.append([rate, run["missing"], run["sent_rate"]])
        print(f"  {rate:.0f} frames/s: {_line(run)}", flush=True)
        if good:
            low, best = rate, run
        else:
            high = rate
        if high is None:
            rate = low * STEP
            continue
        rate = (low + high) / 2 if low else high / STEP
        if rate < 5:
            break
    return {**(best or run), "sustained": low, "tried": tried}


def measure(
    options: argparse.Namespace, transport: str, receiver: str, rate: float, seconds: float
) -> Run:
    """Send frames to a receiver for some time, and say what came of them."""
    frames = round(rate * seconds)
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="bench-stream-") as folder, _epics(port):
        report = Path(folder) / "report.json"
        if transport == "pva":
            target, url = "BENCH:Image", "pva://BENCH:Image?queue=100"
        else:
            target, url = f"tcp://127.0.0.1:{port}", f"simplon://127.0.0.1:{port}?exclusive=1"
        publish = [sys.executable, "-m", "edgexnas.device.publishing", transport, target]
        publish += ["--shape", SHAPE, "--dtype", "uint16", "--rate", f"{rate:g}"]
        publish += ["--frames", f"{frames}", "--peaks", f"{options.peaks}", "--hold"]
        receive = [sys.executable, f"{HERE / 'stream_receivers.py'}", receiver, url]
        receive += ["--output", f"{report}", "--port", f"{_free_port()}"]
        receive += ["--bundle", f"{options.bundle}", "--trust", f"{options.trust}"]
        cores = sorted(os.sched_getaffinity(0))
        sender = _start(publish, cores[:1] if options.pin else cores)
        _wait_for("ready", sender)
        taker = _start(receive, cores[1:] if options.pin and len(cores) > 1 else cores)
        _wait_for("ready", taker)
        time.sleep(2.0)
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdin.write("\n")
        sender.stdin.flush()
        sent = json.loads(sender.stdout.readline())
        # What waits in queues is worked off before the receiver is asked to stop.
        time.sleep(2.0)
        taker.terminate()
        if taker.wait(120) or not report.exists():
            sys.exit(f"the receiver ended with status {taker.returncode}")
        sender.wait(60)
        run: Run = json.loads(report.read_text())
    run |= {
        "transport": transport,
        "receiver": receiver,
        "rate": rate,
        "seconds_asked": seconds,
        "sent": sent["sent"],
        "sent_rate": sent["rate"],
        "publisher_cpu_ms": sent["cpu_ms_per_frame"],
        "missing": sent["sent"] - run["distinct"],
        "cpu_ms": run["cpu_s"] * 1e3 / max(1, run["results"]),
        "pinned": options.pin,
        "peaks_asked": options.peaks,
    }
    return run


def _start(command: list[str], cores: list[int]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _wait_for(word: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    sys.exit(f"{process.args!r} ended with status {process.wait()} before it was ready")


@contextmanager
def _epics(port: int) -> Iterator[None]:
    """Keep PV Access on this machine, away from every other server on it."""
    settings = {
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_BROADCAST_PORT": f"{port}",
        "EPICS_PVAS_BROADCAST_PORT": f"{port}",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _line(run: Run) -> str:
    times = run.get("from_sending_ms") or run.get("from_arrival_ms") or {}
    latency = ", ".join(f"{name} {value:.1f}" for name, value in times.items())
    return (
        f"{run.get('sustained', run['rate']):.0f} frames/s, sent {run['sent']} at "
        f"{run['sent_rate']:.1f}/s, missing {run['missing']}, ms {latency}; CPU ms/frame "
        f"{run['cpu_ms']:.2f} + publisher {run['publisher_cpu_ms']:.2f}, "
        f"{run['peak_memory_mb']:.0f} MB"
    )


if __name__ == "__main__":
    main()
