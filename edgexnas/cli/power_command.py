"""edgexnas power."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgexnas.cli.arguments import add_command, positive_float
from edgexnas.device.power.opening import METERS
from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from edgexnas.cli.arguments import Commands
    from edgexnas.device.power import PowerMeter, PowerReading

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    power = add_command(commands, "power", "show and log the power of this device")
    power.add_argument("--meter", default="auto", choices=METERS, help="power meter")
    power.add_argument("--period", type=positive_float, default=0.5, help="sampling period, s")
    power.add_argument("--seconds", type=positive_float, help="duration (default: until Ctrl-C)")
    power.add_argument("--csv", help="CSV file to log to, - for standard output")
    power.add_argument("--jetson-stats", action="store_true", help="add power mode, clocks and fan")
    power.add_argument("--root", type=Path, default=Path("/"), help="folder that holds sys/")
    power.set_defaults(run=_power)


def _power(options: argparse.Namespace) -> None:
    from edgexnas.device.power import open_power_meter

    meter = open_power_meter(options.meter, root=options.root)
    try:
        if options.jetson_stats:
            _print_jetson_stats(options.root)
        with _log(options.csv) as log, _view(meter, shown=options.csv != "-") as show:
            writer = csv.writer(log) if log is not None else None
            header: list[str] = []
            for reading in _readings(meter, options.period, options.seconds):
                if writer is not None and log is not None:
                    if not header:
                        header = list(reading.rails_w)
                        writer.writerow(["monotonic_s", "module_w", *(f"{r}_w" for r in header)])
                    writer.writerow(_row(reading, header))
                    # Whoever follows the file sees each reading as it comes.
                    log.flush()
                show(reading)
    except KeyboardInterrupt:
        # Ctrl-C is how one ends a log without a duration.
        return
    finally:
        meter.close()


def _readings(meter: PowerMeter, period_s: float, seconds: float | None) -> Iterator[PowerReading]:
    """Read at steady moments, so that delays do not add up."""
    began = time.monotonic()
    number = 0
    while seconds is None or number * period_s <= seconds:
        time.sleep(max(0.0, began + number * period_s - time.monotonic()))
        yield meter.read()
        # Moments that a slow meter has missed are left out, not made up for.
        number = max(number + 1, int((time.monotonic() - began) / period_s))


def _row(reading: PowerReading, rails: list[str]) -> list[str]:
    module = "" if reading.module_w is None else f"{reading.module_w:.3f}"
    return [f"{reading.time_s:.4f}", module, *(f"{reading.rails_w[r]:.3f}" for r in rails)]


@contextmanager
def _log(path: str | None) -> Iterator[IO[str] | None]:
    """Open the log; it grows reading by reading and is useful when it was cut off."""
    if path is None:
        yield None
    elif path == "-":
        yield sys.stdout
    else:
        try:
            file = open(path, "w", newline="")  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
        with file:
            yield file


class _Show:
    """Prints a line a reading; `_LiveTable` is for terminals."""

    def __init__(self, meter: PowerMeter) -> None:
        print(meter.description)  # noqa: T201

    def __call__(self, reading: PowerReading) -> None:
        rails = "  ".join(f"{name} {watts:.2f}" for name, watts in reading.rails_w.items())
        module = "not measured" if reading.module_w is None else f"{reading.module_w:.2f} W"
        print(f"module {module}   {rails}")  # noqa: T201


class _LiveTable:
    """Keeps least, mean and most of each rail on the screen."""

    def __init__(self, meter: PowerMeter) -> None:
        self._title = meter.description
        self._seen: dict[str, list[float]] = {}

    def table(self, reading: PowerReading) -> Table:
        from rich.table import Table

        values = dict(reading.rails_w)
        if reading.module_w is not None:
            values["module"] = reading.module_w
        table = Table(title=self._title, title_justify="left")
        for name in ("rail", "W", "least", "mean", "most"):
            table.add_column(name, justify="left" if name == "rail" else "right")
        for name, watts in values.items():
            # Number, sum, least, most: a log over days must not grow.
            count, total, least, most = self._seen.get(name, [0, 0.0, watts, watts])
            seen = [count + 1, total + watts, min(least, watts), max(most, watts)]
            self._seen[name] = seen
            style = "bold" if name == "module" else ""
            numbers = (watts, seen[2], seen[1] / seen[0], seen[3])
            table.add_row(name, *(f"{number:.2f}" for number in numbers), style=style)
        if reading.supply_v is not None:
            table.caption = f"supply {reading.supply_v:.2f} V"
        return table


@contextmanager
def _view(meter: PowerMeter, *, shown: bool) -> Iterator[Callable[[PowerReading], object]]:
    from rich.console import Console

    if not shown:
        yield lambda reading: None
    elif not sys.stdout.isatty():
        yield _Show(meter)
    else:
        from rich.live import Live

        view = _LiveTable(meter)
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda reading: live.update(view.table(reading), refresh=True)


def _print_jetson_stats(root: Path) -> None:
    from edgexnas.cli.terminal import print_pairs
    from edgexnas.device.power.jetson_stats import read_jetson_stats

    print_pairs(read_jetson_stats(root).pairs())
