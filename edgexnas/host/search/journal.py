"""The append-only record of a search: one JSON object a line, on disk before anything follows.

A run folder holds::

    run.toml          arguments that reproduce the run
    journal.jsonl     this record, the only truth about what was evaluated
    checkpoints/      trained weights, one file a trial
    search.log        what happened when, and the workers' output

The first line describes the run; then every trial has a line when it starts and one when it ends.
A process that is killed while it writes leaves at most a torn last line, which is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgexnas.errors import SearchError

__all__ = ["DifferentRunError", "Journal", "Trial", "read_journal"]

SCHEMA = 1
NAME = "journal.jsonl"


class DifferentRunError(SearchError):
    """A run folder holds a run with other arguments than those that it is to continue with."""


@dataclass
class Trial:
    """One evaluation as the journal knows it.

    Attributes
    ----------
    status
        "running", "done" or "failed".
    reason, message
        Why it failed; see `edgexnas.host.search.evaluation.FAILURES`.
    metrics
        All numbers that are known, the objectives among them.
    rungs
        Epoch → best validation error so far.
    order
        Position in the order in which evaluations ended; −1 while it runs.
    seconds
        Wall time of the evaluation.
    finished
        Seconds from the start of the search to the end of the evaluation, over all sessions.
    slot_s
        How long it was to train, in a search with a budget; 0 in one without.
    stage
        "search" or, of a training with a share of what the search left of its budget, "final".
    parent, repeats
        Trial whose weights it went on from; trial whose network it trained anew.
    """

    number: int
    space: str
    configuration: dict[str, Any]
    status: str = "running"
    reason: str = ""
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    rungs: dict[int, float] = field(default_factory=dict)
    order: int = -1
    seconds: float = 0.0
    finished: float = 0.0
    slot_s: float = 0.0
    stage: str = "search"
    parent: int | None = None
    repeats: int | None = None


class Journal:
    """Writes the record of a run folder, and holds the folder for one process alone.

    Raises
    ------
    SearchError
        If the folder cannot be written, is in use, holds another run, or is damaged.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that nothing of a failed line is written later.
            self._file = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise SearchError(
                f"run folder {folder} cannot be written ({error.strerror}); specify another output"
            ) from error
        try:
            self._lock(folder)
            self.trials, self.events = self._recover(description)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        self._file.close()

    @property
    def finished(self) -> list[Trial]:
        """Trials that ended, in the order in which they did."""
        ended = [trial for trial in self.trials.values() if trial.order >= 0]
        return sorted(ended, key=lambda trial: trial.order)

    def start(self, number: int, space: str, configuration: Mapping[str, Any], **more: Any) -> None:
        """Record that a trial starts; `more` holds further fields of `Trial`."""
        self._append({
            "event": "start", "trial": number, "space": space,
            "configuration": dict(configuration), **more,
        })  # fmt: skip
        self.trials[number] = Trial(number, space, dict(configuration), **more)

    def finish(self, number: int, **result: Any) -> Trial:
        """Record how a trial ended; `result` holds fields of `Trial`."""
        self._append({"event": "finish", "trial": number, **result})
        return _finish(self.trials, number, result)

    def _lock(self, folder: Path) -> None:
        try:
            # The kernel releases it however the process ends, so no stale lock is left.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchError(
                f"run folder {folder} is in use by another search; wait for it or specify another "
                "output"
            ) from error

    def _recover(
        self, description: Mapping[str, Any]
    ) -> tuple[dict[int, Trial], list[tuple[str, int]]]:
        self._file.seek(0)
        lines, torn = _parse(self._file.read(), self.path)
        if torn:
            # Left by a process that was killed while it wrote; that event never happened.
            self._file.truncate(torn[0])
        if not lines:
            self._append({"event": "run", "schema": SCHEMA, **description})
            return {}, []
        _check_same_run(lines[0], description, self.path)
        return _replay(lines[1:], self.path)

    def _append(self, event: Mapping[str, Any]) -> None:
        # NaN and Infinity are no JSON: other readers reject them.
        line = json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            # An unbuffered file may write a part and reports that by its count alone.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # On disk before an evaluation starts or its result counts: resuming trusts this alone.
            os.fsync(self._file.fileno())
        except OSError as error:
            # A full disk may have taken half of the line; shrinking a file needs no space.
            self._file.truncate(end)
            raise SearchError(
                f"{self.path} cannot be written ({error.strerror}); free some space and continue "
                "with resume=True (--resume)"
            ) from error


