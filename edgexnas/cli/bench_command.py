"""edgexnas bench."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgexnas.cli.arguments import add_command, positive_float, positive_int
from edgexnas.device.power.meter import METERS
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
    bench.add_argument("bundles", nargs="+", help="*.edgex, the baseline first; - reads one")
    bench.add_argument("--trust", type=Path, required=True, help="folder of *.pub.pem files")
    bench.add_argument("--engine", default="auto", help="as of edgexnas predict")
    bench.add_argument("--precision", default="int8", help="int8, float16, float32 or auto")
    bench.add_argument("--batch", type=positive_int, default=32, help="items of one inference")
    bench.add_argument("--threads", type=positive_int, help="CPU threads of the engine")
    bench.add_argument("--runs", type=positive_int, default=375, help="of the latency protocol")
    bench.add_argument("--calls", type=positive_int, default=10, help="inferences of each run")
    bench.add_argument("--spread", type=float, default=10.0, help="s that the runs last at least")
    bench.add_argument("--sweep", type=int, nargs="*", default=[1, 8, 32, 128], help="batches")
    bench.add_argument("--no-cold-start", action="store_true", help="start no fresh process")
    bench.add_argument("--energy", default="auto", choices=("auto", "on", "off"))
    bench.add_argument("--meter", default="auto", choices=METERS)
    bench.add_argument("--idle", type=positive_float, default=60.0, help="s of an idle window")
    bench.add_argument("--load", type=positive_float, default=60.0, help="s of a load window")
    bench.add_argument("--period", type=positive_float, default=0.1, help="s a power reading")
    bench.add_argument("--blocks", type=positive_int, default=3, help="load windows of a bundle")
    bench.add_argument("--root", type=Path, default=Path("/"), help="folder that holds sys")
    for name in ("json", "csv", "html"):
        bench.add_argument(f"--{name}", help=f"{name.upper()} file to write, - for output")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    from edgexnas.device.benchmark.bench import run_bench

    outputs = {name: getattr(options, name) for name in ("json", "csv", "html")}
    _check_outputs(outputs)
    settings = _settings(options)
    bundles = [_open(path, options.trust) for path in options.bundles]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    report = run_bench(bundles, settings, trust=options.trust, progress=say)
    for name, place in outputs.items():
        if place is not None:
            _write(_form(name)(report), place)
    if "-" not in outputs.values():
        _print(report)
    # Written first: what is void is worth looking at, and says so itself.
    report.check()


def _settings(options: argparse.Namespace) -> BenchSettings:
    from edgexnas.device.benchmark.bench import BenchSettings
    from edgexnas.device.benchmark.energy_protocol import EnergyProtocol

    return BenchSettings(
        engine=options.engine,
        precision=options.precision,
        batch=options.batch,
        threads=options.threads,
        runs=options.runs,
        calls=options.calls,
        spread_s=options.spread,
        sweep=tuple(options.sweep),
        cold_start=not options.no_cold_start,
        energy=options.energy,
        protocol=EnergyProtocol.of_windows(
            options.load, options.idle, blocks=options.blocks, period_s=options.period
        ),
        meter=options.meter,
        root=options.root,
    )


def _open(path: str, trust: Path) -> Bundle:
    from edgexnas.bundle import TrustStore, open_bundle, verify_bundle

    if path != "-":
        return open_bundle(Path(path), trust=trust)
    return verify_bundle(sys.stdin.buffer.read(), trust=TrustStore.load(trust))


def _form(name: str) -> Callable[[BenchReport], str]:
    from edgexnas.device.benchmark.bench_files import to_csv, to_json
    from edgexnas.device.benchmark.bench_page import to_html

    return {"json": to_json, "csv": to_csv, "html": to_html}[name]


def _check_outputs(outputs: dict[str, str | None]) -> None:
    """Refuse what cannot be written before minutes of measuring."""
    places = [place for place in outputs.values() if place is not None]
    if len(set(places)) < len(places):
        raise ConfigurationError(f"two outputs go to {places[0]}; give each its own place")
    for place in places:
        if place != "-" and not Path(place).absolute().parent.is_dir():
            raise ConfigurationError(
                f"{place} cannot be written: its folder does not exist; create it"
            )


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
    columns = (
        "bundle",
        "parameters",
        "mean ms",
        "p50 ms",
        "p99 ms",
        "items/s",
        "mJ",
        "mJ above idle",
    )
    print_table(columns, rows, title=f"batch {report.settings.batch}, {report.before.name}")
    engine = report.bundles[0].engine
    print_pairs(
        [
            ("engine", f"{engine.get('engine')} {engine.get('precision')}"),
            *(("note", note) for note in report.notes),
            *(("fault", fault) for fault in report.faults),
        ]
    )
