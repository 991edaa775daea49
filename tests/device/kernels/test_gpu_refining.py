"""Objects refined by the kernels are those of the CPU, on a GPU and as CPU code."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.kernels.refine_kernels import refine_definitions
from edgexnas.device.ptycho.gpu_refining import GpuRefiner, steps_of
from edgexnas.errors import ConfigurationError, EngineError, InputError
from edgexnas.ptycho import ObjectImage, PatternStore, Refinement, Refiner
from edgexnas.scans import Scan, open_scan
from edgexnas.simulate import PtychographySettings, simulate_scan

on_both = pytest.mark.parametrize("session", ["stand-in", "gpu"], indirect=True)

SETTINGS = PtychographySettings(scan_shape_px=(12, 20), step_px=8)
SCAN = simulate_scan(SETTINGS, seed=3)


WIDE = simulate_scan(PtychographySettings(scan_shape_px=(140, 260), step_px=40), seed=4)
"""Patterns that overlap their neighbours alone, so that many share a step."""


def near(scan: Scan, *, seed: int = 1) -> ObjectImage:
    """An object that is the true one, blurred and off by a tenth, as a network's would be."""
    assert scan.truth is not None
    rng = np.random.default_rng(seed)
    rough = rng.normal(0, 0.1, (*scan.truth.shape, 2)).view(np.complex128)[..., 0]
    values = (scan.truth * np.exp(rough)).astype(np.complex64)
    return ObjectImage(values, np.ones(values.shape, np.float32), 0)


def stored(scan: Scan) -> PatternStore:
    rows, cols = scan.patterns.shape[1:]
    store = PatternStore((rows, cols), mask=scan.mask)
    for number, pattern in enumerate(scan.patterns):
        store.add(number, pattern if scan.mask is None else np.where(scan.mask, 0, pattern))
        store.place(number, scan.positions_px[number])
    return store


def both(
    session: Any, probe: np.ndarray, start: ObjectImage, store: PatternStore, sweeps: int
) -> tuple[Refinement, Refinement]:
    owner = GpuRefiner(session, probe.shape[1:], len(probe))
    found = Refiner(probe).refine(start, store, sweeps, begin=owner.begin)
    wanted = Refiner(probe).refine(start, store, sweeps)
    owner.close()
    assert session.device_bytes == session.host_bytes == 0
    assert found is not None
    assert wanted is not None
    return found, wanted


def same(found: Refinement, wanted: Refinement, *, rtol: float = 2e-5) -> None:
    """Objects within a share of the mean amplitude, residuals to four digits."""
    assert found.image.origin_px == wanted.image.origin_px
    size = np.abs(wanted.image.values).mean()
    apart = np.abs(found.image.values - wanted.image.values).max() / size
    assert apart < rtol
    np.testing.assert_allclose(found.residuals, wanted.residuals, rtol=1e-4)
    assert found.patterns == wanted.patterns


@on_both
def test_the_object_and_its_residuals_are_the_cpus(session):
    found, wanted = both(session, SCAN.probe, near(SCAN), stored(SCAN), 3)
    same(found, wanted)
    assert found.device == session.name
    assert wanted.device == "CPU"


