"""Run the streaming service by the clock, break what is around it, and see that it says so.

    python device/soak.py --minutes 60                  # docs/results/soak.md and runs/soak.json
    python device/soak.py --minutes 1 --page soak.md    # a short look

For each transport (EPICS PV Access, DECTRIS Stream V2) a real `edgexnas serve` runs beside a real
publisher, with an HDF5 sink and a callback sink that it must wait for, and a ZMQ sink that it need
not. Faults come at random, from a seed. After each, ``/healthz`` and ``/status.json`` must be right
within 20 s; then the fault is taken back, and they must be right again within 20 s. A fault of the
detector begins, and ends, when the detector is ready to send, and a start of the service ends with
its first answer: how long a process takes to start on a busy machine is no matter of the signal.
Whenever the service has ended, the rows that it had committed are all there, each once.

A full disk needs root, for a small file system in memory; without it this fault is left out, and
the page says so. A clock that is set is `time.time` of the service's Python code alone: nobody may
set the clock of a machine for a test.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import h5py

from edgexnas.bundle import generate_keys
from edgexnas.testing import write_centroid_bundle
from edgexnas.whole_files import write_whole

TRANSPORTS = ("pva", "simplon")
CHANNEL = "SOAK:Image"
RATE = 40
WITHIN_S = 20.0
"""How soon the health signal must be right, unless another limit is given."""

SETTLE_S = 1.0
"""What is right must stay so for this long."""

MOST_LOST_S = 60.0
"""A rig that is not sound again after this long is started anew."""

FIRST_START_S = 300.0
"""The first start of an installation compiles the peak finder."""

DISK_MIB = 512
CALLBACK = """\
import time
from pathlib import Path
HERE = Path(__file__).parent
NOW, NOW_NS = time.time, time.time_ns
def offset():
    try:
        return int((HERE / "clock").read_text() or 0)
    except OSError:
        return 0
time.time = lambda: NOW() + offset()
time.time_ns = lambda: NOW_NS() + offset() * 10**9
def on_result(item):
    while (HERE / "hang").exists():
        time.sleep(0.02)
