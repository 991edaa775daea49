from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.device.serving.ledger import MOST_GAPS, STATES, Ledger, SeriesLedger
from edgexnas.device.sinks.results import SeriesKey

ENDED = ("done", "dropped", "failed")


def adds_up(counts: object) -> bool:
    assert isinstance(counts, dict)
    ended = sum(counts[s] for s in ("done", "dropped", "duplicate", "failed", "pending", "spilled"))
    return counts["received"] == ended and min(counts.values()) >= 0


class TestSeriesLedger:
    def test_a_frame_that_comes_is_pending_until_it_ends(self) -> None:
        ledger = SeriesLedger("a")
        assert ledger.receive(0) == "fresh"
        assert ledger.counts["pending"] == 1
        ledger.end(0, "done")
        assert ledger.counts == dict.fromkeys(STATES, 0) | {"received": 1, "done": 1}

    def test_a_frame_ends_once(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(0)
        ledger.end(0, "failed")
        with pytest.raises(ValueError, match="frame 0 of a is not pending"):
            ledger.end(0, "done")

    def test_a_frame_that_comes_again_is_a_duplicate_whatever_became_of_it(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(3)
        assert ledger.receive(3) == "duplicate"
        ledger.end(3, "dropped")
        assert ledger.receive(3) == "duplicate"
        assert ledger.counts["duplicate"] == 2

    def test_numbers_that_were_left_out_are_lost(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(10)
        ledger.receive(14)
        assert ledger.counts["lost"] == 3

    def test_a_frame_out_of_order_is_lost_no_more(self) -> None:
        ledger = SeriesLedger("a")
        for number in (0, 2, 1):
            assert ledger.receive(number) == "fresh"
        assert ledger.counts["lost"] == 0

    def test_first_and_last_frames_are_lost_where_the_length_of_the_series_is_known(self) -> None:
        ledger = SeriesLedger("a", first=0)
        ledger.receive(2)
        ledger.expect(5)
        assert ledger.counts["lost"] == 4

    def test_a_series_joined_midway_has_lost_nothing_before(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(57_321)
        assert ledger.counts["lost"] == 0
        assert ledger.watermark is None

    def test_frames_before_the_first_are_late_where_the_start_was_not_seen(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(5)
        assert ledger.receive(4) == "late"

    def test_a_frame_whose_gap_was_closed_is_late_and_dropped(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(0)
        ledger.receive(2)
        ledger.close_gaps(2)
        assert ledger.receive(1) == "late"
        assert (ledger.counts["dropped"], ledger.counts["lost"]) == (1, 0)

    def test_the_watermark_stops_at_pending_frames_and_at_open_gaps(self) -> None:
        ledger = SeriesLedger("a", first=0)
        for number in (0, 1, 3):
            ledger.receive(number)
            ledger.end(number, "done")
        assert ledger.watermark == 1
        ledger.close_gaps(3)
        assert ledger.watermark == 3
        ledger.receive(4)
        assert ledger.watermark == 3

    def test_frames_that_an_earlier_run_stored_are_duplicates_and_not_lost(self) -> None:
        ledger = SeriesLedger("a", committed=[(0, 100), (110, 120)])
        assert ledger.receive(99) == "duplicate"
        assert ledger.receive(120) == "fresh"
        assert ledger.counts["lost"] == 10

    def test_spilled_frames_are_counted_apart(self) -> None:
        ledger = SeriesLedger("a")
        ledger.receive(0)
        ledger.spill(0)
        assert (ledger.counts["pending"], ledger.counts["spilled"]) == (0, 1)
        ledger.unspill(0)
        assert (ledger.counts["pending"], ledger.counts["spilled"]) == (1, 0)

    def test_memory_is_bounded_when_every_other_frame_is_lost(self) -> None:
        ledger = SeriesLedger("a")
        for number in range(0, 4 * MOST_GAPS, 2):
            ledger.receive(number)
            ledger.end(number, "done")
        assert len(ledger._seen) <= MOST_GAPS
        assert ledger.counts["lost"] == 2 * MOST_GAPS - 1
        assert ledger.receive(1) == "duplicate"
        assert adds_up(ledger.counts)

    def test_a_long_series_takes_no_more_memory_than_a_short_one(self) -> None:
        ledger = SeriesLedger("a")
        for number in range(20_000):
            ledger.receive(number)
            ledger.end(number, "done")
        assert len(ledger._seen) == 1
        assert sys.getsizeof(ledger._open._starts) < 1000

    @settings(deadline=None)
    @given(st.data())
    def test_whatever_comes_the_counts_add_up_and_the_watermark_never_falls(
        self, data: st.DataObject
    ) -> None:
        """Gaps, duplicates, reordering and late frames, against a model with one set a state."""
        ledger = SeriesLedger("a", first=data.draw(st.sampled_from([None, 0])))
        open_, spilled, seen = set[int](), set[int](), set[int]()
        received, marks = 0, list[int]()
        for _ in range(data.draw(st.integers(0, 60))):
            step = data.draw(st.sampled_from(["receive", "receive", "end", "spill", "close"]))
            if step == "receive":
                number = data.draw(st.integers(0, 25))
                arrival = ledger.receive(number)
                received += 1
                assert (arrival == "duplicate") == (number in seen)
                seen.add(number)
                if arrival == "fresh":
                    open_.add(number)
            elif step == "end" and open_ - spilled:
                number = data.draw(st.sampled_from(sorted(open_ - spilled)))
                ledger.end(number, data.draw(st.sampled_from(ENDED)))
                open_.remove(number)
            elif step == "spill" and open_:
                number = data.draw(st.sampled_from(sorted(open_)))
                (ledger.unspill if number in spilled else ledger.spill)(number)
                spilled ^= {number}
            elif step == "close" and seen:
                ledger.close_gaps(data.draw(st.integers(0, max(seen))))
            counts = ledger.counts
            assert adds_up(counts)
            assert counts["received"] == received
            assert (counts["pending"], counts["spilled"]) == (
                len(open_ - spilled),
                len(spilled),
            )
            mark = ledger.watermark
            if mark is not None:
                assert not any(number <= mark for number in open_)
                marks.append(mark)
        assert marks == sorted(marks)
        if seen:
            first = ledger._start
            assert first is not None
            assert counts["lost"] == len(set(range(first, max(seen) + 1)) - seen)


class TestLedger:
    def test_counts_of_all_series_outlive_the_memory_of_their_numbers(self) -> None:
        ledger = Ledger()
        for index in range(200):
            series = ledger.series(f"series {index}")
            for number in sorted(random.Random(index).sample(range(10), 5)):
                series.receive(number)
                series.end(number, "done")
        ledger.fail_unnumbered()
        counts = ledger.counts
        assert (counts["received"], counts["done"], counts["failed"]) == (1001, 1000, 1)
        assert adds_up(counts)
        assert len(ledger._series) <= 64

    def test_a_series_is_the_same_each_time_it_is_asked_for(self) -> None:
        ledger = Ledger({SeriesKey.of("a", "", "b1"): [(0, 5)]}, "b1")
        assert ledger.series("a") is ledger.series("a")
        assert ledger.series("a").receive(4) == "duplicate"
        assert ledger.known("a") is ledger.series("a")

    @pytest.mark.parametrize("identity", ["", "scan.h5-1"])
    def test_what_is_stored_is_of_one_series_and_one_bundle(self, identity: str) -> None:
        committed = {SeriesKey.of("a", identity, "b1"): [(0, 5)]}
        for other, digest in (("scan.h5-2", "b1"), (identity, "b2")):
            assert Ledger(committed, digest).series("a", other).receive(4) == "fresh"
        assert Ledger(committed, "b1").series("a", identity).receive(4) == "duplicate"
        if identity:
            assert (
                Ledger(committed, "b1").series("another name", identity).receive(0) == "duplicate"
            )

    @pytest.mark.parametrize("identity", ["", "scan.h5-1"])
    def test_frames_that_are_stored_under_a_name_alone_are_told_and_not_skipped(
        self, identity: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ledger = Ledger({SeriesKey.of("a", "", ""): [(0, 5)]}, "b1")
        assert ledger.series("a", identity).receive(4) == "fresh"
        assert "5 frames of a series named a are stored without what identifies it" in caplog.text
