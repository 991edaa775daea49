from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgexnas.errors import QuantisationError
from edgexnas.host.exporting import quantisation_aware
from edgexnas.host.exporting.equalisation import equalise
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise, run_onnx, weighted_layers
from edgexnas.host.exporting.quantisation_aware import activation_scales, fine_tune_for_int8
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_symmetric
from edgexnas.host.training.bragg_criterion import score_offsets
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

LEVELS = (0.05, 0.5, 0.95)
PATCH, PATTERN = (1, 11, 11), (1, 64, 64)


@pytest.fixture(scope="module")
def trained(gaussian_task: TrainingData) -> nn.Module:
    torch.manual_seed(0)
    return train(CnnBragg(6, 3), gaussian_task, TrainingSettings(epochs=25, batch_size=32)).model


def exported(model: nn.Module, task: TrainingData, *, half: bool = False) -> bytes:
    return to_onnx(model.eval(), task.train_x[:4], half=half)


def error_px(model: bytes, task: TrainingData) -> float:
    output = run_onnx(model, task.validation_x.numpy())
    return score_offsets(output, task.validation_y.numpy(), LEVELS)["error"]


@pytest.mark.parametrize("build", [lambda: MlpBragg(8, 2), lambda: CnnBragg(4, 4), BraggNN])
def test_the_exported_graph_computes_what_the_network_does(
    build: object, gaussian_task: TrainingData
) -> None:
    model = build().eval()  # type: ignore[operator]
    expected = model(gaussian_task.validation_x).detach().numpy()
    output = run_onnx(exported(model, gaussian_task), gaussian_task.validation_x.numpy())
    np.testing.assert_allclose(output, expected, atol=1e-4)


