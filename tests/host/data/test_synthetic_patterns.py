"""Patterns drawn without end: what they show, what they may know, and that they teach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.phase_retrieval import Reconstruction
from edgexnas.host.data.ptycho_labels import label_scan
from edgexnas.host.data.scan_parts import part_of_scan
from edgexnas.host.data.synthetic_objects import CANVAS_PX
from edgexnas.host.data.synthetic_patterns import (
    Drawing,
    ObjectVariety,
    PatternSource,
    draw_objects,
    in_scale_of,
    with_probe,
    with_synthetic_patterns,
)
from edgexnas.host.networks.ptycho_models import MlpPtycho
from edgexnas.host.training.loop import DivergedError
from edgexnas.host.training.ptycho_criterion import PatchCriterion
from edgexnas.host.training.ptycho_pretraining import PretrainingSettings, pretrain
from edgexnas.ptycho import bin_patterns, scale_patterns
from edgexnas.scans import Scan
from edgexnas.simulate import PtychographySettings, simulate_scan
from edgexnas.simulate.ptychography import diffract, zone_plate_probe

PROBE = zone_plate_probe(PtychographySettings(pattern_size=128, photons=1e6))


@pytest.fixture(scope="module")
def objects() -> np.ndarray:
    return draw_objects(3, seed=5)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(PtychographySettings(scan_shape_px=(60, 60), step_px=20.0), seed=3)


def whole(canvas: np.ndarray) -> Reconstruction:
    """A reconstruction that is lit everywhere."""
    return Reconstruction(
        object=canvas,
        probe=PROBE,
        positions_px=np.array([[40.0, 50.0], [np.nan, np.nan]]),
        illumination=np.ones(canvas.shape, np.float32),
        error_history=np.zeros(1),
        mean_pattern_error=1.0,
        photon_noise=0.0,
    )


def test_equal_seeds_give_equal_objects_and_other_seeds_others(objects: np.ndarray) -> None:
    np.testing.assert_array_equal(draw_objects(2, seed=5), objects[:2])
    assert np.abs(draw_objects(1, seed=6)[0] - objects[0]).mean() > 0.01


@pytest.mark.parametrize("zoom", [0.6, 1.0, 2.3])
def test_objects_are_as_large_as_asked_whatever_their_zoom(zoom: float) -> None:
    drawn = draw_objects(1, variety=ObjectVariety(zoom=(zoom, zoom)))
    assert drawn.shape == (1, CANVAS_PX, CANVAS_PX)
    assert np.isfinite(drawn).all()


def test_patterns_as_large_as_a_canvas_are_drawn_from_larger_objects() -> None:
    probe = zone_plate_probe(PtychographySettings(pattern_size=384))
    drawing = Drawing(
        probe=probe,
        intensity_scale=100.0,
        variety=ObjectVariety(),
        seen_object=np.ones((500, 500), np.complex64),
        seen_illumination=np.ones((500, 500), np.float32),
    )
    x, y = drawing.source(objects=1).draw(2)
    assert x.shape == (2, 1, 64, 64)
    assert (y[:, 0] > 0).all()
    # Seen from different places.
    assert (y[0] != y[1]).any()


def images_of(canvas: np.ndarray) -> list[np.ndarray]:
    """An object turned by right angles and mirrored."""
    turned = [np.rot90(canvas, quarters) for quarters in range(4)]
    return [*turned, *(image.T for image in turned)]


def test_patterns_are_those_that_the_simulator_diffracts(objects: np.ndarray) -> None:
    # So many photons that Poisson noise is nothing.
    bright = PROBE * np.float32(1e3)
    source = PatternSource(objects[:1], bright, intensity_scale=1e6, seed=1)
    x, y = source.draw(1)
    patch = y[0, 0].numpy() * np.exp(1j * y[0, 1].numpy())
    # By two pixels of the patch, which an image of the object that is turned otherwise lacks.
    off = np.array([
        np.abs(image[:-63, :-63] - patch[0, 0]) + np.abs(image[:-63, 1:-62] - patch[0, 1])
        for image in images_of(objects[0])
    ])  # fmt: skip
    image, row, col = np.unravel_index(off.argmin(), off.shape)
    seen = images_of(objects[0])[image]
    counts = diffract(seen, bright, [(row - 32, col - 32)])
    np.testing.assert_allclose(
        x[0].numpy(), scale_patterns(bin_patterns(counts, 2), 1e6), rtol=0.01, atol=0.01
    )


def test_objects_are_seen_turned_and_mirrored() -> None:
    rows, cols = np.indices((384, 384)) / 384
    source = PatternSource((rows + 0.1 * cols + 1j)[None].astype(np.complex64), PROBE, 100.0)
    _, y = source.draw(64)
    amplitude = y[:, 0].numpy()
    steps = amplitude[:, 1, 0] - amplitude[:, 0, 0], amplitude[:, 0, 1] - amplitude[:, 0, 0]
    # The steeper axis, and where each axis rises.
    seen = {(abs(d) > abs(a), d > 0, a > 0) for d, a in zip(*steps, strict=True)}
    assert len(seen) == 8


def test_a_tenth_is_measured_patterns_where_there_are_some(objects: np.ndarray) -> None:
    x, y = torch.full((3, 1, 64, 64), -1.0), torch.full((3, 2, 64, 64), -2.0)
    drawn_x, drawn_y = PatternSource(objects, PROBE, 100.0).mixed(x, y).draw(40)
    measured = (drawn_x == -1).all(dim=(1, 2, 3))
    assert measured.sum() == 4
    torch.testing.assert_close(measured, (drawn_y == -2).all(dim=(1, 2, 3)))


def test_a_masked_pixel_counts_nothing(objects: np.ndarray) -> None:
    mask = np.zeros((128, 128), bool)
    mask[60:68, 60:68] = True
    x, _ = PatternSource(objects, PROBE, 100.0, mask=mask).draw(2)
    assert (x[:, 0, 30:34, 30:34] == 0).all()
    assert (x > 0).any()


def test_noise_is_that_of_photons() -> None:
    # One window, and the same however it is turned.
    source = PatternSource(np.ones((1, 129, 129), np.complex64), PROBE, 1.0)
    x, _ = source.draw(200)
    counts = (x**2)[:, 0]
    mean, spread = counts.mean(0), counts.var(0)
    bright = mean > 20
    assert float((spread[bright] / mean[bright]).mean()) == pytest.approx(1.0, abs=0.05)


def test_a_seen_object_is_mixed_in_where_it_was_lit(objects: np.ndarray) -> None:
    mark = np.full((300, 300), 3.0, np.complex64)
    drawn = draw_objects(1, seen=whole(mark), seen_share=1.0)
    assert np.abs(drawn[0, CANVAS_PX // 2, CANVAS_PX // 2] - 3) < 1e-3
    assert np.abs(drawn[0, 0, 0]) < 2
    unlit = replace(whole(mark), illumination=np.eye(300, dtype=np.float32))
    assert np.abs(draw_objects(1, seen=unlit, seen_share=1.0)).max() < 2


def test_the_part_of_a_scan_knows_nothing_of_the_rest(scan: Scan) -> None:
    numbers = np.array([1, 5, 7])
    part = part_of_scan(scan, numbers)
    assert len(part) == 3
    assert part.truth is None
    np.testing.assert_array_equal(part.patterns, scan.patterns[numbers])


def test_object_and_beam_are_brought_to_the_scale_of_labels(objects: np.ndarray) -> None:
    seen = whole(objects[0])
    targets = np.zeros((2, 2, 64, 64), np.float32)
    targets[:, 0] = 2 * np.median(np.abs(objects[0, 40:104, 50:114]))
    found = in_scale_of(targets, seen)
    np.testing.assert_allclose(found.object, 2 * seen.object, rtol=1e-3)
    np.testing.assert_allclose(found.object[0, 0] * found.probe, seen.object[0, 0] * seen.probe)


def test_a_network_learns_from_drawn_patterns(objects: np.ndarray) -> None:
    probe = zone_plate_probe(PtychographySettings(mode_powers=(1.0,)))
    torch.manual_seed(0)
    model = MlpPtycho(32, 1)
    losses: list[float] = []
    settings = PretrainingSettings(steps=200, batch_size=16, learning_rate=3e-3)
    pretrain(
        model,
        PatternSource(objects[:, :160, :160], probe, 1000.0),
        settings,
        on_steps=lambda step, loss, seconds: losses.append(loss),
    )
    x, y = PatternSource(objects[:, :160, :160], probe, 1000.0, seed=9).draw(64)
    mean = y.mean(0, keepdim=True).expand_as(y)
    with torch.no_grad():
        learnt = PatchCriterion().loss(model(x), y)
    assert len(losses) == 2
    assert learnt < 0.9 * PatchCriterion().loss(mean, y)
    assert not model.training


def test_training_ends_with_its_time_whatever_steps_are_left(objects: np.ndarray) -> None:
    source = PatternSource(objects[:, :160, :160], zone_plate_probe(PtychographySettings()), 1000.0)
    settings = PretrainingSettings(steps=10**9, batch_size=2, time_limit_s=0.2)
    reported: list[int] = []
    pretrain(MlpPtycho(4, 1), source, settings, on_steps=lambda step, *_: reported.append(step))
    assert 0 < reported[-1] < 10**9
    with pytest.raises(ConfigurationError, match="time_limit_s is 0"):
        PretrainingSettings(time_limit_s=0)


def test_a_rate_that_diverges_is_told(objects: np.ndarray) -> None:
    source = PatternSource(objects[:, :160, :160], zone_plate_probe(PtychographySettings()), 1000.0)
    model = MlpPtycho(8, 1)
    with torch.no_grad():
        model.amplitude.bias.fill_(torch.nan)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        pretrain(model, source, PretrainingSettings(steps=1, batch_size=2))


def test_drawn_patterns_join_the_training_part_and_no_other() -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(200, 260)), seed=4)
    dataset = label_scan(scan)
    split = dataset.split()
    joined = with_synthetic_patterns(dataset, scan, 70, objects=4, iterations=1)
    parts = joined.split()
    assert len(joined) == len(dataset) + 70
    np.testing.assert_array_equal(parts.train[:-70], split.train)
    np.testing.assert_array_equal(parts.train[-70:], len(dataset) + np.arange(70))
    for name in ("calibration", "validation", "test"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(split, name))
    measured, drawn = joined.inputs()[split.train], joined.inputs()[-70:]
    assert np.corrcoef(measured.mean(0).ravel(), drawn.mean(0).ravel())[0, 1] > 0.98
    assert drawn.mean() == pytest.approx(measured.mean(), rel=0.25)


def test_what_is_drawn_does_not_depend_on_the_test_region() -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(200, 260)), seed=4)
    dataset = label_scan(scan)
    unseen = np.setdiff1d(np.arange(len(scan)), dataset.split().train)
    patterns = scan.patterns.copy()
    patterns[unseen] = 7
    blinded = replace(scan, patterns=patterns)
    drawn = [
        with_synthetic_patterns(dataset, s, 4, objects=1, iterations=1).patterns[-4:]
        for s in (scan, blinded)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_patterns_that_labelling_leaves_out_draw_nothing_and_hinder_nothing() -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(200, 260)), seed=4)
    positions = scan.positions_px.copy()
    positions[0], positions[1] = (-5, 10), np.nan
    scan = replace(scan, positions_px=positions)
    known = with_probe(label_scan(scan), scan)
    assert len(known) == len(scan) - 2
    np.testing.assert_array_equal(known.probe, scan.probe)
    found = with_probe(label_scan(scan, method="rpie", iterations=1), scan, iterations=1)
    # A reconstruction grows to hold every known position.
    assert len(found) == len(scan) - 1
    assert found.probe is not None


def test_the_probe_has_the_modes_that_are_asked_for() -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(200, 260)), seed=4)
    dataset = label_scan(replace(scan, truth=None, probe=None), iterations=1, modes=1)
    found = with_probe(dataset, replace(scan, truth=None, probe=None), iterations=1, modes=1)
    assert found.probe is not None
    assert found.probe.shape == (1, 64, 64)


def test_labels_of_another_scan_are_refused(scan: Scan) -> None:
    other = label_scan(simulate_scan(PtychographySettings(scan_shape_px=(90, 90)), seed=4))
    with pytest.raises(InputError, match="label this scan as a whole"):
        with_synthetic_patterns(other, scan, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("moon",)}, "kinds are"),
        ({"zoom": (2.0, 1.0)}, "zoom is"),
        ({"transmission": (0.0, 1.0)}, "transmission is"),
    ],
)
def test_a_variety_that_cannot_be_drawn_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ObjectVariety(**change)


def test_sources_that_do_not_fit_are_refused(objects: np.ndarray) -> None:
    with pytest.raises(InputError, match="multiple of 64"):
        PatternSource(objects, PROBE[:, :100, :100], 1.0)
    with pytest.raises(InputError, match="larger than the"):
        PatternSource(objects[:, :128, :128], PROBE, 1.0)
    with pytest.raises(ConfigurationError, match="intensity_scale is 0"):
        PatternSource(objects, PROBE, 0.0)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"averaging": 1.0}]
)
def test_settings_out_of_range_are_refused_by_name(change: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        PretrainingSettings(**change)
