"""Open the views that a configuration asks for."""

from __future__ import annotations

from edgexnas.device.monitoring.status import StatusSource, StatusView
from edgexnas.device.monitoring.watch import ServiceWatch

__all__ = ["open_views"]


def open_views(
    source: StatusSource,
    *,
    http_port: int | None,
    host: str = "127.0.0.1",
    pv_prefix: str | None = None,
    terminal: bool = False,
) -> list[StatusView]:
    """Make the views of a service; `start` shows them, `close` ends them.

    Parameters
    ----------
    source
        Whose status is shown.
    http_port
        Port of the web page, ``/metrics``, ``/healthz`` and ``/status.json``; None or 0 for none.
    host
        Address that the port is opened on; this machine only.
    pv_prefix
        What the names of the status PVs begin with, such as ``"EDGEX:"``; None or "" for no PVs.
    terminal
        Whether to show a live view where standard error is a terminal.

    Returns
    -------
    list
        The views, in the order in which they are to be started.

    Raises
    ------
    ConfigurationError
        For an address that other machines can reach, and for a prefix that no PV can have.
    MissingDependencyError
        When a view needs a package that is not installed.
    """
    watch = ServiceWatch(source)
    views: list[StatusView] = []
    if http_port:
        from edgexnas.device.monitoring.web_view import WebView

        views.append(WebView(watch, port=http_port, host=host))
    if pv_prefix:
        from edgexnas.device.monitoring.status_pvs import StatusPvs

        views.append(StatusPvs(watch, prefix=pv_prefix))
    if terminal:
        from edgexnas.device.monitoring.terminal_view import TerminalView

        views.append(TerminalView(watch))
    return [watch, *views] if views else []
