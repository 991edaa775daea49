"""The kernels for ptychography give what numpy gives, on a GPU and as CPU code."""

from __future__ import annotations

import numpy as np
import pytest

from edgexnas.device.kernels import PatternKernels
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import ObjectCanvas, bin_patterns, scale_patterns, to_complex

pytestmark = pytest.mark.parametrize("session", ["stand-in", "gpu"], indirect=True)


def uploaded(session, array: np.ndarray):
    buffer = session.device_buffer(array.shape, array.dtype)
    buffer.upload(array)
    return buffer


@pytest.mark.parametrize(
    ("shape", "factor"), [((64, 64), 1), ((130, 141), 2), ((257, 256), 4), ((192, 200), 3)]
)
def test_binning_and_scaling_equal_numpy(session, shape, factor):
    patterns = np.random.default_rng(0).poisson(30, (3, *shape)).astype(np.uint16)
    kernels = PatternKernels(session, np.uint16, shape=(65, 65))
    given = uploaded(session, patterns)
    scaled = session.device_buffer((3, 64, 64), np.float32)
    with session.current():
        kernels.enqueue_scale(
            given.pointer, 3, shape, factor, 17.3, scaled.pointer, session.compute
        )
    expected = scale_patterns(bin_patterns(patterns, factor), 17.3)
    np.testing.assert_array_equal(scaled.download(), expected)


def test_patterns_that_are_too_small_are_refused(session):
    kernels = PatternKernels(session, np.uint16, shape=(65, 65))
    with pytest.raises(ConfigurationError, match="binned by 2"):
        kernels.enqueue_scale(0, 1, (127, 200), 2, 1.0, 0, session.compute)
    with pytest.raises(ConfigurationError, match="larger than a patch"):
        PatternKernels(session, np.uint16, shape=(64, 80))


@pytest.mark.parametrize("weighted", [False, True])
def test_stitching_equals_the_canvas_and_does_not_depend_on_batches(session, weighted):
    random = np.random.default_rng(1)
    shape, number = (75, 70), 70
    patches = np.stack(
        [random.random((number, 64, 64)), random.uniform(-3, 3, (number, 64, 64))], axis=1
    ).astype(np.float32)
    positions = random.uniform((-1, -1), (12, 7), (number, 2))
    positions[0], positions[1], positions[2] = np.nan, (0, 0), (10, 5)
    weight = random.random((64, 64)).astype(np.float32) if weighted else None
    canvas = ObjectCanvas(shape, weight=weight)
    canvas.add(to_complex(patches[:, 0], patches[:, 1]), positions)
    images = []
    for batches in ([slice(None)], [slice(0, 5), slice(5, 6), slice(6, None)]):
        kernels = PatternKernels(session, np.uint16, shape=shape, weight=weight)
        for part in batches:
            given = uploaded(session, patches[part])
            places = uploaded(session, positions[part])
            with session.current():
                kernels.enqueue_stitch(
                    given.pointer, places.pointer, len(positions[part]), session.compute
                )
                session.compute.synchronize()
        images.append(kernels.image())
        kernels.close()
    np.testing.assert_array_equal(images[0].values, images[1].values)
    np.testing.assert_array_equal(images[0].coverage, images[1].coverage)
    expected = canvas.image()
    np.testing.assert_array_equal(images[0].coverage, expected.coverage)
    # Sine and cosine are rounded otherwise by each library.
    np.testing.assert_allclose(images[0].values, expected.values, atol=1e-6)
    assert (expected.coverage > 0).mean() > 0.9
