"""Where `edgexnas bench` runs: as a process on this machine, or on a device over the system's ssh.

The host never imports the device's code: it sends a bundle to the command and reads its JSON.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from edgexnas import __version__
from edgexnas.errors import ConfigurationError, MeasurementError, SourceError

__all__ = ["BenchTransport", "LocalBench", "SshBench"]

Finished = subprocess.CompletedProcess[bytes]

SCHEMA = "edgexnas-bench/1"
"""What this host can read."""

CONNECT_LIMIT_S = 15
PAUSES_S = (1.0, 5.0, 20.0)
"""Waits before the second attempt, the third, ..."""

SSH_FAILED, NOT_FOUND = 255, 127
"""Exit status by which ssh reports itself, and a shell a command that it does not find."""

HOPELESS = {
    "host key verification failed": "its host key is unknown or has changed; connect once by "
    "hand and compare the key",
    "permission denied": "it accepts none of your keys; add one to its authorized_keys",
    "could not resolve hostname": "its name is unknown; add it to ~/.ssh/config",
    "bad configuration option": "your ssh configuration is wrong; fix it",
}
"""What ssh says when another attempt cannot help."""


class BenchTransport(Protocol):
    """A place where bundles are measured."""

    @property
    def name(self) -> str:
        """As a user names it: "local", "ssh://orin"."""

    def check(self) -> None:
        """Make sure that the place can be reached and speaks our version.

        Raises
        ------
        SourceError
            If it cannot be reached.
        ConfigurationError
            If it has another version of edgexnas, or none.
        """

    def bench(self, bundle: bytes, trust: str, options: Sequence[str]) -> dict[str, Any]:
        """Measure a bundle; return the parsed report of ``edgexnas bench --json``.

        Raises
        ------
        SourceError
            If the place cannot be reached or does not answer in time.
        MeasurementError
            If the measurement failed or is void.
        """


class LocalBench:
    """`edgexnas bench` as a process on this machine.

    Parameters
    ----------
    timeout_s
        Seconds after which a measurement is given up.
    """

    name = "local"

    def __init__(self, *, timeout_s: float = 600.0) -> None:
        self._timeout_s = timeout_s

    def check(self) -> None:
        """Do nothing: the process is this installation."""

    def bench(self, bundle: bytes, trust: str, options: Sequence[str]) -> dict[str, Any]:
        """Measure a bundle; see `BenchTransport.bench`."""
        command = [sys.executable, "-m", "edgexnas.cli", *_arguments(trust, options)]
        done = _run(command, bundle, self._timeout_s, "this machine")
        return _report(done, "this machine")


class SshBench:
    """`edgexnas bench` on a device, over the ``ssh`` command with its configuration and keys.

    A connection that fails is tried again after 1, 5 and 20 seconds; one that is rejected for its
    key, or a measurement that fails, is not.

    Parameters
    ----------
    destination
        As ssh takes it: ``orin``, ``user@orin``.
    port
        None for ssh's own choice.
    command
        The device's ``edgexnas``, such as ``/home/me/edgexnas/bin/edgexnas``.
    options
        Further options of ssh, before the destination.
    retries
        Attempts after the first.
    timeout_s
        Seconds after which one attempt is given up.
    """

    def __init__(
        self,
        destination: str,
        *,
        port: int | None = None,
        command: str = "edgexnas",
        options: Sequence[str] = (),
        retries: int = 2,
        timeout_s: float = 600.0,
    ) -> None:
        if not destination or destination.startswith("-"):
            raise ConfigurationError(
                f"ssh destination is {destination!r}; specify a host such as ssh://orin"
            )
        self.name = f"ssh://{destination}" + (f":{port}" if port else "")
        self._remote = command
        self._retries, self._timeout_s = retries, timeout_s
        self._ssh = [
            # BatchMode: a password prompt would wait for ever.
            # -T: a terminal would change bytes of the bundle on the way.
            "ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_LIMIT_S}",
            "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", *options,
            *(["-p", str(port)] if port else []), "--", destination,
        ]  # fmt: skip

    def check(self) -> None:
        """Compare versions; see `BenchTransport.check`."""
        done = self._attempts([self._remote, "--version"], b"")
        words = done.stdout.decode(errors="replace").split()
        if done.returncode == NOT_FOUND:
            raise ConfigurationError(
                f"{self.name} has no command {self._remote}; install edgexnas there, or name its "
                "place by ?edgexnas=PATH"
            )
        if done.returncode != 0 or len(words) != 2 or words[0] != "edgexnas":
            raise ConfigurationError(
                f"{self.name} answers {self._remote} --version by {_last_line(done)!r}; install "
                "edgexnas there, or name its place by ?edgexnas=PATH"
            )
        if _series(words[1]) != _series(__version__):
            raise ConfigurationError(
                f"{self.name} has edgexnas {words[1]} and this host {__version__}; install the "
                "same on both"
            )

    def bench(self, bundle: bytes, trust: str, options: Sequence[str]) -> dict[str, Any]:
        """Measure a bundle; see `BenchTransport.bench`."""
        done = self._attempts([self._remote, *_arguments(trust, options)], bundle)
        return _report(done, self.name)

    def _attempts(
        self, remote: Sequence[str], content: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        # ssh joins its words with blanks, and the far shell splits them again.
        command = [*self._ssh, shlex.join(remote)]
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(PAUSES_S[min(attempt - 1, len(PAUSES_S) - 1)])
            try:
                done = _run(command, content, self._timeout_s, self.name)
            except SourceError:
                if attempt == self._retries:
                    raise
                continue
            if done.returncode != SSH_FAILED:
                return done
            said = _last_line(done)
            for hint, remedy in HOPELESS.items():
                if hint in done.stderr.decode(errors="replace").lower():
                    raise SourceError(f"{self.name} cannot be reached ({said}): {remedy}")
        raise SourceError(
            f"{self.name} cannot be reached after {self._retries + 1} attempts ({said}); "
            "check that it is on and accepts connections"
        )


def _arguments(trust: str, options: Sequence[str]) -> list[str]:
    return ["bench", "-", "--trust", trust, "--json", "-", "--no-cold-start", *options]


def _run(command: Sequence[str], content: bytes, timeout_s: float, where: str) -> Finished:
    try:
        return subprocess.run(command, input=content, capture_output=True, timeout=timeout_s)
    except FileNotFoundError as error:
        raise SourceError(
            f"command {command[0]} not found on this machine; install openssh-client"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{where} did not answer within {timeout_s:g} s; increase the time-out"
        ) from error


def _report(done: Finished, where: str) -> dict[str, Any]:
    if done.returncode != 0:
        said = _last_line(done).removeprefix("edgexnas bench: ")
        raise MeasurementError(f"edgexnas bench failed on {where}: {said}")
    try:
        report: dict[str, Any] = json.loads(done.stdout)
        schema = report["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise MeasurementError(
            f"{where} answers edgexnas bench by {_last_line(done)!r}, which is no report"
        ) from error
    if schema != SCHEMA:
        raise ConfigurationError(
            f"{where} reports in the form {schema!r} and this host reads {SCHEMA!r}; install the "
            "same edgexnas on both"
        )
    return report


def _last_line(done: Finished) -> str:
    """Last line of a command's output, of standard error if there is any."""
    # Standard error first: a command that failed says there why.
    for stream in (done.stderr, done.stdout):
        lines = stream.decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].strip()[:300]
    return f"exit status {done.returncode}"


def _series(version: str) -> tuple[str, ...]:
    """Major and minor version: what has to agree."""
    return tuple(version.split(".")[:2])
