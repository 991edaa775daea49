"""Publishers as processes of their own, and receivers that cannot hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edgexnas.device.sources import EventSource, SourceEvent

LIMIT_S = 180
"""EPICS searches again half a minute after a handshake that took longer than 5 s."""


class Process:
    """A program that prints a line when it is ready, and goes on when it gets one."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.running = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def wait_until_ready(self) -> None:
        assert self.running.stdout is not None
        assert self.running.stdout.readline().strip() == "ready"

    def go(self) -> None:
        assert self.running.stdin is not None
        self.running.stdin.write("\n")
        self.running.stdin.flush()

    def report(self) -> dict[str, Any]:
        """What it says when it has sent everything."""
        assert self.running.stdout is not None
        said: dict[str, Any] = json.loads(self.running.stdout.readline())
        return said

    def kill(self) -> None:
        self.running.kill()
        self.running.communicate()


Publish = Callable[..., Any]


@contextmanager
def _process(command: list[str], environment: dict[str, str] | None = None) -> Iterator[Process]:
    process = Process(command, environment or {})
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="session")
def start_process() -> Publish:
    """`with start_process(command) as process` runs a program and ends it."""
    return _process


@pytest.fixture(scope="session")
def publish() -> Publish:
    """`with publish("pva", "CHANNEL", "--frames", 5) as process` starts a publisher that is ready.

    It sends after `process.go()`, and stays until it is ended, however late its frames are taken.
    """

    @contextmanager
    def start(*arguments: object) -> Iterator[Process]:
        module = "edgexnas.device.publishing"
        command = [sys.executable, "-m", module, *map(str, arguments), "--hold", "--linger", "9999"]
        with _process(command, {"OMP_NUM_THREADS": "1"}) as process:
            process.wait_until_ready()
            yield process

    return start


class Receiver:
    """Takes a source's events in a thread; a test waits for what it expects, never longer.

    After the first of them it waits until it may `go_on`.
    """

    def __init__(self, source: EventSource, go_on: threading.Event | None = None) -> None:
        self.source = source
        self.events: list[SourceEvent] = []
        self._go_on = go_on
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        for event in self.source.events():
            self.events.append(event)
            if self._go_on is not None:
                self._go_on.wait(LIMIT_S)

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not what():
            assert time.monotonic() < deadline, (self.events[-3:], self.source.status())
            time.sleep(0.005)

    def wait_for(self, kind: type, count: int = 1) -> list[Any]:
        self.wait(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def close(self) -> None:
        self.source.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """`receive(source)` starts to take events; it is closed with the test."""
    receivers: list[Receiver] = []

    def start(source: EventSource, **options: Any) -> Receiver:
        receivers.append(Receiver(source, **options))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.close()
