"""Resident memory of `edgexnas serve`: with large frames, and over very many small ones.

python device/bench_memory.py bragg.edgex --trust keys --output memory.csv --page memory.md

Each service is a process of its own with an HDF5 and a ZMQ sink; its resident memory is read from
/proc twice a second. Frames come from a file, paced, and as fast as they are taken, so that its
queue is full; then over PV Access and Stream V2, faster than they are processed. --large 0,
--small 0 and --seconds 0 leave the respective runs out.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from edgexnas.simulate import HedmSettings, simulate_hedm

CONFIGURATION = """\
source = "{source}"
[predictor]
bundle = "{bundle}"
trust = "{trust}"
[[sinks]]
kind = "hdf5"
folder = "results"
[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:*"
[monitoring]
port = {port}
"""

SAMPLE_S = 0.5
CONNECT_S = 12.0
"""How long a service is given to compile its finder and to connect."""

SHORT_S = 60.0
"""Shorter runs say how much memory is needed, not whether it grows."""
DONE = re.compile(r"(\d+) of (\d+) frames done.*?(\d+) peaks")


@dataclass(frozen=True)
class Course:
    """Resident memory over the life of a service."""

    name: str
    times_s: list[float]
    resident_mb: list[float]
    done: int
    received: int
    peaks: int
    peak_mb: float

    def settled(self) -> tuple[np.ndarray, np.ndarray]:
        """Leave out the first fifth, in which pages of libraries are touched first."""
        start = len(self.times_s) // 5
        return np.array(self.times_s[start:]), np.array(self.resident_mb[start:])

    def flatness(self) -> tuple[str, str]:
        """Range of the settled samples, and what a straight line through them grows by."""
        times, resident = self.settled()
        if self.times_s[-1] < SHORT_S:
            return "–", "–"
        growth = np.polyfit(times, resident, 1)[0] * (times[-1] - times[0])
        return f"{resident.min():.0f}–{resident.max():.0f}", f"{growth:+.1f}"


def large_frames() -> list[np.ndarray]:
    settings = HedmSettings(shape=(2048, 2048), frames=8, grains=60)
    return list(simulate_hedm(settings, seed=0))


def small_frames() -> list[np.ndarray]:
    """64×64 with three spots each."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:64, :64]
    made = []
    for _ in range(50):
        frame = np.zeros((64, 64))
        for row, col in rng.uniform(8, 56, (3, 2)):
            frame += 2000 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 2.5)
        made.append(rng.poisson(frame).astype(np.uint16))
    return made


def write_frames(path: Path, few: list[np.ndarray], count: int) -> Path:
    """Write few distinct frames again and again, compressed once each."""
    options = {
        "dtype": few[0].dtype,
        "chunks": (1, *few[0].shape),
        "compression": hdf5plugin.Bitshuffle(cname="lz4"),
    }
    with h5py.File(path, "w", libver="latest") as file:
        distinct = file.create_dataset("few", (len(few), *few[0].shape), **options)
        for index, frame in enumerate(few):
            distinct[index] = frame
        chunks = [distinct.id.read_direct_chunk((index, 0, 0))[1] for index in range(len(few))]
        data = file.create_dataset("entry/data/data", (count, *few[0].shape), **options)
        for index in range(count):
            data.id.write_direct_chunk((index, 0, 0), chunks[index % len(chunks)])
    return path


