"""The rules of labelled patterns: labels, splits, baselines, digest and file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError, InputError, SourceError
from edgexnas.frames import open_frames
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.ptycho_labels import cut_patches, label_scan
from edgexnas.host.data.scan_regions import scan_regions, split_regions
from edgexnas.host.data.splitting import PARTS
from edgexnas.host.exporting.ptycho_baselines import baseline_rows
from edgexnas.ptycho import align_phase, bin_patterns
from edgexnas.scans import Scan, open_scan
from edgexnas.simulate import PtychographySettings, simulate_scan

SETTINGS = PtychographySettings(object_kind="cells", scan_shape_px=(200, 240), step_px=10)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(SETTINGS, seed=1)


@pytest.fixture(scope="module")
def dataset(scan: Scan) -> PtychoDataset:
    return label_scan(scan)


def tiny(count: int = 3, **changes) -> PtychoDataset:
    """Make a dataset of no meaning."""
    rng = np.random.default_rng(count)
    columns = {
        "patterns": rng.poisson(5, (count, 64, 64)).astype(np.float32),
        "targets": rng.uniform(0, 1, (count, 2, 64, 64)).astype(np.float32),
        "positions_px": rng.uniform(0, 99, (count, 2)),
        "region": np.zeros(count, np.int32),
    }
    return PtychoDataset(
        **{**columns, "intensity_scale": 10.0, "source": "t", "against": "truth", **changes}
    )


def test_a_target_is_the_object_under_its_pattern(scan: Scan, dataset: PtychoDataset) -> None:
    values = dataset.targets[7, 0] * np.exp(1j * dataset.targets[7, 1])
    row, col = np.round(dataset.positions_px[7]).astype(int)
    near = scan.truth[row : row + 64, col : col + 64]
    assert np.abs(align_phase(values, near) - near).mean() < 0.03


def test_a_patch_between_pixels_is_interpolated() -> None:
    rows, cols = np.indices((100, 100))
    image = np.exp(1j * (np.sin(rows / 5) + np.cos(cols / 7))).astype(np.complex64)
    patch = cut_patches(image, [[10.3, 20.8]])[0]
    rows, cols = np.indices((64, 64)) + np.array([10.3, 20.8])[:, None, None]
    np.testing.assert_allclose(patch, np.exp(1j * (np.sin(rows / 5) + np.cos(cols / 7))), atol=2e-3)


def test_one_constant_phase_is_removed_from_the_whole_object(scan: Scan) -> None:
    few = replace(scan, patterns=scan.patterns[:9], positions_px=scan.positions_px[:9])
    turned = replace(few, truth=(scan.truth * np.exp(2j)).astype(np.complex64))
    first, second = label_scan(few), label_scan(turned)
    np.testing.assert_allclose(first.targets, second.targets, atol=1e-4)


def test_half_of_the_patterns_are_brighter_than_the_scale(dataset: PtychoDataset) -> None:
    brightest = dataset.inputs().max(axis=(1, 2, 3))
    assert np.median(brightest) == pytest.approx(1)


def test_patterns_are_binned_as_on_the_device_with_masked_pixels_at_0() -> None:
    large = simulate_scan(replace(SETTINGS, pattern_size=128, scan_shape_px=(10, 10),
                                  hot_pixel_fraction=0.01))  # fmt: skip
    dark = np.where(large.mask, 0, large.patterns)
    np.testing.assert_array_equal(label_scan(large).patterns, bin_patterns(dark, 2))


def test_a_pattern_without_a_position_or_off_the_object_is_left_out(scan: Scan) -> None:
    positions = scan.positions_px.copy()
    positions[3], positions[4], positions[5] = np.nan, -1, 1e6
    labelled = label_scan(replace(scan, positions_px=positions))
    assert len(labelled) == len(scan) - 3
    np.testing.assert_array_equal(labelled.patterns[3], scan.patterns[6])


def test_reconstructed_labels_say_so_and_agree_with_the_truth() -> None:
    scan = simulate_scan(replace(SETTINGS, scan_shape_px=(50, 50), step_px=7))
    ours, known = label_scan(scan, method="rpie", iterations=20), label_scan(scan)
    assert (ours.against, known.against) == ("iterative", "truth")
    difference = (ours.targets - known.targets)[:, 1, 16:48, 16:48]
    difference -= np.median(difference, axis=(1, 2), keepdims=True)
    # A tilt that all patches share is no error: object and beam may exchange it.
    difference -= difference.mean(axis=0)
    assert np.abs(difference).mean() < 0.03


def test_the_worst_residual_of_scans_is_kept_in_the_file(tmp_path: Path) -> None:
    assert tiny().residual is None
    parts = [tiny(against="iterative", residual=value) for value in (0.01, 0.03)]
    joined = PtychoDataset.concatenate(parts)
    assert PtychoDataset.load(joined.save(tmp_path / "joined.h5")).residual == 0.03
    assert parts[0].digest != parts[1].digest
    with pytest.raises(InputError, match="residual is -1"):
        tiny(residual=-1.0)


def test_saturated_counts_are_refused(scan: Scan) -> None:
    patterns = scan.patterns.astype(np.uint16)
    patterns[2, 30, 30] = 65535
    with pytest.raises(InputError, match="saturated"):
        label_scan(replace(scan, patterns=patterns))


def test_patterns_that_cannot_be_binned_to_64_pixels_are_refused() -> None:
    odd = Scan(patterns=np.ones((2, 100, 100)), positions_px=np.zeros((2, 2)), source="odd")
    with pytest.raises(InputError, match="multiple of 64"):
        label_scan(odd)


def test_the_truth_of_a_measured_scan_cannot_be_asked_for(scan: Scan) -> None:
    with pytest.raises(ConfigurationError, match="no known object"):
        label_scan(replace(scan, truth=None), method="truth")


def test_the_right_quarter_tests(dataset: PtychoDataset) -> None:
    split = dataset.split()
    columns = dataset.positions_px[:, 1]
    border = columns.min() + 0.75 * np.ptp(columns)
    assert columns[split.test].min() >= border - 1e-6
    assert (columns[np.setdiff1d(np.arange(len(dataset)), split.test)] < border).all()
    assert len(split.test) == pytest.approx(len(dataset) / 4, rel=0.1)


@given(
    count=st.integers(50, 400), guard=st.floats(0, 100), seed=st.integers(0, 99),
    scans=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_parts_keep_their_distance_within_each_scan(count, guard, seed, scans):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 300, (count * scans, 2))
    region = np.concatenate(
        [scan_regions(positions[k * count : (k + 1) * count], scan=k) for k in range(scans)]
    )
    part = split_regions(region, positions, guard_px=guard)
    scan = region // 64
    apart = np.abs(positions[:, None] - positions[None]).max(axis=2)
    apart[scan[:, None] != scan[None]] = np.inf
    assert (apart[np.ix_(part < 3, part == 3)] >= guard).all()
    assert (apart[np.ix_(part == 0, part == 2)] >= guard / 2).all()


def test_no_training_patch_shares_a_pixel_with_a_test_patch(dataset: PtychoDataset) -> None:
    split = dataset.split()
    gap = dataset.positions_px[split.train][:, None] - dataset.positions_px[split.test][None]
    assert (np.abs(gap).max(axis=2) >= 64).all()


def test_the_parts_are_disjoint_and_not_empty(dataset: PtychoDataset) -> None:
    parts = [getattr(dataset.split(), name) for name in PARTS]
    assert min(len(part) for part in parts) >= 16
    joined = np.concatenate(parts)
    assert len(np.unique(joined)) == len(joined)


def test_a_scan_too_small_to_split_is_refused_with_the_counts() -> None:
    with pytest.raises(ConfigurationError, match="3 patterns, which split into"):
        tiny().split()


def test_the_ridge_regression_beats_the_mean_predictor(dataset: PtychoDataset) -> None:
    mean, ridge = baseline_rows(dataset, dataset.split())
    assert (mean.name, ridge.name) == ("mean predictor", "ridge regression")
    assert 0 < ridge.phase_mae_rad < 0.8 * mean.phase_mae_rad


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    dataset = tiny()
    loaded = PtychoDataset.load(dataset.save(tmp_path / "patterns.h5"))
    assert loaded.digest == dataset.digest
    assert (loaded.source, loaded.against) == (dataset.source, dataset.against)
    np.testing.assert_array_equal(loaded.targets, dataset.targets)


def test_the_digest_depends_on_every_column_and_not_on_the_source() -> None:
    dataset = tiny()
    assert replace(dataset, source="elsewhere").digest == dataset.digest
    others = [
        replace(dataset, intensity_scale=11.0),
        replace(dataset, against="iterative"),
        *(replace(dataset, **{name: getattr(dataset, name) + getattr(dataset, name).dtype.type(1)})
          for name in ("patterns", "targets", "positions_px", "region")),
    ]  # fmt: skip
    assert len({item.digest for item in (dataset, *others)}) == 7


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tiny().save(tmp_path / "patterns.h5")
    with h5py.File(path, "r+") as file:
        file["targets"][0, 0, 0, 0] += 0.1
    with pytest.raises(SourceError, match="digest"):
        PtychoDataset.load(path)


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_file_that_is_no_dataset_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "patterns.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match="label the scan again"):
        PtychoDataset.load(path)


def test_a_dataset_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be written"):
        tiny().save(tmp_path / "missing" / "patterns.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": np.zeros((3, 2, 32, 32), np.float32)},
        {"patterns": np.full((3, 64, 64), np.nan, np.float32)},
        {"positions_px": np.zeros((2, 2))},
        {"region": np.zeros(3)},
        {"intensity_scale": 0.0},
        {"against": "fit"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_columns_that_do_not_fit_are_refused_by_name(changes) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        tiny(**changes)


def test_joined_datasets_keep_their_scans_apart() -> None:
    joined = PtychoDataset.concatenate([tiny(3), tiny(2), tiny(4)])
    assert len(joined) == 9
    np.testing.assert_array_equal(joined.region // 64, [0, 0, 0, 1, 1, 2, 2, 2, 2])


def test_datasets_labelled_differently_are_not_joined() -> None:
    with pytest.raises(ConfigurationError, match="labelled differently"):
        PtychoDataset.concatenate([tiny(), tiny(against="iterative")])


def test_a_dataset_is_neither_a_scan_nor_frames(tmp_path: Path) -> None:
    path = tmp_path / "patterns.h5"
    tiny(20).save(path)
    for opened in (open_scan, open_frames):
        with pytest.raises(SourceError, match="holds labelled patterns to train on, not frames"):
            opened(path)


def with_all(dataset: PtychoDataset) -> PtychoDataset:
    """The dataset with all that may be left out."""
    rng = np.random.default_rng(1)
    return replace(
        dataset,
        probe=(rng.normal(size=(2, 128, 128)) + 1j).astype(np.complex64),
        seen_object=(rng.normal(size=(90, 80)) + 1j).astype(np.complex64),
        seen_illumination=rng.random((90, 80), np.float32),
        mask=np.eye(128, dtype=bool),
        orientation="transpose",
        object_pixel_m=(1e-8, 2e-8),
    )


def test_probe_object_mask_and_orientation_travel_with_the_labels(
    tiny_patterns: PtychoDataset, tmp_path: Path
) -> None:
    kept = with_all(tiny_patterns)
    read = PtychoDataset.load(kept.save(tmp_path / "labels.h5"))
    for name in PtychoDataset.OPTIONAL:
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    assert (read.orientation, read.object_pixel_m) == ("transpose", (1e-8, 2e-8))
    assert read.digest == kept.digest != tiny_patterns.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe": np.ones((64, 64), np.complex64)}, r"specify finite complex64 \(modes, H, W\)"),
        ({"seen_illumination": None}, "different shapes"),
        ({"mask": np.zeros((64, 64), bool)}, "specify that of a detector pattern for both"),
        ({"orientation": "upside-down"}, "orientation is 'upside-down'"),
    ],
)
def test_parts_that_do_not_fit_are_rejected(
    tiny_patterns: PtychoDataset, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        replace(with_all(tiny_patterns), **change)


@pytest.mark.parametrize(("version", "readable"), [(0, False), (1, True), (2, True), (3, False)])
def test_labels_of_version_1_are_read_and_newer_ones_than_2_are_not(
    tmp_path: Path, version: int, readable: bool
) -> None:
    dataset = tiny()
    path = dataset.save(tmp_path / "labels.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = version
    if readable:
        assert PtychoDataset.load(path).digest == dataset.digest
        return
    with pytest.raises(SourceError, match="label the scan again"):
        PtychoDataset.load(path)
