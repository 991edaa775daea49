"""edgexnas serve."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edgexnas.cli.arguments import add_command
from edgexnas.printing import printable

if TYPE_CHECKING:
    from edgexnas.cli.arguments import Commands
    from edgexnas.device.serving.opening import OpenedService
    from edgexnas.device.serving.service import Service

__all__ = ["add_to"]

INCOMPLETE = 4

EPILOG = f"""\
exit status: 0 the source has ended, or the service was stopped, and every frame has ended; 1 the
service failed, or stored none of the frames that came; 2 the configuration is wrong, or earlier
runs have stored all that came, so that starting again is of no use; {INCOMPLETE} it was stopped
before every frame had ended. SIGTERM or Ctrl-C finishes the frames that are here; a second one
stops at once. SIGHUP looks for a newer bundle in the file that the configuration names; see
reload_s."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    serve = add_command(commands, "serve", "serve a detector's frames as a configuration says")
    serve.epilog = EPILOG
    serve.add_argument("configuration", type=Path, help="TOML configuration file")
    serve.add_argument("--check", action="store_true", help="check the configuration and exit")
    serve.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> None:
    from edgexnas.device.serving.opening import open_service

    with _log_for_operators(quiet=options.quiet):
        opened = open_service(options.configuration)
        with closing(opened):
            if options.check:
                opened.check()
                print(_summary(opened.service))  # noqa: T201
                return
            complete = _run(opened)
    if not complete:
        raise SystemExit(INCOMPLETE)


def _run(opened: OpenedService) -> bool:
    """Run until the end or a signal; tell whether every frame has ended."""
    from edgexnas.device.serving.service_manager import Watchdog, notify

    service = opened.service
    interrupts = _Interrupts(service)
    before = signal.signal(signal.SIGHUP, lambda *_: opened.bundle_watch.look())
    watchdog = Watchdog(lambda: service.health)
    try:
        service.start()
        # Only now: a service manager starts what depends on this one.
        notify(READY=1, STATUS=f"serving {service.identity.source}")
        watchdog.start()
        opened.bundle_watch.start()
        service.wait()
    finally:
        notify(STOPPING=1)
        watchdog.close()
        opened.bundle_watch.close()
        service.close()
        interrupts.restore()
        signal.signal(signal.SIGHUP, before)
    service.raise_failure()
    return service.complete


class _Interrupts:
    """The first SIGTERM or SIGINT lets a service finish what it has, the second does not."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._count = 0
        self._before = {
            number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        # In a thread: the handler may have interrupted whoever holds the locks that these take.
        act = self._service.stop if self._count == 1 else self._service.abort
        # A daemon: a stop that hangs must not keep the interpreter from its end.
        threading.Thread(target=act, daemon=True).start()


def _summary(service: Service) -> str:
    identity = service.identity
    sinks = ", ".join(service.sink_counts()) or "no sinks"
    return (
        f"{identity.source}: {identity.model_id} {identity.sequence} with {identity.engine}, "
        f"{identity.precision}, to {sinks}: configuration OK"
    )


class _OneLine(logging.Formatter):
    """Keeps each message on a line of its own, without control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


@contextmanager
def _log_for_operators(*, quiet: bool) -> Iterator[None]:
    """Log to standard error, with the time unless the journal has its own."""
    handler = logging.StreamHandler()
    # systemd sets it where standard error is the journal, which stamps each line itself.
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    handler.setFormatter(_OneLine(f"{stamp}%(levelname)s %(message)s"))
    log = logging.getLogger("edgexnas")
    before = log.handlers[:], log.propagate, log.level
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        log.handlers[:], log.propagate = before[:2]
        log.setLevel(before[2])