def test_the_batch_axis_is_free_and_named_n(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    proto = onnx.load_from_string(exported(trained, gaussian_task))
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    for count in (1, 33):
        assert len(run_onnx(proto.SerializeToString(), np.zeros((count, 1, 11, 11), np.float32)))


def test_the_graph_holds_no_file_names_of_the_machine_that_made_it(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    assert b".py" not in exported(trained, gaussian_task)


def test_float16_is_written_into_the_graph_and_outputs_stay_float32(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    proto = onnx.load_from_string(exported(trained, gaussian_task, half=True))
    weights = {t.data_type for t in proto.graph.initializer if t.dims and len(t.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_every_weighted_layer_but_the_last_is_int8(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    float32 = exported(trained, gaussian_task)
    names = [node.name for node in weighted_layers(onnx.load_from_string(float32))]
    int8 = quantise(float32, gaussian_task.train_x.numpy(), Recipe())
    assert int8.quantised == tuple(names[:-1])
    assert int8.left_float == (names[-1],)


def test_positions_stay_continuous_after_quantisation(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    int8 = quantise(exported(trained, gaussian_task), gaussian_task.train_x.numpy(), Recipe())
    output = run_onnx(int8.model, gaussian_task.validation_x.numpy())
    assert len(np.unique(output[:, :, 1])) > 400


def test_quantising_twice_gives_the_same_bytes(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    float32 = exported(trained, gaussian_task)
    once, twice = (quantise(float32, gaussian_task.train_x.numpy(), Recipe()) for _ in range(2))
    assert once.model == twice.model


def test_a_network_with_nothing_to_quantise_is_refused(gaussian_task: TrainingData) -> None:
    float32 = exported(MlpBragg(4, 1), gaussian_task)
    with pytest.raises(QuantisationError, match="2 stay float"):
        quantise(float32, gaussian_task.train_x.numpy(), Recipe(float_layers=2))


def test_calibration_without_contrast_is_refused(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    with pytest.raises(QuantisationError, match="contrast"):
        quantise(exported(trained, gaussian_task), np.zeros((8, 1, 11, 11), np.float32), Recipe())


def test_fine_tuning_recovers_most_of_what_int8_lost(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    items = gaussian_task.train_x
    float32 = exported(trained, gaussian_task)
    before = error_px(quantise(float32, items.numpy(), Recipe()).model, gaussian_task)
    tuned = fine_tune_for_int8(
        trained,
        gaussian_task,
        items,
        TrainingSettings(epochs=25, batch_size=32, learning_rate=3e-4),
    )
    after = error_px(
        quantise(exported(tuned.model, gaussian_task), items.numpy(), Recipe()).model, gaussian_task
    )
    assert after < before
    assert after < 1.15 * error_px(float32, gaussian_task)


def test_fine_tuning_leaves_the_float_network_as_it_was(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    tuned = fine_tune_for_int8(
        trained, gaussian_task, gaussian_task.train_x, TrainingSettings(epochs=1)
    )
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert tuned.model.state_dict().keys() == before.keys()


def test_weights_tuned_on_a_grid_that_is_too_narrow_do_as_well_without_it(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    float32 = error_px(exported(trained, gaussian_task), gaussian_task)
    # Activations of training data reach three times as far as those of the calibration data.
    tuned = fine_tune_for_int8(
        trained,
        gaussian_task,
        gaussian_task.train_x / 3,
        TrainingSettings(epochs=25, batch_size=32, learning_rate=1e-3),
    )
    assert error_px(exported(tuned.model, gaussian_task), gaussian_task) < 1.3 * float32


def test_fine_tuning_draws_in_activations_that_reach_far(
    trained: nn.Module, gaussian_task: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One patch in 128 is eight times as bright as all others, and so are its activations.
    items = gaussian_task.train_x.clone()
    items[::128] *= 8
    task = replace(gaussian_task, train_x=items)
    settings = TrainingSettings(epochs=60, batch_size=32, learning_rate=1e-3)

    def ranges(model: nn.Module) -> np.ndarray:
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        # The input is what it is, and the last layer, in float, may read what it likes.
        return np.array(activation_scales(model.eval(), layers, items))[1:-1]

    drawn_in = fine_tune_for_int8(trained, task, items, settings).model
    monkeypatch.setattr(quantisation_aware, "PULL", 0.0)
    left = fine_tune_for_int8(trained, task, items, settings).model
    assert (ranges(drawn_in) < 0.8 * ranges(left)).all()


def test_weights_come_out_of_fine_tuning_on_their_grid(
    trained: nn.Module, gaussian_task: TrainingData
) -> None:
    settings = TrainingSettings(epochs=1, batch_size=32, learning_rate=1e-3)
    tuned = fine_tune_for_int8(trained, gaussian_task, gaussian_task.train_x, settings).model
    layers = [m for m in tuned.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers):
        steps = (
            127
            * layer.weight
            / layer.weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (layer.weight.ndim - 1))
        )
        on_grid = torch.allclose(steps, steps.round(), atol=1e-3)
        # The last one stays float.
        assert on_grid == (number < len(layers) - 1)


def test_the_gradient_of_a_rounding_that_draws_in_is_that_of_its_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(5, 4, generator=generator)).requires_grad_()
    weights, scale, pull = torch.randn(5, 4, generator=generator), 0.01, 0.7
    rounded = quantisation_aware._DrawnIn.apply(x, scale, pull)
    assert torch.allclose(rounded, x, atol=scale / 2 + 1e-6)
    assert torch.allclose(rounded / scale, (rounded / scale).round(), atol=1e-3)
    (found,) = torch.autograd.grad((rounded * weights).sum(), x)
    reach = 127 * scale
    beyond = (x.abs() - reach).clamp(min=0) / reach
    penalty = 0.5 * pull * (beyond**2).sum() / len(x)
    (expected,) = torch.autograd.grad((x * weights).sum() + penalty, x)
    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def two_heads() -> tuple[CnnPtycho, TrainingData]:
    """A network for ptychography whose encoder and heads have two layers each, and random data."""
    torch.manual_seed(0)
    patterns, patches = torch.rand(8, 1, 64, 64), torch.rand(8, 2, 64, 64)
    return CnnPtycho(2, 2, 1, 1), TrainingData(patterns, patches, patterns, patches, "ptycho")


@pytest.mark.parametrize(
    ("float_layers", "left"),
    [(1, {"amplitude.5", "phase.5"}), (2, {"amplitude.0", "amplitude.5", "phase.0", "phase.5"})],
)
def test_the_last_layers_of_each_head_stay_float(
    two_heads: tuple[CnnPtycho, TrainingData], float_layers: int, left: set[str]
) -> None:
    model, data = two_heads
    proto = to_onnx(model.eval(), data.train_x[:4], input_name="patterns", output_name="object")
    result = quantise(proto, data.train_x.numpy(), Recipe(float_layers=float_layers))
    graph = onnx.load_from_string(proto).graph
    weights = {node.name: node.input[1] for node in graph.node if node.op_type == "Conv"}
    assert {weights[name].removesuffix(".weight") for name in result.left_float} == left
    assert len(result.quantised) == 6 - len(left)


def test_fine_tuning_rounds_the_layers_that_the_graph_will_have_in_int8(
    two_heads: tuple[CnnPtycho, TrainingData], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = two_heads
    rounded: list[set[str]] = []

    def watch(model: nn.Module, *rest: object) -> None:
        names = {name.split(".parametrizations")[0] for name, _ in model.named_parameters()
                 if ".parametrizations" in name}  # fmt: skip
        rounded.append(names)

    monkeypatch.setattr("edgexnas.host.exporting.quantisation_aware.train", watch)
    fine_tune_for_int8(model, data, data.train_x, TrainingSettings(epochs=1, device="cpu"))
    assert rounded == [{"encoder.0", "encoder.3", "amplitude.0", "phase.0"}]


# Layers in float, and equalised channels

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "mlpBragg": (lambda: MlpBragg(8, 3), PATCH, {"hidden.1"}),
    "one hidden layer": (lambda: MlpBragg(8, 1), PATCH, {"hidden.1"}),
    # The centroid is a head and a first layer at once.
    "mlpBraggSymmetric": (
        lambda: mlp_bragg_symmetric(8, 3), PATCH, {"network.hidden.0", "centroid.moments"},
    ),
    "cnnBragg": (lambda: CnnBragg(4, 9), PATCH, {"features.0"}),
    "BraggNN": (BraggNN, PATCH, {"features.0"}),
    "mlpPtycho": (lambda: MlpPtycho(8, 2), PATTERN, {"hidden.1"}),
    "cnnPtycho": (lambda: CnnPtycho(4, 3, 2, 2), PATTERN, {"encoder.0"}),
}  # fmt: skip


@cache
def random_network(name: str) -> tuple[bytes, np.ndarray]:
    """A network with random weights and biases, as ONNX, and random inputs."""
    torch.manual_seed(0)
    build, shape, _ = NETWORKS[name]
    model, items = build().eval(), torch.rand(16, *shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(std=0.1)
    return to_onnx(model, items), items.numpy()


@pytest.mark.parametrize("name", sorted({*NETWORKS} - {"one hidden layer"}))
def test_a_float_first_layer_reads_the_input_as_it_is(name: str) -> None:
    float32, items = random_network(name)
    plain, kept = (quantise(float32, items, Recipe(float_first=first)) for first in (False, True))
    weights = {n.name: n.input[1] for n in onnx.load_from_string(float32).graph.node if n.input[1:]}
    left = {weights[node].removesuffix(".weight") for node in kept.left_float}
    assert left >= NETWORKS[name][2]
    assert set(plain.quantised) - set(kept.quantised) == set(kept.left_float) - {*plain.left_float}
    graph = onnx.load_from_string(kept.model).graph
    rounding = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert graph.input[0].name not in rounding


@pytest.mark.parametrize("name", NETWORKS)
def test_equalised_channels_compute_the_same(name: str) -> None:
    float32, items = random_network(name)
    equalised = equalise(float32, items)
    expected = run_onnx(float32, items)
    np.testing.assert_allclose(run_onnx(equalised, items), expected, atol=1e-5, rtol=1e-5)


@given(factors=st.lists(st.floats(1e-3, 1e3), min_size=8, max_size=8))
def test_a_channels_range_becomes_that_of_the_weights_that_read_it(factors: list[float]) -> None:
    float32, items = random_network("one hidden layer")
    proto, scale = onnx.load_from_string(float32), np.array(factors, np.float32)
    first, second = weighted_layers(proto)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, by in (
        (first.input[1], scale[:, None]), (first.input[2], scale), (second.input[1], 1 / scale),
    ):  # fmt: skip
        array = onnx.numpy_helper.to_array(stored[name]) * by
        stored[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    graph = onnx.load_from_string(equalise(proto.SerializeToString(), items)).graph
    weight, bias, reading = (
        onnx.numpy_helper.to_array(next(t for t in graph.initializer if t.name == name))
        for name in (first.input[1], first.input[2], second.input[1])
    )
    ranges = np.maximum(items.reshape(len(items), -1) @ weight.T + bias, 0).max(0)
    alive = ranges > 0
    assert alive.any()
    np.testing.assert_allclose(ranges[alive], abs(reading).max(0)[alive], rtol=1e-3)


def test_fine_tuning_leaves_a_float_first_layer_unrounded(
    two_heads: tuple[CnnPtycho, TrainingData], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = two_heads
    rounded: list[set[str]] = []
    monkeypatch.setattr(
        "edgexnas.host.exporting.quantisation_aware.train",
        lambda model, *_: rounded.append(
            {n.split(".parametrizations")[0] for n, _ in model.named_parameters()
             if ".parametrizations" in n}
        ),
    )  # fmt: skip
    fine_tune_for_int8(
        model, data, data.train_x, TrainingSettings(epochs=1, device="cpu"), float_first=True
    )
    assert rounded == [{"encoder.3", "amplitude.0", "phase.0"}]


def test_attention_stays_float_where_a_recipe_says_so() -> None:
    float32, items = random_network("BraggNN")
    graph = onnx.load_from_string(float32).graph
    weights = {node.name: node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    kept = quantise(float32, items, Recipe(float_attention=True))
    assert {weights[name].removesuffix(".weight") for name in kept.left_float} == {
        "features.0", "features.1.theta", "features.1.phi", "features.1.g", "features.1.out",
        "head.linear",
    }  # fmt: skip
    convolutions = quantise(float32, items, Recipe(float_attention=True, float_dense=True))
    assert [weights[n] for n in convolutions.quantised] == [
        "features.3.weight",
        "features.5.weight",
    ]


def test_a_network_without_attention_loses_nothing_to_a_recipe_that_leaves_it_float() -> None:
    float32, items = random_network("cnnBragg")
    plain, kept = (
        quantise(float32, items, Recipe(float_attention=attention)) for attention in (False, True)
    )
    assert plain.model == kept.model


def test_what_is_resized_is_rounded_before_and_behind() -> None:
    float32, items = random_network("cnnPtycho")
    plain, both = (quantise(float32, items, Recipe(int8_resize=yes)) for yes in (False, True))
    graph = onnx.load_from_string(both.model).graph
    producer = {name: node for node in graph.node for name in node.output}
    before = [producer[n.input[0]].op_type for n in graph.node if n.op_type == "Resize"]
    # Of three doublings in each decoder one is before an INT8 layer, one before a doubling, and one
    # before the head.
    assert before.count("DequantizeLinear") == 2
    onnx.checker.check_model(onnx.load_from_string(both.model), full_check=True)
    outputs = [run_onnx(made.model, items) for made in (plain, both)]
    assert 0 < abs(outputs[0] - outputs[1]).max() < 0.2
