from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import edgexnas
from edgexnas.bundle import Bundle, generate_keys, open_bundle
from edgexnas.errors import ConfigurationError, QuantisationError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.exporting.bundle_export import ExportReport, Origin, export_bundle
from edgexnas.host.exporting.bundling import make_bundling
from edgexnas.host.exporting.exporter import Exporter
from edgexnas.host.exporting.quantisation import Recipe, quantise, run_onnx
from edgexnas.host.networks.bragg_models import LEVELS, MlpBragg
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings


@pytest.fixture(scope="module")
def network(simulated_peaks: PeakDataset) -> MlpBragg:
    torch.manual_seed(0)
    data = TrainingData.from_dataset(simulated_peaks, simulated_peaks.split(), "cpu")
    model = MlpBragg(24, 3)
    train(model, data, TrainingSettings(epochs=40, batch_size=16, learning_rate=3e-3))
    return model


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder, name="beam")
    return folder


def export(
    folder: Path, model: torch.nn.Module, peaks: PeakDataset, keys: Path, **options: object
) -> ExportReport:
    return export_bundle(
        folder / "bragg.edgex",
        model=model,
        dataset=peaks,
        split=peaks.split(),
        signing_key=keys / "beam.key.pem",
        **{
            "architecture": "mlpBragg",
            "origin": Origin(seed=7, search="cbo", trial=3),
            **options,
        },  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    network: MlpBragg,
    simulated_peaks: PeakDataset,
    keys: Path,
) -> Bundle:
    report = export(tmp_path_factory.mktemp("out"), network, simulated_peaks, keys)
    return open_bundle(report.path, trust=keys)


