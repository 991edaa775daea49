"""Peaks of successive frames become spots."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.merging import MergeSettings, Rotation, SpotMerger
from edgexnas.spots import SPOT, SpotFlag, Spots

Frame = Sequence[tuple[float, float, float]]
"""(row, col, counts) of each peak."""


def add(
    merger: SpotMerger, number: int, peaks: Frame, *, interval: float = 0.2, flags: int = 0
) -> Spots:
    table = np.array(peaks, np.float32).reshape(-1, 3)
    widths = np.full((len(table), 2), interval, np.float32)
    bits = np.full(len(table), flags, np.uint8)
    return merger.add_arrays(number, table[:, :2], widths, table[:, 2], bits)


def merged(
    frames: Sequence[Frame],
    *,
    numbers: Sequence[int] | None = None,
    rotation: Rotation | None = None,
    **options: float,
) -> Spots:
    merger = SpotMerger(rotation or Rotation(10.0, 0.5), MergeSettings(**options))
    numbers = range(len(frames)) if numbers is None else numbers
    parts = [add(merger, number, peaks) for number, peaks in zip(numbers, frames, strict=True)]
    return Spots.joined([*parts, merger.finish()])


EMPTY: Frame = ()


def around(*frames: Frame) -> Spots:
    """Merge frames between empty ones, so that nothing is cut."""
    return merged([EMPTY, *frames, EMPTY])


class TestOneSpot:
    def test_peaks_on_successive_frames_become_one_spot(self) -> None:
        (row,) = around([(20, 30, 50)], [(20.2, 30.1, 100)], [(20.1, 29.9, 50)]).table
        assert (row["first_frame"], row["last_frame"], row["peaks"]) == (1, 3, 3)
        assert (row["intensity"], row["flags"]) == (200, 0)
        np.testing.assert_allclose([row["row_px"], row["col_px"]], [20.1, 30], atol=1e-5)

    def test_its_angle_is_the_centroid_of_its_counts(self) -> None:
        (row,) = around(*([(20, 30, counts)] for counts in (10, 40, 100, 40, 10))).table
        assert row["omega_deg"] == pytest.approx(10 + 3.5 * 0.5)

    def test_a_spot_on_one_frame_has_the_middle_of_the_frame(self) -> None:
        (row,) = around([(20, 30, 50)]).table
        assert row["omega_deg"] == pytest.approx(10.75)
        # Anywhere within the frame, or beyond it, where faint peaks are not seen.
        assert 0.2 < row["omega_sigma_deg"] / 0.5 < 0.6

    def test_a_peak_weighs_as_its_interval_is_narrow(self) -> None:
        merger = SpotMerger(Rotation())
        add(merger, 0, [(20, 30, 50)], interval=0.1)
        add(merger, 1, [(21, 30, 50)], interval=0.3)
        spots = merger.finish()
        np.testing.assert_allclose(spots.positions_px[0], [20.1, 30], atol=1e-5)

    def test_several_peaks_are_less_uncertain_than_one_but_not_independent(self) -> None:
        one = around([(20, 30, 50)])
        four = around(*[[(20, 30, 50)]] * 4)
        ratio = four.sigmas_px[0, 0] / one.sigmas_px[0, 0]
        assert 0.5 < ratio < 1

    def test_a_stated_interval_is_that_of_a_normal_distribution(self) -> None:
        (row,) = around([(20, 30, 50)]).table
        assert row["row_sigma_px"] == pytest.approx(0.2 / 2 / 1.6449, rel=1e-4)

    def test_positions_that_scatter_more_than_they_state_are_believed_less(self) -> None:
        steady = around(*[[(20, 30, 50)]] * 2)
        jumping = around([(19, 30, 50)], [(20.5, 30, 50)])
        assert jumping.sigmas_px[0, 0] > 3 * steady.sigmas_px[0, 0]

    def test_flags_of_all_its_peaks_are_kept(self) -> None:
        merger = SpotMerger(Rotation())
        add(merger, 0, EMPTY)
        for number, flags in enumerate((1, 4), start=1):
            merger.add_arrays(number, [[5, 5]], [[0.1, 0.1]], [9], [flags])
        assert add(merger, 3, EMPTY).flags.tolist() == [5]


class TestSeveralSpots:
    def test_a_frame_without_its_peak_ends_a_spot(self) -> None:
        spots = around([(20, 30, 50)], EMPTY, [(20, 30, 50)])
        assert spots.frames.tolist() == [[1, 1], [3, 3]]

    def test_peaks_beyond_the_tolerance_are_spots_of_their_own(self) -> None:
        frames = [EMPTY, [(20, 30, 50)], [(20, 32.5, 50)], EMPTY]
        assert len(merged(frames)) == 2
        assert len(merged(frames, tolerance_px=3)) == 1

    def test_the_nearest_pair_is_linked_first_and_the_others_are_told(self) -> None:
        spots = around([(20, 30, 50), (21.5, 30, 50)], [(21.4, 30, 50)])
        table = np.sort(spots.table, order="peaks")
        assert table["peaks"].tolist() == [1, 2]
        assert table["row_px"][0] == 20
        assert (table["flags"] & SpotFlag.AMBIGUOUS).all()

    def test_two_spots_side_by_side_stay_two(self) -> None:
        spots = around(*[[(20, 30, 50), (21.5, 30, 80)]] * 3)
        assert sorted(spots.intensities.tolist()) == [150, 240]

    def test_a_valley_splits_what_follows_one_another_at_one_place(self) -> None:
        counts = (100, 900, 300, 100, 400, 800, 100)
        spots = around(*([(20, 30, value)] for value in counts))
        assert spots.frames.tolist() == [[1, 4], [5, 7]]
        assert spots.intensities.tolist() == [1400, 1300]
        assert (spots.flags == SpotFlag.SPLIT).all()

    def test_a_valley_no_deeper_than_counts_fluctuate_splits_nothing(self) -> None:
        assert len(around(*([(20, 30, value)] for value in (12, 4, 12)))) == 1

    def test_no_valley_splits_where_none_is_wanted(self) -> None:
        frames = [[(20, 30, value)] for value in (900, 10, 900)]
        assert len(merged(frames, valley=0)) == 1

    def test_spots_end_in_the_order_of_their_last_frames(self) -> None:
        spots = around([(20, 30, 9), (50, 30, 9)], [(50, 30, 9)])
        assert spots.frames[:, 1].tolist() == [1, 2]


class TestWedgesAndGaps:
    def test_a_spot_at_the_first_or_last_frame_is_cut(self) -> None:
        spots = merged([[(20, 30, 50)], EMPTY, [(20, 30, 50)]])
        assert spots.flags.tolist() == [SpotFlag.CUT, SpotFlag.CUT]

    def test_a_spot_is_followed_over_a_missing_frame(self) -> None:
        spots = merged([EMPTY, [(20, 30, 50)], [(20, 30, 50)], EMPTY], numbers=[0, 1, 3, 4])
        assert spots.frames.tolist() == [[1, 3]]
        assert spots.flags.tolist() == [SpotFlag.GAP]
        assert spots.omega_sigmas_deg[0] > 0.1

    def test_a_wider_gap_ends_all_spots(self) -> None:
        frames = [EMPTY, [(20, 30, 50)], [(20, 30, 50)], EMPTY]
        spots = merged(frames, numbers=[0, 1, 4, 5])
        assert spots.flags.tolist() == [SpotFlag.CUT, SpotFlag.CUT]
        assert len(merged(frames, numbers=[0, 1, 4, 5], gap_frames=2)) == 1

    def test_a_jump_of_the_angle_begins_a_wedge(self) -> None:
        table = [[0, 1], [1, 2], [90, 91], [91, 92]]
        spots = merged([[(20, 30, 50)]] * 4, rotation=Rotation(table_deg=table))
        assert spots.omega_deg.tolist() == [1, 91]
        assert (spots.flags == SpotFlag.CUT).all()

    def test_a_rotation_that_turns_back_begins_a_wedge(self) -> None:
        table = [[0, 1], [1, 2], [2, 1], [1, 0]]
        spots = merged([[(20, 30, 50)]] * 4, rotation=Rotation(table_deg=table))
        assert len(spots) == 2

    def test_a_table_may_go_on_at_zero_after_a_turn(self) -> None:
        table = [[357, 358], [358, 359], [359, 360], [0, 1], [1, 2]]
        frames = [EMPTY, [(20, 30, 10)], [(20, 30, 50)], [(20, 30, 10)], EMPTY]
        (row,) = merged(frames, rotation=Rotation(table_deg=table)).table
        assert row["omega_deg"] % 360 == pytest.approx(359.5)

    def test_a_spot_has_an_angle_of_the_turn_in_which_it_began(self) -> None:
        table = [[357, 358], [358, 359], [359, 360], [0, 1], [1, 2], [2, 3]]
        frames = [EMPTY, EMPTY, [(20, 30, 50)], [(60, 30, 50)], EMPTY, EMPTY]
        spots = merged(frames, rotation=Rotation(table_deg=table))
        assert spots.omega_deg.tolist() == [359.5, 0.5]

    def test_a_wedge_that_overlaps_the_one_before_begins_anew(self) -> None:
        table = [[0, 1], [1, 2], [2, 3], [2, 3], [3, 4], [4, 5]]
        frames = [EMPTY, *([(20, 30, counts)] for counts in (50, 100, 100, 50)), EMPTY]
        spots = merged(frames, rotation=Rotation(table_deg=table))
        assert spots.frames.tolist() == [[1, 2], [3, 4]]
        assert spots.flags.tolist() == [SpotFlag.CUT, SpotFlag.CUT]

    @pytest.mark.parametrize("table", [False, True])
    def test_a_gap_of_a_full_turn_is_a_gap(self, table: bool) -> None:
        turns = [[n * 1.0, n + 1.0] for n in range(370)]
        rotation = Rotation(table_deg=turns) if table else Rotation(0.0, 1.0)
        frames = [EMPTY, [(20, 30, 50)], [(20, 30, 50)], EMPTY]
        spots = merged(frames, numbers=[0, 1, 362, 363], rotation=rotation)
        assert spots.frames.tolist() == [[1, 1], [362, 362]]
        assert spots.flags.tolist() == [SpotFlag.CUT, SpotFlag.CUT]

    def test_a_rotation_may_go_backwards(self) -> None:
        frames = [EMPTY, [(20, 30, 10)], [(20, 30, 50)], [(20, 30, 10)], EMPTY]
        (row,) = merged(frames, rotation=Rotation(0.0, -0.5)).table
        assert row["omega_deg"] == pytest.approx(-1.25)


class TestAngles:
    @pytest.mark.parametrize("width", [0.1, 0.3, 0.8, 1.6])
    def test_angles_lie_within_their_uncertainty(self, width: float) -> None:
        rng = np.random.default_rng(0)
        spots, truth = rocked(rng, width, 1500)
        error = np.abs(spots.omega_deg - truth) / spots.omega_sigmas_deg
        assert 0.85 < (error < 1.645).mean() < 0.97

    @pytest.mark.parametrize("limit", [300, 1500])
    def test_saturated_peaks_leave_an_angle_within_its_uncertainty(self, limit: int) -> None:
        spots, truth = rocked(np.random.default_rng(3), 0.8, 1500, limit=limit)
        saturated = (spots.flags & SpotFlag.SATURATED) > 0
        assert saturated.sum() > 100
        error = np.abs(spots.omega_deg - truth)[saturated] / spots.omega_sigmas_deg[saturated]
        assert (error < 1.645).mean() > 0.88

    @pytest.mark.parametrize("counts", [(-5, -5), (-5, 5), (-4, 5, 1), (0, 0, 0)])
    def test_counts_below_background_leave_the_angle_within_its_frames(
        self, counts: Sequence[float]
    ) -> None:
        (row,) = around(*([(20, 30, value)] for value in counts)).table
        assert row["first_frame"] <= (row["omega_deg"] - 10) / 0.5 <= row["last_frame"] + 1

    def test_two_frames_say_more_than_their_centroid_of_narrow_curves(self) -> None:
        rng = np.random.default_rng(1)
        spots, truth = rocked(rng, 0.1, 1500)
        two = spots.peaks == 2
        error = np.abs(spots.omega_deg - truth)[two]
        # An edge between two frames, of which the curve reaches both: far less than half a frame.
        assert error.mean() < 0.1


def rocked(
    rng: np.random.Generator, width: float, count: int, *, limit: float = np.inf
) -> tuple[Spots, npt.NDArray[np.float64]]:
    """Merge spots of Gaussian rocking curves up to a full width in frames; and their true angles.

    Peaks are saturated at a limit of counts.
    As on a detector, curves are wider nearer to the rotation axis.
    """
    from scipy.special import erf

    truth, parts = [], []
    merger = SpotMerger(Rotation(0.0, 1.0))
    number = 0
    for _ in range(count):
        at = 4 + rng.random()
        sharpness = max(abs(np.sin(rng.uniform(0, np.pi))), 0.1)
        own = min(rng.uniform(0.1, 1) * width / sharpness, 2)
        edges = (np.arange(10) - at) * 2 * np.sqrt(np.log(2)) / own
        share = np.diff(erf(edges))
        counts = rng.poisson(rng.uniform(200, 5000) * share / share.max())
        for value in counts:
            frame: Frame = [(20, 30, min(value, limit))] if value > 20 else EMPTY
            parts.append(add(merger, number, frame, flags=int(value >= limit)))
            number += 1
        truth.append(number - len(counts) + at)
    spots = Spots.joined([*parts, merger.finish()])
    assert len(spots) == count
    return spots, np.array(truth)


class TestStreaming:
    def test_only_open_spots_are_held(self) -> None:
        rng = np.random.default_rng(0)
        merger = SpotMerger(Rotation())
        held = []
        for number in range(3000):
            add(merger, number, [(*rng.uniform(0, 500, 2), 50) for _ in range(20)])
            held.append(len(merger._open))
        assert merger.open_spots <= 20
        assert max(held) == held[0]

    def test_python_merges_as_compiled_code_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(2)
        frames = [[(*rng.uniform(0, 40, 2), rng.uniform(5, 500)) for _ in range(30)]] * 2
        frames += [[(*rng.uniform(0, 40, 2), rng.uniform(5, 500)) for _ in range(30)]] * 3
        compiled = merged(frames)
        from edgexnas.merging import merging_loops

        python: dict[str, object] = {"__name__": "python_loops"}
        monkeypatch.setitem(sys.modules, "edgexnas.compiled_code", None)
        with open(merging_loops.__file__, encoding="utf-8") as file:
            exec(file.read(), python)
        for name in ("merge_frame", "close_all"):
            monkeypatch.setattr(merging_loops, name, python[name])
        np.testing.assert_array_equal(merged(frames).table, compiled.table)

    @given(
        frames=st.lists(
            st.lists(
                st.tuples(st.integers(0, 12), st.integers(0, 12), st.floats(0, 1e6, width=32)),
                max_size=12,
            ),
            min_size=1,
            max_size=12,
        )
    )
    @settings(deadline=None, max_examples=60)
    def test_no_peak_and_no_count_is_lost(self, frames: list[Frame]) -> None:
        spots = merged(frames)
        assert spots.peaks.sum() == sum(map(len, frames))
        total = sum(counts for peaks in frames for _, _, counts in peaks)
        assert spots.intensities.sum() == pytest.approx(total, rel=1e-5)
        assert (spots.peaks == spots.frames[:, 1] - spots.frames[:, 0] + 1).all()
        assert np.isfinite(spots.table["omega_sigma_deg"]).all()


class TestRejected:
    def test_frames_out_of_order(self) -> None:
        merger = SpotMerger(Rotation())
        add(merger, 3, [(20, 30, 50)])
        with pytest.raises(InputError, match=r"frame 3 does not follow on frame 3; add frames in"):
            add(merger, 3, EMPTY)
        assert merger.open_spots == 1

    def test_positions_that_are_not_finite(self) -> None:
        with pytest.raises(InputError, match="frame 0 has a position or an intensity that is not"):
            add(SpotMerger(Rotation()), 0, [(np.nan, 30, 50)])

    def test_a_frame_beyond_the_table_of_angles(self) -> None:
        merger = SpotMerger(Rotation(table_deg=[[0, 1]]))
        with pytest.raises(InputError, match="frame 1 has no rotation angle: the table has 1"):
            add(merger, 1, EMPTY)

    def test_a_series_without_angles(self) -> None:
        with pytest.raises(ConfigurationError, match="rotation angles of the frames are not known"):
            Rotation.of(MergeSettings())

    @pytest.mark.parametrize(
        "options",
        [
            {"omega_start_deg": 0.0},
            {"omega_start_deg": 0.0, "omega_step_deg": 0.0},
            {"omega_step_deg": 1.0, "omega_start_deg": np.nan},
            {"tolerance_px": 0},
            {"gap_frames": -1},
            {"valley": 1.0},
        ],
    )
    def test_settings_out_of_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError, match=next(reversed(options))):
            MergeSettings(**options)

    def test_tables_that_are_no_angles(self) -> None:
        for table in ([1, 2], [[0, np.inf]], [[3, 3]]):
            with pytest.raises(InputError, match=r"angles|frame 0"):
                Rotation(table_deg=table)

    def test_spots_of_unequal_length(self) -> None:
        spots = Spots.from_table(np.zeros(2, SPOT))
        with pytest.raises(InputError, match=r"sigmas_px of 1 spots has shape \(2, 2\)"):
            Spots(spots.positions_px[:1], spots.sigmas_px, *([spots.omega_deg[:1]] * 6))
