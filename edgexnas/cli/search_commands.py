"""edgexnas optimize, report and export."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import add_command, positive_float, positive_int, seed
from edgexnas.cli.outputs import check_output
from edgexnas.cli.terminal import print_pairs, print_table
from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from edgexnas.cli.arguments import Commands
    from edgexnas.host import SearchResult

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the commands."""
    _add_optimize(commands)
    report = add_command(commands, "report", "write the HTML report and the figures of a run")
    report.add_argument("folder", type=Path, metavar="RUN", help="run folder of optimize")
    report.add_argument("--output", type=Path, help="HTML file (default: report.html in the run)")
    report.set_defaults(run=_report)

    export = add_command(commands, "export", "write a network of a run as a signed bundle")
    export.add_argument("folder", type=Path, metavar="RUN", help="run folder of optimize")
    export.add_argument("--output", type=Path, required=True, help="*.edgex to write")
    export.add_argument("--signing-key", type=Path, required=True, help="private key, *.key.pem")
    chosen = export.add_mutually_exclusive_group()
    chosen.add_argument(
        "--best", help="objective to select the best network by (default: first of the run)"
    )
    chosen.add_argument("--trial", type=int, help="select the network of this trial")
    export.add_argument("--model-id", help="name of the model (default: name of its search space)")
    export.add_argument(
        "--maximum-loss", type=positive_float, default=0.10,
        help="largest share that INT8 may add to the error; for peaks 0.003 px in any case",
    )  # fmt: skip
    export.add_argument(
        "--no-fine-tuning", action="store_true", help="fail instead of fine-tuning for INT8"
    )
    export.add_argument(
        "--quantise-for", metavar="SOURCE",
        help="measure which precision and placement of INT8 is the fastest: local, ssh://HOST",
    )  # fmt: skip
    export.set_defaults(run=_export)


def _add_optimize(commands: Commands) -> None:
    """Options default to None, so that those given override a configuration file."""
    optimize = add_command(commands, "optimize", "search networks and hyperparameters")
    optimize.formatter_class = argparse.HelpFormatter
    optimize.add_argument("task", nargs="?", help="bragg or ptycho; required without --config")
    optimize.add_argument("--config", type=Path, help="TOML file with the options of optimize()")
    optimize.add_argument("--data", type=Path, help="labelled data, from edgexnas label")
    optimize.add_argument("--output", type=Path, help="run folder")
    optimize.add_argument(
        "--space", nargs="+", action="extend",
        help="search spaces, such as mlpBragg cnnBragg, or paper",
    )  # fmt: skip
    optimize.add_argument(
        "--objectives", nargs="+", action="extend", help="such as error parameters latency"
    )
    optimize.add_argument(
        "--constraint", action="append", metavar="NAME=BOUND", help="upper bound; repeatable"
    )
    optimize.add_argument("--search", help="strategy: cbo, random, evolution, hyperband, ...")
    optimize.add_argument(
        "--budget", help="time for everything: seconds, 30min, 2h (default: 10min, ptycho 30min)"
    )
    optimize.add_argument(
        "--synthetic", type=int, metavar="N", help="fill the training part up with synthetic peaks"
    )
    optimize.add_argument(
        "--max-evals", type=positive_int, help="total number of evaluations, without a budget"
    )
    optimize.add_argument("--timeout", type=positive_float, help="seconds of this session")
    optimize.add_argument("--workers", type=positive_int, help="number of parallel evaluations")
    optimize.add_argument("--evaluator", help="evaluator: process, serial or ray")
    optimize.add_argument("--epochs", type=positive_int, help="maximum epochs of a training")
    optimize.add_argument("--device", help="device to train on: auto, cpu, cuda, ...")
    optimize.add_argument("--measure", help="source of latency, energy: local, ssh://HOST, model")
    optimize.add_argument("--signing-key", type=Path, help="private key that the device trusts")
    optimize.add_argument("--seed", type=seed, help="random seed")
    optimize.add_argument("--resume", action="store_true", help="continue the run in --output")
    optimize.set_defaults(run=_optimize)


_LIMITS = ("max_evals", "timeout", "epochs", "patience", "time_limit_s")
"""What does not go with a budget."""

# Entries of argparse itself, and what `_optimize` passes on in its own way.
_NOT_PASSED_ON = {"command", "config", "constraint", "resume", "run", "typed"}


