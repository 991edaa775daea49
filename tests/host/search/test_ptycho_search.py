"""`optimize("ptycho")` and the bundle of what it finds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
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
from edgexnas.host.data.synthetic_patterns import Drawing, PatternSource, draw_objects
from edgexnas.host.exporting.bundle_export import export_bundle
from edgexnas.host.exporting.quantisation import run_onnx
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.search.evaluation import (
    EvaluationContext,
    EvaluationRequest,
    evaluate,
    evaluation_context,
)
from edgexnas.host.search.optimization import SearchResult, optimize
from edgexnas.host.training.loop import _Rounds, train
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


def test_the_space_of_few_multiplications_is_searched_if_none_is_named(
    search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SPACES["ptychoUnet"].narrow(
        width1=16, width2=16, width3=32, blocks=1, stride=4, epochs=16, batch_size=64
    )
    monkeypatch.setitem(SPACES, "ptychoUnet", small)
    result = search(space=None, epochs=None, objectives=("error", "parameters", "macs"))
    assert result.table()["space"].tolist() == ["ptychoUnet", "ptychoUnet"]
    assert (result.table()["macs"] > 0).all()


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


@pytest.fixture(scope="module")
def drawn_patterns(tiny_patterns: PtychoDataset) -> PtychoDataset:
    """The tiny dataset with the probe that its patterns were made with."""
    row, col = np.mgrid[-32:32, -32:32]
    probe = np.exp(-(row**2 + col**2) / 600 + 0.01j * (row**2 + 0.5 * col**2))
    return replace(tiny_patterns, probe=(np.sqrt(1000) * probe[None]).astype(np.complex64))


def drawing_context(dataset: PtychoDataset) -> EvaluationContext:
    """Draw patterns of 4 objects: 64 take seconds."""
    context = evaluation_context(dataset, dataset.split(), device="cpu")
    return replace(context, object_count=4)


def test_a_search_draws_its_patterns_anew_where_labels_hold_a_probe(
    drawn_patterns: PtychoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = PatternSource.draw

    def counted(source: PatternSource, count: int) -> Any:
        drawn.append(count)
        return draw(source, count)

    monkeypatch.setattr(PatternSource, "draw", counted)
    context = drawing_context(drawn_patterns)
    assert context.drawing is not None
    training = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3}
    request = EvaluationRequest(0, SPACE, {"units": 8, "layers": 1} | training, seed=1)
    result = evaluate(request, context)
    assert not result.reason
    # What the networks' constants are fitted to, 1,024 patterns, and 32 steps of an epoch of 2,048.
    assert drawn == 16 * [64] + 32 * [64]
    # Drawn once: with a large probe that takes longer than a short training has.
    assert not evaluate(replace(request, trial=1, seed=2), context).reason
    assert drawn == 16 * [64] + 2 * 32 * [64]


def test_equal_seeds_draw_alike_whatever_was_drawn_before(drawn_patterns: PtychoDataset) -> None:
    training = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3}
    requests = [
        EvaluationRequest(0, SPACE, {"units": 8, "layers": 1} | training, seed=seed)
        for seed in (1, 2, 1)
    ]
    context = drawing_context(drawn_patterns)
    first, other, again = (evaluate(request, context).metrics["error"] for request in requests)
    assert first == again != other


def test_labels_without_a_probe_train_on_their_own_patterns(tiny_patterns: PtychoDataset) -> None:
    assert evaluation_context(tiny_patterns, tiny_patterns.split(), device="cpu").drawing is None


def test_what_is_drawn_from_travels_to_workers_and_simulates_the_labels_contrast(
    drawn_patterns: PtychoDataset,
) -> None:
    split = drawn_patterns.split()
    drawing = pickle.loads(pickle.dumps(Drawing.of(drawn_patterns, split.train)))
    assert drawing is not None
    x, y = drawing.source(objects=4, seed=3).draw(64)
    measured = drawn_patterns.inputs()[split.train]
    assert float(x.mean()) == pytest.approx(measured.mean(), rel=0.2)
    phase = drawn_patterns.targets[split.train, 1]
    spread = np.ptp(np.percentile(phase, (1, 99)))
    assert -drawing.variety.phase_shift_rad[0] == pytest.approx(spread, rel=1e-5)
    assert y.shape == (64, 2, 64, 64)


def test_a_limit_of_time_ends_the_schedule_of_drawn_patterns_and_not_of_others() -> None:
    class TenThousandSteps:
        steps = 10_000

    settings = TrainingSettings(epochs=1, learning_rate=1.0, time_limit_s=10.0)
    rates = {}
    for drawn in (True, False):
        now = iter([0.0, 5.0, 10.0])
        rounds = _Rounds(TenThousandSteps(), settings, lambda now=now: next(now), drawn=drawn)  # type: ignore[arg-type]
        rates[drawn] = [rounds._rate(), rounds._rate()]
    assert rates[True] == pytest.approx([0.5, 0.0], abs=0.05)
    # Steps alone: still in the warm-up.
    assert max(rates[False]) < 0.01


def test_a_training_on_drawn_patterns_ends_with_its_time_within_an_epoch(
    drawn_patterns: PtychoDataset,
) -> None:
    context = evaluation_context(drawn_patterns, drawn_patterns.split(), device="cpu")
    training = {"epochs": 1000, "batch_size": 8, "learning_rate": 1e-3}
    request = EvaluationRequest(
        0, SPACE, {"units": 8, "layers": 1} | training, seed=1, time_limit_s=1e-3
    )
    result = evaluate(request, context)
    assert result.metrics["epochs"] == 1


def test_the_bundle_carries_probe_and_orientation(
    drawn_patterns: PtychoDataset, network: CnnPtycho, keys: Path, tmp_path: Path
) -> None:
    turned = replace(drawn_patterns, orientation="transpose", object_pixel_m=(1e-8, 1e-8))
    export(tmp_path / "b.edgex", network, turned, keys, maximum_loss=10.0)
    bundle = open_bundle(tmp_path / "b.edgex", trust=keys)
    assert bundle.probe is not None
    np.testing.assert_array_equal(bundle.probe, turned.probe)
    record = bundle.manifest.probe
    assert record is not None
    assert (record.orientation, record.pixel_m) == ("transpose", (1e-8, 1e-8))
    assert bundle.manifest.requires_edgexnas == "0.3.0"
