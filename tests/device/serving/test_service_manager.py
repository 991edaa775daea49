from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from edgexnas.device.monitoring.health import Health
from edgexnas.device.serving.service_manager import Watchdog, notify

LIMIT_S = 120


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Stand in for systemd's end of the notification socket."""
    # Beneath /tmp, because a socket's name may be no longer than 107 bytes.
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(f"{folder}/notify")
        receiver.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        yield receiver


def test_fields_are_sent_as_lines(manager: socket.socket) -> None:
    assert notify(READY=1, STATUS="serving pva://X")
    assert manager.recv(1000) == b"READY=1\nSTATUS=serving pva://X"


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"edgexnas-test-notify-{os.getpid()}"
        receiver.bind(f"\0{name}")
        receiver.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify(STOPPING=1)
        assert receiver.recv(1000) == b"STOPPING=1"


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(READY=1)


def test_a_manager_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    assert not notify(READY=1)


def test_a_manager_that_reads_nothing_is_waited_for_a_while_only(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgexnas.device.serving.service_manager.SEND_S", 0.01)
    # Its queue takes some messages.
    while notify(WATCHDOG=1):
        pass
    assert manager.recv(1000) == b"WATCHDOG=1"


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
    while manager.recv(1000) != b"STATUS=running for 90 s":
        pass
    # The status goes on, so that who asks systemd reads why.
    assert {manager.recv(1000) for _ in range(20)} == {b"STATUS=running for 90 s"}
    watchdog.close()


def test_a_watchdog_for_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Watchdog(lambda: None).interval_s is None  # type: ignore[arg-type, return-value]
