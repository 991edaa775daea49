from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgexnas.device.pictures.pictures import (
    BLANK,
    MARK,
    MAX_SIDE,
    amplitude_picture,
    frame_picture,
    phase_picture,
    refinement_picture,
    shrink,
)
from edgexnas.ptycho import ObjectImage


def _indices(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_shrinking_keeps_a_peak_of_one_pixel() -> None:
    frame = np.zeros((2048, 3000), np.uint16)
    frame[1001, 2003] = 77
    small, factor = shrink(frame)
    assert factor == 3
    assert small.shape == (683, 1000)
    assert small[1001 // 3, 2003 // 3] == 77


def test_shrinking_loses_no_row_at_the_edge() -> None:
    frame = np.zeros((1025, 1025), np.uint16)
    frame[1024, 1024] = 5
    assert shrink(frame)[0].max() == 5


@pytest.mark.parametrize("shape", [(64, 64), (300, 500), (1024, 1024), (2048, 2048), (4, 4000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32])
def test_a_picture_is_never_wider_or_higher_than_the_limit(
    shape: tuple[int, int], dtype: type
) -> None:
    pixels = (np.arange(np.prod(shape)).reshape(shape) % 100).astype(dtype)
    assert max(_indices(frame_picture(pixels, None).png).shape) <= MAX_SIDE


def test_more_counts_are_brighter_and_the_scale_is_logarithmic() -> None:
    pixels = np.repeat(np.array([1, 10, 100, 1000], np.uint16), 256)[None].repeat(512, 0)
    indices = _indices(frame_picture(pixels, None).png)
    shades = indices[0, 128::256].astype(int)
    assert list(shades) == sorted(shades)
    steps = np.diff(shades)
    assert steps.max() < 2 * steps.min()


def test_the_noise_of_the_background_is_black_and_a_peak_is_not() -> None:
    pixels = np.random.default_rng(3).poisson(40, (512, 512)).astype(np.uint16)
    pixels[200:204, 300:304] = 3000
    indices = _indices(frame_picture(pixels, None).png)
    assert np.mean(indices == 0) > 0.98
    assert indices[201, 301] > 200


@pytest.mark.parametrize("side", [64, 128, 512, 1024, 2048])
def test_a_ring_is_centred_on_the_peak(side: int) -> None:
    position = np.array([[side * 0.3, side * 0.6]], np.float32)
    indices = _indices(frame_picture(np.zeros((side, side), np.uint16), position).png)
    rows, cols = np.nonzero(indices == MARK)
    scale = len(indices) / side
    centre = (position[0] + 0.5) * scale - 0.5
    assert rows.mean() == pytest.approx(centre[0], abs=0.75)
    assert cols.mean() == pytest.approx(centre[1], abs=0.75)


def test_rings_over_the_edge_and_without_position_do_no_harm() -> None:
    positions = np.array([[0, 0], [511, 511], [np.nan, 3], [-900, 4], [256, 256]], np.float32)
    indices = _indices(frame_picture(np.zeros((512, 512), np.uint16), positions).png)
    assert (indices == MARK).any()


def test_masked_pixels_are_grey_and_do_not_set_the_scale() -> None:
    pixels = np.full((512, 512), 10, np.uint16)
    pixels[:, 100:110] = 65535
    pixels[200:300, 200:300] = 50
    picture = frame_picture(pixels, None)
    indices = _indices(picture.png)
    assert (indices[:, 100:110] == BLANK).all()
    assert (indices[:, 110:] != BLANK).all()
    assert picture.caption == "counts 13 to 50, logarithmic scale"


def test_a_masked_pixel_does_not_hide_its_neighbours_when_the_picture_is_smaller() -> None:
    pixels = np.full((2048, 2048), 10, np.uint16)
    pixels[::2, ::2] = 65535
    assert not (_indices(frame_picture(pixels, None).png) == BLANK).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_frame_with_values_that_are_no_number_can_be_drawn(value: float) -> None:
    pixels = np.full((512, 512), 3, np.float32)
    pixels[7, 7] = value
    assert _indices(frame_picture(pixels, None).png).shape == (512, 512)


def _object() -> ObjectImage:
    values = np.zeros((800, 900), np.complex64)
    coverage = np.zeros((800, 900), np.float32)
    rows, cols = np.mgrid[:600, :700]
    window = slice(100, 700), slice(150, 850)
    values[window] = (1 + rows / 600) * np.exp(1j * cols / 700)
    coverage[window] = 1
    coverage[300:310, 300:310] = 0
    return ObjectImage(values, coverage, skipped=0)


def test_an_object_is_cut_to_what_was_measured() -> None:
    indices = _indices(amplitude_picture(_object()).png)
    assert indices.shape == (600, 700)
    assert (indices[200:210, 150:160] == BLANK).all()
    assert indices[599, 0] > indices[0, 0]


def test_the_mean_phase_is_shown_in_the_middle_of_the_scale() -> None:
    picture = phase_picture(_object())
    indices = _indices(picture.png)
    covered = indices[indices != BLANK]
    assert covered.mean() == pytest.approx(253 / 2, abs=2)
    assert picture.caption == "phase −π to π rad, mean at 0"


def test_an_object_without_a_single_patch_can_be_drawn() -> None:
    empty = ObjectImage(np.zeros((64, 64), np.complex64), np.zeros((64, 64), np.float32), 0)
    assert (_indices(amplitude_picture(empty).png) == BLANK).all()
    assert (_indices(phase_picture(empty).png) == BLANK).all()


def test_a_refinement_shows_both_phases_and_four_times_their_difference() -> None:
    before = _object()
    values = before.values * np.exp(0.1j * (np.arange(before.values.shape[1]) % 2))
    after = ObjectImage(values.astype(np.complex64), before.coverage, 0)
    picture = refinement_picture(before, after)
    indices = _indices(picture.png)
    gap = np.flatnonzero((indices == BLANK).all(0))
    covered = indices[:, indices.shape[1] - len(indices[0]) // 4 :]
    shades = covered[covered != BLANK].astype(float)
    # 0.1 rad on every second column is a step of 253 · 0.1 / (π/2) shades.
    assert np.ptp(np.percentile(shades, (20, 80))) == pytest.approx(253 * 0.1 / (np.pi / 2), abs=2)
    assert len(gap) >= 2
    assert "difference" in picture.caption


def test_a_refinement_of_nothing_can_be_drawn() -> None:
    empty = ObjectImage(np.zeros((64, 64), np.complex64), np.zeros((64, 64), np.float32), 0)
    assert (_indices(refinement_picture(empty, empty).png) == BLANK).all()
