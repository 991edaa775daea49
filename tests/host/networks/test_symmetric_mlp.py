"""The network that is given the symmetry of a patch and its centroid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgexnas.bundle import generate_keys, open_bundle
from edgexnas.errors import ConfigurationError
from edgexnas.host import SPACES, PeakDataset, optimize
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise, run_onnx
from edgexnas.host.networks.bragg_models import CnnBragg, count_macs, count_parameters
from edgexnas.host.networks.symmetric_mlp import (
    Centroid,
    FromCentroid,
    MirroredMlp,
    SymmetricMlp,
    mlp_bragg_mirrored,
    mlp_bragg_symmetric,
)
from edgexnas.host.search.result import SearchResult
from edgexnas.host.training.bragg_criterion import symmetry
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings


def gaussians(offsets: torch.Tensor, sigma: float = 1.2) -> torch.Tensor:
    """Patches (n, 1, 11, 11) of peaks at offsets (n, 2) from the centre, scaled to [0, 1]."""
    along = torch.arange(11.0) - 5
    profiles = torch.exp(-((along - offsets[:, :, None]) ** 2) / (2 * sigma**2))
    patches = profiles[:, 0, :, None] * profiles[:, 1, None, :]
    return (patches / patches.amax(dim=(1, 2), keepdim=True)).unsqueeze(1)


def test_the_centroid_lies_near_a_peak_and_moves_with_it() -> None:
    offsets = torch.rand(50, 2) - 0.5
    centroids = Centroid()(gaussians(offsets))[:, :, 0]
    assert (centroids - offsets).norm(dim=1).max() < 0.06


@pytest.mark.parametrize("fold", range(8))
def test_the_centroid_turns_with_the_patch(fold: int) -> None:
    patches, centroid = torch.rand(5, 1, 11, 11), Centroid()
    turned, expected = symmetry(patches, centroid(patches)[:, :, 0], fold)
    torch.testing.assert_close(centroid(turned)[:, :, 0], expected)


def test_the_centroid_sees_the_inner_pixels_alone_and_is_0_where_they_are_dark() -> None:
    patches = torch.ones(1, 1, 11, 11)
    patches[:, :, 3:8, 3:8] = 0
    assert Centroid()(patches).abs().max() == 0


def test_transposing_a_patch_swaps_row_and_column_of_every_quantile() -> None:
    model, patches = mlp_bragg_symmetric(8, 2), torch.rand(6, 1, 11, 11)
    torch.testing.assert_close(model(patches.transpose(2, 3)), model(patches).flip(1))


@pytest.mark.parametrize("fold", range(8))
def test_the_position_of_a_mirrored_patch_is_the_mirrored_position(fold: int) -> None:
    model, patches = mlp_bragg_mirrored(8, 2), torch.rand(6, 1, 11, 11)
    turned, expected = symmetry(patches, model(patches)[:, :, 1], fold)
    torch.testing.assert_close(model(turned)[:, :, 1], expected)


def test_a_mirror_image_swaps_the_outer_quantiles() -> None:
    model, patches = mlp_bragg_mirrored(8, 2), torch.rand(6, 1, 11, 11)
    here, mirrored = model(patches), model(patches.flip(2))
    torch.testing.assert_close(mirrored[:, 0], -here[:, 0].flip(1))
    torch.testing.assert_close(mirrored[:, 1], here[:, 1])
    assert (here.diff(dim=2) > 0).all()


def test_levels_that_a_mirror_image_would_change_are_rejected() -> None:
    MirroredMlp(4, 1, levels=(0.1, 0.3, 0.5, 0.7, 0.9))
    with pytest.raises(ConfigurationError, match=r"\(0\.1, 0\.5, 0\.95\)"):
        MirroredMlp(4, 1, levels=(0.1, 0.5, 0.95))


def test_a_mirrored_network_has_the_weights_of_a_symmetric_one_and_eight_images() -> None:
    weights = 121 * 26 + 26 * 26 + 26 * 3
    model = mlp_bragg_mirrored(26, 2)
    assert count_parameters(model) == weights + 2 * 26 + 3 == 3955
    assert count_macs(model) == 8 * weights + 3 * 25


@pytest.mark.parametrize("build", [mlp_bragg_symmetric, mlp_bragg_mirrored])
def test_a_patch_keeps_its_answer_whatever_else_is_in_the_batch(
    build: Callable[[int, int], FromCentroid],
) -> None:
    model, patches = build(8, 2), torch.rand(6, 1, 11, 11)
    torch.testing.assert_close(model(patches)[2:3], model(patches[2:3]))


def test_weights_count_once_and_multiplications_for_both_coordinates() -> None:
    model = mlp_bragg_symmetric(23, 3)
    weights = 121 * 23 + 2 * 23 * 23 + 23 * 3
    assert count_parameters(model) == weights + 3 * 23 + 3 == 3982
    assert count_macs(model) == 2 * weights + 3 * 25


def test_it_learns_gaussian_peaks_better_than_their_centroid_says() -> None:
    offsets = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    patches = gaussians(offsets)
    data = TrainingData(patches[:300], offsets[:300], patches[300:], offsets[300:])
    settings = TrainingSettings(epochs=40, batch_size=32, learning_rate=1e-2, device="cpu")
    torch.manual_seed(0)
    error = train(mlp_bragg_symmetric(8, 1), data, settings).metrics["error"]
    centroids = Centroid()(patches[300:])[:, :, 0]
    assert error < 0.5 * (centroids - offsets[300:]).norm(dim=1).mean()


@pytest.mark.parametrize(
    "network",
    [lambda: SymmetricMlp(8, 2), lambda: MirroredMlp(8, 2), lambda: CnnBragg(4, 3)],
    ids=["SymmetricMlp", "MirroredMlp", "cnnBragg"],
)
def test_the_centroid_is_as_exact_in_int8_as_in_float32_and_nearly_so_in_float16(
    network: type[torch.nn.Module],
) -> None:
    model = FromCentroid(network()).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
    patches = gaussians(torch.rand(16, 2) - 0.5)
    exported = to_onnx(model, patches)
    expected = model(patches).detach().numpy()
    int8 = quantise(exported, patches.numpy(), Recipe()).model
    assert abs(run_onnx(int8, patches.numpy()) - expected).max() < 1e-6
    half = to_onnx(model, patches, half=True)
    assert abs(run_onnx(half, patches.numpy()) - expected).max() < 2e-3


@pytest.mark.parametrize("name", ["mlpBraggSymmetric", "mlpBraggMirrored"])
def test_a_search_of_the_space_goes_on_and_its_best_network_becomes_a_bundle(
    simulated_peaks: PeakDataset, tmp_path: Path, name: str
) -> None:
    space = SPACES[name].narrow(units=(4, 12), layers=2, epochs=(2, 4))

    def search(evaluations: int) -> SearchResult:
        return optimize(
            "bragg", data=simulated_peaks, space=space, max_evals=evaluations, search="random",
            output=tmp_path / "run", resume=True, progress=False,
        )  # fmt: skip

    first = search(2)
    result = search(3)
    assert len(result.trials) == 3
    assert [t.metrics for t in result.trials[:2]] == [t.metrics for t in first.trials]
    key, _ = generate_keys(tmp_path)
    path = result.export(
        tmp_path / "bragg.edgex", signing_key=key, maximum_loss=100.0, fine_tune=None
    ).path
    bundle = open_bundle(path, trust=tmp_path)
    output = run_onnx(bundle.models["float32"], bundle.reference["input"])
    assert abs(output - bundle.reference["output"]).max() < 1e-5
    assert bundle.manifest.architecture == name
