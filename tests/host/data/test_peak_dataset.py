"""The rules of labelled peaks: splits, digest and file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError, InputError, SourceError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.splitting import PARTS, split_frames
from edgexnas.peak_finding import FinderSettings


def peaks(frames: int = 240, each: int = 10, *, turn_deg: float = 180) -> PeakDataset:
    """Make a series with `each` good peaks on every frame."""
    number = frames * each
    generator = np.random.default_rng(0)
    edges = np.linspace(0, turn_deg, frames + 1)
    return PeakDataset(
        counts=generator.poisson(20, (number, 11, 11)).astype(np.float32),
        offsets_px=generator.uniform(-0.5, 0.5, (number, 2)).astype(np.float32),
        maxima=generator.integers(5, 500, (number, 2)).astype(np.int32),
        frame=np.repeat(np.arange(frames, dtype=np.int32), each),
        flags=np.zeros(number, np.uint8),
        r2=np.full(number, 0.97, np.float32),
        good=np.ones(number, np.bool_),
        omega_deg=np.stack([edges[:-1], edges[1:]], axis=1),
        frames=frames,
        shape=(512, 512),
        source="generated",
    )


def parts(dataset: PeakDataset, **options) -> dict[str, np.ndarray]:
    split = dataset.split(**options)
    return {name: getattr(split, name) for name in PARTS}


@given(
    frames=st.integers(48, 2000), blocks=st.integers(8, 60), guard=st.integers(0, 3),
    closed=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_frames_of_different_parts_are_further_apart_than_the_guard(frames, blocks, guard, closed):
    part = split_frames(frames, blocks=blocks, guard=guard, closed=closed)
    kept = np.flatnonzero(part < 4)
    gap, change = np.diff(kept), np.diff(part[kept]) != 0
    assert (gap[change] > guard).all()
    if closed and part[kept[0]] != part[kept[-1]]:
        assert kept[0] + frames - kept[-1] > guard
    assert set(part[kept]) == {0, 1, 2, 3}


@given(st.integers(100, 3000), st.integers(12, 40))
@settings(max_examples=80, deadline=None)
def test_the_test_part_is_one_run_of_frames_at_the_end(frames, blocks):
    test = np.flatnonzero(split_frames(frames, blocks=blocks) == 3)
    assert test[-1] == frames - 1
    assert (np.diff(test) == 1).all()


def test_more_than_half_of_a_long_series_trains():
    part = split_frames(1440)
    shares = np.bincount(part, minlength=5) / 1440
    assert shares[0] > 0.5
    assert 0.05 < shares[1] < shares[2]
    assert shares[3] > 0.12


def test_only_good_peaks_are_in_a_split_and_all_others_in_its_rest():
    good = np.arange(len(peaks())) % 3 == 0
    dataset = replace(peaks(), good=good)
    split = dataset.split()
    assert split.rest is not None
    for name in PARTS:
        labelled, others = getattr(split, name), getattr(split.rest, name)
        assert good[labelled].all()
        assert not good[others].any()
        # Of the same frames: every peak of a frame is in one part.
        on_frames = np.isin(dataset.frame, dataset.frame[labelled])
        assert len(labelled) + len(others) == on_frames.sum()


def test_a_split_is_the_same_each_time():
    for first, second in zip(parts(peaks()).values(), parts(peaks()).values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_after_a_full_turn_the_last_frame_is_a_neighbour_of_the_first():
    half, full = peaks(turn_deg=180), peaks(turn_deg=360)
    assert 0 in half.frame[parts(half)["train"]]
    assert half.frame[parts(half)["test"]].max() == 239
    assert full.frame[parts(full)["train"]].min() == 2


def test_a_series_with_too_few_good_peaks_is_refused_with_the_counts():
    with pytest.raises(ConfigurationError, match=r"120 good peaks .* 12 for calibration"):
        peaks(frames=120, each=1).split(blocks=20)


def test_a_series_with_too_few_frames_is_refused_with_their_number():
    with pytest.raises(ConfigurationError, match="16 frames make 4 blocks"):
        peaks(frames=16, each=100).split()


@pytest.mark.parametrize("option", [{"guard": -1}, {"fractions": (0.3, 0.3, 0.3)}])
def test_split_options_out_of_range_are_refused(option):
    with pytest.raises(ConfigurationError, match="guard is"):
        peaks().split(**option)


def test_a_file_gives_back_what_was_saved(tmp_path: Path):
    dataset = replace(peaks(60), finder=FinderSettings(snr=7, saturation=15800.0))
    loaded = PeakDataset.load(dataset.save(tmp_path / "peaks.h5"))
    assert loaded.digest == dataset.digest
    assert (loaded.finder, loaded.shape, loaded.source) == (
        dataset.finder, dataset.shape, dataset.source,
    )  # fmt: skip
    np.testing.assert_array_equal(loaded.counts, dataset.counts)


def test_an_empty_dataset_can_be_saved(tmp_path: Path):
    dataset = peaks(4, each=0)
    assert len(PeakDataset.load(dataset.save(tmp_path / "none.h5"))) == 0


@pytest.mark.parametrize("name", ["counts", "offsets_px", "maxima", "good", "omega_deg"])
def test_any_changed_value_changes_the_digest(name):
    dataset = peaks(20)
    changed = getattr(dataset, name).copy()
    changed[3] = ~changed[3] if changed.dtype == np.bool_ else changed[3] + 1
    assert replace(dataset, **{name: changed}).digest != dataset.digest


def test_the_source_does_not_change_the_digest():
    assert replace(peaks(20), source="elsewhere").digest == peaks(20).digest


def test_the_digest_is_stable_across_versions():
    ramp = np.arange(2 * 121, dtype=np.float32).reshape(2, 11, 11)
    dataset = PeakDataset(
        counts=ramp,
        offsets_px=np.array([[0.25, -0.5], [0.0, 0.125]], np.float32),
        maxima=np.array([[7, 9], [20, 30]], np.int32),
        frame=np.array([0, 3], np.int32),
        flags=np.array([0, 4], np.uint8),
        r2=np.array([0.95, 0.5], np.float32),
        good=np.array([True, False]),
        frames=4,
        shape=(64, 80),
        source="by hand",
        finder=FinderSettings(minimum_counts=20.0, ridge_fraction=1.0),
    )
    assert dataset.digest.startswith("6f3814d90355ac8e")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch):
    path = peaks(20).save(tmp_path / "peaks.h5")
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(SourceError, match="no space left"):
        peaks(40).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(SourceError, match=r"absent\.h5"):
        PeakDataset.load(tmp_path / "absent.h5")


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(SourceError, match=r"text\.h5"):
        PeakDataset.load(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["counts"] = np.zeros(3)
    with pytest.raises(SourceError, match="not a file of"):
        PeakDataset.load(tmp_path / "other.h5")


def test_a_file_whose_content_was_changed_is_refused(tmp_path: Path):
    path = peaks(20).save(tmp_path / "peaks.h5")
    with h5py.File(path, "r+") as file:
        file["offsets_px"][0] = 0.125
    with pytest.raises(SourceError, match="does not match its digest"):
        PeakDataset.load(path)


@pytest.mark.parametrize("name", ["counts", "good", "description"])
def test_a_file_that_lacks_something_is_refused(tmp_path: Path, name):
    path = peaks(20).save(tmp_path / "peaks.h5")
    with h5py.File(path, "r+") as file:
        del (file.attrs if name == "description" else file)[name]
    with pytest.raises(SourceError, match=name):
        PeakDataset.load(path)


def test_a_truncated_file_is_refused(tmp_path: Path):
    path = peaks(20).save(tmp_path / "peaks.h5")
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(SourceError, match=r"peaks\.h5"):
        PeakDataset.load(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("r2", np.zeros(3, np.float32)),
        ("counts", np.zeros((200, 9, 9), np.float32)),
        ("maxima", np.zeros((200, 2), np.int64)),
        ("frame", np.full(200, 20, np.int32)),
        ("omega_deg", np.zeros((3, 2))),
    ],
)
def test_columns_that_do_not_fit_are_refused(column, value):
    with pytest.raises(InputError):
        replace(peaks(20), **{column: value})


def test_targets_are_the_fit_or_where_known_the_truth():
    dataset = peaks(20)
    assert dataset.against == "fit"
    np.testing.assert_array_equal(dataset.targets_px, dataset.offsets_px)
    known = replace(dataset, truth_px=dataset.maxima + 0.25)
    assert known.against == "truth"
    np.testing.assert_allclose(known.targets_px, 0.25)


def test_inputs_are_scaled_patches_with_a_channel():
    inputs = peaks(2).inputs()
    assert inputs.shape == (20, 1, 11, 11)
    assert inputs.dtype == np.float32
    assert (inputs.min(), inputs.max()) == (0, 1)


def test_joined_datasets_number_their_frames_on():
    first, second = peaks(20), replace(peaks(30), source="second")
    joined = PeakDataset.concatenate([first, second])
    assert (len(joined), joined.frames, joined.source) == (500, 50, "generated; second")
    np.testing.assert_array_equal(joined.frame[200:], second.frame + 20)
    assert joined.omega_deg is not None
    assert joined.omega_deg.shape == (50, 2)


def test_what_one_dataset_lacks_the_joined_one_lacks():
    known = replace(peaks(20), truth_px=np.zeros((200, 2)))
    assert PeakDataset.concatenate([known, peaks(20)]).truth_px is None
    assert PeakDataset.concatenate([known, known]).truth_px is not None


def test_datasets_of_different_detectors_are_not_joined():
    with pytest.raises(ConfigurationError, match="differ"):
        PeakDataset.concatenate([peaks(20), replace(peaks(20), shape=(64, 64))])


@pytest.mark.parametrize("column", ["counts", "offsets_px"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(column: str, value: float) -> None:
    dataset = peaks(frames=4)
    values = getattr(dataset, column).copy()
    values[17] = value
    with pytest.raises(InputError, match=r"of generated hold NaN or infinity in 1 of 40 .* 17;"):
        replace(dataset, **{column: values})


def test_a_position_that_no_label_needs_may_be_unknown() -> None:
    dataset = peaks(frames=4)
    truth = dataset.maxima.astype(float)
    truth[3], good = np.nan, np.arange(len(dataset)) != 3
    assert len(replace(dataset, truth_px=truth, good=good)) == 40
    with pytest.raises(InputError, match="positions of the good peaks of generated"):
        replace(dataset, truth_px=truth)


def test_a_series_without_a_peak_is_a_dataset_without_items(tmp_path: Path) -> None:
    dataset = peaks(frames=4)
    none = {name: getattr(dataset, name)[:0] for name in dataset.COLUMNS if name != "truth_px"}
    assert len(PeakDataset.load(replace(dataset, **none).save(tmp_path / "none.h5"))) == 0
