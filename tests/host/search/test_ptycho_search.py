"""`optimize("ptycho")` and the bundle of what it finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgexnas.bundle import Bundle, PtychoPreprocessing, generate_keys, open_bundle
from edgexnas.errors import ConfigurationError, QuantisationError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.synthetic_patterns import PatternSource, draw_objects
from edgexnas.host.exporting.bundle_export import export_bundle
from edgexnas.host.exporting.quantisation import run_onnx
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.search.evaluation import EvaluationContext, EvaluationRequest, evaluate
from edgexnas.host.search.optimization import SearchResult, optimize
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.ptycho import patch_errors
from edgexnas.simulate import PtychographySettings
from edgexnas.simulate.ptychography import zone_plate_probe

SPACE = SPACES["mlpPtycho"].narrow(units=(8, 64), layers=(1, 2), learning_rate=(1e-3, 3e-3))
QUICK: dict[str, Any] = {
    "space": SPACE, "search": "random", "evaluator": "serial", "max_evals": 2, "epochs": 2,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture
def search(tiny_patterns: PtychoDataset, tmp_path: Path) -> Callable[..., SearchResult]:
    def call(**changes: Any) -> SearchResult:
        arguments = {"data": tiny_patterns, "output": tmp_path / "run"} | QUICK | changes
        return optimize("ptycho", **arguments)

    return call


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder, name="beam")
    return folder


def test_a_search_teaches_deep_plain_convolutions_more_than_the_mean_patch() -> None:
    source = PatternSource(
        draw_objects(2, seed=5), zone_plate_probe(PtychographySettings()), intensity_scale=1000.0
    )
    parts = [tensor.numpy() for count in (400, 64) for tensor in source.draw(count)]
    layers = {"encoder_layers": 6, "decoder1_layers": 6, "decoder2_layers": 6}
    training = {"epochs": 6, "batch_size": 8, "learning_rate": 1e-2}
    request = EvaluationRequest(0, SPACES["cnnPtycho"], {"filters": 8} | layers | training, seed=1)
    result = evaluate(request, EvaluationContext(*parts, device="cpu", task="ptycho"))
    _, train_y, _, validation_y = parts
    mean = np.broadcast_to(train_y.mean(0), validation_y.shape)
    # Without normalisation 0.999 of it.
    assert result.metrics["error"] < 0.98 * patch_errors(mean, validation_y).phase_rad


@pytest.fixture(scope="module")
def network(tiny_patterns: PtychoDataset) -> CnnPtycho:
    torch.manual_seed(0)
    data = TrainingData.from_dataset(tiny_patterns, tiny_patterns.split(), "cpu")
    settings = TrainingSettings(epochs=2, batch_size=16, learning_rate=3e-3, device="cpu")
    model = train(CnnPtycho(4, 3, 1, 2), data, settings).model
    assert isinstance(model, CnnPtycho)
    return model


def export(
    path: Path, model: torch.nn.Module, patterns: PtychoDataset, keys: Path, **options: Any
) -> Bundle:
    report = export_bundle(
        path,
        model=model,
        dataset=patterns,
        split=patterns.split(),
        architecture="cnnPtycho",
        signing_key=keys / "beam.key.pem",
        **options,
    )
    return open_bundle(report.path, trust=keys)


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    network: CnnPtycho,
    tiny_patterns: PtychoDataset,
    keys: Path,
) -> Bundle:
    path = tmp_path_factory.mktemp("out") / "ptycho.edgex"
    return export(path, network, tiny_patterns, keys, fine_tune=None)


def test_a_search_minimises_the_phase_error_in_radians(
    search: Callable[..., SearchResult],
) -> None:
    result = search(objectives=("error", "amplitude_error", "parameters"))
    assert [o.label for o in result.objectives] == ["error (rad)", "amplitude_error", "parameters"]
    assert set(result.table()["status"]) == {"done"}
    assert 0 < result.best("error").metrics["error"] < np.pi


def test_a_run_is_exported_from_its_folder(
    search: Callable[..., SearchResult], keys: Path, tmp_path: Path
) -> None:
    search()
    result = SearchResult.load(tmp_path / "run")
    key = keys / "beam.key.pem"
    report = result.export(
        tmp_path / "found.edgex", signing_key=key, fine_tune=None, maximum_loss=1.0
    )
    assert report.manifest.task == "ptycho"
    assert report.manifest.provenance.trial == result.best("error").trial


def test_worker_processes_give_the_same_candidates_as_a_serial_search(
    search: Callable[..., SearchResult], tmp_path: Path
) -> None:
    serial = search(output=tmp_path / "serial", max_evals=1)
    parallel = search(evaluator="process", max_evals=1)
    errors = [result.candidates[0].metrics["error"] for result in (serial, parallel)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)


def test_both_spaces_are_searched_if_none_is_named(
    search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SPACES["cnnPtycho"].narrow(
        filters=2, encoder_layers=1, decoder1_layers=1, decoder2_layers=1
    )
    monkeypatch.setitem(SPACES, "mlpPtycho", SPACE)
    monkeypatch.setitem(SPACES, "cnnPtycho", small)
    result = search(space=None, epochs=1)
    assert result.table()["space"].tolist() == ["mlpPtycho", "cnnPtycho"]


def test_quantiles_are_not_offered(search: Callable[..., SearchResult], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="'quantile_loss' belongs to another task; specify"
    ):
        search(objectives=("error", "quantile_loss"))
    assert not (tmp_path / "run").exists()


def test_data_of_the_other_task_are_refused(
    search: Callable[..., SearchResult], tiny_peaks: PeakDataset
) -> None:
    with pytest.raises(ConfigurationError, match="data are for task 'bragg' and 'ptycho' is"):
        search(data=tiny_peaks)


def test_a_bundle_says_how_patterns_are_scaled(
    bundle: Bundle, tiny_patterns: PtychoDataset
) -> None:
    expected = PtychoPreprocessing(intensity_scale=tiny_patterns.intensity_scale)
    assert bundle.manifest.preprocessing == expected
    names = [tensor.name for tensor in (*bundle.manifest.inputs, *bundle.manifest.outputs)]
    assert names == ["patterns", "object"]


def test_the_reference_is_what_the_network_gives(bundle: Bundle, network: CnnPtycho) -> None:
    with torch.no_grad():
        output = network(torch.from_numpy(bundle.reference["input"].copy())).numpy()
    np.testing.assert_allclose(output, bundle.reference["output"], atol=1e-4)


def test_the_gate_lets_the_hosts_own_runs_pass_in_phase_and_amplitude(bundle: Bundle) -> None:
    gate = bundle.manifest.gate
    assert gate.unit == "rad"
    assert gate.amplitude is not None
    for precision, model in bundle.models.items():
        output = run_onnx(model, bundle.reference["input"])
        deviation = patch_errors(output, bundle.reference["output"])
        assert deviation.phase_rad < getattr(gate, precision)
        assert deviation.amplitude < getattr(gate.amplitude, precision)


def test_the_table_is_in_radians_beside_the_baselines(bundle: Bundle) -> None:
    rows = bundle.manifest.accuracy
    assert {row.precision for row in rows if row.name == "cnnPtycho"} == set(bundle.models)
    assert {"mean predictor", "ridge regression"} <= {row.name for row in rows}
    assert all(row.phase_mae_rad and row.amplitude_mae and row.against == "truth" for row in rows)


def test_the_last_layer_of_each_head_stays_float(bundle: Bundle, network: CnnPtycho) -> None:
    recipe = bundle.manifest.quantisation
    assert recipe is not None
    graph = onnx.load_from_string(bundle.models["float32"]).graph
    weights = {node.name: node.input[1] for node in graph.node if node.op_type == "Conv"}
    heads = {f"{name}.{len(getattr(network, name)) - 1}.weight" for name in ("amplitude", "phase")}
    assert heads <= {weights[name] for name in recipe.float_layers}
    assert "encoder.0.weight" in {weights[name] for name in recipe.quantised_layers}


def test_int8_that_loses_phase_is_refused_and_nothing_is_written(
    tiny_patterns: PtychoDataset, keys: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    data = TrainingData.from_dataset(tiny_patterns, tiny_patterns.split(), "cpu")
    settings = TrainingSettings(epochs=20, batch_size=16, learning_rate=3e-3, device="cpu")
    model = train(MlpPtycho(32, 3), data, settings).model
    first, second, _ = (m for m in model.hidden if isinstance(m, torch.nn.Linear))  # type: ignore[union-attr]
    with torch.no_grad():
        # A large constant that nobody reads, but that sets the INT8 scale.
        first.weight[0], first.bias[0], second.weight[:, 0] = 0, 5000, 0
    with pytest.raises(QuantisationError, match=r"of mean phase error .* rad .* 10% is allowed"):
        export(tmp_path / "bad.edgex", model, tiny_patterns, keys, fine_tune=None)
    assert list(tmp_path.iterdir()) == []
