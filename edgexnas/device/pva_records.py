"""Records that this process serves over EPICS PV Access.

All servers that pvapy makes in a process serve one database, so a second server would announce
every PV twice and clients would warn. Whoever serves PVs therefore shares the one server here.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.errors import ConfigurationError

__all__ = ["PvaRecords", "require_search_port"]

_SEARCH_PORT = 5076
"""What EPICS takes where no variable sets it."""

_READ_ONLY = "ASG(DEFAULT) { RULE(1, READ) }\n"

_lock = threading.Lock()
_servers: list[Any] = []
_users = 0


class PvaRecords:
    """Some PVs, served as long as this is open. Clients may read them; writing is rejected.

    Which network interfaces are answered on is EPICS' affair: EPICS_PVAS_INTF_ADDR_LIST.

    Parameters
    ----------
    purpose
        What the PVs are for, for error messages.

    Raises
    ------
    MissingDependencyError
        When pvapy is not installed.
    ConfigurationError
        When EPICS fails to open a server, such as on an address that this machine lacks, or
        clients could not find it; see `require_search_port`.
    """

    def __init__(self, purpose: str) -> None:
        pvaccess = pvaccess_module(purpose)
        self._names: list[str] = []
        self._server: Any = None
        global _users
        with _lock:
            if not _servers:
                require_search_port(purpose)
                try:
                    _servers.append(_open_server(pvaccess))
                # pvapy's own errors, and those of EPICS, which hold a list of calls as well.
                except (pvaccess.PvaException, RuntimeError) as error:
                    reason = str(error).partition("\n")[0]
                    raise ConfigurationError(
                        f"{purpose} cannot be served over PV Access ({reason}): "
                        "see EPICS_PVAS_INTF_ADDR_LIST and EPICS_PVAS_SERVER_PORT"
                    ) from error
            _users += 1
            self._server = _servers[0]

    def add(self, name: str, record: Any) -> None:
        """Serve a ``pvaccess.PvObject`` under a name.

        Raises
        ------
        ConfigurationError
            When this process serves another PV under that name.
        """
        if self._server.hasRecord(name):
            raise ConfigurationError(
                f"this process serves a PV {name} already; rename one of the two"
            )
        self._server.addRecordWithAs(name, record, 0, "DEFAULT")
        self._names.append(name)

    def update(self, name: str, value: Mapping[str, Any] | Any) -> None:
        """Post fields of a PV, or a ``pvaccess.PvObject`` of its structure, in one step."""
        self._server.update(name, value)

    def close(self) -> None:
        """Withdraw these PVs; closing again does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        for name in self._names:
            server.removeRecord(name)
        global _users
        with _lock:
            _users -= 1
            if not _users:
                _servers.pop().stop()


def require_search_port(purpose: str) -> None:
    """Find out whether a server of this process hears clients that search for its PVs.

    EPICS' servers go on without a word where another program holds the UDP port for itself, and no
    client finds them.

    Parameters
    ----------
    purpose
        What the server is for, for the error message.

    Raises
    ------
    ConfigurationError
        If the port cannot be shared, or EPICS' variables give none or no address of this machine.
    """
    port = _search_port(purpose)
    # EPICS calls it a list, and takes one address.
    address = os.environ.get("EPICS_PVAS_INTF_ADDR_LIST", "").strip() or "0.0.0.0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # As EPICS does, whose programs on one machine share the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.partition(":")[0] or address, port))
        except OSError as error:
            reason = error.strerror or error
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigurationError(
                    f"{purpose} cannot be served over PV Access, as EPICS_PVAS_INTF_ADDR_LIST is "
                    f"{address!r} ({reason}): set it to one IPv4 address of this machine"
                ) from error
            raise ConfigurationError(
                f"{purpose} cannot be found over PV Access, as UDP port {port} of {address} "
                f"cannot be shared ({reason}): end the program that holds it, or see "
                "EPICS_PVAS_INTF_ADDR_LIST and EPICS_PVAS_BROADCAST_PORT"
            ) from error


def _search_port(purpose: str) -> int:
    for name in ("EPICS_PVAS_BROADCAST_PORT", "EPICS_PVA_BROADCAST_PORT"):
        if not (given := os.environ.get(name, "").strip()):
            continue
        with suppress(ValueError):
            # EPICS takes 0x13d4, too.
            if 0 < (port := int(given, 0)) < 1 << 16:
                return port
        # EPICS would take another port without a word.
        raise ConfigurationError(
            f"{purpose} cannot be found over PV Access, as {name} is {given!r}: set it to a number "
            "from 1 to 65535"
        )
    return _SEARCH_PORT


def _open_server(pvaccess: Any) -> Any:
    server = pvaccess.PvaServer()
    with tempfile.TemporaryDirectory(prefix="edgexnas-") as folder:
        rules = Path(folder) / "read_only.acf"
        rules.write_text(_READ_ONLY)
        server.initAs(str(rules), "")
    return server
