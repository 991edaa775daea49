"""The report on a search."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgexnas.errors import SearchError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.measuring.objectives import OBJECTIVES
from edgexnas.host.networks.spaces import SPACES, Configuration
from edgexnas.host.reporting.figures import hypervolume_figure, save_figure
from edgexnas.host.reporting.importance import hyperparameter_importance
from edgexnas.host.reporting.report import write_report
from edgexnas.host.search.optimization import SearchResult, optimize
from edgexnas.host.search.result import Candidate

MLP = SPACES["mlpBragg"].narrow(units=(1, 32), layers=(1, 3))
BRAGGNN = {"BraggNN <33,172>": {"error": 0.1, "parameters": 33172}}


def fragile(configuration: Configuration) -> nn.Module:
    if int(configuration["units"]) > 12:
        raise RuntimeError("<too wide>")
    return SPACES["mlpBragg"].build(configuration)


def fails_off_meta(configuration: Configuration) -> nn.Module:
    model = SPACES["mlpBragg"].build(configuration)
    if next(model.parameters()).device.type != "meta":
        raise RuntimeError("fails")
    return model


@pytest.fixture(scope="module")
def result(tiny_peaks: PeakDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return optimize(
        "bragg", data=tiny_peaks, output=tmp_path_factory.mktemp("run") / "r&d", search="random",
        space=(MLP.extend(name="fragile", builder=fragile), "mlpBragg"), evaluator="serial",
        epochs=1, max_evals=40, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(result: SearchResult) -> str:
    return write_report(result.folder, baselines=BRAGGNN).read_text()


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    references = References()
    references.feed(page)
    assert references.found
    assert all(found.startswith("data:") for found in references.found)
    assert "@import" not in page
    assert not re.search(r"url\(", page)


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_runs_over_no_edge(page: str, page_width: Any, width: int) -> None:
    assert page_width(page, width) <= width


def test_the_page_has_every_evaluation_with_its_configuration(
    page: str, result: SearchResult
) -> None:
    rows = page.split("<h2>Every evaluation</h2>")[1]
    assert rows.count("<tr") == 1 + len(result.trials)
    for trial in result.trials:
        assert f"units = {trial.configuration['units']}," in rows
        assert f"learning_rate = {trial.configuration['learning_rate']:.4g}" in rows


def test_names_and_messages_are_shown_as_they_are(page: str) -> None:
    assert "Search of r&amp;d" in page
    assert "exception: RuntimeError: &lt;too wide&gt;" in page
    assert "<too wide>" not in page


def test_failures_are_counted_by_reason(page: str, result: SearchResult) -> None:
    assert f"<th>failed: exception</th><td>{result.failures['exception']} (" in page


@pytest.mark.usefixtures("page")
def test_figures_lie_beside_the_page_as_png(result: SearchResult) -> None:
    names = {path.name for path in (result.folder / "figures").iterdir()}
    assert names >= {
        "hypervolume.png", "front_error_parameters.png", "convergence.png",
        "importance_mlpBragg.png",
    }  # fmt: skip
    for path in (result.folder / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_search_in_which_everything_failed_still_has_a_report(
    tiny_peaks: PeakDataset, tmp_path: Path
) -> None:
    space = MLP.extend(name="broken", builder=fails_off_meta)
    run = optimize(
        "bragg", data=tiny_peaks, output=tmp_path / "run", space=space, search="random",
        evaluator="serial", max_evals=2, device="cpu",
    )  # fmt: skip
    assert run.pareto == []
    assert "No evaluation succeeded" in write_report(run).read_text()
    with pytest.raises(SearchError, match=r"no evaluation of .* succeeded"):
        run.best("error")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="holds no search"):
        write_report(tmp_path)


def candidate(trial: int, **configuration: Any) -> Candidate:
    error = 0.01 * configuration["units"]
    return Candidate(trial, "s", configuration, {"error": error}, {"error": error}, None)


def test_the_hyperparameter_that_decides_is_the_important_one() -> None:
    rows = [
        candidate(n, units=1 + n % 7, layers=1 + n % 5, kind="ab"[n % 2], epochs=3)
        for n in range(60)
    ]
    shares = hyperparameter_importance(rows, OBJECTIVES["error"])
    assert next(iter(shares)) == "units"
    assert shares["units"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert "epochs" not in shares


def test_few_or_equal_candidates_have_no_importances() -> None:
    rows = [candidate(n, units=n + 1) for n in range(11)]
    assert hyperparameter_importance(rows, OBJECTIVES["error"]) == {}
    same = [candidate(n, units=3, layers=n) for n in range(40)]
    assert hyperparameter_importance(same, OBJECTIVES["error"]) == {}


def test_searches_of_several_seeds_are_drawn_with_their_spread(tmp_path: Path) -> None:
    figure = hypervolume_figure({"cbo": [[0, 0.2, 0.4], [0.1, 0.3]], "random": [[0.1, 0.2]]})
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["cbo", "random"]
    assert len(axes.collections) == 1
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.05, 0.25])
    assert save_figure(figure, tmp_path / "a.png").stat().st_size > 1000
