"""Where the direct beam lies and which way the detector is turned: found, not assumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgexnas.errors import InputError
from edgexnas.host.data.phase_retrieval import reconstruct
from edgexnas.host.data.scan_geometry import TRIED_SWEEPS, beam_offset_px, find_orientation
from edgexnas.host.data.scan_parts import oriented_scan, part_of_scan
from edgexnas.ptycho import ORIENTATIONS, Orientation, oriented
from edgexnas.scans import Scan
from edgexnas.simulate import PtychographySettings, simulate_scan

SCAN = replace(
    simulate_scan(PtychographySettings(scan_shape_px=(70, 70), step_px=9), seed=3), truth=None
)


def seen_by(scan: Scan, orientation: Orientation) -> Scan:
    """The scan as a detector records it that `orientation` brings into the axes of positions."""
    patterns = np.ascontiguousarray(oriented(scan.patterns, orientation, inverse=True))
    return replace(scan, patterns=patterns)


@pytest.mark.parametrize("orientation", ["as-is", "flip-columns", "rotate-clockwise"])
def test_a_known_probe_tells_all_eight_orientations_apart(orientation: Orientation) -> None:
    found = find_orientation(seen_by(SCAN, orientation))
    assert found.orientation == orientation
    assert found.by_probe
    assert set(found.residuals) == set(ORIENTATIONS)
    assert orientation in found.sentence


@pytest.mark.parametrize(
    ("orientation", "stated"),
    [("as-is", "as-is"), ("rotate-180", "as-is"), ("anti-transpose", "transpose")],
)
def test_without_a_probe_the_one_of_a_pair_that_turns_less_is_taken_and_both_are_said(
    orientation: Orientation, stated: str
) -> None:
    found = find_orientation(replace(seen_by(SCAN, orientation), probe=None))
    assert found.orientation == stated
    assert not found.by_probe
    assert "would do as well, with the phase's sign reversed" in found.sentence


DIM = replace(SCAN, patterns=np.random.default_rng(0).binomial(SCAN.patterns, 0.001).astype("u2"))
ROUND = np.exp(-((np.indices((64, 64)) - 31.5) ** 2).sum(axis=0) / 200).astype(np.complex64)[None]
LINE = np.flatnonzero(np.abs(SCAN.positions_px[:, 0] - np.median(SCAN.positions_px[:, 0])) < 4)


@pytest.mark.parametrize(
    "scan",
    [
        replace(DIM, probe=None),
        replace(part_of_scan(SCAN, np.arange(6)), probe=None),
        replace(part_of_scan(SCAN, LINE), probe=None),
        replace(SCAN, probe=ROUND),
    ],
    ids=["dim", "six", "line", "another-probe"],
)
def test_what_tells_no_orientation_is_said_and_taken_as_it_is(
    scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_orientation(seen_by(scan, "flip-rows"))
    assert not found.told
    assert not found.by_probe
    assert found.orientation == "as-is"
    assert "not told" in found.sentence
    assert "--orientation" in found.sentence
    assert found.sentence in caplog.text


def test_patterns_in_any_unit_tell_the_orientation() -> None:
    patterns = (SCAN.patterns / SCAN.patterns.max()).astype(np.float32)
    found = find_orientation(seen_by(replace(SCAN, patterns=patterns), "flip-rows"))
    assert (found.told, found.orientation) == (True, "flip-rows")


def test_the_first_guess_knows_nothing_of_patterns_that_are_not_to_be_tried() -> None:
    scan, among = replace(SCAN, probe=None), np.arange(4, 10)
    patterns = np.full_like(scan.patterns, 7)
    patterns[among] = scan.patterns[among]
    seen, blinded = (
        find_orientation(each, among=among).probe
        for each in (scan, replace(scan, patterns=patterns))
    )
    np.testing.assert_array_equal(seen, blinded)


@pytest.mark.parametrize("orientation", ["as-is", "rotate-180", "flip-rows"])
def test_the_first_guess_is_of_the_orientation_that_is_taken(orientation: Orientation) -> None:
    few = replace(seen_by(part_of_scan(SCAN, np.arange(6)), orientation), probe=None)
    found = find_orientation(few)
    assert found.orientation == "as-is"
    own, mate = (
        reconstruct(oriented_scan(few, name), iterations=TRIED_SWEEPS, modes=1)
        for name in ("as-is", "rotate-180")
    )
    better = own.probe if own.residual <= mate.residual else mate.probe.conj()
    np.testing.assert_array_equal(found.probe, better)


def test_the_probe_that_was_found_on_the_way_starts_a_phase_retrieval_that_explains() -> None:
    scan = replace(seen_by(SCAN, "rotate-180"), probe=None)
    found = find_orientation(scan)
    again = replace(oriented_scan(scan, found.orientation), probe=found.probe)
    assert reconstruct(again, iterations=15).explains


def test_the_beam_is_found_where_it_was_moved_to_under_a_mask_too() -> None:
    moved = np.roll(SCAN.patterns, (5, -7), axis=(1, 2))
    mask = np.zeros(moved.shape[1:], bool)
    mask[:3] = True
    moved[:, mask] = 60_000
    there = np.array(beam_offset_px(replace(SCAN, patterns=moved, mask=mask)))
    np.testing.assert_allclose(there - beam_offset_px(SCAN), (5, -7), atol=0.2)


def test_a_beam_beside_the_middle_is_explained_by_a_tilted_probe() -> None:
    moved = replace(SCAN, patterns=np.roll(SCAN.patterns, (6, -4), axis=(1, 2)))
    assert reconstruct(moved, iterations=15).explains
    assert reconstruct(replace(moved, probe=None), iterations=15).residual < 0.02


def test_patterns_that_begin_with_the_direct_beam_are_rejected_with_the_roll_that_helps() -> None:
    cornered = replace(SCAN, patterns=np.fft.ifftshift(SCAN.patterns, axes=(1, 2)))
    with pytest.raises(
        InputError, match=r"lies at pixel \(\d+, \d+\) and should lie near"
    ) as raised:
        beam_offset_px(cornered)
    assert "roll the patterns by" in str(raised.value)