"""


@dataclass(slots=True)
class Outcome:
    """What was seen of one fault: seconds until it showed, and until it was gone; None if never."""

    transport: str
    fault: str
    at_s: float
    shown_s: float | None = None
    cleared_s: float | None = None
    seen: str = ""


@dataclass(slots=True)
class Tally:
    """What was seen in all."""

    outcomes: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kills: int = 0
    rows: int = 0
    slowest_start_s: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transport", choices=TRANSPORTS, action="append", help="default: both")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), help="only these")
    parser.add_argument(
        "--within", type=float, default=WITHIN_S, metavar="S", help="how soon all must be right"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/soak.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/soak.md"))
    options = parser.parse_args()
    began = time.monotonic()
    tally, left_out = soak(options)
    minutes = (time.monotonic() - began) / 60
    found = {"minutes": minutes, "seed": options.seed, "left_out": left_out, **asdict(tally)}
    for path, text in (
        (options.json, json.dumps(found, indent=1)),
        (options.page, page(tally, options, minutes, left_out)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    print(page(tally, options, minutes, left_out))
    late = [outcome for outcome in tally.outcomes if not right(outcome, options.within)]
    for outcome in late:
        print(f"not right: {outcome}")
    for problem in tally.problems:
        print(f"problem: {problem}")
    return bool(late or tally.problems)


def right(outcome: Outcome, within_s: float) -> bool:
    """Tell whether the signal was right in time both ways."""
    times = (outcome.shown_s, outcome.cleared_s)
    return all(seconds is not None and seconds <= within_s for seconds in times)


def soak(options: argparse.Namespace) -> tuple[Tally, list[str]]:
    """Run all rigs side by side until the time is up."""
    tally = Tally()
    end_s = time.monotonic() + options.minutes * 60
    everywhere: set[str] = set()
    with ExitStack() as stack:
        rigs = []
        environment = epics_environment()
        for index, transport in enumerate(options.transport or TRANSPORTS):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
            chance = random.Random(options.seed + index)
            rig = Rig(transport, folder, environment, tally, chance, options.within)
            stack.callback(rig.close)
            rig.prepare(stack)
            rigs.append(rig)
        chosen = options.faults or list(FAULTS)
        threads = []
        for rig in rigs:
            possible = [name for name in chosen if FAULTS[name].possible(rig)]
            everywhere |= set(possible)
            threads.append(threading.Thread(target=rig.run, args=(possible, end_s), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return tally, [name for name in chosen if name not in everywhere]


class Rig:
    """A service of one transport, its publisher, and what can be done to them."""

    def __init__(
        self,
        transport: str,
        folder: Path,
        environment: dict[str, str],
        tally: Tally,
        chance: random.Random,
        within_s: float,
    ) -> None:
        self.transport = transport
        self.folder = folder
        self.results = folder / "results"
        self.tally = tally
        self.chance = chance
        self.within_s = within_s
        self.on_small_disk = False
        self._environment = environment
        self._began_s = time.monotonic()
        self._sequence = 0
        self._publisher: subprocess.Popen[str] | None = None
        self._service: subprocess.Popen[str] | None = None
        self._page, self._zmq, self._detector = free_port(), free_port(), free_port()
        self._rows: dict[Path, Counter[tuple[str, int]]] = {}
        self._receiver = ZmqReceiver(self._zmq)
        self._log = (folder / "log").open("a")

    def prepare(self, stack: ExitStack) -> None:
        """Write bundle and configuration, mount the small disk if that is possible."""
        generate_keys(self.folder / "keys")
        self.publish_bundle()
        (self.folder / "soak_sink.py").write_text(CALLBACK)
        self.results.mkdir()
        if self.transport == "pva":
            self.on_small_disk = mounted(stack, self.results)
        source = {
            "pva": f"pva://{CHANNEL}",
            "simplon": f"simplon://127.0.0.1:{self._detector}?exclusive=1",
        }[self.transport]
        (self.folder / "serve.toml").write_text(
            f'source = "{source}"\nsink_retry_s = 1.0\nsink_queue = 64\n'
            '[predictor]\nbundle = "model.edgex"\ntrust = "keys"\ncache = "cache"\n'
            'state = "state"\nreload_s = 1\n'
            "[pipeline]\ndrain_s = 5\n"
            '[[sinks]]\nkind = "hdf5"\nfolder = "results"\nleast_free_mib = 16\n'
            '[[sinks]]\nkind = "callback"\nfunction = "soak_sink:on_result"\npolicy = "block"\n'
            f'[[sinks]]\nkind = "zmq"\naddress = "tcp://127.0.0.1:{self._zmq}"\nmode = "push"\n'
            f"[monitoring]\nport = {self._page}\nsource_timeout_s = 5\n"
        )

    def publish_bundle(self) -> None:
        """Put a bundle in place that is newer than the one before."""
        self._sequence += 1
        draft = self.folder / "draft.edgex"
        key = self.folder / "keys" / "edgexnas.key.pem"
        write_centroid_bundle(draft, signing_key=key, sequence=self._sequence)
        draft.replace(self.folder / "model.edgex")

    def swap(self) -> None:
        """Publish a bundle, and see that it takes over."""
        before = self.text_of_log().count(" takes over from ")
        self.publish_bundle()
        end_s = time.monotonic() + self.within_s
        while self.text_of_log().count(" takes over from ") == before:
            if time.monotonic() > end_s:
                self.problem(f"bundle {self._sequence} did not take over")
                return
            time.sleep(0.1)

    def text_of_log(self) -> str:
        """Give all that service and publisher have logged."""
        return (self.folder / "log").read_text(errors="replace")

    def run(self, faults: list[str], end_s: float) -> None:
        """Inject one fault after the other until the time is up."""
        self.start_publisher()
        self.start_service()
        if self.wait_for(running, FIRST_START_S) is None:
            self.problem(f"the service did not begin to run: {self.ask()}")
            return
        # Each once in a random order, then by chance; a kill is what must be seen most often.
        upcoming = self.chance.sample(faults, len(faults))
        while time.monotonic() < end_s:
            if not upcoming:
                weights = [FAULTS[name].weight for name in faults]
                upcoming = self.chance.choices(faults, weights)
            self.inject(upcoming.pop())
        self.stop_service()
        self.check_rows()
        self.tally.rows += sum(len(rows) for rows in self._rows.values())

    def inject(self, name: str) -> None:
        """Break something, see that it shows, mend it, and see that it is gone."""
        fault = FAULTS[name]
        outcome = Outcome(self.transport, name, round(time.monotonic() - self._began_s, 1))
        fault.inject(self)
        outcome.shown_s = self.wait_for(fault.shows, self.within_s)
        outcome.seen = str(self.ask())
        fault.mend(self)
        outcome.cleared_s = self.wait_for(running, self.within_s)
        self.tally.outcomes.append(outcome)
        if outcome.cleared_s is None and self.wait_for(running, MOST_LOST_S) is None:
            self.problem(f"after {name} it did not run again: {self.ask()}")
            self.stop_service()
            self.start_service()
            self.wait_for(running, MOST_LOST_S)
        self.check_ledger()

    def wait_for(self, wanted: Callable[[Signal], bool], limit_s: float) -> float | None:
        """Wait until the signal is right and stays so; tell after how long, None if never."""
        began = time.monotonic()
        since: float | None = None
        first = self.ask().done
        while time.monotonic() < began + limit_s + SETTLE_S:
            signal_ = self.ask()
            # What is said of the frames of before is no proof that those of now are processed.
            stale = signal_.state == "running" and signal_.done <= first
            if wanted(signal_) and not stale:
                since = since or time.monotonic()
                if time.monotonic() - since >= SETTLE_S:
                    return round(since - began, 2)
            else:
                since = None
            time.sleep(0.1)
        return None

    def ask(self) -> Signal:
        """Ask the service how it is."""
        status: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            status = json.loads(self._get("/status.json")[1])["status"]
        with suppress(OSError):
            code, text = self._get("/healthz")
            done = status.get("counts", {}).get("done", 0)
            return Signal(code, status.get("state", ""), text.strip(), done)
        return Signal(0, "", "no answer", 0)

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._page}{path}", timeout=5
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def check_ledger(self) -> None:
        """See that every frame that came is in exactly one state."""
        with suppress(OSError, ValueError, KeyError):
            counts = json.loads(self._get("/status.json")[1])["status"]["counts"]
            states = ("done", "dropped", "failed", "duplicate", "pending", "spilled")
            if counts["received"] != sum(counts[state] for state in states):
                self.problem(f"the ledger does not add up: {counts}")

    def check_rows(self) -> None:
        """See that no row that was committed is missing, and that none is there twice."""
        for path in sorted(self.results.glob("results_*.h5")):
            known, now = self._rows.get(path, Counter()), committed_rows(path)
            if known - now:
                self.problem(f"{len(known - now)} committed rows of {path.name} are gone")
            self._rows[path] = now
        total: Counter[tuple[str, int]] = Counter()
        for rows in self._rows.values():
            total += rows
        repeated = [row for row, count in total.items() if count > 1]
        if repeated:
            self.problem(f"{len(repeated)} rows were committed twice, such as {repeated[0]}")

    def problem(self, text: str) -> None:
        """Note what must not be, with the end of the service's log."""
        last = self.text_of_log().splitlines()[-80:]
        fatal = [n for n, line in enumerate(last) if "Fatal" in line or "terminate" in line]
        # A crash is told by its first lines, all else by the last.
        last = last[fatal[0] : fatal[0] + 12] if fatal else last[-3:]
        self.tally.problems.append(f"{self.transport}: {text}; log: {' | '.join(last)}")

    def start_publisher(self, *more: str) -> None:
        """Start the detector, and wait until it can be connected to."""
        address = [CHANNEL] if self.transport == "pva" else [f"tcp://127.0.0.1:{self._detector}"]
        command = [sys.executable, "-m", "edgexnas.device.publishing", self.transport, *address]
        command += ["--shape", "96x128", "--peaks", "5", "--rate", str(RATE), *more]
        self._publisher = self._start(command, stdout=subprocess.PIPE)
        assert self._publisher.stdout is not None
        # "ready", or nothing if it has died, which the signal then shows.
        self._publisher.stdout.readline()

    def stop_publisher(self) -> None:
        """Kill the detector."""
        end(self._publisher, signal.SIGKILL, self.within_s)

    def start_service(self) -> None:
        """Start the service."""
        command = [sys.executable, "-m", "edgexnas.cli", "serve", str(self.folder / "serve.toml")]
        self._make_room()
        self._service = self._start(command)
        # The signal is judged from when there is one.
        end_s = time.monotonic() + FIRST_START_S
        while not self.ask().code and time.monotonic() < end_s and self._service.poll() is None:
            time.sleep(0.1)

    def stop_service(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the service, and look at what it stored."""
        before = {path: committed_rows(path) for path in sorted(self.results.glob("*.h5"))[-1:]}
        self._rows.update(before)
        status = end(self._service, number, self.within_s)
        if number == signal.SIGTERM and status not in (0, 4):
            self.problem(f"SIGTERM ended it with status {status}")
        self.check_rows()

    def _make_room(self) -> None:
        """Set old files aside while the small disk has little room."""
        if self.on_small_disk and shutil.disk_usage(self.results).free < DISK_MIB << 19:
            aside = self.folder / "aside"
            aside.mkdir(exist_ok=True)
            for path in self.results.glob("results_*.h5"):
                moved = aside / f"{len(list(aside.iterdir()))}_{path.name}"
                shutil.move(path, moved)
                self._rows[moved] = self._rows.pop(path, Counter())

    def _start(
        self, command: list[str], stdout: int | TextIO | None = None
    ) -> subprocess.Popen[str]:
        environment = {**os.environ, **self._environment, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, env=environment, stdout=stdout or self._log, stderr=self._log, text=True
        )

    def set_clock(self, offset_s: int) -> None:
        """Set the service's time of day."""
        (self.folder / "clock").write_text(str(offset_s))

    def close(self) -> None:
        """End all that runs."""
        end(self._service, signal.SIGKILL, self.within_s)
        end(self._publisher, signal.SIGKILL, self.within_s)
        self._receiver.close()
        self._log.close()


@dataclass(frozen=True, slots=True)
class Signal:
    """What the service says: status of ``/healthz`` (0 without an answer), state, sentence.

    `done` is how many frames it has done.
    """

    code: int
    state: str
    text: str
    done: int


def running(signal_: Signal) -> bool:
    return signal_.code == 200 and signal_.state == "running"


def state_is(code: int, *states: str) -> Callable[[Signal], bool]:
    return lambda signal_: signal_.code == code and signal_.state in states


@dataclass(frozen=True, slots=True)
class Fault:
    """How to break something, how that shows, and how to mend it."""

    inject: Callable[[Rig], None]
    shows: Callable[[Signal], bool]
    mend: Callable[[Rig], None]
    weight: float = 1.0
    possible: Callable[[Rig], bool] = lambda rig: True


def _restart(rig: Rig, number: signal.Signals) -> None:
    rig.stop_service(number)
    rig.tally.kills += number == signal.SIGKILL


def _start_again(rig: Rig) -> None:
    began = time.monotonic()
    rig.start_service()
    rig.tally.slowest_start_s = max(rig.tally.slowest_start_s, time.monotonic() - began)


def _start_before_the_publisher(rig: Rig) -> None:
    rig.stop_publisher()
    rig.stop_service()
    rig.start_service()


def _publish_with(*more: str) -> Callable[[Rig], None]:
    def publish(rig: Rig) -> None:
        rig.stop_publisher()
        rig.start_publisher(*more)

    return publish


def _fill(rig: Rig) -> None:
    with (rig.results / "filler").open("wb") as file:
        free = shutil.disk_usage(rig.results).free
        os.posix_fallocate(file.fileno(), 0, max(1, free - (1 << 20)))


def _set_clock(rig: Rig) -> None:
    rig.set_clock(rig.chance.choice([3600, -3600, 10**8, -(10**9)]))


FAULTS = {
    "publisher killed": Fault(
        Rig.stop_publisher, state_is(503, "waiting"), Rig.start_publisher, 1.0
    ),
    "channel missing": Fault(
        _start_before_the_publisher, state_is(503, "waiting"), Rig.start_publisher
    ),
    "disk full": Fault(
        _fill,
        state_is(503, "failing"),
        lambda rig: (rig.results / "filler").unlink(),
        possible=lambda rig: rig.on_small_disk,
    ),
    "required sink hung": Fault(
        lambda rig: (rig.folder / "hang").touch(),
        state_is(503, "failing"),
        lambda rig: (rig.folder / "hang").unlink(),
    ),
    "optional sink without a peer": Fault(
        lambda rig: rig._receiver.pause(),
        state_is(200, "degraded"),
        lambda rig: rig._receiver.go_on(),
    ),
    "clock set": Fault(
        _set_clock,
        running,
        lambda rig: rig.set_clock(0),
    ),
    "impossible time stamps": Fault(_publish_with("--bad-time", "1"), running, _publish_with()),
    "every third message damaged": Fault(
        _publish_with("--garble", "3"), state_is(200, "degraded"), _publish_with()
    ),
    "every message damaged": Fault(
        _publish_with("--garble", "1"), state_is(503, "failing"), _publish_with()
    ),
    "newer bundle": Fault(Rig.swap, running, lambda rig: None),
    "SIGTERM and start": Fault(
        lambda rig: _restart(rig, signal.SIGTERM),
        state_is(0, ""),
        _start_again,
    ),
    "kill -9 and start": Fault(
        lambda rig: _restart(rig, signal.SIGKILL),
        state_is(0, ""),
        _start_again,
        8.0,
    ),
}


class ZmqReceiver:
    """Takes results of the ZMQ sink, unless it is paused."""

    def __init__(self, port: int) -> None:
        self._address = f"tcp://127.0.0.1:{port}"
        self._taking = threading.Event()
        self._taking.set()
        self._closed = False
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Go away."""
        self._taking.clear()

    def go_on(self) -> None:
        """Come back."""
        self._taking.set()

    def close(self) -> None:
        """End."""
        self._closed = True
        self._taking.set()
        self._thread.join()

    def _take(self) -> None:
        import zmq

        with zmq.Context() as context:
            while not self._closed:
                self._taking.wait()
                with context.socket(zmq.PULL) as receiver:
                    receiver.setsockopt(zmq.LINGER, 0)
                    receiver.setsockopt(zmq.RCVTIMEO, 100)
                    receiver.connect(self._address)
                    while self._taking.is_set() and not self._closed:
                        with suppress(zmq.Again):
                            receiver.recv_multipart()


def committed_rows(path: Path) -> Counter[tuple[str, int]]:
    """Read (series, number) of the committed rows, as a reader beside the writer."""
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        rows = file["entry/frames/commits"][:]
        names = [name.decode() for name in file["entry/series/name"][:].tolist()]
    return Counter((names[row["series"]], int(row["number"])) for row in rows)


def end(
    process: subprocess.Popen[str] | None, number: signal.Signals, within_s: float
) -> int | None:
    """End a process; tell its exit status."""
    if process is None:
        return None
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Find a port that nobody has, below those that the system gives to whoever connects."""
    for port in random.sample(range(20_000, 32_000), 12_000):
        with suppress(OSError), socket.socket(socket.AF_INET, kind) as free:
            free.bind(("", port))
            return port
    raise SystemExit("no port from 20000 to 31999 is free")


def epics_environment() -> dict[str, str]:
    """Give the settings of an EPICS network that ends at this machine and meets no other."""
    port = str(free_port(socket.SOCK_DGRAM))
    return {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": port,
        "EPICS_PVAS_BROADCAST_PORT": port,
        "EPICS_PVA_SERVER_PORT": "0",
    }


def mounted(stack: ExitStack, folder: Path) -> bool:
    """Mount a small file system in memory; tell whether that was possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "soak", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        return False
    stack.callback(subprocess.run, ["umount", "-l", str(folder)])
    return True


def _slowest(times_s: list[float | None]) -> str:
    known = [time_s for time_s in times_s if time_s is not None]
    return f"{max(known):.1f}" if len(known) == len(times_s) else "never"


def page(tally: Tally, options: argparse.Namespace, minutes: float, left_out: list[str]) -> str:
    """Write what was seen as Markdown."""
    names = [name for name in FAULTS if any(o.fault == name for o in tally.outcomes)]
    rows = []
    for name in names:
        seen = [outcome for outcome in tally.outcomes if outcome.fault == name]
        good = sum(right(outcome, options.within) for outcome in seen)
        shown, cleared = (
            _slowest(times) for times in ([o.shown_s for o in seen], [o.cleared_s for o in seen])
        )
        rows.append(f"| {name} | {len(seen)} | {good} | {shown} | {cleared} |")
    without = f" Left out here: {', '.join(left_out)}." if left_out else ""
    # Above all other work of the machine, or beside it: that changes what the figures mean.
    real_time = os.sched_getparam(0).sched_priority
    priority = f"chrt -r {real_time} " if real_time else ""
    lines = [
        "# Soak by the clock",
        "",
        f"`{priority}python device/soak.py --minutes {options.minutes:g} --seed {options.seed}`: "
        "services over PV Access and Stream V2,",
        f"{RATE} frames/s each, on {os.cpu_count()} shared cores.",
        "",
        f"{minutes:.0f} minutes, {len(tally.outcomes)} faults, {tally.kills} of them `kill -9`; "
        f"{tally.rows} rows committed. Right means that `/healthz`",
        f"and the state were right within {options.within:g} s after the fault, and again within "
        f"{options.within:g} s after its end.",
        "A fault of the detector begins and ends when the detector is ready to send, a start of "
        "the service ends with its",
        f"first answer, after {tally.slowest_start_s:.1f} s at most.{without}",
        "",
        "| fault | times | right | slowest to show, s | slowest to clear, s |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Rows lost or repeated, counts that do not add up, wrong exit statuses: "
        f"{len(tally.problems) or 'none'}.",
        *(f"- {problem}" for problem in tally.problems),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
