"""edgexnas bench."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import add_command, number, positive_float, positive_int
from edgexnas.cli.outputs import check_output
from edgexnas.device.engines.opening import ENGINES
from edgexnas.device.power.opening import METERS
from edgexnas.errors import ConfigurationError
from edgexnas.whole_files import write_whole

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle
    from edgexnas.cli.arguments import Commands
    from edgexnas.device.benchmark.bench import BenchReport, BenchSettings

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    bench = add_command(commands, "bench", "measure latency and energy of bundles on this device")
    bench.add_argument("bundles", nargs="+", help="*.edgex, baseline first; - is standard input")
    bench.add_argument(
        "--trust", type=Path, help="folder of *.pub.pem files; needed for all but universal"
    )
    bench.add_argument("--engine", default="auto", choices=ENGINES, help="inference engine")
    bench.add_argument("--precision", default="int8", help="int8, float16, float32 or auto")
    bench.add_argument("--batch", type=positive_int, default=32, help="batch size")
    bench.add_argument("--threads", type=positive_int, help="number of CPU threads of the engine")
    latency = bench.add_argument_group(
        "latency", "The bundles take turns, run by run; an interval tells how sure a number is."
    )
    latency.add_argument("--runs", type=positive_int, default=375, help="runs of each bundle")
    latency.add_argument("--calls", type=positive_int, default=10, help="inferences in each run")
    latency.add_argument(
        "--spread", type=number, default=10.0, metavar="S",
        help="minimum duration of all runs together, so that slow drifts show",
    )  # fmt: skip
    latency.add_argument(
        "--sweep", type=positive_int, nargs="*", default=[1, 8, 32, 128], metavar="BATCH",
        help="further batch sizes to measure; without a value, none",
    )  # fmt: skip
    latency.add_argument("--no-cold-start", action="store_true", help="skip the cold start")
    energy = bench.add_argument_group(
        "energy",
        "Windows of load between idle ones. With the defaults a bundle takes about 6 minutes; "
        "windows shorter than 60 s are noted in the report.",
    )
    energy.add_argument(
        "--energy", default="auto", choices=("auto", "on", "off"),
        help="measure energy: auto, if there is a power meter; on, fail without one",
    )  # fmt: skip
    energy.add_argument("--meter", default="auto", choices=METERS, help="power meter")
    energy.add_argument(
        "--idle", type=positive_float, default=60.0, metavar="S", help="duration of an idle window"
    )
    energy.add_argument(
        "--load", type=positive_float, default=60.0, metavar="S", help="duration of a load window"
    )
    energy.add_argument(
        "--blocks", type=positive_int, default=3, help="load windows of each bundle, interleaved"
    )
    energy.add_argument(
        "--period", type=positive_float, default=0.1, metavar="S",
        help="sampling period of the power meter",
    )  # fmt: skip
    energy.add_argument("--root", type=Path, default=Path("/"), help="folder that holds sys/")
    outputs = bench.add_argument_group("output", "Files to write; - is standard output.")
    outputs.add_argument("--json", metavar="FILE", help="everything, power readings included")
    outputs.add_argument("--csv", metavar="FILE", help="one row per bundle")
    outputs.add_argument("--html", metavar="FILE", help="tables and plots on one page")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    from edgexnas.device.benchmark.bench import run_bench

    outputs = {name: getattr(options, name) for name in ("json", "csv", "html")}
    _check_outputs(outputs, options.bundles)
    settings = _settings(options)
    # Opened first: a bundle that is rejected must not cost the minutes of those before it.
    bundles = [_open(path, options.trust) for path in options.bundles]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    with _each_warning_once():
        report = run_bench(bundles, settings, trust=options.trust, progress=say)
    for name, place in outputs.items():
        if place is not None:
            _write(_form(name)(report), place)
    if "-" not in outputs.values():
        _print(report)
    # Written first: what is void is worth looking at, and says so itself.
    report.check()


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Show each warning once, although every engine that is opened repeats it."""
    shown: set[str] = set()

    def is_news(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in shown
        shown.add(text)
        return new

    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(is_news)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_news)


def _settings(options: argparse.Namespace) -> BenchSettings:
    from edgexnas.device.benchmark.bench import BenchSettings
    from edgexnas.device.benchmark.energy_protocol import EnergyProtocol

    named = {f.name: getattr(options, f.name, None) for f in fields(BenchSettings)}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    return BenchSettings(
        **given
        | {
            "spread_s": options.spread,
            "sweep": tuple(options.sweep),
            "cold_start": not options.no_cold_start,
            "protocol": EnergyProtocol.of_windows(
                options.load, options.idle, blocks=options.blocks, period_s=options.period
            ),
        }
    )


def _open(path: str, trust: Path | None) -> Bundle:
    from edgexnas.bundle import TrustStore, open_bundle, verify_bundle
    from edgexnas.bundle.gate_policy import ANY_GATE

    # What is measured is not put to use: it may be old, or a network that nobody has trained.
    if path != "-":
        return open_bundle(path, trust=trust, state=False, gates=ANY_GATE)
    if trust is None:
        raise ConfigurationError(
            "trust is missing for standard input; give the folder of trusted public keys"
        )
    raw = sys.stdin.buffer.read()
    return verify_bundle(raw, trust=TrustStore.load(trust, state=False), gates=ANY_GATE)


def _form(name: str) -> Callable[[BenchReport], str]:
    from edgexnas.device.benchmark.bench_files import to_csv, to_json
    from edgexnas.device.benchmark.bench_page import to_html

    return {"json": to_json, "csv": to_csv, "html": to_html}[name]


def _check_outputs(outputs: dict[str, str | None], bundles: Sequence[str]) -> None:
    """Reject what cannot be written before minutes of measuring."""
    places = [place for place in outputs.values() if place is not None]
    if len(set(places)) < len(places):
        raise ConfigurationError(f"two outputs go to {places[0]}; specify each its own place")
    for place in places:
        if place != "-":
            check_output(Path(place), inputs=bundles)


def _write(text: str, place: str) -> None:
    if place == "-":
        sys.stdout.write(text)
        return
    try:
        write_whole(Path(place), text.encode())
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be written: {error.strerror}") from error


def _print(report: BenchReport) -> None:
    from edgexnas.cli.terminal import print_pairs, print_table

    rows: list[Sequence[str]] = []
    for bench in report.bundles:
        latency, energy = bench.latency, bench.energy
        rows.append(
            (
                bench.name,
                f"{bench.parameters:,}",
                f"{latency.mean_ms:.4f} ± {latency.half_width_ms:.4f}",
                f"{latency.p50_ms:.4f} ± {latency.p50_half_width_ms:.4f}",
                f"{latency.p99_ms:.4f}",
                f"{latency.items_per_s:,.0f}",
                f"{energy.total_mj:.3f} ± {energy.total_half_width_mj:.3f}" if energy else "",
                f"{energy.marginal_mj:.3f} ± {energy.marginal_half_width_mj:.3f}" if energy else "",
            )
        )
    numbers = ("parameters", "mean ms", "p50 ms", "p99 ms", "items/s", "mJ", "mJ above idle")
    title = f"batch {report.settings.batch}, {report.before.name}"
    print_table(("bundle", *numbers), rows, title=title)
    engine = report.bundles[0].engine
    print_pairs(
        [
            ("engine", f"{engine.get('engine')} {engine.get('precision')}"),
            *(("note", note) for note in report.notes),
            *(("fault", fault) for fault in report.faults),
        ]
    )
