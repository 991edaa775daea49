"""Search spaces: their ranges, their points, and how users make their own."""

from __future__ import annotations

import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.bragg_models import count_macs, count_parameters
from edgexnas.host.networks.spaces import (
    INPUT_SHAPES,
    SPACES,
    TRAINING,
    Choice,
    Configuration,
    Integer,
    ModelSize,
    Real,
    SearchSpace,
    resolve_space,
)

OUTPUT_SHAPES = {"bragg": (2, 2, 3), "ptycho": (2, 2, 64, 64)}
MLP = SPACES["mlpBragg"]
UNIT = st.floats(0, 1, exclude_max=True)


def check_builds(space: SearchSpace, configuration: Configuration) -> None:
    with torch.device("meta"):
        model = space.build(configuration)
        output = model.eval()(torch.empty(2, *INPUT_SHAPES[space.task]))
    assert output.shape == OUTPUT_SHAPES[space.task]
    counted = ModelSize(count_parameters(model), count_macs(model, INPUT_SHAPES[space.task]))
    assert space.size(configuration) == counted


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("mlpBragg", {"units": (1, 1000), "layers": (1, 10)}),
        ("mlpPtycho", {"units": (1, 1000), "layers": (1, 10)}),
        ("cnnBragg", {"filters": (1, 256), "layers": (1, 128)}),
        (
            "cnnPtycho",
            {
                "filters": (1, 256),
                "encoder_layers": (1, 128),
                "decoder1_layers": (1, 128),
                "decoder2_layers": (1, 128),
            },
        ),
    ],
)
def test_ranges_are_those_of_table_1(name: str, ranges: dict[str, tuple[int, int]]) -> None:
    space = SPACES[name]
    own = [p for p in space.hyperparameters if p not in TRAINING]
    assert {p.name: (p.low, p.high) for p in own} == ranges
    assert (space["epochs"].low, space["epochs"].high) == (1, 1000)
    assert space["batch_size"].values == (8, 16, 32, 64)
    assert (space["learning_rate"].low, space["learning_rate"].high) == (0.001, 1.0)


@pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)
@pytest.mark.parametrize("corner", [0.0, 0.999999])
def test_the_corners_of_every_space_build_and_their_sizes_are_known(
    space: SearchSpace, corner: float
) -> None:
    check_builds(space, {p.name: p.from_unit(corner) for p in space.hyperparameters})


@pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_point_of_every_space_builds_and_its_size_is_known(
    space: SearchSpace, data: st.DataObject
) -> None:
    check_builds(space, {p.name: p.from_unit(data.draw(UNIT)) for p in space.hyperparameters})


@pytest.mark.parametrize(
    ("units", "layers", "parameters"), [(50, 1, 6202), (50, 5, 16402)], ids=["6202", "16402"]
)
def test_the_papers_mlps_have_the_papers_sizes_beside_the_outer_quantiles(
    units: int, layers: int, parameters: int
) -> None:
    size = MLP.size(MLP.smallest | {"units": units, "layers": layers})
    assert size.parameters - 4 * (units + 1) == parameters


@given(u=UNIT, low=st.integers(1, 50), span=st.integers(0, 1000), log=st.booleans())
def test_the_unit_interval_covers_integers_and_comes_back(
    u: float, low: int, span: int, log: bool
) -> None:
    parameter = Integer("n", low, low + span, "log-uniform" if log else "uniform")
    value = parameter.validate(parameter.from_unit(u))
    assert parameter.from_unit(parameter.to_unit(value)) == value
    assert parameter.from_unit(0) == low
    assert parameter.from_unit(1) == low + span


@given(u=UNIT)
def test_the_unit_interval_covers_numbers_and_comes_back(u: float) -> None:
    parameter = Real("rate", 1e-3, 1.0, "log-uniform")
    assert parameter.to_unit(parameter.from_unit(u)) == pytest.approx(u, abs=1e-9)


