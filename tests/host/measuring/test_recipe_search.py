"""Which recipe a bundle is exported by, measured here and over a real ssh server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgexnas.bundle import generate_keys, open_bundle
from edgexnas.cli import main
from edgexnas.errors import ConfigurationError, MeasurementError, SourceError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.exporting.bundle_export import export_bundle
from edgexnas.host.exporting.bundling import Bundling, make_bundling
from edgexnas.host.exporting.recipe_choice import RecipeChoice
from edgexnas.host.measuring.bench_transports import LocalBench
from edgexnas.host.measuring.recipe_search import MOST_CANDIDATES, choose_recipe
from edgexnas.host.networks.bragg_models import LEVELS, BraggNN, CnnBragg, MlpBragg
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.search.optimization import optimize
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

FAST = "runs=3&calls=2&spread=0.01"

Choose = Callable[..., RecipeChoice]


@pytest.fixture(scope="module")
def network(tiny_peaks: PeakDataset) -> MlpBragg:
    torch.manual_seed(0)
    model = MlpBragg(16, 3)
    data = TrainingData.from_dataset(tiny_peaks, tiny_peaks.split(), "cpu")
    train(model, data, TrainingSettings(epochs=40, batch_size=16, learning_rate=3e-3))
    return model


@pytest.fixture
def choose(network: MlpBragg, tiny_peaks: PeakDataset, tmp_path: Path) -> Choose:
    def call(source: str = f"local?{FAST}", **changes: Any) -> RecipeChoice:
        fixed: dict[str, Any] = {
            "model": network, "cache": tmp_path / "kept", "maximum_loss": 2.0,
        }  # fmt: skip
        return choose_recipe(
            dataset=tiny_peaks, split=tiny_peaks.split(), source=source, **fixed | changes
        )

    return call


@pytest.fixture
def latencies(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times in ms that a device reports, of one candidate after the other."""
    times: list[float] = []

    def bench(self: LocalBench, bundle: bytes, trust: str, options: Any) -> dict[str, Any]:
        return {
            "before": {"name": "a device", "power_mode": ""},
            "bundles": [{
                "engine": {"engine": "an engine", "version": "1", "batch": 32},
                "latency": {"p50_ms": times.pop(0)}, "energy": None,
            }],
        }  # fmt: skip

    monkeypatch.setattr(LocalBench, "bench", bench)
    return times


def test_every_candidate_is_measured_and_told_and_the_fastest_is_chosen(choose: Choose) -> None:
    lines: list[str] = []
    choice = choose(progress=lines.append)
    assert [t.name for t in choice.trials] == [
        "float16",
        "int8, all layers",
        "int8, first in float",
    ]
    times = [t.latency.median_ms for t in choice.trials if t.latency is not None]
    assert len(times) == 3
    assert choice.precision == ("int8" if min(times[1:]) <= times[0] else "float16")
    assert len(lines) == 4
    assert lines[0].startswith(f"recipe 1 of at most {MOST_CANDIDATES}: float16: ")
    assert lines[3].startswith(f"recipe: {choice.name}, because the fastest INT8")


def test_int8_that_is_as_fast_as_float16_is_chosen(choose: Choose, latencies: list[float]) -> None:
    latencies += [0.1, 0.2, 0.1]
    choice = choose()
    assert choice.precision == "int8"
    assert choice.int8 is not None
    assert choice.int8.float_first
    assert choice.name == f"int8, {choice.int8}"
    assert "0.1 ms on local, at least as fast as float16 with 0.1 ms" in choice.reason


def test_float16_is_chosen_where_int8_is_slower_and_the_bundle_says_so(
    choose: Choose,
    latencies: list[float],
    network: MlpBragg,
    tiny_peaks: PeakDataset,
    tmp_path: Path,
) -> None:
    latencies += [0.1, 0.3, 0.2]
    choice = choose()
    assert (choice.precision, choice.name) == ("float16", "float16")
    key, _ = generate_keys(tmp_path, name="beam")
    path = export_bundle(
        tmp_path / "bragg.edgex", model=network, dataset=tiny_peaks, split=tiny_peaks.split(),
        architecture="mlpBragg", signing_key=key, choice=choice, maximum_loss=9.0,
    ).path  # fmt: skip
    manifest = open_bundle(path, trust=tmp_path).manifest
    told = manifest.provenance.configuration
    assert told["recipe"] == "float16"
    assert "takes 0.2 ms on local, slower than float16 with 0.1 ms" in str(told["recipe_reason"])
    recipe = manifest.quantisation_recipe
    assert recipe is not None
    assert [(run.precision, run.median_ms) for run in recipe.latencies] == [
        ("float16", 0.1), ("int8", 0.3), ("int8", 0.2),
    ]  # fmt: skip
    # The INT8 model in the bundle is the fastest one, for who asks for INT8 all the same.
    assert recipe.float_first_layer


