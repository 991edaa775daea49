"""The short scripts that integrators copy run as their help says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "device" / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_latency_prints_the_papers_protocol(
    make_bundle: Callable[..., Path], keys: Path
) -> None:
    printed = run("bench_latency.py", make_bundle(), keys, "--spread", "0")
    assert "centroid, batch 32: " in printed


def test_bench_energy_prints_total_and_marginal_energy(
    make_bundle: Callable[..., Path], keys: Path, tree: Callable[..., Any]
) -> None:
    options = ["--seconds", "1", "--blocks", "1", "--root", tree().root]
    printed = run("bench_energy.py", make_bundle(), keys, *options)
    assert "mJ above idle" in printed.splitlines()[-1]
