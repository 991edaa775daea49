"""The kernel for patterns gives what numpy gives, on a GPU and as CPU code."""

from __future__ import annotations

import numpy as np
import pytest

from edgexnas.device.kernels import PatternKernels
from edgexnas.device.kernels.pattern_kernels import NO_BAD_PIXEL
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.ptycho import bin_patterns, check_counts, scale_patterns

pytestmark = pytest.mark.parametrize("session", ["stand-in", "gpu"], indirect=True)


def scaled_and_bad(session, patterns: np.ndarray, factor: int, **options):
    kernels = PatternKernels(session, patterns.dtype, patterns.shape[1:], factor, 17.3, **options)
    given = session.device_buffer(patterns.shape, patterns.dtype)
    given.upload(patterns)
    scaled = session.device_buffer((len(patterns), 64, 64), np.float32)
    bad = session.device_buffer((len(patterns),), np.int32)
    with session.current():
        kernels.enqueue_scale(
            given.pointer, len(patterns), scaled.pointer, bad.pointer, session.compute
        )
    return scaled.download(), bad.download()


@pytest.mark.parametrize(
    ("shape", "factor"), [((64, 64), 1), ((130, 141), 2), ((257, 256), 4), ((192, 200), 3)]
)
def test_binning_and_scaling_equal_numpy(session, shape, factor):
    patterns = np.random.default_rng(0).poisson(30, (3, *shape)).astype(np.uint16)
    scaled, bad = scaled_and_bad(session, patterns, factor)
    np.testing.assert_array_equal(scaled, scale_patterns(bin_patterns(patterns, factor), 17.3))
    assert (bad == NO_BAD_PIXEL).all()


def test_masked_pixels_count_as_zero_and_are_not_looked_at(session):
    random = np.random.default_rng(1)
    patterns = random.poisson(30, (2, 128, 128)).astype(np.uint16)
    mask = random.random((128, 128)) < 0.1
    expected = scale_patterns(bin_patterns(np.where(mask, 0, patterns), 2), 17.3)
    patterns[:, mask] = 2**16 - 1
    scaled, bad = scaled_and_bad(session, patterns, 2, mask=mask)
    np.testing.assert_array_equal(scaled, expected)
    assert (bad == NO_BAD_PIXEL).all()


@pytest.mark.parametrize(
    ("dtype", "saturation", "values"),
    [
        (np.uint8, None, (254, 255)),
        (np.uint16, None, (2**16 - 2, 2**16 - 1)),
        (np.uint32, None, (2**32 - 2, 2**32 - 1)),
        (np.uint16, 1000.5, (1000, 1001)),
        (np.uint16, 1e9, (2**16 - 1,)),
        (np.int16, None, (2**15 - 1, -1)),
        (np.int32, 0.5, (0, 1)),
        (np.float32, None, (3e38, np.inf, np.nan, -1e-30, -np.inf, 0.0)),
        (np.float32, 1000.1, (1000.0999, 1000.1001)),
    ],
)
def test_the_same_counts_are_refused_as_on_the_cpu_and_the_first_is_named(
    session, dtype, saturation, values
):
    patterns = np.zeros((2 * len(values), 64, 64), dtype)
    for number, value in enumerate(values):
        patterns[2 * number, 40, 50] = patterns[2 * number, 41, 3] = value
    with np.errstate(invalid="ignore", over="ignore"):
        _, bad = scaled_and_bad(session, patterns, 1, saturation=saturation)
    expected = [
        40 * 64 + 50 if refused(pattern[None], saturation) else NO_BAD_PIXEL for pattern in patterns
    ]
    np.testing.assert_array_equal(bad, expected)


def refused(patterns: np.ndarray, saturation: float | None) -> bool:
    try:
        check_counts(patterns, saturation=saturation)
    except InputError:
        return True
    return False


def test_patterns_that_are_too_small_are_refused(session):
    with pytest.raises(ConfigurationError, match="binned by 2"):
        PatternKernels(session, np.uint16, (127, 200), 2, 1.0)
