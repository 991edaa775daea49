"""edgexnas adapt."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgexnas.cli.arguments import (
    add_command,
    add_detection,
    bundle_path,
    detection_options,
    positive_int,
    seed,
)
from edgexnas.cli.outputs import check_output
from edgexnas.cli.tally import say_at_end
from edgexnas.cli.terminal import print_pairs, print_table

if TYPE_CHECKING:
    from edgexnas.bundle import AccuracyRow
    from edgexnas.cli.arguments import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    adapt = add_command(
        commands, "adapt", "make a bundle for a detector from its frames alone, without labels"
    )
    adapt.add_argument("bundle", type=bundle_path, help="universal, or a *.edgex for Bragg peaks")
    adapt.add_argument("frames", type=Path, help="HDF5, NeXus, frame cache, image or folder")
    adapt.add_argument("--output", type=Path, required=True, help="*.edgex to write")
    adapt.add_argument("--budget", default="10min", help="time for everything, such as 10min")
    adapt.add_argument(
        "--signing-key",
        type=Path,
        help="private key, *.key.pem (default: NAME.key.pem beside the output, made if missing)",
    )
    adapt.add_argument("--trust", type=Path, help="trusted keys; needed for all but universal")
    adapt.add_argument("--model-id", help="name of the model (default: stem of the output)")
    adapt.add_argument("--dataset", help="dataset of the HDF5 file that holds the frames")
    add_detection(adapt)
    adapt.add_argument("--threads", type=positive_int, default=2, help="CPU threads")
    adapt.add_argument("--seed", type=seed, default=0, help="random seed")
    adapt.add_argument("--resume", action="store_true", help="go on with one that was stopped")
    adapt.set_defaults(run=_adapt)


def _adapt(options: argparse.Namespace) -> None:
    from edgexnas.host import adapt
    from edgexnas.host.adapting.stages import stages_folder

    given = (options.bundle, options.frames, options.signing_key, options.trust)
    check_output(options.output, inputs=[path for path in given if path is not None])
    try:
        report = adapt(
            options.bundle,
            options.frames,
            output=options.output,
            signing_key=options.signing_key,
            trust=options.trust,
            budget=options.budget,
            dataset=options.dataset,
            model_id=options.model_id,
            seed=options.seed,
            threads=options.threads,
            resume=options.resume,
            progress=say,
            **detection_options(options),
        )
    except KeyboardInterrupt:
        kept = stages_folder(options.output)
        if kept.exists():
            again = shlex.join(word for word in options.typed if word != "--resume")
            say(f"{kept} keeps what has ended; continue with: edgexnas {again} --resume")
        raise
    against = "truth" if report.before.against == "truth" else "fits"
    print_table(
        ("held-out frames", f"distance to the {against}: mean px", "p50", "p75", "p95"),
        [row("before", report.before), row("after", report.after)],
    )
    print_pairs(
        [
            ("frames", f"{report.frames}, {report.peaks} peaks with a good fit"),
            ("network", "trained on" if report.adapted else "as given, with new intervals"),
            ("bundle", f"{report.path}, {report.path.stat().st_size // 1024} KiB"),
        ]
    )
    say_at_end(f"adapted in {report.seconds:.0f} s")


def row(name: str, accuracy: AccuracyRow) -> tuple[str, ...]:
    """Write an accuracy as a row of the table."""
    values = (accuracy.mean_px, accuracy.p50_px, accuracy.p75_px, accuracy.p95_px)
    return (name, *(f"{value:.4f}" for value in values))


def say(line: str) -> None:
    """Tell what is done, beside what is printed at the end."""
    print(f"edgexnas adapt: {line}", file=sys.stderr, flush=True)  # noqa: T201
