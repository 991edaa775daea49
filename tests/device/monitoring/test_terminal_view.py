from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from edgexnas.device.monitoring.status import LastError
from edgexnas.device.monitoring.terminal_view import TerminalView, draw
from edgexnas.device.monitoring.watch import ServiceWatch


def _text(renderable: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_shows_state_rates_latency_ledger_and_queues(watch: ServiceWatch) -> None:
    text = _text(draw(watch.observe()))
    for expected in ("running for 90 s", "200.5 frames/s", "21.0", "950", "sink"):
        assert expected in text


def test_names_with_brackets_are_shown_as_they_are(source: Any, watch: ServiceWatch) -> None:
    source.change(
        series="[bold]scan[/bold]", model_id="[red]m", last_error=LastError("[blink]oh", 0, False)
    )
    text = _text(draw(watch.observe()))
    assert "[bold]scan[/bold]" in text
    assert "[red]m" in text
    assert "[blink]oh" in text


def test_a_narrow_terminal_loses_no_number(watch: ServiceWatch) -> None:
    text = _text(draw(watch.observe()), width=44)
    assert "199.2" in text
    assert "40.0" in text


def test_a_terminal_sees_the_view_change_and_the_last_one_stays(
    source: Any,
    watch: ServiceWatch,
    until: Callable[[Callable[[], bool]], None],
    health_of: Callable[..., Any],
    begun_threads: Callable[[], set[threading.Thread]],
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True)
    view = TerminalView(watch, console=console, period_s=0.02)
    view.start()
    until(lambda: "running" in screen.getvalue())
    source.change(health=health_of("failing"))
    until(lambda: "failing" in screen.getvalue())
    source.change(health=health_of("stopped"))
    view.close()
    view.close()
    assert "stopped for 90 s" in screen.getvalue()
    assert not begun_threads()


def test_where_there_is_no_terminal_nothing_is_shown(
    watch: ServiceWatch, begun_threads: Callable[[], set[threading.Thread]]
) -> None:
    screen = io.StringIO()
    view = TerminalView(watch, console=Console(file=screen, force_terminal=False))
    view.start()
    assert not begun_threads()
    view.close()
    assert screen.getvalue() == ""


def test_log_lines_stand_above_the_view_and_go_back_to_their_stream(
    watch: ServiceWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "__stderr__", screen)
    handler = logging.StreamHandler(screen)
    logger = logging.getLogger("edgexnas")
    logger.addHandler(handler)
    try:
        console = Console(file=screen, width=100, force_terminal=True)
        view = TerminalView(watch, console=console, period_s=0.02)
        view.start()
        while handler.stream is screen:
            time.sleep(0.01)
        logger.warning("the disk is nearly full")
        view.close()
    finally:
        logger.removeHandler(handler)
    assert handler.stream is screen
    assert "the disk is nearly full" in screen.getvalue()