def _optimize(options: argparse.Namespace) -> None:
    from edgexnas.host import load_configuration, optimize

    arguments: dict[str, Any] = {} if options.config is None else load_configuration(options.config)
    given = {name: value for name, value in vars(options).items() if value is not None}
    # What is typed goes before what the file says, and one way of bounding a search before another.
    for name, others in {"budget": _LIMITS, **dict.fromkeys(_LIMITS, ("budget",))}.items():
        if name in given:
            arguments = {n: value for n, value in arguments.items() if n not in others}
    arguments |= {name: value for name, value in given.items() if name not in _NOT_PASSED_ON}
    if options.constraint:
        bounds = dict(_bound(text) for text in options.constraint)
        arguments["constraints"] = {**arguments.get("constraints", {}), **bounds}
    for name in ("task", "data", "output"):
        if name not in arguments:
            raise ConfigurationError(f"{name} is missing; specify it here or in a --config file")
    output = arguments["output"]
    try:
        result = optimize(arguments.pop("task"), resume=options.resume, **arguments)
    except KeyboardInterrupt:
        if (Path(output) / "journal.jsonl").exists():
            again = shlex.join(word for word in options.typed if word != "--resume")
            # Before "interrupted", which is printed for every command.
            print(  # noqa: T201
                f"{output} keeps what has ended; continue with: edgexnas {again} --resume",
                file=sys.stderr,
            )
        raise
    _print_front(result)


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ConfigurationError(
            f"constraint {text!r} is not NAME=BOUND, such as parameters=20000"
        ) from None


def _print_front(result: SearchResult) -> None:
    names = [objective.name for objective in result.objectives]
    rows = [
        (
            str(candidate.trial),
            candidate.space,
            *(f"{candidate.objectives[name]:.6g}" for name in names),
            ", ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in candidate.configuration.items()
                # With a budget the time has decided.
                if key != "epochs" or "budget" not in result.description
            ),
        )
        for candidate in result.pareto
    ]
    labels = [objective.label for objective in result.objectives]
    print_table(("trial", "space", *labels, "configuration"), rows, title="Pareto front")
    failed = ", ".join(f"{count} {reason}" for reason, count in result.failures.items())
    print_pairs(
        [
            (
                "evaluations",
                f"{len(result.trials)}, {result.kept} of them kept from before",
            ),
            ("failed", failed or "none"),
            ("hypervolume", f"{result.hypervolume:.4f}"),
            ("run", str(result.folder)),
        ]
    )


def _report(options: argparse.Namespace) -> None:
    from edgexnas.host.reporting.report import write_report

    if options.output is not None:
        check_output(options.output)
    written = write_report(options.folder, options.output)
    print_pairs([("report", str(written))])


def _export(options: argparse.Namespace) -> None:
    from edgexnas.bundle import describe, load_signing_key
    from edgexnas.host import SearchResult
    from edgexnas.host.exporting.bundle_export import FINE_TUNING
    from edgexnas.host.search.run_folder import handled

    check_output(options.output, inputs=(options.signing_key,))
    # Before the network is quantised, which takes minutes.
    load_signing_key(options.signing_key)
    result = SearchResult.load(options.folder)
    candidate = result.best(options.best or result.objectives[0].name)
    if options.trial is not None:
        known = {candidate.trial: candidate for candidate in result.candidates}
        if options.trial not in known:
            raise ConfigurationError(
                f"run {options.folder} has no trained network {options.trial}; "
                f"specify one of {', '.join(map(str, sorted(known)))}"
            )
        candidate = known[options.trial]
    with handled("edgexnas.host.exporting", _lines_told()):
        report = result.export(
            options.output,
            candidate=candidate,
            signing_key=options.signing_key,
            model_id=options.model_id,
            maximum_loss=options.maximum_loss,
            fine_tune=None if options.no_fine_tuning else FINE_TUNING,
            quantise_for=options.quantise_for,
            progress=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
        )
    choice = report.choice
    chosen = [] if choice is None else [("recipe", choice.name), ("because", choice.reason)]
    print_pairs([*describe(report.manifest), *chosen, ("file", str(report.path))])


def _lines_told() -> logging.Handler:
    """Print what is logged, a line each on standard error."""
    handler = logging.StreamHandler()
    # Warnings are printed for every command already.
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    return handler