def resident_mb(process: int) -> tuple[float, float]:
    """Resident memory now, and the most so far."""
    status = Path(f"/proc/{process}/status").read_text()
    found = [re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM")]
    now, most = (int(match[1]) / 1e3 if match else 0.0 for match in found)
    return now, most


class Sender:
    """A detector in a process of its own, which sends to a service that is behind."""

    def __init__(self, transport: str, codec: str, options: argparse.Namespace) -> None:
        port = free_port()
        # PV Access keeps to this machine, away from other servers on it.
        self.environment = os.environ | {
            "EPICS_PVA_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_BROADCAST_PORT": f"{port}",
            "EPICS_PVAS_BROADCAST_PORT": f"{port}",
        }
        places = {
            "pva": ("BENCH:Image", "pva://BENCH:Image"),
            "simplon": (f"tcp://127.0.0.1:{port}", f"simplon://127.0.0.1:{port}?exclusive=1"),
        }
        target, self.source = places[transport]
        self._command = [sys.executable, "-m", "edgexnas.device.publishing"]
        self._command += [
            transport,
            target,
            "--shape",
            "2048x2048",
            "--dtype",
            "uint16",
            "--codec",
            codec,
            "--hold",
        ]
        self._command += ["--peaks", "800", "--rate", f"{options.overdriven:g}"]
        self._command += ["--frames", f"{round(options.overdriven * options.seconds)}"]

    def __enter__(self) -> Sender:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise SystemExit(f"the sender ended with {self._process.wait()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send_to(self, service: subprocess.Popen[bytes]) -> None:
        """Send everything once the service is there, then let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        time.sleep(CONNECT_S)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        print(f"  sent: {self._process.stdout.readline().strip()}", flush=True)
        service.terminate()


def follow(
    name: str, source: str, options: argparse.Namespace, sender: Sender | None = None
) -> Course:
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        configuration = Path(folder) / "serve.toml"
        configuration.write_text(
            CONFIGURATION.format(
                source=source,
                bundle=options.bundle.absolute(),
                trust=options.trust.absolute(),
                port=options.port,
            )
        )
        log = (Path(folder) / "log").open("w+")
        command = [sys.executable, "-m", "edgexnas.cli", "serve", str(configuration)]
        environment = os.environ if sender is None else sender.environment
        process = subprocess.Popen(command, stderr=log, env=environment)
        began, times, resident, peak = time.monotonic(), [], [], 0.0
        if sender is not None:
            threading.Thread(target=sender.send_to, args=(process,), daemon=True).start()
        try:
            while process.poll() is None:
                now, most = resident_mb(process.pid)
                if now:
                    times.append(time.monotonic() - began)
                    resident.append(now)
                    peak = max(peak, most)
                time.sleep(SAMPLE_S)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            raise
        log.seek(0)
        text = log.read()
        if process.returncode:
            raise SystemExit(f"{name}: the service ended with {process.returncode}:\n{text}")
        done, received, peaks = map(int, DONE.findall(text)[-1])
        print(f"{name}: {done} of {received} frames, at most {peak:.0f} MB", flush=True)
        return Course(name, times, resident, done, received, peaks, peak)


def overdriven(options: argparse.Namespace) -> list[Course]:
    """Send over a network, faster than frames are processed."""
    courses = []
    for transport, codec, named in (
        ("pva", "none", "PV Access"),
        ("pva", "bslz4", "PV Access, bslz4"),
        ("simplon", "none", "Stream V2, not compressed"),
        ("simplon", "bslz4", "Stream V2, bslz4"),
    ):
        name = f"2048×2048 uint16 over {named}, {options.overdriven:g} a second"
        with Sender(transport, codec, options) as sender:
            courses.append(follow(name, sender.source, options, sender))
    return courses


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def page(courses: list[Course], options: argparse.Namespace) -> str:
    rows = [
        "| frames | frames done | peaks | at most, MB | settled, MB | growth, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for course in courses:
        settled, growth = course.flatness()
        rows.append(
            f"| {course.name} | {course.done:,} of {course.received:,} | {course.peaks:,} | "
            f"{course.peak_mb:.0f} | {settled} | {growth} |"
        )
    return "\n".join(
        [
            "# Memory of the streaming service",
            "",
            "Resident memory (VmRSS; `at most` is VmHWM) of one `edgexnas serve` process, read "
            "twice a second, with HDF5 and ZMQ sinks and the page. `settled` is the range after "
            "the first fifth of a run, growth that of a straight line through it, for runs of a "
            "minute and more.",
            "",
            *rows,
            "",
            f"Made by `python device/bench_memory.py {options.bundle.name} --trust keys "
            f"--small {options.small}` on {os.cpu_count()} cores of {machine()}, Python "
            f"{platform.python_version()}, beside other work.",
            "",
        ]
    )


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="bundle for Bragg peaks")
    parser.add_argument("--trust", type=Path, required=True, help="folder of public keys")
    parser.add_argument("--large", type=int, default=600, help="frames of 2048×2048")
    parser.add_argument("--small", type=int, default=1_000_000, help="frames of 64×64")
    parser.add_argument("--rate", type=float, default=20, help="large frames a second")
    parser.add_argument("--seconds", type=float, default=20, help="of each run over a network")
    parser.add_argument("--overdriven", type=float, default=100, help="frames a second of these")
    parser.add_argument("--port", type=int, default=9108, help="port of the page; 0 for none")
    parser.add_argument("--scratch", type=Path, help="folder for results on the way")
    parser.add_argument("--output", type=Path, help="CSV of all samples")
    parser.add_argument("--page", type=Path, help="Markdown page")
    options = parser.parse_args()
    courses = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        if options.large:
            large = write_frames(Path(folder) / "large.h5", large_frames(), options.large)
            name, paced = "2048×2048 uint16", f"file://{large}?rate={options.rate:g}"
            courses.append(follow(f"{name}, {options.rate:g} a second", paced, options))
            courses.append(follow(f"{name}, as fast as they are taken", str(large), options))
        if options.seconds:
            courses += overdriven(options)
        if options.small:
            small = write_frames(Path(folder) / "small.h5", small_frames(), options.small)
            courses.append(follow("64×64 uint16, as fast as they are taken", str(small), options))
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("service", "time_s", "resident_mb"))
            for course in courses:
                for time_s, mb in zip(course.times_s, course.resident_mb, strict=True):
                    writer.writerow((course.name, f"{time_s:.1f}", f"{mb:.1f}"))
    text = page(courses, options)
    print(text)
    if options.page:
        options.page.write_text(text)


if __name__ == "__main__":
    main()
