"""A folder of scans, each labelled or predicted on some node of a Ray cluster."""

from __future__ import annotations

import argparse
import io
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from edgexnas.cli.tally import say_at_end
from edgexnas.cli.terminal import progress
from edgexnas.errors import ConfigurationError, EdgexnasError, MissingDependencyError

__all__ = ["add_ray", "run_on_cluster"]

SUFFIXES = (".h5", ".hdf5", ".nxs", ".cxi", ".npz")
"""Of files that are a scan or a series each; a folder of images is one series."""


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='process each file of a folder on a node of this Ray cluster, such as "auto" or '
        '"10.0.0.1:6379"; the output is a folder then. Every node needs the same edgexnas and the '
        "same paths",
    )


def run_on_cluster(options: argparse.Namespace, suffix: str) -> None:
    """Run a command for each scan of the folder `options.frames`, on whatever node has room.

    Parameters
    ----------
    options
        As parsed; ``output`` is a folder, created if missing.
    suffix
        Of the file that is written for each scan, named as the scan is.

    Raises
    ------
    ConfigurationError
        If the folder has no scans, two of one name, or the cluster cannot be reached.
    EdgexnasError
        If scans failed: which, and why; the others are written.
    """
    ray = _import_ray()
    jobs = _jobs(options, suffix)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        ray.init(address=options.ray, log_to_driver=False, logging_level="warning")
    except Exception as error:
        raise ConfigurationError(
            f"the Ray cluster {options.ray} cannot be reached ({str(error).splitlines()[0]}); "
            "check --ray and `ray status`"
        ) from error
    failed: dict[str, str] = {}
    try:
        # A node may go away: its scan is done again elsewhere, since files appear whole.
        task = ray.remote(num_cpus=getattr(options, "threads", None) or 1, max_retries=2)(_run)
        waiting = {task.remote(job): job.frames for job in jobs}
        with progress(f"{options.command} {len(jobs)} scans") as step:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                scan = waiting.pop(done)
                try:
                    reason = ray.get(done)
                except Exception as death:
                    reason = f"its worker died: {str(death).splitlines()[0]}"
                if reason:
                    failed[scan.name] = reason
                step(len(jobs) - len(waiting), len(jobs))
    finally:
        ray.shutdown()
    say_at_end(f"{len(jobs) - len(failed)} of {len(jobs)} scans written to {options.output}")
    if failed:
        told = "\n".join(f"{name}: {error}" for name, error in sorted(failed.items()))
        raise EdgexnasError(f"{len(failed)} of {len(jobs)} scans failed\n{told}")


def _jobs(options: argparse.Namespace, suffix: str) -> list[argparse.Namespace]:
    """Make the options of each scan, with paths that hold on other nodes too."""
    folder, output = options.frames, options.output
    if not isinstance(folder, Path) or not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder; with --ray specify one of scans")
    if output is None or output.is_file():
        raise ConfigurationError(f"the output is {output}; with --ray specify a folder")
    scans = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not scans:
        raise ConfigurationError(f"{folder} has no files named *{', *'.join(SUFFIXES)}")
    twice = [stem for stem, count in Counter(path.stem for path in scans).items() if count > 1]
    if twice:
        raise ConfigurationError(f"{folder} has two scans named {twice[0]}; rename one")
    jobs = []
    for scan in scans:
        given = {**vars(options), "frames": scan, "output": output / f"{scan.stem}{suffix}"}
        given["ray"] = None
        places = {key: v.absolute() if isinstance(v, Path) else v for key, v in given.items()}
        jobs.append(argparse.Namespace(**places))
    return jobs


def _run(options: argparse.Namespace) -> str:
    """Run the command for one scan, and return why it failed, or nothing."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            options.run(options)
        except (EdgexnasError, OSError, MemoryError) as error:
            return str(error) or type(error).__name__
    return ""


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingDependencyError.of("ray", extra="ray", purpose="--ray") from None
    return ray