def test_what_ran_on_a_gpu_names_it(
    choose: Choose, latencies: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    latencies += [0.1, 0.2, 0.1]
    bench = LocalBench.bench

    def on_gpu(self: LocalBench, *arguments: Any) -> dict[str, Any]:
        report = bench(self, *arguments)
        report["bundles"][0]["engine"]["gpu"] = "a GPU, SM87"
        return report

    monkeypatch.setattr(LocalBench, "bench", on_gpu)
    devices = {t.latency.device for t in choose().trials if t.latency is not None}
    assert devices == {"a GPU, SM87"}


def test_a_search_that_was_stopped_goes_on_where_it_was(
    choose: Choose, latencies: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = LocalBench.bench
    latencies += [0.3, 0.2, 0.1]

    def breaks(self: LocalBench, *arguments: Any) -> dict[str, Any]:
        if len(latencies) == 2:
            raise SourceError("this machine is gone; wait for it")
        return bench(self, *arguments)

    monkeypatch.setattr(LocalBench, "bench", breaks)
    with pytest.raises(SourceError, match="is gone"):
        choose()
    monkeypatch.setattr(LocalBench, "bench", bench)
    lines: list[str] = []
    # With no time left for what was measured before.
    choice = choose(progress=lines.append)
    assert latencies == []
    assert [t.latency.median_ms for t in choice.trials if t.latency] == [0.3, 0.2, 0.1]
    assert ["(measured before)" in line for line in lines] == [True, False, False, False]


def test_int8_that_loses_too_much_is_not_measured(
    choose: Choose, latencies: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if nothing were negligible, not even a gain.
    monkeypatch.setattr(Bundling, "negligible", -1.0)
    monkeypatch.delattr(type(make_bundling("bragg", LEVELS)), "negligible")
    latencies.append(0.1)
    choice = choose(maximum_loss=-0.9, fine_tune=None)
    assert choice.precision == "float16"
    assert choice.int8 is None
    assert "loses too much" in choice.reason


def test_int8_that_fine_tuning_rescues_is_measured_and_exported(
    choose: Choose,
    latencies: list[float],
    network: MlpBragg,
    tiny_peaks: PeakDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # More is wanted than rounding alone can give; training on gives it.
    monkeypatch.setattr(Bundling, "negligible", -1.0)
    monkeypatch.delattr(type(make_bundling("bragg", LEVELS)), "negligible")
    latencies += [0.2, 0.1, 0.1]
    lines: list[str] = []
    more = TrainingSettings(epochs=120, batch_size=16, learning_rate=3e-3, device="cpu")
    choice = choose(maximum_loss=-0.1, fine_tune=more, progress=lines.append)
    assert choice.precision == "int8"
    assert choice.tuned is not None
    # Once for all placements.
    assert sum("fine-tuning the network" in line for line in lines) == 1
    assert choice.trials[1].name == "int8, all layers, fine-tuned"
    report = export_bundle(
        tmp_path / "bragg.edgex", model=network, dataset=tiny_peaks, split=tiny_peaks.split(),
        architecture="mlpBragg", signing_key=generate_keys(tmp_path, name="beam")[0],
        choice=choice, maximum_loss=9.0, fine_tune=None,
    )  # fmt: skip
    assert report.fine_tuned
    assert report.manifest.quantisation is not None
    assert report.manifest.quantisation.method == "qat"


def test_an_engine_that_fails_is_one_candidate_less(
    choose: Choose, latencies: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = LocalBench.bench
    latencies.append(0.1)

    def fails(self: LocalBench, bundle: bytes, trust: str, options: Any) -> dict[str, Any]:
        if "int8" in options:
            raise MeasurementError("edgexnas bench failed on this machine: no plan")
        return bench(self, bundle, trust, options)

    monkeypatch.setattr(LocalBench, "bench", fails)
    choice = choose()
    assert choice.precision == "float16"
    assert "no plan" in choice.reason


@pytest.mark.parametrize(
    ("model", "most"),
    [
        pytest.param(BraggNN(), {"float16": 2, "int8": 4}, marks=pytest.mark.long),
        (CnnBragg(4, 3), {"float16": 1}),
    ],
)
def test_a_network_with_attention_has_more_candidates_and_never_more_than_eight(
    choose: Choose, latencies: list[float], model: torch.nn.Module, most: dict[str, int]
) -> None:
    latencies += [0.2, 0.1, *[0.3] * 6]
    choice = choose(model=model, maximum_loss=1e9)
    assert len(choice.trials) <= MOST_CANDIDATES
    for precision, count in most.items():
        assert sum(t.precision == precision for t in choice.trials) == count
    if isinstance(model, BraggNN):
        assert choice.rewrite == "folded-attention"
        # All of them on the rewrite that won, and no two with the same layers in INT8.
        assert {t.rewrite for t in choice.trials if t.precision == "int8"} == {"folded-attention"}


def test_an_estimate_is_no_measurement(choose: Choose) -> None:
    with pytest.raises(ConfigurationError, match="which estimates and runs nothing"):
        choose("model")


def test_a_device_measures_recipes_over_ssh(choose: Choose, device: Any) -> None:
    choice = choose(device.url(spread=0.01), signing_key=device.signing_key)
    assert "ssh://orin" in choice.reason
    measured = [t.latency for t in choice.trials if t.latency is not None]
    assert len(measured) == 3
    assert all(latency.engine.startswith("onnxruntime") for latency in measured)


@pytest.mark.long
def test_export_quantises_for_this_machine_and_tells_each_step(
    tiny_peaks: PeakDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_peaks.save(tmp_path / "peaks.h5")
    space = SPACES["mlpBragg"].narrow(units=(8, 12), layers=2, epochs=(20, 30))
    optimize(
        "bragg", data=tmp_path / "peaks.h5", space=space, search="random", max_evals=1,
        evaluator="serial", output=tmp_path / "run", progress=False,
    )  # fmt: skip
    key, _ = generate_keys(tmp_path / "keys", name="beam")
    command = [
        "export", tmp_path / "run", "--output", tmp_path / "out.edgex", "--signing-key", key,
        "--maximum-loss", "9", "--no-fine-tuning", "--quantise-for", f"local?{FAST}",
    ]  # fmt: skip
    assert main([str(word) for word in command]) == 0
    said = capsys.readouterr()
    assert "recipe 1 of at most 8: float16: " in said.err
    assert "because" in said.out
    assert list((tmp_path / "run" / "measurements").glob("*.json"))
    assert main([str(word) for word in command]) == 0
    assert "(measured before)" in capsys.readouterr().err
