"""The journal of a run: what survives, and what is rejected."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import SearchError
from edgexnas.host.run_files import write_run_file
from edgexnas.host.search.journal import NAME, Journal, read_journal

RUN = {"task": "bragg", "objectives": ["error"], "seed": 3, "spaces": ("a", "b")}


def write_run(folder: Path, trials: int = 3) -> Path:
    with Journal(folder, RUN) as journal:
        for number in range(trials):
            journal.start(number, "mlpBragg", {"units": number + 1})
            journal.finish(number, status="done", metrics={"error": 0.5}, rungs={1: 0.7})
    return folder / NAME


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write_run(tmp_path)
    description, trials = read_journal(tmp_path)
    assert description["seed"] == 3
    assert [t.configuration["units"] for t in trials] == [1, 2, 3]
    assert trials[0].metrics == {"error": 0.5}
    assert trials[0].rungs == {1: 0.7}


def test_a_trial_that_has_not_ended_is_known_as_running(tmp_path: Path) -> None:
    write_run(tmp_path)
    with Journal(tmp_path, RUN) as journal:
        journal.start(3, "mlpBragg", {"units": 9})
    with Journal(tmp_path, RUN) as journal:
        assert journal.trials[3].status == "running"
        assert [t.number for t in journal.finished] == [0, 1, 2]


def test_trials_are_kept_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    with Journal(tmp_path, RUN) as journal:
        for number in (0, 1):
            journal.start(number, "mlpBragg", {})
        for number in (1, 0):
            journal.finish(number, status="done")
    assert [trial.number for trial in read_journal(tmp_path)[1]] == [1, 0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_journal_cut_anywhere_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = write_run(folder)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    with Journal(folder, RUN) as journal:
        assert len(journal.events) == max(0, lines - 1)
        journal.start(99, "mlpBragg", {})
    assert path.read_bytes().endswith(b"\n")
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_journal_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{torn\n", *lines[3:]]))
    with pytest.raises(SearchError, match="damaged in line 3"):
        Journal(tmp_path, RUN)


@pytest.mark.parametrize(
    "line",
    [
        {"event": "start"},
        {"event": "start", "trial": 1},
        {"event": "finish", "trial": 1},
        {"event": "finish", "trial": 0, "rungs": 3},
        {"event": "finish", "trial": 0, "rungs": {"one": 3}},
        {},
    ],
)
def test_lines_that_are_no_events_are_damage(tmp_path: Path, line: dict[str, object]) -> None:
    path = write_run(tmp_path, 1)
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
    for read in (read_journal, lambda folder: Journal(folder, RUN)):
        with pytest.raises(SearchError, match="damaged in line 4"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("number", "damaged"),
    [
        ("0.5", '"x"'),
        ("0.5", "NaN"),
        ("0.5", "null"),
        ("0.5", "1" + 400 * "0"),
        ('{"error":0.5}', "7"),
        ("0.7", "[]"),
    ],
)
def test_what_is_no_number_is_damage(tmp_path: Path, number: str, damaged: str) -> None:
    path = write_run(tmp_path)
    path.write_text(path.read_text().replace(number, damaged, 1))
    with pytest.raises(SearchError, match="damaged in line 3"):
        read_journal(tmp_path)


@pytest.mark.parametrize("head", ["{}", '{"schema":1}', '{"schema":1,"event":"run"}', "[]"])
def test_what_does_not_begin_as_a_run_is_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / NAME).write_text(f"{head}\n{{}}\n")
    with pytest.raises(SearchError, match=r"has schema None|damaged in line 1"):
        read_journal(tmp_path)


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(SearchError, match="holds a run with seed 3, not 4"):
        Journal(tmp_path, RUN | {"seed": 4})


def test_a_folder_is_for_one_search_at_a_time(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, RUN),
        pytest.raises(SearchError, match="in use by another search"),
    ):
        Journal(tmp_path, RUN)


def test_a_full_disk_leaves_whole_lines_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path, RUN) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        try:
            with pytest.raises(SearchError, match=r"cannot be written .* resume=True"):
                journal.start(3, "mlpBragg", {"units": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == size
        journal.start(3, "mlpBragg", {"units": 1})
    assert len(path.read_bytes().splitlines()) == 8


def test_a_number_that_json_does_not_know_is_never_written(tmp_path: Path) -> None:
    with Journal(tmp_path, RUN) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.start(0, "mlpBragg", {"rate": float("nan")})
    assert read_journal(tmp_path)[1] == []


@pytest.mark.parametrize("content", [None, b""])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    with pytest.raises(SearchError, match="specify the output folder"):
        read_journal(tmp_path)


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SearchError, match="cannot be written"):
            write_run_file(tmp_path / "weights.pt", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
