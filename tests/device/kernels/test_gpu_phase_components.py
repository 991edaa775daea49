"""Patches stitched by the kernels give the object that numpy gives, on a GPU and as CPU code."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgexnas.device.ptycho import phase_components
from edgexnas.device.ptycho.gpu_phase_components import GpuComponents
from edgexnas.device.ptycho.phase_components import Extent, HostComponents
from edgexnas.device.ptycho.stitching import ObjectStitcher
from edgexnas.errors import EngineError

pytestmark = pytest.mark.parametrize("session", ["stand-in", "gpu"], indirect=True)

SEEN = np.random.default_rng(0).normal(size=(500, 500, 2)).view(np.complex128)[..., 0]


def cut(positions: np.ndarray, *, seed: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patches of a known object, each with a phase constant of its own, at whole pixels."""
    patches = []
    turns = np.random.default_rng(seed).uniform(-3, 3, len(positions))
    for position, turn in zip(positions, turns, strict=True):
        row, col = np.floor(position).astype(int) + 200
        patch = SEEN[row : row + 64, col : col + 64] * np.exp(1j * turn)
        patches.append((np.abs(patch).astype(np.float32), np.angle(patch).astype(np.float32)))
    return patches


def stitched(positions, where=None) -> ObjectStitcher:
    stitcher = ObjectStitcher() if where is None else ObjectStitcher(components=where)
    for number, (patch, position) in enumerate(zip(cut(positions), positions, strict=True)):
        stitcher.add(number, *patch, np.asarray(position, np.float64))
    return stitcher


def same(image, expected, *, atol: float = 2e-5) -> None:
    assert image.origin_px == expected.origin_px
    np.testing.assert_allclose(image.coverage, expected.coverage, rtol=1e-6)
    np.testing.assert_allclose(image.values, expected.values, atol=atol)


def evidence(component) -> list[tuple[float, float]]:
    """How well a component's place among the others is known."""
    return [(link.overlap, abs(link.product)) for link in component.links.values()]


RASTER = [(row, col) for row in range(0, 61, 12) for col in range(0, 50, 12)]
FRACTIONS = np.array(RASTER) * 1.013 - 7.7
APART = [(0, 0), (0, 7), (100, 0), (100, 9), (0, 110), (3, 115)]
BRIDGED = [(0, 0), (30, 0), (0, 54), (30, 54), *((15 + k, 27) for k in range(14))]


@pytest.mark.parametrize("most", [1, 5, 32])
@pytest.mark.parametrize(
    "positions",
    [RASTER, FRACTIONS, APART, BRIDGED],
    ids=["raster", "fractions", "apart", "bridged"],
)
def test_the_object_is_that_of_the_cpu_whatever_is_queued(session, positions, most):
    stitcher = stitched(positions, GpuComponents(session, most=most))
    expected = stitched(positions)
    same(stitcher.image(), expected.image())
    ours, theirs = stitcher.components._components, expected.components._components
    assert [i.patches for i in ours] == [i.patches for i in theirs]
    assert [i.used for i in ours] == [i.used for i in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(evidence(one), evidence(other), rtol=1e-4, atol=1e-3)
    stitcher.close()
    assert session.device_bytes == session.host_bytes == 0


def test_queueing_does_not_change_a_bit(session):
    images = [stitched(FRACTIONS, GpuComponents(session, most=most)).image() for most in (1, 7, 64)]
    for image in images[1:]:
        np.testing.assert_array_equal(image.values, images[0].values)
        np.testing.assert_array_equal(image.coverage, images[0].coverage)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    places=st.lists(st.tuples(st.floats(-150, 150), st.floats(-150, 150)), min_size=1, max_size=12),
    asked=st.sets(st.integers(0, 11)),
)
def test_any_scan_gives_the_same_components_and_what_they_cover(session, places, asked):
    stitcher, expected = ObjectStitcher(components=GpuComponents(session, most=4)), ObjectStitcher()
    for number, (patch, place) in enumerate(zip(cut(places), places, strict=True)):
        for one in (stitcher, expected):
            one.add(number, *patch, np.array(place))
        if number in asked:
            stitcher.image()
    image, wanted = stitcher.image(), expected.image()
    assert image.origin_px == wanted.origin_px
    np.testing.assert_allclose(image.coverage, wanted.coverage, rtol=1e-6)
    assert [i.used for i in stitcher.components._components] == [
        i.used for i in expected.components._components
    ]
    stitcher.close()


