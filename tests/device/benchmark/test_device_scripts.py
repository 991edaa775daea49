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
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_latency_prints_the_papers_protocol(
    make_bundle: Callable[..., Path], keys: Path
) -> None:
    printed = run("bench_latency.py", make_bundle(), keys, "--spread", "0")
    assert "centroid, batch 32: " in printed


def test_bench_energy_prints_total_and_marginal_energy(
    make_bundle: Callable[..., Path],
    keys: Path,
    tree: Callable[..., Any],
    run_undisturbed: Callable[..., str],
) -> None:
    options = ["--seconds", "1", "--blocks", "1", "--root", tree().root]
    program = ROOT / "device" / "bench_energy.py"
    printed = run_undisturbed(sys.executable, program, make_bundle(), keys, *options)
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


def test_emulated_peaks_are_compared_row_by_row(tmp_path: Path) -> None:
    header = "frame,row_px,col_px,row_interval_px,col_interval_px,counts,flags\n"
    tables = {
        "here": header + "0,1.0000,2.0000,0.2,0.2,70,edge\n3,5.0000,6.0000,0.2,0.2,80,\n",
        "near": header + "0,1.0001,2.0000,0.2,0.2,70,edge\n3,5.0000,5.9998,0.2,0.2,80,\n",
        "other": header + "0,1.0000,2.0000,0.2,0.2,70,\n3,5.0000,6.0000,0.2,0.2,80,\n",
    }
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'device')!r}); from pathlib import Path; "
        "from emulate_aarch64 import differences; print(differences(*map(Path, sys.argv[1:])))"
    )
    here, near, other = (tmp_path / f"{name}.csv" for name in tables)
    done = subprocess.run(
        [sys.executable, "-c", code, here, near], capture_output=True, text=True, check=True
    )
    assert (
        "'peaks': 2, 'frames': 2, 'largest_row_px': 0.0001, 'largest_col_px': 0.0002" in done.stdout
    )
    done = subprocess.run([sys.executable, "-c", code, here, other], capture_output=True, text=True)
    assert "do not list the same peaks" in done.stderr