def read_journal(folder: Path) -> tuple[dict[str, Any], list[Trial]]:
    """Read a run's description and its finished trials, also while the run goes on.

    Raises
    ------
    SearchError
        If the folder holds no run or a damaged one.
    """
    path = Path(folder) / NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SearchError(
            f"{folder} holds no search ({NAME} cannot be read); specify the output folder of one"
        ) from error
    lines, _ = _parse(content, path)
    if not lines:
        raise SearchError(
            f"{path} is empty; specify the output folder of a search that was started"
        )
    _check_schema(lines[0], path)
    trials, _ = _replay(lines[1:], path)
    ended = [trial for trial in trials.values() if trial.order >= 0]
    return lines[0], sorted(ended, key=lambda trial: trial.order)


def _parse(content: bytes, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the lines and, if the last one is torn, the offset where it begins."""
    lines: list[dict[str, Any]] = []
    offset = 0
    for number, raw in enumerate(content.splitlines(keepends=True), start=1):
        try:
            line = json.loads(raw)
            whole = raw.endswith(b"\n") and isinstance(line, dict)
        except ValueError:
            whole = False
        if not whole:
            # Only the last line can be torn; damage elsewhere would silently lose evaluations.
            if offset + len(raw) == len(content):
                return lines, [offset]
            raise _damaged(path, number)
        lines.append(line)
        offset += len(raw)
    return lines, []


def _replay(
    lines: list[dict[str, Any]], path: Path
) -> tuple[dict[int, Trial], list[tuple[str, int]]]:
    trials: dict[int, Trial] = {}
    events: list[tuple[str, int]] = []
    for place, line in enumerate(lines, start=2):
        try:
            event, number = line.pop("event"), line.pop("trial")
            if event == "start":
                trials[number] = Trial(number, **line)
            else:
                _finish(trials, number, line)
            _check_numbers(trials[number])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _damaged(path, place) from error
        events.append((event, number))
    return trials, events


def _check_numbers(trial: Trial) -> None:
    times = (trial.seconds, trial.finished, trial.slot_s)
    numbers: tuple[Any, ...] = (*trial.metrics.values(), *trial.rungs.values(), *times)
    if not all(isinstance(n, int | float) and abs(n) <= sys.float_info.max for n in numbers):
        raise ValueError(f"trial {trial.number} has {numbers}; specify finite numbers")
    if not isinstance(trial.configuration, dict):
        raise TypeError(f"trial {trial.number} has no configuration")


def _damaged(path: Path, line: int) -> SearchError:
    return SearchError(f"{path} is damaged in line {line}; restore it or specify another output")


def _finish(trials: dict[int, Trial], number: int, result: Mapping[str, Any]) -> Trial:
    trial = trials[number]
    # Counted over those that ended, so that a replay gives the numbers of the first time.
    trial.order = sum(other.order >= 0 for other in trials.values())
    for name, value in result.items():
        setattr(trial, name, value)
    # JSON knows only strings as keys.
    trial.rungs = {int(epoch): error for epoch, error in trial.rungs.items()}
    return trial


def _check_schema(line: Mapping[str, Any], path: Path) -> None:
    if line.get("schema") != SCHEMA:
        raise SearchError(
            f"{path} has schema {line.get('schema')} and this version reads {SCHEMA}; specify "
            "another output"
        )
    if line.get("event") != "run" or not {"task", "objectives"} <= line.keys():
        raise _damaged(path, 1)


def _check_same_run(line: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    _check_schema(line, path)
    # Compared as JSON, in which a tuple and a list are the same.
    asked = json.loads(json.dumps(wanted))
    for name, value in asked.items():
        if line.get(name) != value:
            raise DifferentRunError(
                f"{path.parent} holds a run with {name} {line.get(name)!r}, not {value!r}; specify "
                "the same arguments or another output"
            )
