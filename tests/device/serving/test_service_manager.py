from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgexnas.device.monitoring.health import Health
from edgexnas.device.serving.service_manager import Watchdog, notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Stand in for systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_fields_are_sent_as_lines(manager: socket.socket) -> None:
    assert notify(READY=1, STATUS="serving pva://X")
    assert manager.recv(1000) == b"READY=1\nSTATUS=serving pva://X"


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0edgexnas-test-notify")
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@edgexnas-test-notify")
        assert notify(STOPPING=1)
        assert receiver.recv(1000) == b"STOPPING=1"


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(READY=1)


def test_a_manager_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    assert not notify(READY=1)


def test_the_watchdog_is_fed_unless_a_thread_is_stuck(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    healthy = [True]
    watchdog = Watchdog(lambda: Health("running", (), 0.0, True, healthy[0], 90.0))
    assert watchdog.interval_s == 0.01
    watchdog.start()
    assert manager.recv(1000) == b"WATCHDOG=1\nSTATUS=running for 90 s"
    healthy[0] = False
    time.sleep(0.05)
    manager.settimeout(0)
    while True:
        try:
            manager.recv(1000)
        except BlockingIOError:
            break
    time.sleep(0.05)
    watchdog.close()
    # The status goes on, so that who asks systemd reads why.
    messages = set()
    with suppress(BlockingIOError):
        while True:
            messages.add(manager.recv(1000))
    assert messages == {b"STATUS=running for 90 s"}


def test_a_watchdog_for_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Watchdog(lambda: None).interval_s is None  # type: ignore[arg-type, return-value]
