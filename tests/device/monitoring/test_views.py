from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from edgexnas.device.monitoring import open_views
from edgexnas.errors import ConfigurationError, MissingDependencyError


def test_views_show_the_service_from_start_to_close(
    source: Any, free_port: Callable[[], int]
) -> None:
    port = free_port()
    views = open_views(source, http_port=port, pv_prefix=None, terminal=False)
    for view in views:
        view.start()
    address = f"http://127.0.0.1:{port}/healthz"
    with urllib.request.urlopen(address, timeout=120) as answer:
        assert answer.status == 200
    for view in views:
        view.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=120)


@pytest.mark.parametrize("port", [None, 0])
def test_what_is_not_asked_for_is_not_opened(source: Any, port: int | None) -> None:
    assert open_views(source, http_port=port, pv_prefix="", terminal=False) == []


def test_each_view_is_opened_when_it_is_asked_for(source: Any) -> None:
    views = open_views(source, http_port=9, pv_prefix="EDGEX:", terminal=True)
    names = [type(view).__name__ for view in views]
    assert names == ["ServiceWatch", "WebView", "StatusPvs", "TerminalView"]


def test_an_address_that_others_can_reach_is_refused_before_anything_is_opened(
    source: Any,
) -> None:
    with pytest.raises(ConfigurationError, match=r"'0\.0\.0\.0'"):
        open_views(source, http_port=9, host="0.0.0.0", pv_prefix=None, terminal=False)


@pytest.mark.parametrize(
    ("package", "extra", "asked"),
    [("prometheus_client", "monitor", {"http_port": 9}), ("pvaccess", "pva", {"pv_prefix": "E:"})],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    source: Any, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("metrics", "web_view"):
        monkeypatch.delitem(sys.modules, f"edgexnas.device.monitoring.{module}", raising=False)
    with pytest.raises(MissingDependencyError, match=rf"edgexnas\[{extra}\]"):
        open_views(source, **{"http_port": None, "pv_prefix": None, "terminal": False, **asked})


def test_importing_the_package_loads_no_server_library() -> None:
    program = (
        "import edgexnas.device.monitoring, sys\n"
        "heavy = ('prometheus_client', 'pvaccess', 'http.server', 'torch', 'onnxruntime')\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []
