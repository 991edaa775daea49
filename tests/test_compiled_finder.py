"""The compiled peak finder gives what the numpy reference gives, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import MissingDependencyError
from edgexnas.frames import open_frames
from edgexnas.peak_finding import (
    Background,
    FinderSettings,
    FoundPeaks,
    PeakFinder,
    estimate_background,
)

pytest.importorskip("numba")

LOOSE = FinderSettings(minimum_counts=0, noise_sigmas=1, snr=1, prominence_sigmas=0.5)
"""Lets so many peaks pass that every window holds several."""


def both(
    finder_settings: FinderSettings, frame: np.ndarray, *, scaled: bool = False, **options
) -> list[FoundPeaks]:
    """Find the peaks with the reference and with the compiled twin."""
    finders = (
        PeakFinder(finder_settings, shape=frame.shape, compiled=compiled, **options)
        for compiled in (False, True)
    )
    return [finder.find(frame, scaled=scaled) for finder in finders]


def assert_identical(reference: FoundPeaks, compiled: FoundPeaks) -> None:
    np.testing.assert_array_equal(compiled.maxima, reference.maxima)
    np.testing.assert_array_equal(compiled.flags, reference.flags)
    np.testing.assert_array_equal(compiled.intensities, reference.intensities)
    np.testing.assert_array_equal(compiled.counts, reference.counts)
    assert compiled.overflow == reference.overflow


@st.composite
def detectors(draw) -> tuple[np.ndarray, Background | None, np.ndarray | None, FinderSettings]:
    """A frame of few different values, so that ties abound, with gaps and a sloping background."""
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frame = random.poisson(draw(st.sampled_from([0.3, 4, 40])), shape).astype(np.uint16)
    spots = random.random(shape) < draw(st.sampled_from([0, 0.02, 0.2]))
    frame[spots] += random.integers(1, 6, int(spots.sum())).astype(np.uint16) * 50
    frame[random.random(shape) < draw(st.sampled_from([0, 0.01]))] = 65535
    mask = None
    if draw(st.booleans()):
        mask = random.random(shape) < draw(st.sampled_from([0.01, 0.2]))
        mask[:, shape[1] // 2] |= draw(st.booleans())
        frame[mask] = 65535
    background = None
    if draw(st.booleans()):
        level = np.linspace(0, 9.3, frame.size, dtype=np.float32).reshape(shape)
        background = Background(level, np.sqrt(level))
    chosen = draw(
        st.sampled_from([LOOSE, FinderSettings(), FinderSettings(2, 1, 1, 0.5, 1, 300, 5)])
    )
    return frame, background, mask, chosen


@given(detectors(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_random_detectors_give_identical_peaks(detector, scaled):
    frame, background, mask, chosen = detector
    assert_identical(*both(chosen, frame, background=background, mask=mask, scaled=scaled))


@pytest.mark.parametrize("least", [None, 115.0, 380.0])
@pytest.mark.parametrize("saturation", [120.0, 400.0, None])
@pytest.mark.parametrize("masked", [False, True])
def test_plateaus_and_ridges_are_judged_alike(saturation, masked, least):
    frame, mask = ridges_and_plateaus(13, masked=masked)
    chosen = FinderSettings(saturation=saturation, minimum_counts=least)
    reference, compiled = both(chosen, frame, background=estimate_background([frame]), mask=mask)
    assert_identical(reference, compiled)
    assert len(reference) >= 3


def ridges_and_plateaus(seed: int, *, masked: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Rings, and blobs of many sizes and heights that touch, overlap and reach over edges."""
    random = np.random.default_rng(seed)
    rows, cols = np.indices((116, 130))
    expected = 4 + 300 * np.exp(-((np.hypot(rows - 46, cols - 54) - 34) ** 2) / 3)
    for _ in range(54):
        row, col = random.uniform(-3, 119), random.uniform(-3, 133)
        width, height = random.uniform(0.8, 5), 10 ** random.uniform(1.5, 4)
        square = (rows - row) ** 2 + ((cols - col) * random.uniform(0.5, 1)) ** 2
        expected += height * np.exp(-square / (2 * width**2))
    frame = np.minimum(random.poisson(expected), 5000).astype(np.uint16)
    mask = random.random(frame.shape) < 0.01 if masked else None
    if mask is not None:
        mask[62:67] = True
        frame[mask] = 65535
    return frame, mask


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int32, np.float32, np.int64])
def test_every_dtype_gives_identical_peaks(dtype):
    random = np.random.default_rng(5)
    frame = random.poisson(8, (90, 71)).astype(dtype)
    frame[::7, ::9] += random.integers(0, 100, frame[::7, ::9].shape).astype(dtype)
    if np.dtype(dtype).kind in "if":
        frame[random.random(frame.shape) < 0.05] *= -1
    if dtype is np.float32:
        frame += random.random(frame.shape, np.float32)
    mask = random.random(frame.shape) < 0.02
    options = {"background": estimate_background([frame]), "mask": mask}
    assert_identical(*both(LOOSE, frame, **options))
    assert len(both(LOOSE, frame, **options)[0]) > 30


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["F2K_Seb_Lyso0675.edf.bz2", "GE_aSI_detector_image_1529.bz2"],
)
def test_real_raw_frames_give_identical_peaks(real_data: Path, name: str):
    pytest.importorskip("fabio")
    with open_frames(real_data / "raw_bragg_frames" / name) as series:
        frame, mask = np.asarray(series[0]), series.mask
    options = {"background": estimate_background([frame], mask=mask), "mask": mask}
    for chosen in (FinderSettings(), LOOSE):
        reference, compiled = both(chosen, frame, **options)
        assert_identical(reference, compiled)
        assert len(reference) > 10


@pytest.mark.real
def test_real_ruby_frames_give_identical_peaks(real_data: Path):
    with open_frames(real_data / "hexrd_ruby_dexela" / "ruby_ff1_framecache.npz") as series:
        for number in range(0, len(series), max(1, len(series) // 3)):
            assert_identical(*both(FinderSettings(), np.asarray(series[number])))


def test_more_peaks_than_the_capacity_are_counted_alike():
    frame = np.random.default_rng(2).poisson(50, (200, 200)).astype(np.uint16)
    few = FinderSettings(0, 0, 0, 0, 1, None, 100)
    reference, compiled = both(few, frame)
    assert reference.overflow > 400
    assert_identical(reference, compiled)


def test_finders_of_several_threads_do_not_disturb_each_other():
    random = np.random.default_rng(4)
    frames = [random.poisson(20, (200, 300)).astype(np.uint16) for _ in range(4)]
    expected = [both(LOOSE, frame)[0] for frame in frames]
    found: dict[int, FoundPeaks] = {}

    def work(number: int) -> None:
        finder = PeakFinder(LOOSE, shape=frames[number].shape, compiled=True)
        for _ in range(20):
            found[number] = finder.find(frames[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, reference in enumerate(expected):
        assert_identical(reference, found[number])


def test_without_numba_the_reference_works_and_asking_for_the_twin_names_the_extra(monkeypatch):
    frame = np.zeros((30, 30), np.uint16)
    frame[10:13, 10:13] = [[20, 90, 25], [80, 200, 70], [30, 60, 20]]
    monkeypatch.setitem(sys.modules, "edgexnas.peak_finding.compiled_finder", None)
    assert PeakFinder(shape=(30, 30)).find(frame).maxima.tolist() == [[11, 11]]
    with pytest.raises(MissingDependencyError, match=r"numba.*edgexnas\[device\]"):
        PeakFinder(shape=(30, 30), compiled=True)


def test_code_is_kept_only_where_no_other_user_can_write(tmp_path: Path):
    """Kept code is loaded as it is, so whoever writes it runs what they like."""
    from edgexnas.compiled_code import _is_ours

    open_to_all, own = tmp_path / "open", tmp_path / "own"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    own.mkdir(mode=0o700)
    assert _is_ours(own)
    assert _is_ours(own / "not" / "there" / "yet")
    assert not _is_ours(open_to_all)
    program = "import edgexnas.peak_finding.compiled_loops"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(open_to_all)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "others can write" in done.stderr
    assert not list(open_to_all.rglob("*.nbc"))


def test_importing_the_package_loads_no_numba():
    program = (
        "import edgexnas.peak_finding, edgexnas.device, sys\nassert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_frames_that_may_be_written_to_and_others_share_compiled_code():
    from edgexnas.peak_finding import compiled_loops

    frame = np.random.default_rng(0).poisson(20, (64, 64)).astype(np.uint16)
    frame[30:33, 30:33] += 300
    frame[31, 31] += 600
    settled = frame.copy()
    settled.flags.writeable = False
    mask = np.zeros(frame.shape, np.bool_)
    mask[:3] = True
    PeakFinder(shape=frame.shape, compiled=True).prepare(np.uint16)
    known = len(compiled_loops.find_peaks.signatures), len(compiled_loops.cut_patches.signatures)
    for pixels in (frame, settled):
        for hidden in (None, mask):
            finder = PeakFinder(
                shape=frame.shape,
                background=estimate_background([pixels], mask=hidden),
                mask=hidden,
                compiled=True,
            )
            assert [31, 31] in finder.find(pixels).maxima.tolist()
    assert known == (
        len(compiled_loops.find_peaks.signatures),
        len(compiled_loops.cut_patches.signatures),
    )
    assert frame.flags.writeable
