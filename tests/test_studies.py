"""A study's page shows what its JSON holds, and the headlines say what the studies found."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results"
STUDIES = sorted(page for page in RESULTS.glob("*.md") if page.stem != "index")
# The scripts of other studies write page and JSON, with keys of their own.
TABLED = [
    kept.with_suffix(".md")
    for kept in sorted(RESULTS.glob("*.json"))
    if '"tables"' in kept.read_text()
]


def name_of(page: Path) -> str:
    return page.stem


@pytest.fixture(scope="module")
def study_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_tables", ROOT / "tools/study_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_tables"] = module
    spec.loader.exec_module(module)
    return module


def figures(study: str) -> Any:
    return json.loads((RESULTS / f"{study}.json").read_text())


def row(study: str, *starts: str, table: int = 0) -> list[Any]:
    """The first row of a study's table that begins so."""
    rows = figures(study)["tables"][table]["rows"]
    found: list[Any] = next(r for r in rows if tuple(map(str, r[: len(starts)])) == starts)
    return found


@pytest.mark.parametrize("page", STUDIES, ids=name_of)
def test_a_study_has_its_figures_as_json(page: Path) -> None:
    assert page.with_suffix(".json").is_file()


@pytest.mark.parametrize("page", TABLED, ids=name_of)
def test_the_tables_of_a_page_are_those_of_its_json(page: Path, study_tables: ModuleType) -> None:
    tables = study_tables.from_json(page.with_suffix(".json").read_text())
    assert study_tables.with_tables(page.read_text(), tables) == page.read_text()


