"""The `edgexnas` command."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from edgexnas import __version__
from edgexnas.cli import (
    adapt_command,
    bench_command,
    bundle_commands,
    convert_command,
    demo_command,
    device_commands,
    host_commands,
    power_command,
    search_commands,
    serve_command,
)
from edgexnas.errors import ConfigurationError, EdgexnasError
from edgexnas.printing import printable

__all__ = ["main"]

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 for success, 2 for wrong usage.

    Foreseen failures are one sentence on standard error, without a traceback.
    """
    _make_streams_usable()
    typed = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    if any("\0" in argument for argument in typed):
        parser.error("an argument holds a NUL, as no path or name does")
    options = parser.parse_args(typed)
    # The command as it was typed, which the demo's page repeats.
    options.typed = typed
    warnings_only = logging.StreamHandler()
    warnings_only.setLevel(logging.WARNING)
    logging.basicConfig(format="edgexnas: %(message)s", handlers=[warnings_only])
    try:
        options.run(options)
        # Here, not at exit, where a full disk would be reported without a sentence of ours.
        sys.stdout.flush()
    except EdgexnasError as error:
        # A configuration has a line for each of its errors.
        told = "\n".join(map(printable, str(error).split("\n")))
        print(f"edgexnas {options.command}: {told}", file=sys.stderr)  # noqa: T201
        return WRONG_USAGE if isinstance(error, ConfigurationError) else FAILED
    except KeyboardInterrupt:
        print(f"edgexnas {options.command}: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except MemoryError as error:
        # numpy says how much an array would have taken.
        message = f"there is not enough memory ({error}): choose smaller numbers"
        print(f"edgexnas {options.command}: {message}", file=sys.stderr)  # noqa: T201
        return FAILED
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        # A full disk behind standard output, or a folder that went away: nobody's traceback.
        place = f"{error.filename}: " if error.filename else ""
        print(f"edgexnas {options.command}: {place}{error.strerror or error}", file=sys.stderr)  # noqa: T201
        try:
            sys.stdout.flush()
        except OSError:
            # What is still buffered would fail again, and be complained of, at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return 0


def _make_streams_usable() -> None:
    """Open streams that are closed, and let others escape what their encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Not for what is printed alone: the next file opened would get its number.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="edgexnas",
        description="Searched, verified, INT8 neural networks next to an X-ray detector.",
        epilog="Start with: edgexnas demo",
    )
    parser.add_argument("--version", action="version", version=f"edgexnas {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        demo_command,
        host_commands,
        search_commands,
        adapt_command,
        bundle_commands,
        device_commands,
        convert_command,
        power_command,
        bench_command,
        serve_command,
    ):
        module.add_to(commands)
    return parser