def test_no_more_components_than_the_most_take_memory(session, monkeypatch):
    monkeypatch.setattr(phase_components, "MOST_COMPONENTS", 2)
    positions = [(-150 + 80 * k, 0) for k in range(4)]
    stitcher = stitched(positions, GpuComponents(session))
    same(stitcher.image(), stitched(positions).image())
    assert len(stitcher.components._components) == 2


@pytest.mark.parametrize("positions", [FRACTIONS, APART], ids=["one component", "several"])
def test_an_object_goes_on_in_host_memory_and_the_gpu_gets_its_memory_back(session, positions):
    half = len(positions) // 2
    stitcher = stitched(positions[:half], GpuComponents(session))
    stitcher.leave_gpu()
    assert isinstance(stitcher.components, HostComponents)
    assert session.device_bytes == session.host_bytes == 0
    expected = stitched(positions[:half])
    same(stitcher.image(), expected.image())
    for number, (patch, position) in enumerate(zip(cut(positions), positions, strict=True)):
        if number >= half:
            for one in (stitcher, expected):
                one.add(number, *patch, np.asarray(position, np.float64))
    same(stitcher.image(), expected.image())


def test_an_object_that_nobody_holds_gives_its_memory_back(session):
    stitcher = stitched(RASTER[:5], GpuComponents(session))
    stitcher.image()
    assert session.device_bytes > 0
    del stitcher
    gc.collect()
    assert session.device_bytes == session.host_bytes == 0


def test_snapshots_take_no_memory_for_long(session):
    stitcher = stitched(RASTER[:5], GpuComponents(session))
    stitcher.image()
    before = session.device_bytes
    stitcher.image()
    assert session.device_bytes == before
    assert len(stitcher.components._memory.canvases) == 1


def test_a_closed_object_says_so(session):
    stitcher = stitched(RASTER[:2], GpuComponents(session))
    stitcher.close()
    stitcher.close()
    with pytest.raises(EngineError, match="has given its memory back"):
        stitcher.add(2, *cut(RASTER)[2], np.array([5.0, 5.0]))
    with pytest.raises(EngineError, match="has given its memory back"):
        stitcher.image()


class TestFakeOnly:
    """Faults that no GPU here shows."""

    @pytest.fixture(autouse=True)
    def only_fake(self, request, session):
        if request.node.callspec.params["session"] == "gpu":
            pytest.skip("a fault that is made on a GPU that is none")

    def test_a_gpu_that_disappears_fails_with_one_sentence_and_closing_works(
        self, session, fake_gpu
    ):
        stitcher = stitched(RASTER[:3], GpuComponents(session))
        fake_gpu.gone = True
        with pytest.raises(EngineError, match="Fake GPU failed"):
            stitcher.image()
        stitcher.close()

    def test_an_object_that_does_not_fit_is_refused_and_what_there_was_stays(
        self, session, fake_gpu
    ):
        stitcher = stitched(RASTER[:3], GpuComponents(session))
        before = stitcher.image()
        fake_gpu.memory_bytes = fake_gpu.used_bytes() + 2**20
        with pytest.raises(EngineError, match="has not enough memory left"):
            stitcher.components._components[0].make_room(Extent(0, 0, 2000, 64))
        fake_gpu.memory_bytes = 1 << 30
        np.testing.assert_array_equal(stitcher.image().values, before.values)
