"""`optimize`: what a run leaves behind, what it survives, and what it rejects."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from torch import nn

from edgexnas.errors import (
    ConfigurationError,
    EdgexnasError,
    InputError,
    MissingDependencyError,
    SearchError,
    SourceError,
)
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.networks.spaces import SPACES, Configuration
from edgexnas.host.search.configuration import load_configuration
from edgexnas.host.search.evaluation import load_checkpoint
from edgexnas.host.search.optimization import SearchResult, optimize
from edgexnas.host.search.progress import SearchProgress

MLP = SPACES["mlpBragg"].narrow(units=(1, 32), layers=(1, 3))
QUICK: dict[str, Any] = {
    "space": MLP, "search": "random", "evaluator": "serial", "max_evals": 6, "epochs": 2,
    "device": "cpu",
}  # fmt: skip
WALL_TIMES = ["seconds", "finished"]


@pytest.fixture(scope="module")
def peaks_file(tiny_peaks: PeakDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_peaks.save(tmp_path_factory.mktemp("data") / "peaks.h5")


@pytest.fixture
def search(peaks_file: Path, tmp_path: Path) -> Callable[..., SearchResult]:
    def call(**changes: Any) -> SearchResult:
        return optimize("bragg", **{"data": peaks_file, "output": tmp_path / "run"}
                        | QUICK | changes)  # fmt: skip

    return call


def same_table(first: SearchResult, second: SearchResult) -> bool:
    tables = [result.table().drop(columns=WALL_TIMES) for result in (first, second)]
    pd.testing.assert_frame_equal(*tables)
    return True


def test_a_search_leaves_a_table_a_front_and_its_weights(
    search: Callable[..., SearchResult], peaks_file: Path
) -> None:
    result = search(objectives=("error", "quantile_loss", "parameters"))
    table = result.table()
    assert table["trial"].tolist() == list(range(6))
    assert set(table["status"]) == {"done"}
    assert {"config.units", "error", "quantile_loss", "parameters", "macs"} <= set(table.columns)
    for candidate in result.pareto:
        assert candidate.checkpoint is not None
        assert candidate.metrics["parameters"] == MLP.size(candidate.configuration).parameters
    assert table["pareto"].sum() == len(result.pareto)
    assert 0 < result.hypervolume == pytest.approx(result.hypervolume_curve[-1])


def test_a_printed_result_shows_every_objective_in_80_columns(
    search: Callable[..., SearchResult],
) -> None:
    space = MLP.extend(name="fragile", builder=fails_when_wide)
    names = ("error", "quantile_loss", "parameters")
    result = search(space=space, objectives=names, max_evals=10)
    head, *lines = str(result).splitlines()
    assert head.split() == ["trial", *names, "pareto", "space", "status"]
    assert max(map(len, (head, *lines))) <= 80
    assert len(lines) == 10
    for candidate in result.candidates:
        cells = lines[candidate.trial].split()
        assert [float(cell) for cell in cells[1:4]] == pytest.approx(
            [candidate.objectives[name] for name in names], rel=1e-3
        )
    assert result.table().columns[1:4].tolist() == list(names)


def test_the_best_candidate_is_on_the_front_and_can_be_loaded(
    search: Callable[..., SearchResult], tiny_peaks: PeakDataset
) -> None:
    result = search()
    best = result.best("error")
    assert best in result.pareto
    assert best.objectives["error"] == result.table()["error"].min()
    model = result.model(best)
    assert model(load_inputs(tiny_peaks)).shape == (len(tiny_peaks), 2, 3)
    assert best.checkpoint is not None
    assert isinstance(load_checkpoint(best.checkpoint, MLP), nn.Module)


def load_inputs(peaks: PeakDataset) -> Any:
    import torch

    return torch.from_numpy(peaks.inputs())


def test_only_the_weights_of_the_front_are_kept_unless_all_are_wanted(
    search: Callable[..., SearchResult], tmp_path: Path
) -> None:
    result = search()
    beaten = next(c for c in result.candidates if c not in result.pareto)
    with pytest.raises(SearchError, match=r"weights of trial .* were not kept"):
        result.model(beaten)
    everything = search(keep_checkpoints="all", output=tmp_path / "all")
    assert all(candidate.checkpoint is not None for candidate in everything.candidates)


@pytest.mark.parametrize("strategy", ["random", "cbo", "hyperband"])
def test_two_serial_searches_with_one_seed_give_the_same_table(
    search: Callable[..., SearchResult], tmp_path: Path, strategy: str
) -> None:
    options = {"cbo": {"initial": 3, "candidates": 100}}.get(strategy, {})
    runs = [
        search(search=strategy, search_options=options, output=tmp_path / name) for name in "ab"
    ]
    assert same_table(*runs)


def test_several_spaces_take_turns(search: Callable[..., SearchResult]) -> None:
    cnn = SPACES["cnnBragg"].narrow(filters=(1, 4), layers=(1, 3))
    assert search(space=(MLP, cnn), max_evals=4).table()["space"].tolist() == [
        "mlpBragg", "cnnBragg", "mlpBragg", "cnnBragg",
    ]  # fmt: skip


def test_worker_processes_give_the_same_candidates_as_a_serial_search(
    search: Callable[..., SearchResult], tmp_path: Path
) -> None:
    serial = search(output=tmp_path / "serial")
    parallel = search(evaluator="process", workers=2)
    errors = [[c.metrics["error"] for c in result.candidates] for result in (serial, parallel)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)


def run_and_kill(script: str, journal: Path, finished: int) -> None:
    """Start a search as a process of its own and kill it in the evaluation after some."""
    held = (
        "import itertools, time\n"
        "from edgexnas.host.search import evaluators\n"
        "evaluations, evaluate = itertools.count(), evaluators.evaluate\n"
        "def held(*given):\n"
        f"    if next(evaluations) == {finished}: time.sleep(3600)\n"
        "    return evaluate(*given)\n"
        "evaluators.evaluate = held\n"
    )
    process = subprocess.Popen([sys.executable, "-c", held + script], stderr=subprocess.PIPE)
    try:
        while not journal.exists() or journal.read_bytes().count(b'"finish"') < finished:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("strategy", ["evolution", "optuna-tpe"])
def test_a_search_killed_with_signal_9_goes_on_and_ends_as_if_it_had_not_been(
    search: Callable[..., SearchResult], peaks_file: Path, tmp_path: Path, strategy: str
) -> None:
    changes = {"max_evals": 16, "search": strategy}
    arguments = {**QUICK, **changes, "data": str(peaks_file), "output": str(tmp_path / "run")}
    del arguments["space"]
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from edgexnas.host.search.optimization import optimize\n"
        "from edgexnas.host.networks.spaces import SPACES\n"
        "space = SPACES['mlpBragg'].narrow(units=(1, 32), layers=(1, 3))\n"
        f"optimize('bragg', space=space, **{arguments!r})\n"
    )
    run_and_kill(script, tmp_path / "run" / "journal.jsonl", 4)
    resumed = search(resume=True, **changes)
    assert resumed.kept == 4
    assert same_table(resumed, search(output=tmp_path / "undisturbed", **changes))


def test_resuming_adds_to_the_evaluations_and_says_how_many_were_kept(
    search: Callable[..., SearchResult],
) -> None:
    search(max_evals=3)
    result = search(max_evals=5, resume=True)
    assert result.kept == 3
    assert len(result.trials) == 5
    assert "kept 3 evaluations" in (result.folder / "search.log").read_text()


def test_a_run_is_not_overwritten(search: Callable[..., SearchResult]) -> None:
    search(max_evals=2)
    with pytest.raises(SearchError, match="already holds a run with 2 evaluations"):
        search()


@pytest.mark.parametrize("name", ["synthetic.h5", "dataset.h5", "checkpoints"])
def test_what_a_run_without_a_journal_left_is_taken_by_no_other(
    search: Callable[..., SearchResult], tmp_path: Path, name: str
) -> None:
    (tmp_path / "left" / name).mkdir(parents=True)
    for again in (False, True):
        with pytest.raises(SearchError, match=rf"left holds {name} of a run whose journal.jsonl"):
            search(output=tmp_path / "left", resume=again)


def test_a_run_is_resumed_only_with_the_same_search(search: Callable[..., SearchResult]) -> None:
    search(max_evals=2)
    with pytest.raises(SearchError, match="holds a run with seed 0, not 1"):
        search(seed=1, resume=True)


def test_a_time_out_ends_a_session_and_the_rest_follows(
    search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = itertools.count()
    ticking = SimpleNamespace(monotonic=lambda: 0.1 * next(reads))
    monkeypatch.setattr("edgexnas.host.search.optimization.time", ticking)
    first = search(max_evals=500, timeout=1.5)
    assert 0 < len(first.trials) < 500
    assert search(max_evals=len(first.trials) + 2, resume=True).kept == len(first.trials)


def fails_when_wide(configuration: Configuration) -> nn.Module:
    if int(configuration["units"]) > 8:
        raise RuntimeError("too wide")
    return SPACES["mlpBragg"].build(configuration)


@pytest.mark.parametrize("strategy", ["cbo", "evolution", "optuna-nsga2"])
def test_failures_are_rows_with_reasons_and_never_end_a_search(
    search: Callable[..., SearchResult], strategy: str
) -> None:
    space = MLP.extend(name="fragile", builder=fails_when_wide)
    options = {"cbo": {"initial": 4, "candidates": 50}}.get(strategy, {})
    result = search(space=space, search=strategy, search_options=options, max_evals=10)
    table = result.table()
    assert set(table["status"]) == {"done", "failed"}
    assert result.failures == {"exception": int((table["status"] == "failed").sum())}
    assert set(table.loc[table["status"] == "failed", "message"]) == {"RuntimeError: too wide"}


def test_a_hard_constraint_holds_for_every_evaluation(search: Callable[..., SearchResult]) -> None:
    result = search(constraints={"parameters": 500}, search="evolution", max_evals=16)
    assert result.table()["parameters"].max() <= 500


def test_a_measured_constraint_rejects_a_network_before_it_trains(
    search: Callable[..., SearchResult],
) -> None:
    def measure(model: nn.Module) -> dict[str, float]:
        return {"latency": sum(p.numel() for p in model.parameters()) / 1000}

    result = search(objectives=("error", "latency"), constraints={"latency": 1}, measure=measure)
    rejected = result.table().query("status == 'failed'")
    assert set(rejected["reason"]) == {"constraint"}
    assert rejected["error"].isna().all()
    assert (rejected["latency"] > 1).all()
    assert result.table().query("status == 'done'")["latency"].max() <= 1


@pytest.mark.parametrize("measured", [{"latency": float("nan")}, {"energy": 1.0}])
def test_a_measurement_that_gives_no_number_is_a_failed_row(
    search: Callable[..., SearchResult], measured: dict[str, float]
) -> None:
    result = search(objectives=("error", "latency"), measure=lambda _: measured, max_evals=2)
    assert result.failures == {"measure": 2}


def test_hyperband_stops_hopeless_networks_early(search: Callable[..., SearchResult]) -> None:
    options = {"margin": 0.0, "rivals": 1, "brackets": 1}
    result = search(
        search="hyperband", search_options=options, max_evals=12, epochs=9, patience=None
    )
    table = result.table()
    assert set(table["config.epochs"]) == {9}
    assert table["epochs"].max() == 9
    assert table["epochs"].min() < 9


def test_a_run_folder_reproduces_its_run(
    search: Callable[..., SearchResult], tmp_path: Path, tiny_peaks: PeakDataset
) -> None:
    first = search(
        data=tiny_peaks, space=("cnnBragg", MLP), max_evals=3, constraints={"parameters": 6000}
    )
    arguments = load_configuration(first.folder / "run.toml")
    assert same_table(first, optimize(**arguments | {"output": tmp_path / "again"}))


def test_a_result_can_be_read_from_its_folder(search: Callable[..., SearchResult]) -> None:
    result = search()
    loaded = SearchResult.load(result.folder)
    assert same_table(result, loaded)
    assert loaded.spaces["mlpBragg"] == MLP
    assert isinstance(loaded.model(loaded.best("error")), nn.Module)


def write_toml(folder: Path, text: str) -> Path:
    path = folder / "search.toml"
    path.write_text(text)
    return path


def test_a_configuration_file_narrows_spaces_and_finds_data_beside_it(tmp_path: Path) -> None:
    path = write_toml(
        tmp_path,
        'task = "bragg"\ndata = "peaks.h5"\noutput = "run"\nspace = ["tiny", "cnnBragg"]\n'
        '[spaces.tiny]\nlike = "mlpBragg"\nunits = [4, 8]\nlayers = 2\n'
        "[constraints]\nparameters = 900\n",
    )
    arguments = load_configuration(path)
    assert arguments["data"] == str(tmp_path / "peaks.h5")
    assert arguments["space"] == [
        SPACES["mlpBragg"].narrow(name="tiny", units=(4, 8), layers=2), "cnnBragg",
    ]  # fmt: skip
    assert arguments["constraints"] == {"parameters": 900}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("evals = 3", "sets 'evals', which is unknown"),
        ("resume = true", "sets 'resume'"),
        ("a = ", "is not TOML"),
        ("space = 3", "sets space to 3; specify the name"),
        ("spaces = 3", "sets spaces to 3; specify a table"),
        ("spaces.x = 3", r"sets spaces\.x to 3; specify a table"),
        ("constraints = 3", "sets constraints to 3; specify a table"),
        ("search_options = [1]", "sets search_options to"),
        ("data = 3", "sets data to 3; specify it as text"),
        ("task = true", "sets task to True; specify it as text"),
        ('[spaces.x]\nlike = "mlp"', "from 'mlp', which is unknown"),
        ('space = "mlpBragg"\n[spaces.cnnBragg]\nlayers = 3', "does not list"),
    ],
)
def test_a_wrong_configuration_file_is_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_configuration(write_toml(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"space": "mlpBrag"}, ConfigurationError, "space 'mlpBrag' is unknown"),
        ({"space": ()}, ConfigurationError, "space is empty"),
        ({"space": (MLP, MLP)}, ConfigurationError, "specify unique names"),
        ({"objectives": ("speed",)}, ConfigurationError, "objective 'speed' is unknown"),
        ({"objectives": ("energy",)}, ConfigurationError, "'energy' has no source"),
        ({"constraints": {"size": 3}}, ConfigurationError, "constraint 'size' is unknown"),
        ({"constraints": {"parameters": 9}}, ConfigurationError, "its smallest has 134"),
        ({"search": "grid"}, ConfigurationError, "search 'grid' is unknown"),
        ({"evaluator": "mpi"}, ConfigurationError, "evaluator 'mpi' is unknown"),
        ({"workers": 2}, ConfigurationError, "workers is 2"),
        ({"max_evals": 0}, ConfigurationError, "max_evals is 0"),
        ({"epochs": 0}, ConfigurationError, "epochs is 0"),
        ({"timeout": -1}, ConfigurationError, "timeout is -1"),
        ({"seed": 1.5}, ConfigurationError, "seed is 1.5"),
        ({"seed": -1}, ConfigurationError, "seed is -1; specify a whole number from 0"),
        ({"space": 3}, ConfigurationError, "space 3 is a int"),
        ({"space": ":"}, ConfigurationError, "space ':' cannot be imported"),
        ({"space": "..a:b"}, ConfigurationError, r"space '\.\.a:b' cannot be imported"),
        ({"constraints": 3}, ConfigurationError, "constraints is 3; specify a dictionary"),
        ({"search_options": [1]}, ConfigurationError, "search_options is"),
        ({"data": 3}, ConfigurationError, "data is int; specify the file"),
        ({"keep_checkpoints": "none"}, ConfigurationError, "keep_checkpoints is 'none'"),
        ({"device": "abacus"}, ConfigurationError, "device is 'abacus'"),
        ({"signing_key": "no.pem"}, EdgexnasError, "no.pem"),
        ({"data": "no.h5"}, SourceError, "no.h5"),
        ({"output": "/proc/run"}, SearchError, "disk of /proc/run has 0 MB left"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_trains(
    search: Callable[..., SearchResult],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    named: str,
) -> None:
    with pytest.raises(error, match=named):
        search(**changes)
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_task_that_is_unknown_is_refused(peaks_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'video' is unknown"):
        optimize("video", data=peaks_file, output=tmp_path)


def test_a_signing_key_that_does_not_fit_is_refused_before_anything_trains(
    search: Callable[..., SearchResult], tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "wide.key.pem"
    path.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ))  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"wide\.key\.pem is not on the curve P-256"):
        search(signing_key=path)
    assert not (tmp_path / "run").exists()


def test_data_with_too_few_peaks_is_refused(
    search: Callable[..., SearchResult], tiny_peaks: PeakDataset
) -> None:
    import dataclasses

    few = dataclasses.replace(tiny_peaks, good=np.arange(len(tiny_peaks)) % 9 == 0)
    with pytest.raises((ConfigurationError, InputError), match="label more frames"):
        search(data=few)


def test_a_space_whose_builder_fails_everywhere_is_refused(
    search: Callable[..., SearchResult],
) -> None:
    def build(configuration: Configuration) -> nn.Module:
        raise ZeroDivisionError("no layer")

    with pytest.raises(ConfigurationError, match=r"broken cannot build any .* no layer"):
        search(space=MLP.extend(name="broken", builder=build))


def test_progress_is_quiet_where_there_is_no_terminal(
    search: Callable[..., SearchResult], capfd: pytest.CaptureFixture[str]
) -> None:
    search(max_evals=2)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_failures_the_best_and_the_time_left(
    search: Callable[..., SearchResult], peaks_file: Path, tmp_path: Path
) -> None:
    from edgexnas.host.search.plan import make_plan

    result = search(space=MLP.extend(name="fragile", builder=fails_when_wide))
    arguments = load_configuration(result.folder / "run.toml") | {"space": MLP}
    defaults = {
        "resume": True, "epochs": 2, "measure": None, "signing_key": None, "timeout": None,
        "memory_limit_gb": None, "ray_address": None, "constraints": None, "search_options": None,
        "patience": None, "budget": None, "synthetic": None,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    progress = SearchProgress(make_plan(**defaults | arguments), console=console)
    for trial in result.trials:
        progress.add(trial)
    console.print(progress.render())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{result.failures['exception']} exception" in shown
    assert f"(trial {result.best('error').trial})" in shown
    assert f"hypervolume {result.hypervolume:.4f}" in shown
    assert "0:00:00" in shown


def test_a_bundle_without_a_signing_key_is_refused(search: Callable[..., SearchResult]) -> None:
    with pytest.raises(ConfigurationError, match="specify signing_key="):
        search(max_evals=1).export("model.edgex")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_search_runs_over_two_ray_nodes_and_survives_a_dead_worker(
    search: Callable[..., SearchResult], ray_cluster: str, tmp_path: Path
) -> None:
    nodes = str(tmp_path / "nodes")
    Path(nodes).mkdir()

    def build(configuration: Configuration) -> nn.Module:
        import os
        from pathlib import Path

        from edgexnas.host.networks.spaces import SPACES

        model = SPACES["mlpBragg"].build(configuration)
        # The search itself builds on the meta device, to count parameters.
        if not next(model.parameters()).is_meta:
            # A worker's parent is the raylet of its node.
            (Path(nodes) / str(os.getppid())).touch()
            if int(configuration["units"]) > 16:
                os._exit(3)
        return model

    space = MLP.extend(name="fragile", builder=build)
    result = search(space=space, evaluator="ray", ray_address=ray_cluster, workers=2, max_evals=12)
    assert set(result.table()["status"]) == {"done", "failed"}
    assert set(result.failures) == {"killed"}
    assert len(result.trials) == 12
    # The search built one itself, to see whether it can be exported.
    raylets = {path.name for path in Path(nodes).iterdir()} - {str(os.getppid())}
    assert len(raylets) == 2


def test_ray_that_is_not_installed_names_the_extra(
    search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"edgexnas\[ray\]"):
        search(evaluator="ray")


def test_every_line_of_the_journal_is_json(search: Callable[..., SearchResult]) -> None:
    folder = search(max_evals=2).folder
    lines = (folder / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["run", "start", "finish", "start", "finish"]
