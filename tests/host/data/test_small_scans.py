"""A scan that is too small to be split: its beam, simulated objects, its patterns to test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgexnas.errors import InputError
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.ptycho_labels import label_scan
from edgexnas.host.data.scan_parts import part_of_scan
from edgexnas.host.data.small_scans import can_split, label_small_scan, training_numbers
from edgexnas.scans import Scan
from edgexnas.simulate import PtychographySettings, simulate_scan

SETTINGS = PtychographySettings(scan_shape_px=(36, 36), step_px=9)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return replace(simulate_scan(SETTINGS, seed=3), truth=None)


@pytest.fixture(scope="module")
def labelled(scan: Scan) -> PtychoDataset:
    return label_small_scan(scan, iterations=20)


def test_only_a_scan_whose_parts_all_hold_enough_can_be_split(scan: Scan) -> None:
    assert not can_split(scan)
    assert can_split(simulate_scan(PtychographySettings(scan_shape_px=(240, 240))))


def test_the_patterns_that_train_are_known_before_there_are_labels() -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(240, 240)))
    positions = scan.positions_px.copy()
    positions[0], positions[1] = (-5, 10), np.nan
    scan = replace(scan, positions_px=positions)
    numbers = training_numbers(scan)
    assert numbers is not None
    dataset = label_scan(scan)
    train = dataset.positions_px[dataset.split().train]
    np.testing.assert_array_equal(scan.positions_px[numbers], train)


def test_measured_patterns_test_and_simulated_ones_do_all_else(
    scan: Scan, labelled: PtychoDataset
) -> None:
    split = labelled.split()
    np.testing.assert_array_equal(split.test, np.arange(len(scan)))
    np.testing.assert_array_equal(labelled.patterns[split.test], scan.patterns)
    assert (len(split.train), len(split.validation), len(split.calibration)) == (1024, 192, 64)


def test_simulated_patterns_are_as_bright_as_the_measured_ones(labelled: PtychoDataset) -> None:
    split = labelled.split()
    light = [labelled.patterns[part].sum(axis=(1, 2)).mean() for part in (split.train, split.test)]
    assert light[0] == pytest.approx(light[1], rel=0.25)


def test_the_probe_is_kept_and_no_object_that_tests(scan: Scan, labelled: PtychoDataset) -> None:
    assert labelled.probe is not None
    assert labelled.probe.shape == (3, 64, 64)
    through = np.median(labelled.targets[: len(scan), 0]) ** 2
    assert np.square(np.abs(labelled.probe)).sum() * through == pytest.approx(
        scan.patterns.sum(axis=(1, 2)).mean(), rel=0.25
    )
    assert labelled.seen_object is None


def test_a_beam_that_explains_nothing_is_rejected(scan: Scan) -> None:
    shuffled = np.random.default_rng(0).permutation(scan.positions_px)
    with pytest.raises(InputError, match="does not explain the patterns"):
        label_small_scan(replace(scan, positions_px=shuffled), iterations=5)


def test_fewer_patterns_than_a_part_needs_are_rejected(scan: Scan) -> None:
    with pytest.raises(InputError, match="has 15 patterns with a usable position, too few"):
        label_small_scan(part_of_scan(scan, np.arange(15)))
