"""Tell a service manager such as systemd how the service is: sd_notify(3) without a library."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.device.monitoring.health import Health

__all__ = ["Watchdog", "notify"]

SEND_S = 5.0
"""How long a service manager that reads nothing may hold up who tells it something."""

_log = logging.getLogger("edgexnas.device.serving")


def notify(**fields: str | int) -> bool:
    """Send fields such as READY=1, STATUS=..., STOPPING=1 to the service manager.

    Returns
    -------
    Whether there is a service manager and it could be reached.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        # A socket in Linux's abstract name space begins with a zero byte.
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_S)
            sender.connect(address)
            sender.sendall(message.encode())
    except OSError as error:
        _log.warning("the service manager cannot be told %s: %s", message, error)
        return False
    return True


class Watchdog:
    """Tells the service manager how the service is, and that its threads are alive.

    It does nothing where the service manager has not asked for it.

    Parameters
    ----------
    health
        Of the service; see `Health.watchdog`.
    """

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health
        self._ended = threading.Event()
        asked_us = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.interval_s = int(asked_us) / 1e6 / 3 if asked_us.isdecimal() and mine else None
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self.interval_s is not None:
            self._thread.start()

    def close(self) -> None:
        """End."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self.interval_s is not None
        while not self._ended.wait(self.interval_s):
            health = self._health()
            if health.watchdog:
                notify(WATCHDOG=1, STATUS=health.sentence)
            else:
                notify(STATUS=health.sentence)
                _log.error("pipeline stalled: withholding watchdog notification")