@on_both
@pytest.mark.parametrize(
    ("side", "modes"), [(64, 1), (64, 5), (64, 12), (64, 24), (128, 3), (192, 2), (320, 1)]
)
def test_sides_with_factors_two_three_and_five_are_transformed(session, side, modes):
    rng = np.random.default_rng(side)
    probe = rng.normal(size=(modes, side, side, 2)).view(np.complex128)[..., 0]
    positions = np.array([[0.0, 0.0], [7.3, -4.6], [1.75, side + 2.5]])
    shape = side + 20, 2 * side + 20
    values = np.exp(rng.normal(0, 0.2, (*shape, 2)).view(np.complex128)[..., 0])
    start = ObjectImage(
        values.astype(np.complex64), np.ones(shape, np.float32), 0, (side // 2 - 32, side // 2 - 40)
    )
    store = PatternStore((side, side))
    for number, position in enumerate(positions):
        store.add(number, rng.poisson(40, (side, side)).astype(np.uint16))
        store.place(number, position + side // 2 - 32)
    found, wanted = both(session, probe.astype(np.complex64), start, store, 2)
    same(found, wanted)


@on_both
def test_masked_pixels_keep_what_the_model_says(session):
    mask = np.zeros((64, 64), np.bool_)
    mask[30:34, 40:50] = True
    found, wanted = both(session, SCAN.probe, near(SCAN), stored(replace(SCAN, mask=mask)), 2)
    same(found, wanted)


@pytest.mark.real
@on_both
def test_the_real_star_is_refined_as_on_the_cpu(session, real_data):
    folder = real_data / "siemens_star_velociprobe"
    scan = open_scan(folder / "siemens-star-small.npz.bz2")
    with np.load(folder / "derived_rpie_reference.npz") as reference:
        probe, values = reference["probe"].astype(np.complex64), reference["object"]
        corner = np.floor(reference["positions_rc"].min(axis=0)).astype(int)
    # Some 20 patterns, some of which overlap; a rounded object leaves something to refine.
    chosen = np.arange(0, len(scan), 26)
    blurred = values + 0.1 * np.roll(values, 2, axis=0)
    start = ObjectImage(
        blurred.astype(np.complex64), np.ones(values.shape, np.float32), 0, tuple(corner.tolist())
    )
    store = PatternStore((128, 128))
    for number in chosen.tolist():
        store.add(number, scan.patterns[number])
        store.place(number, scan.positions_px[number])
    found, wanted = both(session, probe, start, store, 2)
    same(found, wanted)
    assert wanted.residuals[2] < 0.9 * wanted.residuals[0]


@on_both
def test_taking_patterns_together_changes_no_bit(session, monkeypatch):
    places = np.rint(WIDE.positions_px).astype(int)
    _, starts = steps_of(places - places.min(axis=0), 64, np.arange(len(WIDE)))
    assert np.diff(starts).max() > 3
    images = []
    for most in (1, 3, 64):
        monkeypatch.setattr("edgexnas.device.ptycho.gpu_refining.MOST_TOGETHER", most)
        found, wanted = both(session, WIDE.probe, near(WIDE), stored(WIDE), 2)
        same(found, wanted)
        images.append(found.image.values)

    def one_by_one(places: Any, side: int, order: Any) -> tuple[Any, list[int]]:
        return order, list(range(len(order) + 1))

    monkeypatch.setattr("edgexnas.device.ptycho.gpu_refining.steps_of", one_by_one)
    found, _ = both(session, WIDE.probe, near(WIDE), stored(WIDE), 2)
    for image in images:
        np.testing.assert_array_equal(image, found.image.values)


@given(
    places=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=25),
    seed=st.integers(0, 99),
)
def test_patterns_that_overlap_keep_their_order_and_share_no_step(places, seed):
    where = np.array(places)
    order = np.random.default_rng(seed).permutation(len(where))
    arranged, starts = steps_of(where, 64, order)
    assert sorted(arranged.tolist()) == list(range(len(where)))
    assert starts[0] == 0
    assert starts[-1] == len(where)
    assert (np.diff(starts) > 0).all()
    step = np.empty(len(where), int)
    step[arranged] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    for index, number in enumerate(order.tolist()):
        for other in order[index + 1 :].tolist():
            if (np.abs(where[number] - where[other]) < 64).all():
                assert step[number] < step[other]


def test_patterns_far_apart_share_a_step():
    _, starts = steps_of(np.array([[0, 0], [0, 80], [80, 0], [200, 200]]), 64, np.arange(4))
    assert starts == [0, 4]


@on_both
def test_a_refinement_on_a_gpu_can_be_ended_early_and_its_memory_comes_back(session):
    owner = GpuRefiner(session, (64, 64), len(SCAN.probe))
    asked = iter([False, True])
    start, store = near(SCAN), stored(SCAN)
    refiner = Refiner(SCAN.probe)
    ended = refiner.refine(start, store, 9, stop=lambda: next(asked), begin=owner.begin)
    assert ended is None
    held = session.device_bytes
    assert refiner.refine(start, store, 1, begin=owner.begin) is not None
    assert session.device_bytes == held
    owner.close()
    owner.close()
    assert session.device_bytes == session.host_bytes == 0


@on_both
def test_closing_under_a_refinement_ends_it_with_one_sentence(session):
    owner = GpuRefiner(session, (64, 64), len(SCAN.probe))

    def stop() -> bool:
        owner.close()
        return False

    with pytest.raises(EngineError, match="the predictor is closed"):
        Refiner(SCAN.probe).refine(near(SCAN), stored(SCAN), 1, stop=stop, begin=owner.begin)
    assert session.device_bytes == session.host_bytes == 0


@on_both
def test_a_copy_that_a_fork_made_waits_for_no_thread_of_its_parent(session, monkeypatch):
    owner, held, done = GpuRefiner(session, (64, 64), 1), threading.Event(), threading.Event()

    def hold() -> None:
        with owner.working():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with monkeypatch.context() as forked:
        other = os.getpid() + 1
        forked.setattr(os, "getpid", lambda: other)
        with pytest.raises(EngineError, match="was opened in another process"), owner.working():
            pass
        owner.close()
        assert thread.is_alive()
    done.set()
    thread.join()
    owner.close()
    assert session.device_bytes == session.host_bytes == 0


@on_both
def test_an_object_without_light_or_with_too_much_is_rejected_as_on_the_cpu(session):
    owner = GpuRefiner(session, (64, 64), len(SCAN.probe))
    for factor, message in ((0, "the object is dark"), (1e30, r"the object is|residual of")):
        start = near(SCAN)
        start.values[:] *= np.float32(factor)
        with np.errstate(all="ignore"), pytest.raises(InputError, match=message):
            Refiner(SCAN.probe).refine(start, stored(SCAN), 1, begin=owner.begin)
    owner.close()
    assert session.device_bytes == session.host_bytes == 0


@pytest.mark.parametrize(
    ("shape", "modes", "message"),
    [
        ((448, 448), 1, "sides with factors 2, 3 and 5, and patterns have 448 rows"),
        ((64, 128), 1, r"square patterns, and those have shape \(64, 128\)"),
        ((128, 128), 64, "rows of 128 pixels in 64 modes of a probe do not fit into the 48 KiB"),
    ],
)
def test_what_there_are_no_kernels_for_is_refused_by_name(session, shape, modes, message):
    with pytest.raises(ConfigurationError, match=message):
        GpuRefiner(session, shape, modes)
    assert session.device_bytes == 0


def test_a_block_has_fewer_rows_where_there_are_many_modes():
    widths = [refine_definitions(128, modes)["WIDTH"] for modes in (1, 5, 10, 20)]
    assert widths == ["4", "4", "2", "1"]


def test_a_scan_that_does_not_fit_is_refused_and_gives_all_back(session, fake_gpu):
    owner = GpuRefiner(session, (64, 64), len(SCAN.probe))
    fake_gpu.memory_bytes = fake_gpu.used_bytes() + 2**20
    with pytest.raises(EngineError, match="has not enough memory left"):
        Refiner(SCAN.probe).refine(near(SCAN), stored(SCAN), 1, begin=owner.begin)
    owner.close()
    assert session.device_bytes == session.host_bytes == 0