def test_a_log_uniform_prior_halves_at_the_geometric_mean() -> None:
    rng = random.Random(0)
    drawn = [MLP.sample(rng)["units"] for _ in range(2000)]
    assert 24 < statistics.median(drawn) < 42


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"units": 0}, "units is 0"),
        ({"units": 2.5}, "units is 2.5"),
        ({"units": True}, "units is True"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0"),
        ({"batch_size": 7}, "batch_size is 7"),
        ({"width": 3}, "no hyperparameter 'width'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        MLP.validate(MLP.smallest | change)


def test_a_missing_value_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="needs a value for layers"):
        MLP.validate({"units": 3})


def test_narrowing_restricts_ranges_and_fixes_values() -> None:
    space = MLP.narrow(name="tiny", units=(4, 8), batch_size=(32, 64), layers=2)
    drawn = [space.sample(random.Random(seed)) for seed in range(50)]
    assert {c["units"] for c in drawn} == {4, 5, 6, 7, 8}
    assert {(c["layers"], c["batch_size"]) for c in drawn} == {(2, 32), (2, 64)}
    assert "layers" not in [p.name for p in space.free]


def test_narrowing_cannot_widen() -> None:
    with pytest.raises(ConfigurationError, match="units is 2000"):
        MLP.narrow(units=(1, 2000))


def test_an_extended_space_measures_the_size_of_what_its_builder_makes() -> None:
    def build(configuration: Configuration) -> nn.Module:
        width = 2 if configuration["wide"] else 1
        return nn.Sequential(nn.Flatten(), nn.Linear(121, 6 * width), nn.Linear(6 * width, 6))

    space = MLP.extend(Choice("wide", (False, True)), name="switch", builder=build)
    sizes = [space.size(space.smallest | {"wide": wide}) for wide in (False, True)]
    assert [size.parameters for size in sizes] == [122 * 6 + 7 * 6, 122 * 12 + 13 * 6]
    assert [size.macs for size in sizes] == [121 * 6 + 36, 121 * 12 + 72]


def test_training_hyperparameters_are_part_of_every_space() -> None:
    space = SearchSpace("own", "bragg", (Integer("epochs", 5, 5),), lambda _: nn.Identity())
    assert [p.name for p in space.hyperparameters] == ["epochs", "batch_size", "learning_rate"]


def test_a_builder_that_returns_no_network_is_refused() -> None:
    space = SearchSpace("own", "bragg", (), lambda _: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="returned int"):
        space.build(space.smallest)


@pytest.mark.parametrize(
    ("space", "named"),
    [
        ("mlpbragg", "'mlpbragg' is unknown"),
        ("mlpPtycho", "is for ptycho, not bragg"),
        ("no_such_module:SPACE", "cannot be imported"),
        ("edgexnas.host.networks.spaces:TRAINING", "is a tuple"),
        (3, "is a int"),
    ],
)
def test_a_space_that_does_not_fit_is_refused_by_name(space: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        resolve_space(space, task="bragg")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Integer("n", 3, 2),
        lambda: Integer("n", 0, 2, "log-uniform"),
        lambda: Real("x", 0, 1, "normal"),  # type: ignore[arg-type]
        lambda: Real("x", 1.0, float("inf")),
        lambda: Real("x", float("nan"), 1.0),
        lambda: Integer("n", 1.5, 3),  # type: ignore[arg-type]
        lambda: Choice("c", (1, float("nan"))),
        lambda: Choice("c", (1, None)),  # type: ignore[arg-type]
        lambda: Choice("c", ()),
        lambda: Choice("c", (1, 1)),
        lambda: SearchSpace("own", "video", (), lambda _: nn.Identity()),
        lambda: SearchSpace("own", "bragg", (Integer("n", 1, 2),) * 2, lambda _: nn.Identity()),
    ],
)
def test_an_impossible_space_is_refused_when_it_is_made(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()  # type: ignore[operator]