@pytest.mark.parametrize(
    ("script", "study"),
    [
        ("device/emulate_aarch64", "aarch64"),
        ("device/bench_scaling", "scaling"),
        ("device/fused_kernels_page", "fused-kernels"),
        ("device/bench_refine", "gpu-refine"),
        ("host/replay_searches", "search-replay"),
    ],
)
def test_a_page_is_what_its_script_writes_from_the_json(script: str, study: str) -> None:
    folder, module = (ROOT / script).parent, Path(script).name
    code = f"import json, sys; sys.path.insert(0, {str(folder)!r}); import {module} as made; "
    code += "print(made.page(json.load(sys.stdin)), end='')"
    kept = (RESULTS / f"{study}.json").read_text()
    done = subprocess.run([sys.executable, "-c", code], input=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (RESULTS / f"{study}.md").read_text()


def test_a_table_survives_the_way_to_json_and_back(study_tables: ModuleType) -> None:
    page = "# A\n\n| a | b |\n|---|---:|\n| x | 0.0060 |\n| −3 | 12,345 |\n\nwords | with a bar\n"
    tables = study_tables.read_tables(page)
    kept = study_tables.to_json(tables)
    assert json.loads(kept)["tables"][0]["rows"] == [["x", 0.006], ["−3", 12345]]
    assert study_tables.from_json(kept) == tables
    written = study_tables.with_tables(page, tables)
    assert "| x | 0.0060 |\n| −3 | 12,345 |\n" in written
    assert study_tables.with_tables(written, tables) == written
    with pytest.raises(ValueError, match="the page has 1 tables, and its JSON 2"):
        study_tables.with_tables(page, tables * 2)


def percent(text: str) -> str:
    """A printed percentage, rounded to whole ones."""
    return f"{round(float(text.strip('%'))):+d}".replace("-", "−") + " %"


def against(study: str, goal: str) -> list[Any]:
    """The row of mlpBraggSymmetric against the smaller BraggNN."""
    rows = figures(study)["tables"][0]["rows"]
    found: list[Any] = next(
        r
        for r in rows
        if r[0] == "BraggNN 16-8-4-2 (measured)" and r[1] == goal and "Symmetric" in r[2]
    )
    return found


def refined(start: str, sweeps: int) -> float:
    rows = figures("ptycho-refined")["star"]["rows"][start]
    return float(next(r["phase_rad"] for r in rows if r["sweeps"] == sweeps))


def refined_on_gpu() -> tuple[float, float]:
    """How many times faster 10 sweeps over the star are, and how far objects are apart."""
    case = figures("gpu-refine")["cases"][0]
    last = case["rows"][-1]
    return last["CPU s"] / last["GPU s"], last["apart, largest"]


def grains(what: str) -> float:
    lists = figures("grains")["simulated"]["lists"]
    return float(lists["network"][what]["mean"] / lists["centroids"][what]["mean"])


def volume(search: str) -> float:
    return float(row("figure2", search)[3].split(" ± ")[0])


def frames_a_second(receiver: str) -> str:
    rows = figures("streaming")["tables"][1]["rows"]
    rates = [r[2].strip("*") for r in rows if r[0].startswith("PVA") and receiver in r[1]]
    return str(rates[0])


def frames_on_gpu(peaks: int) -> float:
    rows = [r for r in figures("gpu-frames")["frames"] if "mlpBragg" in r["network"]]
    counts = {r["peaks"] for r in rows}
    nearest = min(counts, key=lambda count: abs(count - peaks))
    return max(
        float(r["frames/s"]) for r in rows if r["precision"] == "int8" and r["peaks"] == nearest
    )


def batch_us(network: str, precision: str) -> dict[str, float]:
    """Median time of a batch in each engine."""
    return {
        r["engine"]: r["device µs"]["p50"]
        for r in figures("gpu-engines")["rows"]
        if r["network"] == network and r["precision"] == precision and "device µs" in r
    }


def times_tensorrt(network: str, precision: str) -> float:
    taken = batch_us(network, precision)
    return float(taken["tensorrt"] / taken["fused"])


def share_of_tensorrt(network: str) -> float:
    """Energy of a batch in the fused engine over that in TensorRT, float16."""
    taken = {
        r["engine"]: r["total mJ"]
        for r in figures("gpu-engines")["energy"]
        if r["network"] == network and r["precision"] == "float16"
    }
    return float(taken["fused"] / taken["tensorrt"])


def time_of_checks(peaks: int, least: float = 0.0) -> float:
    """Largest share that checking the peaks adds to the time of a frame on a GPU."""
    rows = figures("gpu-checks")["rows"]
    return max(float(r["time, with / without"]) - 1 for r in rows if least < r["peaks"] <= peaks)


def more(ratio: float) -> str:
    """A ratio as a printed percentage more or less."""
    return percent(f"{100 * (ratio - 1)}")


def recipe_ms(name: str) -> float:
    (network,) = figures("recipes")
    return next(float(t["ms"]) for t in network["trials"] if t["name"] == name)


def batch_energy(network: str) -> float:
    """Sum of the repeats' energies of a batch, in mJ."""
    rows = figures("energy")["tables"][2]["rows"]
    return sum(float(r[7].split(" ± ")[0]) for r in rows if r[0].startswith(network))


def of_universal(frames: str) -> dict[str, float]:
    """Distances of the universal bundle's positions from the fits, in px."""
    found: dict[str, float] = figures("universal")["int8"]["real"][frames]["network"]
    return found


def of_ruby(which: str) -> list[float]:
    """INT8 test errors of the best or the best small network, one for each seed."""
    seeds = figures("search-ruby")["groups"][0]["seeds"]
    return [seed["search"]["networks"][which]["test_px"]["int8"] for seed in seeds]


def of_braggnn() -> list[float]:
    """Test error of the BraggNN that validation chooses, one for each seed."""
    trainings = [
        [seed["measured"], seed["synthetic"]]
        for seed in figures("search-ruby")["groups"][0]["seeds"]
    ]
    return [float(min(pair, key=lambda t: t["validation_px"])["test_px"]) for pair in trainings]


def of_two_gpus(start: bool) -> float:
    """How many times one GPU's trainings two do, with the start of the workers or without."""
    one, two = (
        r["seconds"] - (0 if start else r["until_first_s"]) for r in figures("search-gpus")["rows"]
    )
    return float(one / two)


# The page that a row of the index links to → what the row must say.
HEADLINES: list[tuple[str, str, Callable[[], list[str]]]] = [
    (
        "fronts-ruby-time",
        "error of Bragg positions",
        lambda: [percent(against("fronts-ruby-time", "lower error")[4])],
    ),
    (
        "fronts-ruby-time",
        "parameters at",
        lambda: [percent(against("fronts-ruby-time", "fewer parameters")[5])],
    ),
    (
        "fronts-ruby-steps",
        "error of Bragg",
        lambda: [percent(against("fronts-ruby-steps", "lower error")[4])],
    ),
    (
        "frames-cpu",
        "a frame of",
        lambda: [
            f"{row('frames-cpu', '200')[7]} ms",
            row("pipelines", "connected components + BraggNN in torch", table=1)[3],
        ],
    ),
    (
        "streaming",
        "frames/s without loss",
        lambda: [frames_a_second("edgexnas"), frames_a_second("queues")],
    ),
    ("ptycho-speed", "patterns/s", lambda: [f"{row('ptycho-speed', 'PtychoNN')[5]}×"]),
    (
        "ptycho-refined",
        "phase error",
        lambda: [
            f"{refined('network', 10):.3f} rad",
            f"{refined('flat', 10):.3f}",
            f"{figures('ptycho-refined')['star']['patches_phase_rad']:.3f} rad",
        ],
    ),
    (
        "gpu-refine",
        "10 sweeps of refinement",
        lambda: [f"**{refined_on_gpu()[0]:.0f}×**", f"{refined_on_gpu()[1]:.0e}"],
    ),
    (
        "training",
        "evaluations an hour",
        lambda: [
            f"{float(row('training', 'cnnBragg', '64')[4].split('×')[0]):.0f} to "
            f"{float(row('training', 'cnnBragg', '32, 24', table=2)[4].strip('×')):.0f}×",
            f"16 cnnBragg alone {float(row('training', 'cnnBragg', '16')[4].split('×')[0]):.0f}×",
        ],
    ),
    (
        "search-replay",
        "training time",
        lambda: [
            "{:.1%}".format(
                figures("search-replay")["summary"]["ladder, DeepHyper CBO (the default)"][
                    "median_share"
                ]
            ).replace("%", " %")
        ],
    ),
    (
        "gpu-frames",
        "frames/s of 2048",
        lambda: [
            f"**{frames_on_gpu(498):,.0f}**",
            f"{frames_on_gpu(4697) / figures('gpu-frames')['limit frames/s']:.0%}".replace(
                "%", " %"
            ),
        ],
    ),
    (
        "gpu-engines",
        "latency of a batch",
        lambda: [
            f"**{times_tensorrt('BraggNN', 'float16'):.1f}×** float16",
            f"**{times_tensorrt('BraggNN', 'int8'):.1f}×** INT8",
            f"{times_tensorrt('mlpBragg-50x5', 'float16'):.1f}× and "
            f"{times_tensorrt('mlpBragg-50x5', 'int8'):.1f}×",
        ],
    ),
    (
        "gpu-engines",
        "energy of a batch of 32",
        lambda: [
            f"**{more(share_of_tensorrt('BraggNN'))}** BraggNN",
            f"{more(share_of_tensorrt('mlpBragg-50x5'))} mlpBragg",
        ],
    ),
    (
        "gpu-checks",
        "frames/s with the peaks checked",
        lambda: [f"less than {max(0.001, time_of_checks(498)):.1%}".replace("%", " %"),
            f"{more(1 + time_of_checks(2000, 499))[1:]}",
        ],
    ),
    (
        "recipes",
        "latency of INT8",
        lambda: [more(recipe_ms("int8, all layers") / recipe_ms("float16"))],
    ),
    (
        "search-ruby",
        "INT8 error of a ten-minute",
        lambda: [
            f"for as long, {min(of_braggnn()):.4f} to {max(of_braggnn()):.4f} px",
            f"**{min(of_ruby('best')):.4f} to {max(of_ruby('best')):.4f} px**",
            f"0.004 px in {sum(error <= 0.004 for error in of_ruby('best'))} of 5",
            f"parameters in {sum(error <= 0.006 for error in of_ruby('small'))} of 5",
        ],
    ),
    (
        "search-gpus",
        "trainings of a search",
        lambda: [f"**{of_two_gpus(False):.2f}×**", f"{of_two_gpus(True):.2f}×"],
    ),
    (
        "universal",
        "Bragg positions of the universal",
        lambda: [f"**{of_universal('ruby, Dexela')['p50']:.3f} px**"],
    ),
    (
        "energy",
        "energy of a batch",
        lambda: [percent(f"{100 * (batch_energy('mlpBragg') / batch_energy('BraggNN') - 1)}")],
    ),
    (
        "grains",
        "grains",
        lambda: [f"{grains(what):.2f}" for what in ("misorientation_deg", "strain")],
    ),
    (
        "figure2",
        "hypervolume",
        lambda: [
            f"{volume('DeepHyper CBO, GP + UCB') / volume('random'):.2f}×",
            f"{volume('DeepHyper CBO, GP + UCB') / volume('Optuna TPE'):.2f}×",
        ],
    ),
    (
        "soak",
        "faults in an hour",
        lambda: [f"{len(figures('soak')['outcomes'])}", f"**{len(figures('soak')['problems'])}**"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("study", "what", "said"), HEADLINES, ids=[f"{study}-{what}" for study, what, _ in HEADLINES]
)
def test_a_headline_says_what_its_study_found(
    study: str, what: str, said: Callable[[], list[str]]
) -> None:
    lines = (RESULTS / "index.md").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith(f"| {what}") and f"({study}.md)" in one]
    for figure in said():
        assert figure in line, (figure, line)


def test_the_readme_says_what_the_studies_found() -> None:
    text = (ROOT / "README.md").read_text()
    soak = figures("soak")
    less = [against(f"fronts-ruby-{one}", "lower error")[4] for one in ("time", "steps")]
    for figure in (
        f"**{percent(less[0])[1:]} less error**",
        f"{percent(less[1])[1:]} after equal steps",
        f"**{row('frames-cpu', '200')[7]} ms**",
        f"**{batch_us('BraggNN', 'int8')['fused']:.1f} µs**",
        f"{times_tensorrt('BraggNN', 'int8'):.1f} times as fast as TensorRT",
        f"**{len(soak['outcomes'])} faults in an hour**, {soak['kills']} of them `kill -9`",
    ):
        assert figure in text, figure


def test_the_index_links_every_study() -> None:
    linked = set(re.findall(r"\(([\w-]+)\.md\)", (RESULTS / "index.md").read_text()))
    assert {page.stem for page in STUDIES} <= linked
