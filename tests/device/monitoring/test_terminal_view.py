from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from edgexnas.device.monitoring.terminal_view import TerminalView, draw
from edgexnas.device.monitoring.watch import ServiceWatch


def _text(renderable: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_shows_state_rates_latency_ledger_and_queues(watch: ServiceWatch) -> None:
    text = _text(draw(watch.observe()))
    for expected in ("the service is running", "200.5 frames/s", "21.0", "950", "sink"):
        assert expected in text


def test_names_with_brackets_are_shown_as_they_are(source: Any, watch: ServiceWatch) -> None:
    source.change(series="[bold]scan[/bold]", model_id="[red]m", last_error="[blink]oh")
    text = _text(draw(watch.observe()))
    assert "[bold]scan[/bold]" in text
    assert "[red]m" in text
    assert "[blink]oh" in text


def test_a_narrow_terminal_loses_no_number(watch: ServiceWatch) -> None:
    text = _text(draw(watch.observe()), width=44)
    assert "199.2" in text
    assert "40.0" in text


def test_a_terminal_sees_the_view_change_and_the_last_one_stays(
    source: Any, watch: ServiceWatch, until: Callable[[Callable[[], bool]], None]
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True)
    before = threading.active_count()
    view = TerminalView(watch, console=console, period_s=0.02)
    view.start()
    until(lambda: "running" in screen.getvalue())
    source.change(state="draining")
    until(lambda: "draining" in screen.getvalue())
    source.change(state="stopped")
    view.close()
    view.close()
    assert "the service is stopped" in screen.getvalue()
    assert threading.active_count() == before


def test_where_there_is_no_terminal_lines_are_logged(
    watch: ServiceWatch,
    caplog: pytest.LogCaptureFixture,
    until: Callable[[Callable[[], bool]], None],
) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    view = TerminalView(watch, console=console, log_period_s=0.02)
    with caplog.at_level(logging.INFO, "edgexnas"):
        view.start()
        until(lambda: len(caplog.messages) >= 2)
        view.close()
    assert caplog.messages[0] == (
        "running: 200.5 frames/s in, 199.2 out, latency p50 4.5 p99 21.0 ms, "
        "done 950 of 1000 frames (20 dropped, 3 failed, 5 lost)"
    )


def test_a_line_says_why_a_service_is_not_healthy(
    source: Any, watch: ServiceWatch, caplog: pytest.LogCaptureFixture
) -> None:
    source.change(state="failed", last_error="the disk is full")
    view = TerminalView(watch, console=Console(file=io.StringIO(), force_terminal=False))
    with caplog.at_level(logging.INFO, "edgexnas"):
        view.start()
        view.close()
    assert caplog.messages[-1].endswith("; the disk is full")
