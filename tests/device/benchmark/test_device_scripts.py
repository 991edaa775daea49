"""The short scripts that integrators copy run as their help says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_bench_start_times_the_first_and_the_cached_start(
    make_bundle: Callable[..., Path], keys: Path
) -> None:
    printed = run("bench_start.py", make_bundle(), keys, "--starts", "1")
    assert "| auto, from the cache | onnxruntime " in printed


@pytest.mark.long
def test_bench_decoding_compares_decoders_of_the_same_bytes() -> None:
    printed = run("bench_decoding.py", "--rounds", "1")
    assert "| bslz4 |" in printed


def test_bench_memory_follows_a_service_to_its_last_frame(
    make_bundle: Callable[..., Path], keys: Path, tmp_path: Path
) -> None:
    runs = ["--large", "0", "--seconds", "0", "--small", "200", "--port", "0"]
    places = ["--trust", keys, "--scratch", tmp_path, "--output", tmp_path / "memory.csv"]
    printed = run("bench_memory.py", make_bundle(), *runs, *places)
    assert "| 64×64 uint16, as fast as they are taken | 200 of 200 |" in printed
    assert (tmp_path / "memory.csv").read_text().startswith("service,time_s,resident_mb")


def test_stream_receivers_report_what_became_of_each_frame(
    make_bundle: Callable[..., Path], keys: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    url = "sim://hedm?shape=128x128&frames=5&peaks=5"
    places = ["--bundle", make_bundle(), "--trust", keys, "--output", report]
    run("stream_receivers.py", "service", url, *places)
    assert json.loads(report.read_text())["ledger"]["done"] == 5
