"""Records that this process serves over EPICS PV Access.

All servers that pvapy makes in a process serve one database, so a second server would announce
every PV twice and clients would warn. Whoever serves PVs therefore shares the one server here.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.errors import ConfigurationError

__all__ = ["PvaRecords"]

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
        When EPICS fails to open a server, such as on an address that this machine lacks.
    """

    def __init__(self, purpose: str) -> None:
        pvaccess = pvaccess_module(purpose)
        self._names: list[str] = []
        self._server: Any = None
        global _users
        with _lock:
            if not _servers:
                try:
                    _servers.append(_open_server(pvaccess))
                except pvaccess.PvaException as error:
                    raise ConfigurationError(
                        f"{purpose} cannot be served over PV Access ({error}): "
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


def _open_server(pvaccess: Any) -> Any:
    server = pvaccess.PvaServer()
    with tempfile.TemporaryDirectory(prefix="edgexnas-") as folder:
        rules = Path(folder) / "read_only.acf"
        rules.write_text(_READ_ONLY)
        server.initAs(str(rules), "")
    return server
