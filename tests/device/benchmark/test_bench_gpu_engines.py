"""The GPU benchmark on stand-ins of library and GPU: its rows, its reasons, its page."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script(
    load_module: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    module = load_module(ROOT / "device" / "bench_gpu_engines.py")
    monkeypatch.setattr(module, "REPEATS", 3)
    return module


@pytest.fixture
def options(
    script: ModuleType,
    tmp_path: Path,
    bundle_path: Path,
    keys: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Namespace:
    (tmp_path / "bundles").mkdir()
    shutil.copy(bundle_path, tmp_path / "bundles" / "centroid.edgex")
    given = ["--bundles", tmp_path / "bundles", "--trust", keys, "--cache", tmp_path / "cache"]
    given += ["--output", tmp_path / "found.json", "--energy-window", "0.6"]
    given += ["--energy-blocks", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu_engines.py", *map(str, given)])
    made: Namespace = script.arguments()
    return made


def time_all(script: ModuleType, options: Namespace) -> dict[str, Any]:
    output = options.output
    for precision in options.precisions if "tensorrt" in options.engines else ():
        options.build = ("centroid", precision)
        options.output = output.with_suffix(".build.json")
        script.build_one(options)
    options.output = output
    content = script.Content(options.output)
    script.time_engines(["centroid"], options, content, deadline=float("inf"))
    found: dict[str, Any] = json.loads(options.output.read_text())
    return found


def test_engines_are_checked_and_timed_and_one_that_cannot_be_opened_is_a_row_with_its_reason(
    script: ModuleType, options: Namespace, fake_tensorrt: Callable[..., Any]
) -> None:
    fake_tensorrt("8.6.0")
    options.engines = ["tensorrt", "no such engine"]
    found = time_all(script, options)
    timed, others = (
        [row for row in found["rows"] if row["engine"] == name] for name in options.engines
    )
    for row in timed:
        assert row["device µs"]["p50"] >= 0
        assert row["gate"]["measured_px"] <= row["gate"]["allowed_px"]
    assert len(timed) == len(others) == 2
    assert all("unknown engine" in row["failed"] for row in others)
    assert found["library"] == "tensorrt 8.6.0"


def test_a_plan_is_built_once_and_started_from_the_cache(
    script: ModuleType, options: Namespace, fake_tensorrt: Callable[..., Any]
) -> None:
    library = fake_tensorrt("8.6.0")
    options.build, output = ("centroid", "int8"), options.output
    options.builder_level = 1
    options.output = output.with_suffix(".build.json")
    script.build_one(options)
    built = json.loads(options.output.read_text())
    assert "open from cache s" in built
    assert library.levels == [1]
    options.output, options.engines, options.precisions = output, ["tensorrt"], ["int8"]
    (row,) = time_all(script, options)["rows"]
    assert "its plan is from the cache" in row["reason"]


def test_what_was_not_built_is_not_built_while_others_are_timed(
    script: ModuleType, options: Namespace, fake_tensorrt: Callable[..., Any]
) -> None:
    library = fake_tensorrt("8.6.0")
    content = script.Content(options.output)
    content.found["builds"] = [
        {"network": "centroid", "precision": "int8", "failed": "it was stopped"}
    ]
    options.engines = ["tensorrt"]
    script.time_engines(["centroid"], options, content, deadline=float("inf"))
    assert [row["failed"] for row in content.found["rows"]] == [
        "no plan was built: no build was begun",
        "no plan was built: it was stopped",
    ]
    assert not library.builds


def test_builds_that_fail_are_rows_with_the_end_of_their_log(
    script: ModuleType, options: Namespace
) -> None:
    content = script.Content(options.output)
    options.precisions = ["int8"]
    # The process finds no TensorRT that runs here.
    script.build_plans(["centroid"], options, content, deadline=float("inf"))
    (row,) = content.found["builds"]
    assert row["failed"]


def test_a_build_that_takes_too_long_is_stopped(
    script: ModuleType, options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    monkeypatch.setattr(
        script, "start_build",
        lambda *_: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]),
    )  # fmt: skip
    for precision in ("int8", "float16"):
        script.log_of("centroid", precision, options).write_text("")
    content = script.Content(options.output)
    options.jobs = 1
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now_s[0], sleep=sleep)
    monkeypatch.setattr(script, "time", clock)
    script.build_plans(["centroid"], options, content, deadline=13.0)
    assert {row["failed"] for row in content.found["builds"]} == {
        "it was stopped at the time limit",
        "no time was left",
    }


def test_energy_is_that_of_one_batch(
    script: ModuleType,
    options: Namespace,
    fake_tensorrt: Callable[..., Any],
    tree: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    on_stepped_time: Callable[..., Any],
) -> None:
    from edgexnas.device import benchmark, power

    fake_tensorrt("8.6.0")
    root = tree().root
    meter = power.open_power_meter("jetson", root=root)
    monkeypatch.setattr(power, "open_power_meter", lambda source: meter)
    measure = on_stepped_time(benchmark.measure_energy, root)
    monkeypatch.setattr(benchmark, "measure_energy", measure)
    monkeypatch.setattr(script, "ENERGY_LAUNCHES", 5)
    options.engines, options.precisions = ["tensorrt"], ["int8"]
    options.energy = ["centroid"]
    (row,) = time_all(script, options)["energy"]
    assert (row["network"], row["engine"], row["precision"]) == ("centroid", "tensorrt", "int8")
    joules = row["power W"] * row["batch µs"] * 1e-3
    assert row["total mJ"] == pytest.approx(joules, rel=0.01)


def test_the_page_shows_times_multiples_and_reasons(
    script: ModuleType,
    options: Namespace,
    fake_tensorrt: Callable[..., Any],
    load_module: Callable[[Path], ModuleType],
) -> None:
    fake_tensorrt("8.6.0")
    options.engines = ["tensorrt", "no such engine"]
    found = time_all(script, options)
    found["empty graph µs"]["p50"] = 2.0
    found["rows"][0]["device µs"] = {"p50": 10.0, "p99": 11.0, "least": 9.0}
    found["rows"][0]["many µs"] = {
        "512": {"p50": 20.4, "strays": 0},
        "4697": {"p50": 99.6, "strays": 3},
    }
    energy = {
        "network": "centroid", "engine": "tensorrt", "precision": "int8", "total mJ": 2.0,
        "total half width mJ": 0.1, "above idle mJ": 1.0, "above idle half width mJ": 0.1,
        "power W": 200.0, "faults": ["it throttled"],
    }  # fmt: skip
    other = {"engine": "fused", "total mJ": 1.0, "total half width mJ": 0.0}
    optimised = {"network": "optimised", "total mJ": 0.5, "total half width mJ": 0.0}
    found["energy"] = [energy, energy | other, energy | optimised]
    found["rows"][0] |= {"reason": "its plan is from the cache", "open s": 0.124}
    text = load_module(ROOT / "device" / "gpu_engines_page.py").page(found)
    assert "| 10.0 / 11.0 (5.0×) |" in text
    assert "| 20 | 100 | **3 differ**" in text
    assert "2.000 ± 0.100" in text
    assert "| centroid, fused int8 | tensorrt | 0.50 ± 0.03 |" in text
    assert "| optimised, tensorrt int8 | centroid | 0.25 ± 0.01 |" in text
    assert " to 0.12 s." in text.split("Opened from the cache: tensorrt ")[1]
    assert "Fault: it throttled" in text
    assert "unknown engine 'no such engine'" in text
    prose = text.split("\n| ")[0]
    assert len(prose.split()) <= 150
