"""How much is unlike the training data, in one sentence."""

from __future__ import annotations

import numpy as np

from edgexnas.familiarity import UnfamiliarTally, reason_name


def codes(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint8)


def test_it_counts_by_reason():
    tally = UnfamiliarTally()
    tally.add(codes(0, 1, 1, 254, 0))
    tally.add(None)
    tally.add(codes())
    assert (tally.total, tally.unfamiliar, tally.share) == (5, 3, 0.6)
    assert tally.reasons == {"width_px": 2, "several together": 1}
    assert tally.sentence == (
        "3 of 5 peaks (60%) are unlike the training data (by width_px 2, several together 1)"
    )


def test_few_peaks_make_no_foreign_data():
    tally = UnfamiliarTally()
    tally.add(codes(*[1] * 9))
    assert not tally.foreign
    tally.add(codes(1))
    assert tally.foreign


def test_familiar_data_is_not_foreign():
    tally = UnfamiliarTally()
    tally.add(codes(*[0] * 97, 1, 1, 1))
    assert not tally.foreign
    assert tally.sentence.startswith("3 of 100 peaks (3%)")


def test_four_unfamiliar_patterns_of_four_make_a_foreign_scan():
    tally = UnfamiliarTally("patterns", lambda code: f"q{code}")
    tally.add(codes(1, 1, 1))
    assert not tally.foreign_scan
    tally.add(codes(2))
    assert tally.foreign_scan
    assert tally.sentence == "4 of 4 patterns (100%) are unlike the training data (by q1 3, q2 1)"


def test_every_reason_has_a_name():
    assert {reason_name(code) for code in (1, 11, 254, 255)} == {
        "width_px", "gain_counts", "several together", "the whole frame",
    }  # fmt: skip
