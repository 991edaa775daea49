"""edgexnas demo."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import add_command, positive_int, seed
from edgexnas.cli.terminal import print_pairs, print_table, progress

if TYPE_CHECKING:
    from edgexnas.cli.arguments import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    demo = add_command(commands, "demo", "run the whole job once: frames to verified predictions")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for results")
    demo.add_argument("--data", type=Path, help="frames, a file or folder (default: simulated)")
    demo.add_argument("--spots", help="hexrd spot list of these frames, FILE.h5::PANEL")
    demo.add_argument(
        "--space", nargs="+", action="extend", help="search spaces to search (default: mlpBragg)"
    )
    demo.add_argument(
        "--evaluations", dest="max_evals", metavar="N", type=positive_int, default=12,
        help="number of networks to train",
    )  # fmt: skip
    demo.add_argument("--epochs", type=positive_int, default=60, help="maximum number of epochs")
    demo.add_argument(
        "--baselines",
        nargs="*",
        action="extend",
        choices=("small", "large"),
        help="BraggNN sizes to compare with (default: small)",
    )
    demo.add_argument(
        "--maximum-parameters", type=positive_int, default=20_000, help="skip larger networks"
    )
    demo.add_argument("--workers", type=positive_int, default=2, help="parallel trainings")
    demo.add_argument("--seed", type=seed, default=0, help="random seed")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from edgexnas.demo import DemoSettings, run_demo
    from edgexnas.demo.markdown import AGAINST, COLUMNS, cells, detection_lines, write_markdown

    given: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(DemoSettings)}
    for name, usual in (("space", ("mlpBragg",)), ("baselines", ("small",))):
        given[name] = usual if given[name] is None else tuple(given[name])
    settings = DemoSettings(**given)
    result = run_demo(settings, progress)
    command = shlex.join(["edgexnas", *options.typed])
    page = write_markdown(result, settings.output / "results.md", command=command)
    print_table(
        COLUMNS,
        [cells(row) for row in result.rows],
        title=f"Distance to the {AGAINST[result.rows[0].against]} on held-out frames, px",
    )
    print_pairs(
        [
            *detection_lines(result),
            ("INT8", f"{result.int8_loss:+.1%} of mean distance against float32"),
            ("bundle", f"{result.bundle} ({result.bundle_bytes / 1024:.0f} KiB)"),
            ("trust store", f"{settings.output / 'keys'}"),
            ("picture", f"{result.picture}"),
            ("table", f"{result.table} and {page.name}"),
        ]
    )
