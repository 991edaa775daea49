"""edgexnas power."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgexnas.cli import main

Tree = Callable[..., Any]


def test_rails_are_logged_reading_by_reading(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds)
    )
    monkeypatch.setattr("edgexnas.cli.power_command.time", clock)
    log = tmp_path / "power.csv"
    options = ["--period", "0.02", "--seconds", "0.1", "--csv", str(log)]
    assert main(["power", "--root", str(tree().root), *options]) == 0
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert list(rows[0]) == [
        "monotonic_s", "module_w", "VDD_GPU_SOC_w", "VDD_CPU_CV_w", "VIN_SYS_5V0_w",
        "VDDQ_VDD2_1V8AO_w",
    ]  # fmt: skip
    assert len(rows) == 6
    parts = sum(float(rows[0][p]) for p in ("VDD_GPU_SOC_w", "VDD_CPU_CV_w", "VIN_SYS_5V0_w"))
    assert float(rows[0]["module_w"]) == pytest.approx(parts, abs=0.002)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Jetson AGX Orin 64 GB: INA3221 rails, module = VDD_GPU_SOC +")
    assert len(printed) == len(rows) + 1


def test_the_log_alone_may_go_to_standard_output(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--period", "0.02", "--seconds", "0.05", "--csv", "-"]
    assert main(["power", "--root", str(tree(module="p3767-0000").root), *options]) == 0
    assert capsys.readouterr().out.startswith("monotonic_s,module_w,VDD_IN_w")


def test_a_terminal_shows_least_mean_and_most(tree: Tree) -> None:
    pty = pytest.importorskip("pty")
    read, write = pty.openpty()
    command = [sys.executable, "-m", "edgexnas.cli", "power", "--root", str(tree().root)]
    with subprocess.Popen(
        [*command, "--period", "0.02", "--seconds", "0.05"], stdout=write, stderr=write
    ) as process:
        os.close(write)
        parts = []
        # Until the program has closed the terminal, which fails.
        with suppress(OSError):
            while part := os.read(read, 65536):
                parts.append(part)
        assert process.wait() == 0
    os.close(read)
    shown = b"".join(parts).decode(errors="replace")
    assert "least" in shown
    assert "VDDQ_VDD2_1V8AO" in shown


def test_a_machine_without_a_meter_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("edgexnas power: this machine has no power meter")
    assert len(error.splitlines()) == 1


def test_a_log_that_cannot_be_written_is_named(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "absent" / "power.csv"
    assert main(["power", "--root", str(tree().root), "--csv", str(log)]) == 2
    assert f"{log} cannot be written" in capsys.readouterr().err


def test_jetson_stats_is_asked_for_by_name_only(tree: Tree) -> None:
    program = (
        "import sys\nfrom edgexnas.cli import main\n"
        f"main(['power', '--root', {str(tree().root)!r}, '--seconds', '0.01', '--csv', '-'])\n"
        "assert not {'jtop', 'pynvml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
