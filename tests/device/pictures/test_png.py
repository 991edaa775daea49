from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edgexnas.device.pictures.png import encode_png
from edgexnas.errors import InputError

GREYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_another_reader_gets_the_colours_back(indices: np.ndarray) -> None:
    palette = GREYS[::-1].copy()
    with Image.open(io.BytesIO(encode_png(indices, palette))) as image:
        image.verify()
    with Image.open(io.BytesIO(encode_png(indices, palette))) as image:
        assert image.size == indices.shape[::-1]
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[indices])


@pytest.mark.parametrize(
    "image", [np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((2, 2), np.uint16)]
)
def test_what_is_no_image_of_indices_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected \\(H, W\\) uint8 indices"):
        encode_png(image, GREYS)


def test_an_index_beyond_the_palette_is_refused() -> None:
    with pytest.raises(InputError, match="asks for colour 9, the palette has 9"):
        encode_png(np.full((2, 2), 9, np.uint8), GREYS[:9])


@given(st.integers(0, 400).filter(lambda n: not 1 <= n <= 256))
def test_a_palette_has_one_to_256_colours(count: int) -> None:
    with pytest.raises(InputError, match="palette has shape"):
        encode_png(np.zeros((1, 1), np.uint8), np.zeros((count, 3), np.uint8))
