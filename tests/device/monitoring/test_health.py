"""The states of a service and what leads to each."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.monitoring.health import (
    CONTINUED_S,
    IDLE_S,
    STATES,
    STUCK_S,
    DataObservation,
    FrameObservation,
    HealthObservation,
    HealthState,
    SinkObservation,
    SourceObservation,
    ThreadObservation,
    judge,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "health.md"
NOW = 1000.0
FLOWING = SourceObservation("pva://X", True, 900.0, last_frame_s=NOW - 0.01, flowing_since_s=910.0)
STAGES = tuple(ThreadObservation(name, NOW - 0.05) for name in ("find", "predict", "deliver"))
STORING = SinkObservation("hdf5 results", stored=100, last_stored_s=NOW - 0.02, last_given_s=NOW)
SOUND = HealthObservation(
    NOW, 890.0, source=FLOWING, sinks=(STORING,), threads=(*STAGES, ThreadObservation("sink", NOW))
)


def with_sink(**changes: Any) -> HealthObservation:
    return replace(SOUND, sinks=(replace(STORING, **changes),))


def with_thread(**changes: Any) -> HealthObservation:
    thread = replace(STAGES[1], **changes)
    return replace(SOUND, threads=(STAGES[0], thread, STAGES[2]))


def test_frames_that_are_stored_are_running() -> None:
    health = judge(SOUND)
    assert (health.state, health.healthy, health.watchdog) == ("running", True, True)
    assert health.sentence == "running for 90 s"


def test_data_unlike_the_training_data_degrades_while_it_comes() -> None:
    data = DataObservation("90% of the newest data is unlike the training data", NOW - 40, NOW - 1)
    health = judge(replace(SOUND, data=data))
    assert (health.state, health.healthy, health.watchdog) == ("degraded", True, True)
    assert health.sentence.endswith("is unlike the training data for 40 s")
    gone = replace(data, last_s=NOW - STUCK_S - 1)
    assert judge(replace(SOUND, data=gone)).state == "running"


def test_before_frames_are_taken_it_is_starting_and_not_healthy() -> None:
    health = judge(replace(SOUND, started=False))
    assert (health.state, health.healthy, health.watchdog) == ("starting", False, True)


@pytest.mark.parametrize("failure", [None, "the engine has failed"])
def test_after_the_end_it_is_stopped_and_says_why(failure: str | None) -> None:
    health = judge(replace(SOUND, ended_s=NOW - 3, failure=failure))
    assert (health.state, health.healthy) == ("stopped", False)
    assert (failure or "stopped") in health.sentence


@pytest.mark.parametrize(("away_s", "healthy"), [(1.0, True), (19.9, True), (20.0, False)])
def test_a_source_that_is_away_is_waited_for_and_named(away_s: float, healthy: bool) -> None:
    source = replace(FLOWING, connected=False, since_s=NOW - away_s, last_frame_s=NOW - away_s)
    health = judge(replace(SOUND, source=source))
    assert (health.state, health.healthy, health.watchdog) == ("waiting", healthy, True)
    assert "pva://X is not connected" in health.sentence
    assert health.since_s == NOW - away_s


def test_the_time_that_a_source_may_be_away_can_be_set() -> None:
    seen = replace(SOUND, source=replace(FLOWING, connected=False, since_s=NOW - 30))
    assert not judge(seen).healthy
    assert judge(seen, source_timeout_s=60).healthy


def test_a_connected_source_without_frames_is_idle_and_healthy() -> None:
    health = judge(replace(SOUND, source=replace(FLOWING, last_frame_s=NOW - IDLE_S)))
    assert (health.state, health.healthy, health.since_s) == ("idle", True, NOW - IDLE_S)
    never = SourceObservation("pva://X", True, NOW - 3)
    assert judge(replace(SOUND, source=never)).state == "idle"


def test_frames_that_come_and_are_not_stored_are_failing() -> None:
    health = judge(
        with_sink(unstored_since_s=NOW - STUCK_S, failing_since_s=NOW - STUCK_S, error="disk full")
    )
    assert (health.state, health.healthy, health.watchdog) == ("failing", False, True)
    assert "sink hdf5 results has stored nothing (disk full) for 10 s" in health.sentence


def test_an_optional_sink_that_stores_nothing_degrades() -> None:
    health = judge(with_sink(required=False, unstored_since_s=NOW - 60, dropping_since_s=NOW - 60))
    assert (health.state, health.healthy) == ("degraded", True)
    assert "only drops" in health.sentence


def test_a_short_failure_of_a_required_sink_degrades() -> None:
    health = judge(with_sink(opened=False, failing_since_s=NOW - 3, unstored_since_s=NOW - 3))
    assert (health.state, health.healthy) == ("degraded", True)


def test_a_required_sink_that_is_down_fails_also_while_no_frame_comes() -> None:
    idle = replace(FLOWING, last_frame_s=NOW - 60)
    seen = with_sink(opened=False, failing_since_s=NOW - 60, last_given_s=NOW - 60)
    assert judge(replace(seen, source=idle)).state == "failing"


def test_a_sink_that_was_opened_again_and_is_given_nothing_is_sound() -> None:
    idle = replace(FLOWING, last_frame_s=NOW - 60)
    seen = with_sink(
        failing_since_s=NOW - 80, unstored_since_s=NOW - 80, last_given_s=NOW - 60, error="full"
    )
    assert judge(replace(seen, source=idle)).state == "idle"


def test_opening_a_sink_again_does_not_make_it_sound_while_results_come() -> None:
    seen = with_sink(opened=True, failing_since_s=NOW - 40, unstored_since_s=NOW - 40)
    assert judge(seen).state == "failing"


def test_a_stage_that_does_not_move_fails_and_withholds_the_watchdog() -> None:
    health = judge(with_thread(beat_s=NOW - STUCK_S))
    assert (health.state, health.healthy, health.watchdog) == ("failing", False, False)
    assert "thread predict is stuck for 10 s" in health.sentence


def test_a_thread_that_died_fails_at_once_and_withholds_the_watchdog() -> None:
    health = judge(with_thread(alive=False))
    assert (health.state, health.watchdog) == ("failing", False)


@pytest.mark.parametrize(("required", "state"), [(True, "failing"), (False, "degraded")])
def test_a_sink_that_hangs_is_no_reason_to_restart(required: bool, state: str) -> None:
    health = judge(with_thread(beat_s=NOW - 60, waiting_on="zmq", required=required))
    assert (health.state, health.watchdog) == (state, True)


def test_a_queue_that_only_drops_fails() -> None:
    frames = FrameObservation(only_drops_since_s=NOW - STUCK_S)
    assert judge(replace(SOUND, frames=frames)).state == "failing"


def test_frames_that_are_lost_now_and_then_degrade_until_they_are_not() -> None:
    frames = FrameObservation(lossy_since_s=NOW - 8, lossy_s=NOW - 2, losses="3 dropped")
    health = judge(replace(SOUND, frames=frames))
    assert (health.state, health.healthy) == ("degraded", True)
    assert "frames are lost: 3 dropped" in health.sentence
    later = replace(SOUND, frames=replace(frames, lossy_s=NOW - STUCK_S))
    assert judge(later).state == "running"


def test_frames_that_all_fail_are_failing_whatever_the_sinks_store() -> None:
    frames = FrameObservation(0, NOW - 30, NOW - 1, losses="30 failed")
    assert judge(replace(SOUND, frames=frames)).state == "failing"


def test_frames_that_a_sink_lost_are_not_held_against_it_once_it_is_open_again() -> None:
    frames = FrameObservation(0, NOW - 40, NOW - 20, losses="30 failed")
    idle = replace(FLOWING, last_frame_s=NOW - 20)
    seen = with_sink(failing_since_s=NOW - 40, unstored_since_s=NOW - 40, last_given_s=NOW - 20)
    assert judge(replace(seen, frames=frames, source=idle)).state == "idle"
    assert judge(replace(SOUND, frames=frames, source=idle)).state == "failing"


def test_one_bad_frame_before_a_pause_is_no_failure() -> None:
    frames = FrameObservation(0, NOW - 30, NOW - 30, lossy_since_s=NOW - 30, lossy_s=NOW - 30)
    idle = replace(FLOWING, last_frame_s=NOW - 30)
    assert judge(replace(SOUND, frames=frames, source=idle)).state == "idle"


def test_frames_that_failed_long_ago_are_not_held_against_it() -> None:
    frames = FrameObservation(0, NOW - 200, NOW - CONTINUED_S)
    idle = replace(FLOWING, last_frame_s=NOW - CONTINUED_S)
    assert judge(replace(SOUND, frames=frames, source=idle)).state == "idle"


def test_pending_frames_that_do_not_end_are_failing() -> None:
    frames = FrameObservation(3, NOW - STUCK_S, NOW - STUCK_S)
    assert judge(replace(SOUND, frames=frames)).state == "failing"


def test_a_source_of_messages_that_cannot_be_read_degrades_and_then_fails() -> None:
    source = replace(FLOWING, error="malformed", error_since_s=NOW - 5, error_s=NOW - 0.1)
    assert judge(replace(SOUND, source=source)).state == "degraded"
    source = replace(source, error_since_s=NOW - STUCK_S)
    assert judge(replace(SOUND, source=source)).state == "failing"
    source = replace(source, error_s=NOW - STUCK_S)
    assert judge(replace(SOUND, source=source)).state == "running"


def test_a_service_that_drains_does_not_wait_for_its_source() -> None:
    source = replace(FLOWING, connected=False)
    assert judge(replace(SOUND, source=source, draining=True)).state == "running"


TIMES = st.floats(0, NOW)
MAYBE = st.none() | TIMES
SINKS = st.builds(
    SinkObservation,
    st.sampled_from(["a", "b"]),
    required=st.booleans(),
    opened=st.booleans(),
    unstored_since_s=MAYBE,
    last_given_s=MAYBE,
    queued=st.integers(0, 3),
    failing_since_s=MAYBE,
    error=st.none() | st.just("broken"),
    dropping_since_s=MAYBE,
)
THREADS = st.builds(
    ThreadObservation,
    st.sampled_from(["find", "sink a"]),
    TIMES,
    alive=st.booleans(),
    waiting_on=st.none() | st.just("a disk"),
    required=st.booleans(),
)
ANY = st.builds(
    HealthObservation,
    st.just(NOW),
    TIMES,
    started=st.booleans(),
    draining=st.booleans(),
    ended_s=MAYBE,
    failure=st.none() | st.just("it broke"),
    source=st.builds(
        SourceObservation,
        st.just("pva://X"),
        st.booleans(),
        TIMES,
        MAYBE,
        MAYBE,
        st.none() | st.just("malformed"),
        TIMES,
        TIMES,
    ),
    frames=st.builds(
        FrameObservation, st.integers(0, 3), MAYBE, TIMES, MAYBE, TIMES, st.just("x"), MAYBE
    ),
    sinks=st.lists(SINKS, max_size=3).map(tuple),
    threads=st.lists(THREADS, max_size=3).map(tuple),
)


@given(ANY)
def test_every_observation_has_one_known_state_and_a_sentence(seen: HealthObservation) -> None:
    health = judge(seen)
    assert health.state in STATES
    assert health.sentence.startswith(health.state)
    assert health.since_s <= NOW
    assert health.for_s >= 0


@given(ANY)
def test_health_is_said_by_the_state_alone_but_for_waiting(seen: HealthObservation) -> None:
    health = judge(seen)
    if health.state != "waiting":
        assert health.healthy == (health.state in ("idle", "running", "degraded"))


@given(ANY)
def test_reasons_explain_and_nothing_else_does(seen: HealthObservation) -> None:
    health = judge(seen)
    if health.state in ("degraded", "failing", "waiting"):
        assert health.reasons
    if health.state in ("idle", "running", "starting"):
        assert not health.reasons
    failing = [reason.failing for reason in health.reasons]
    assert health.state == "stopped" or any(failing) == (health.state == "failing")


@given(ANY)
def test_the_watchdog_is_withheld_for_own_threads_alone(seen: HealthObservation) -> None:
    own = any(
        not thread.alive or (thread.waiting_on is None and NOW - thread.beat_s >= STUCK_S)
        for thread in seen.threads
    )
    runs = seen.started and seen.ended_s is None
    assert judge(seen).watchdog == (not (own and runs))


@given(ANY)
def test_a_service_whose_required_sink_stores_nothing_is_never_healthy(
    seen: HealthObservation,
) -> None:
    stuck = SinkObservation("full", unstored_since_s=NOW - STUCK_S, last_given_s=NOW)
    assert not judge(replace(seen, sinks=(*seen.sinks, stuck))).healthy


@given(ANY)
def test_taking_a_fault_away_never_makes_it_worse(seen: HealthObservation) -> None:
    rank = ["running", "idle", "degraded", "waiting", "failing"]
    before = judge(seen)
    for better in (
        replace(seen, sinks=()),
        replace(seen, threads=()),
        replace(seen, frames=FrameObservation(seen.frames.pending)),
        replace(seen, source=replace(seen.source, error=None)),
    ):
        after = judge(better)
        if before.state in rank:
            quiet = {"running", "idle"}
            assert rank.index(after.state) <= rank.index(before.state) or (
                {after.state, before.state} <= quiet
            )


def test_the_page_of_states_is_what_the_program_does() -> None:
    rows = re.findall(r"^\| (\w+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    states = {row[0]: row[1:] for row in rows if row[0] in get_args(HealthState)}
    assert states == {name: tuple(row) for name, row in STATES.items()}
    assert list(states) == list(get_args(HealthState)) == list(STATES)
    assert f"has not moved for {STUCK_S:g} s" in PAGE.read_text()
