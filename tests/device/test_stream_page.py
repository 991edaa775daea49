from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stream_page(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(ROOT / "device" / "stream_page.py")


def _run(**changed: Any) -> dict[str, Any]:
    run = {
        "rate": 200.0,
        "seconds_asked": 600.0,
        "sent": 120_000,
        "sent_rate": 200.0,
        "missing": 0,
        "last": 119_999,
        "peaks": 9_000_000,
        "ledger": {
            "received": 120_000,
            "done": 120_000,
            "dropped": 0,
            "duplicate": 0,
            "failed": 0,
            "lost": 0,
        },
        "from_sending_ms": {"p50": 12.5, "p95": 20.25, "p99": 30.0, "max": 412.0},
        "from_arrival_ms": {"p50": 11.5, "p95": 19.0, "p99": 28.0, "max": 400.0},
        "seconds": [[second, 200, 12.0, 25.0, 11.0, 24.0] for second in range(5)],
        "cpu_ms": 4.0,
        "publisher_cpu_ms": 0.6,
        "peak_memory_mb": 290.0,
        "pinned": False,
        "peaks_asked": 100,
    }
    return run | changed


def test_the_page_says_what_was_measured(stream_page: ModuleType, tmp_path: Path) -> None:
    overloaded = {
        "received": 6000,
        "done": 4000,
        "dropped": 2000,
        "duplicate": 0,
        "failed": 0,
        "lost": 7,
    }
    tried = [[250.0, 0, 250.0], [312.0, 40, 312.0]]
    runs = {
        "soak/pva/service": _run(),
        "soak/pva/bare": _run(missing=3),
        "rates/pva/service": _run(sustained=250.0, tried=tried),
        "overload/pva/service": _run(sent=6007, last=6004, ledger=overloaded),
    }
    page = tmp_path / "streaming.md"
    stream_page.write_page({"runs": runs}, page)
    text = page.read_text()
    assert "10 min | 120,000 | **0** | 12.5 / 20.2 / 30.0 / 412.0" in text
    assert "| **3** |" in text
    assert "**250** | 312: 40 frames without result" in text
    assert "6,000 = 4,000 done + 2,000 dropped: adds up | 7 | 11.5 / 19.0 / 28.0" in text
    assert "| 2 |" in text
    assert page.with_suffix(".png").stat().st_size > 10_000


def test_a_sender_that_was_held_back_is_no_loss(stream_page: ModuleType, tmp_path: Path) -> None:
    run = _run(sustained=391.0, tried=[[391.0, 0, 390.6], [488.0, 0, 335.8], [415.0, 0, 373.9]])
    page = tmp_path / "streaming.md"
    stream_page.write_page({"runs": {"rates/simplon/service": run}}, page)
    assert "415: none lost, but only 374/s could be sent" in page.read_text()


def test_a_ledger_that_does_not_add_up_is_shown(stream_page: ModuleType, tmp_path: Path) -> None:
    wrong = {
        "received": 6000,
        "done": 4000,
        "dropped": 1999,
        "duplicate": 0,
        "failed": 0,
        "lost": 0,
    }
    page = tmp_path / "streaming.md"
    stream_page.write_page({"runs": {"overload/pva/service": _run(ledger=wrong)}}, page)
    assert "**ends 5,999**" in page.read_text()
