"""edgexnas bench, with a real bundle in onnxruntime and a simulated Jetson's rails."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgexnas.bundle import generate_keys
from edgexnas.cli import main
from edgexnas.device.benchmark import bench as bench_module
from edgexnas.device.benchmark import bench_page
from edgexnas.device.benchmark.bench_files import SCHEMA, as_plain
from edgexnas.device.benchmark.svg_plots import bar_chart, line_chart
from edgexnas.errors import ConfigurationError
from edgexnas.testing import JetsonTree

Tree = Callable[..., Any]

RUNS = ["--runs", "5", "--calls", "2", "--spread", "0"]
QUICK = [*RUNS, "--sweep", "1", "4", "--no-cold-start"]
SHORT = ["--idle", "0.3", "--load", "0.3", "--blocks", "1", "--period", "0.02"]


@pytest.fixture(scope="module")
def baseline(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture(scope="module")
def rival(make_bundle: Callable[..., Path]) -> Path:
    bundle = make_bundle(model_id="rival")
    return bundle.rename(bundle.with_name("rival.edgex"))


@pytest.fixture(scope="module")
def written(
    baseline: Path,
    rival: Path,
    keys: Path,
    tmp_path_factory: pytest.TempPathFactory,
    on_stepped_time: Callable[..., Any],
) -> Path:
    """A folder with the three files of one whole run, cold start and energy included."""
    folder = tmp_path_factory.mktemp("bench")
    device = JetsonTree(folder / "orin")
    device.set_power({"VDD_GPU_SOC": 4.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 3.0})
    outputs = [f"--{form}={folder}/bench.{form}" for form in ("json", "csv", "html")]
    options = ["--trust", str(keys), "--root", str(device.root), *RUNS]
    bundles = [str(baseline), str(rival)]
    with pytest.MonkeyPatch.context() as patch:
        measure = on_stepped_time(bench_module.measure_energy, device.root)
        patch.setattr(bench_module, "measure_energy", measure)
        assert main(["bench", *bundles, *options, "--sweep", "1", "4", *SHORT, *outputs]) == 0
    return folder


def test_json_holds_everything_that_was_measured(written: Path, baseline: Path) -> None:
    report = json.loads((written / "bench.json").read_text())
    assert report["schema"] == SCHEMA
    first, second = report["bundles"]
    assert (first["name"], second["name"]) == ("centroid", "rival")
    assert first["latency"]["mean_ms"] > 0
    assert len(first["latency"]["runs_ms"]) == 5
    assert [sweep["items"] for sweep in first["sweep"]] == [1, 4]
    assert first["cold_start"]["total_ms"] > first["cold_start"]["open_ms"] > 0
    assert first["build_ms"] > 0
    # Constant rails: idle and load take the same, so nothing is left above idle.
    assert first["energy"]["power_w"] == pytest.approx(9.0, rel=0.05)
    assert first["energy"]["marginal_mj"] == pytest.approx(0.0, abs=1e-9)
    assert set(first["energy"]["rails_mj"]) >= {"VDD_GPU_SOC", "VDDQ_VDD2_1V8AO"}
    assert [block["name"] for block in report["energy"]["blocks"]] == ["centroid", "rival"]
    assert report["before"]["supply_v"] == pytest.approx(19.9, abs=0.01)
    assert report["before"]["versions"]["onnxruntime"]
    assert report["faults"] == []


def test_csv_has_a_row_for_each_bundle(written: Path) -> None:
    rows = list(csv.DictReader((written / "bench.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["centroid", "rival"]
    assert float(rows[0]["p99_ms"]) >= float(rows[0]["p50_ms"]) > 0
    assert float(rows[0]["total_mj_per_item"]) * 32 == pytest.approx(
        float(rows[0]["total_mj"]), rel=1e-4
    )


def test_the_page_holds_its_plots_and_loads_nothing(written: Path) -> None:
    page = (written / "bench.html").read_text()
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Links().feed(page)
    assert links == []
    plots = [part.split("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:]]
    assert len(plots) == 6
    for plot in plots:
        ElementTree.fromstring("<svg" + plot)
    assert "nan" not in page


def test_a_bundle_may_come_through_standard_input(baseline: Path, keys: Path) -> None:
    command = [sys.executable, "-m", "edgexnas.cli", "bench", "-", "--trust", str(keys)]
    with baseline.open("rb") as content:
        done = subprocess.run(
            [*command, *QUICK, "--energy", "off", "--json", "-"],
            stdin=content, capture_output=True, check=True,
        )  # fmt: skip
    assert json.loads(done.stdout)["bundles"][0]["name"] == "centroid"


def test_a_machine_without_a_meter_is_noted_or_refused(
    baseline: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(baseline), "--trust", str(keys), "--root", str(tmp_path), *QUICK]
    assert main(command) == 0
    assert "Energy is not measured: this machine has no power meter" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main([*command, "--energy", "on"]) == 1
    assert "no power meter" in capsys.readouterr().err


def test_a_bundle_of_a_stranger_is_not_measured(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_keys(tmp_path, name="stranger")
    assert main(["bench", str(baseline), "--trust", str(tmp_path), *QUICK]) == 1
    error = capsys.readouterr().err
    assert "is not among the 1 trusted" in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_that_throttled_is_written_says_so_and_fails(
    baseline: Path,
    keys: Path,
    tree: Tree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = tree()
    counter = device.root / "sys/class/hwmon/hwmon0/oc1_event_cnt"
    counter.write_text("3\n")
    measure = bench_module.measure_latency

    def overheat(*arguments: Any, **options: Any) -> Any:
        counter.write_text("5\n")
        return measure(*arguments, **options)

    monkeypatch.setattr(bench_module, "measure_latency", overheat)
    out = tmp_path / "bench.json"
    command = ["bench", str(baseline), "--trust", str(keys), "--root", str(device.root), *QUICK]
    assert main([*command, "--energy", "off", "--json", str(out)]) == 1
    sentence = "the device throttled: oc1_event_cnt rose by 2"
    assert f"the measurement is void: {sentence}" in capsys.readouterr().err
    assert json.loads(out.read_text())["faults"] == [sentence]


def test_a_rail_that_vanishes_voids_the_energy_and_keeps_the_latency(
    baseline: Path,
    keys: Path,
    tree: Tree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    on_stepped_time: Callable[..., Any],
) -> None:
    device = tree()
    measure = on_stepped_time(bench_module.measure_energy, device.root)

    def vanish(*arguments: Any, **options: Any) -> Any:
        options["progress"] = lambda text: device.files("VDD_GPU_SOC")[0].unlink(missing_ok=True)
        return measure(*arguments, **options)

    monkeypatch.setattr(bench_module, "measure_energy", vanish)
    out = tmp_path / "bench.json"
    command = ["bench", str(baseline), "--trust", str(keys), "--root", str(device.root), *QUICK]
    assert main([*command, *SHORT, "--json", str(out)]) == 1
    assert "power rail VDD_GPU_SOC" in capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["bundles"][0]["latency"]["mean_ms"] > 0
    assert report["bundles"][0]["energy"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--json", "/absent/bench.json"], "there is no folder /absent"),
        (["--json", "-", "--csv", "-"], "two outputs go to -"),
        (["--precision", "int4"], "precision 'int4'"),
        (["--load", "0.2"], "specify windows of ten readings at least"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    baseline: Path,
    keys: Path,
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", str(baseline), "--trust", str(keys), *QUICK, *options]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgexnas")]
    assert len(error) == 1
    assert sentence in error[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine", "abacus"], "argument --engine: invalid choice: 'abacus'"),
        (["--sweep", "0"], "argument --sweep: 0 is less than 1"),
        (["--sweep", "many"], "argument --sweep: 'many' is no whole number"),
        (["--spread", "-1"], "argument --spread: -1 is not a finite number from 0 up"),
        (["--load", "inf"], "argument --load: inf is not a finite number from 0 up"),
        (["--idle", "0"], "argument --idle: 0 is not larger than 0"),
        (["--period", "soon"], "argument --period: 'soon' is no number"),
    ],
)
def test_options_that_no_bench_could_have_are_wrong_usage(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["bench", "a.edgex", "--trust", "keys", *options])
    assert raised.value.code == 2
    assert sentence in capsys.readouterr().err


def test_settings_from_python_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="sweep is 0; specify a whole number from 1"):
        bench_module.BenchSettings(sweep=(0,))
    with pytest.raises(ConfigurationError, match="spread_s is nan; specify seconds from 0"):
        bench_module.BenchSettings(spread_s=float("nan"))


def test_a_warning_that_every_engine_gives_is_shown_once(
    baseline: Path, rival: Path, keys: Path
) -> None:
    command = [sys.executable, "-m", "edgexnas.cli", "bench", str(baseline), str(rival)]
    done = subprocess.run(
        [*command, "--trust", str(keys), *QUICK, "--energy", "off"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    warnings = [line for line in done.stderr.splitlines() if line.startswith("edgexnas: ")]
    assert len(warnings) == len(set(warnings))
    assert "latency: 5 runs of 2" in done.stderr


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_runs_over_no_edge(written: Path, page_width: Any, width: int) -> None:
    assert page_width((written / "bench.html").read_text(), width) <= width


def test_bars_say_what_they_are_and_their_unit(written: Path) -> None:
    page = (written / "bench.html").read_text()
    for what in ("Mean latency", "Mean module energy", "Mean energy above idle"):
        assert re.search(rf">{what}[^<]*± half of its 95 % interval</text>", page)
    latency = json.loads((written / "bench.json").read_text())["bundles"][0]["latency"]
    assert f">{latency['mean_ms']:.4g} ms</text>" in page


def test_numbers_without_a_value_are_null_in_json() -> None:
    assert as_plain({"a": float("inf"), "b": float("nan"), "c": (1, 2.5)}) == {
        "a": None, "b": None, "c": [1, 2.5],
    }  # fmt: skip


def test_plots_escape_what_they_are_told_and_stand_single_points() -> None:
    for plot in (
        bar_chart("a < b", "mJ", [("<script>", 0.0, 0.0)]),
        line_chart("one", "ms", {"a & b": ([3.0], [2.0])}, x_label="run", logarithmic=True),
        line_chart("none", "ms", {}, x_label="run"),
    ):
        ElementTree.fromstring(plot)
        assert "<script>" not in plot


def test_lines_and_bands_are_named_once_below_the_plot_and_inside_it() -> None:
    names = [f"VDD_RAIL_{number}" for number in range(9)]
    bands = [("baseline", 0.0, 1.0), ("rival", 1.0, 2.0), ("baseline", 2.0, 3.0)]
    plot = line_chart(
        "Power", "W", {name: ([0.0, 3.0], [1.0, 2.0]) for name in names}, x_label="s", bands=bands
    )
    root = ElementTree.fromstring(plot)
    texts = {text.text: text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    shown = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in (*names, "baseline", "rival"):
        assert shown.count(name) == 1
        place = texts[name]
        assert 300 < float(place.attrib["y"]) < float(root.attrib["height"])
        assert float(place.attrib["x"]) + 7 * len(name) < float(root.attrib["width"])


def test_a_change_is_told_only_as_surely_as_both_intervals_allow() -> None:
    assert bench_page._change(2.0, 0.02, 1.0, 0.03) == "-50.0% ± 1.6%"
    assert bench_page._change(2.0, 0.1, 1.95, 0.1) == "-2.5% ± 7.0%, none for sure"
    assert bench_page._change(2.0, 1.5, 1.0, 0.1) == "too uncertain"
    assert bench_page._change(2.0, 0.1, -0.1, 0.2) == "too uncertain"
