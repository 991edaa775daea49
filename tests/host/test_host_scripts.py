"""Each script beside the host's guide starts, and those that are quick run once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgexnas.host import PeakDataset

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_table2_sets_our_counts_beside_the_papers_numbers(tmp_path: Path) -> None:
    page = tmp_path / "energy.md"
    assert run(ROOT / "host/table2.py", "--output", page).strip() == page.read_text().strip()
    assert "| cnnPtycho 251, 1-2-1 |" in page.read_text()


def test_bench_step_cpu_compares_the_time_of_two_trainings(
    tiny_peaks: PeakDataset, tmp_path: Path
) -> None:
    peaks = tiny_peaks.save(tmp_path / "peaks.h5")
    options = ["--evaluations", 1, "--epochs", 1, "--spaces", "mlpBragg"]
    assert "| mlpBragg | 1 | " in run(ROOT / "host/bench_step_cpu.py", peaks, *options)