def hostile_to_int8(model: MlpBragg) -> MlpBragg:
    """One hidden unit becomes a large constant that nobody reads, but that sets the INT8 scale."""
    hostile = MlpBragg(24, 3)
    hostile.load_state_dict(model.state_dict())
    first, second, _ = (m for m in hostile.hidden if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        first.weight[0], first.bias[0], second.weight[:, 0] = 0, 500, 0
    return hostile


def test_an_exported_bundle_is_opened_by_the_public_key(bundle: Bundle) -> None:
    assert set(bundle.models) == {"float32", "float16", "int8"}
    assert bundle.manifest.architecture == "mlpBragg"


def test_the_reference_is_what_the_float32_model_gives(bundle: Bundle) -> None:
    output = run_onnx(bundle.models["float32"], bundle.reference["input"])
    np.testing.assert_allclose(output, bundle.reference["output"], atol=1e-6)


def test_the_gate_lets_the_hosts_own_runs_pass(bundle: Bundle) -> None:
    for precision, model in bundle.models.items():
        deviation = run_onnx(model, bundle.reference["input"]) - bundle.reference["output"]
        assert np.linalg.norm(deviation, axis=1).mean() < getattr(bundle.manifest.gate, precision)


def test_the_table_holds_the_rows_that_no_network_may_lose_to_unnoticed(bundle: Bundle) -> None:
    names = [row.name for row in bundle.manifest.accuracy]
    assert {"constant", "intensity centroid", "pseudo-Voigt fit"} <= set(names)
    assert {row.against for row in bundle.manifest.accuracy} == {"truth"}
    assert len({row.n for row in bundle.manifest.accuracy}) == 1


def test_int8_is_scored_against_float32_on_held_out_peaks(bundle: Bundle) -> None:
    rows = {row.precision: row.mean_px for row in bundle.manifest.accuracy if row.precision}
    assert bundle.manifest.quantisation is not None
    expected = rows["int8"] / rows["float32"] - 1
    assert bundle.manifest.quantisation.loss_fraction == pytest.approx(expected)


def test_detection_begins_with_the_settings_of_the_labels(
    bundle: Bundle, simulated_peaks: PeakDataset
) -> None:
    finder, said = simulated_peaks.finder, bundle.manifest.detection
    assert said is not None
    assert (said.saturation, said.minimum_counts) == (finder.saturation, finder.minimum_counts)
    assert said.threshold_sigma == finder.noise_sigmas


def test_the_manifest_says_where_the_model_comes_from(
    bundle: Bundle, simulated_peaks: PeakDataset
) -> None:
    provenance = bundle.manifest.provenance
    assert (provenance.seed, provenance.search, provenance.trial) == (7, "cbo", 3)
    assert provenance.data_digest == simulated_peaks.digest
    assert provenance.versions["torch"] == torch.__version__


def test_a_source_tree_that_is_not_installed_says_its_version(
    network: MlpBragg,
    simulated_peaks: PeakDataset,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_metadata(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", no_metadata)
    report = export(tmp_path, network, simulated_peaks, keys)
    assert report.manifest.provenance.versions == {
        "python": platform.python_version(), "edgexnas": edgexnas.__version__,
    }  # fmt: skip


def test_a_model_is_named_by_its_architecture_where_that_is_no_plain_name(
    network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path
) -> None:
    report = export(tmp_path, network, simulated_peaks, keys, architecture="my (µ)\n net")
    assert report.manifest.model_id == "my-net"
    assert report.manifest.architecture == r"my (µ)\n net"
    assert open_bundle(report.path, trust=keys).manifest == report.manifest


@pytest.mark.parametrize("name", ["", "a b", "-a", "é", "a" * 101])
def test_a_model_id_that_is_no_plain_name_is_refused_before_any_work(
    network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"model_id '.*' is not a valid name"):
        export(tmp_path, network, simulated_peaks, keys, model_id=name)


def test_what_a_manifest_cannot_hold_is_a_sentence(
    network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be described: sequence"):
        export(tmp_path, network, simulated_peaks, keys, sequence=-1)
    assert list(tmp_path.iterdir()) == []


def test_int8_that_loses_too_much_is_refused_and_nothing_is_written(
    network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuantisationError, match=r"INT8 loses .* and 10% is allowed"):
        export(tmp_path, hostile_to_int8(network), simulated_peaks, keys, fine_tune=None)
    assert list(tmp_path.iterdir()) == []


class Lamp(torch.nn.Module):
    """Brightens a pixel that the network does not look at, which sets the INT8 scale of patches."""

    def __init__(self, network: MlpBragg) -> None:
        super().__init__()
        self.network = MlpBragg(24, 3)
        self.network.load_state_dict(network.state_dict())
        with torch.no_grad():
            self.network.hidden[1].weight[:, 0] = 0  # type: ignore[index,operator]
        lamp = torch.zeros(1, 1, 11, 11)
        lamp[0, 0, 0, 0] = 100.0
        self.register_buffer("lamp", lamp)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        offsets: torch.Tensor = self.network(patches + self.lamp)
        return offsets


def test_a_network_that_rounded_patches_would_spoil_keeps_its_first_layer_in_float_and_says_so(
    network: MlpBragg,
    simulated_peaks: PeakDataset,
    keys: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    report = export(tmp_path, Lamp(network), simulated_peaks, keys, fine_tune=None)
    assert report.int8_loss < 0.1
    recipe, made = report.manifest.quantisation_recipe, report.manifest.quantisation
    assert recipe is not None
    assert recipe.float_first_layer
    # The first and the last of four layers.
    assert made is not None
    assert len(made.float_layers) >= 2
    assert "the first layer stays in float" in caplog.text


def test_what_int8_adds_is_negligible_below_a_tenth_of_what_noise_leaves_of_the_fits(
    simulated_peaks: PeakDataset, network: MlpBragg
) -> None:
    split = simulated_peaks.split()
    exporter = Exporter(simulated_peaks, split, make_bundling("bragg", LEVELS))
    made = quantise(exporter.to_onnx(network), exporter.calibration, Recipe())
    truth = np.repeat(exporter.y[split.test][:, :, None], 3, axis=2)

    def off_by(distance_px: float) -> np.ndarray:
        return truth + np.float32([[distance_px], [0]])

    outputs = {"float32": off_by(0.001), "int8": off_by(0.0035)}
    assert exporter.int8_loss(outputs, 0.1, made) == pytest.approx(2.5, rel=0.01)
    outputs["int8"] = off_by(0.0045)
    with pytest.raises(QuantisationError, match=r"0\.0045 px against 0\.0010 px"):
        exporter.int8_loss(outputs, 0.1, made)


def test_the_manifest_says_that_every_layer_but_the_last_is_int8(bundle: Bundle) -> None:
    recipe = bundle.manifest.quantisation_recipe
    assert recipe is not None
    assert (recipe.float_first_layer, recipe.float_last_layer) == (False, True)


def test_a_signing_key_that_does_not_fit_is_refused_before_any_work(
    network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"beam\.pub\.pem"):
        export_bundle(
            tmp_path / "bragg.edgex",
            model=network,
            dataset=simulated_peaks,
            split=simulated_peaks.split(),
            architecture="mlpBragg",
            signing_key=keys / "beam.pub.pem",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_refused(
    network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        export(tmp_path / "missing", network, simulated_peaks, keys)


def test_sequence_rises_with_every_export_by_itself(
    bundle: Bundle, network: MlpBragg, simulated_peaks: PeakDataset, keys: Path, tmp_path: Path
) -> None:
    later = export(tmp_path, network, simulated_peaks, keys).manifest
    assert later.sequence >= bundle.manifest.sequence
    assert export(tmp_path, network, simulated_peaks, keys, sequence=5).manifest.sequence == 5
