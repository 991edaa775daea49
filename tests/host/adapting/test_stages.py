"""What an adaptation keeps is taken by the one that goes on, and by no other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.host.adapting.stages import Stages, as_json, named_frames, stages_folder

AGREED = {"bundle": "a" * 64, "seed": 0, "mask": None}


def opened(tmp_path: Path, *, resume: bool = False, **agreed: object) -> Stages:
    return Stages(tmp_path / "mine.edgex", {**AGREED, **agreed}, resume=resume)


def made(stages: Stages, name: str, content: str) -> str:
    with stages:
        return stages.stage(
            name,
            lambda: content,
            write=lambda text, path: path.write_text(text),
            read=Path.read_text,
        )


def test_a_stage_that_has_ended_is_read_and_not_made_again(tmp_path: Path) -> None:
    assert made(opened(tmp_path), "labels", "first") == "first"
    with opened(tmp_path, resume=True) as again:
        assert "labels" in again
        assert again.taken > 0
        assert made(again, "labels", "second") == "first"
    assert made(opened(tmp_path, resume=True), "drawn", "third") == "third"
    assert made(opened(tmp_path, resume=True), "drawn", "fourth") == "third"


def test_a_stage_that_was_stopped_is_made_again(tmp_path: Path) -> None:
    def stopped() -> str:
        raise KeyboardInterrupt

    stages = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stages.stage("labels", stopped, write=lambda text, path: None, read=Path.read_text)
    assert not list(tmp_path.iterdir())
    assert made(opened(tmp_path, resume=True), "labels", "now") == "now"


def test_a_stage_that_could_not_be_kept_is_made_again(tmp_path: Path) -> None:
    def full(text: str, path: Path) -> None:
        path.write_text(text[:2])
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), opened(tmp_path) as stages:
        stages.stage("labels", lambda: "first", write=full, read=Path.read_text)
    again = opened(tmp_path, resume=True)
    assert "labels" not in again
    assert made(again, "labels", "second") == "second"


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, *, resume: bool) -> None:
    folder = stages_folder(tmp_path / "mine.edgex")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"mine\.adapting is there and is of no adapt"):
        opened(tmp_path, resume=resume)
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_is_there_is_not_overwritten_without_being_asked(tmp_path: Path) -> None:
    made(opened(tmp_path), "labels", "first")
    with pytest.raises(ConfigurationError, match=r"mine\.adapting keeps what .*resume=True"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed 0, and now it is 1"),
        ({"mask": "b"}, "mask None, and now it is 'b'"),
        ({"threshold": 8.0}, "threshold None, and now it is 8.0"),
    ],
)
def test_another_adaptation_does_not_go_on_with_it(
    tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    made(opened(tmp_path), "labels", "first")
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        opened(tmp_path, resume=True, **changed)


def test_an_option_that_is_no_longer_given_is_another_one(tmp_path: Path) -> None:
    made(opened(tmp_path, threshold=8.0), "labels", "first")
    with pytest.raises(ConfigurationError, match=r"threshold 8\.0, and now it is None"):
        opened(tmp_path, resume=True)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("other")])
def test_what_is_no_longer_as_it_was_written_is_named(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    made(opened(tmp_path), "labels", "first")
    damage(stages_folder(tmp_path / "mine.edgex") / "labels")
    with pytest.raises(SourceError, match=r"labels is not as it was written; delete .*\.adapting"):
        made(opened(tmp_path, resume=True), "labels", "second")


def test_a_folder_is_one_adaptation_s_alone(tmp_path: Path) -> None:
    second = opened(tmp_path)
    with opened(tmp_path) as first:
        first.stage("labels", str, write=lambda text, path: path.touch(), read=Path.read_text)
        for other in (
            lambda: opened(tmp_path, resume=True),
            lambda: opened(tmp_path),
            lambda: made(second, "labels", "second"),
        ):
            with pytest.raises(ConfigurationError, match="in use by another adaptation; wait"):
                other()
        second.remove()
        assert first.folder.exists()
    assert made(opened(tmp_path, resume=True), "labels", "third") == ""


@pytest.mark.parametrize("text", ["", "[]", '{"took": 1}', '{"took": {"labels": "x"}}'])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    made(opened(tmp_path), "labels", "first")
    (stages_folder(tmp_path / "mine.edgex") / "stages.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"cannot be read .*delete .*mine\.adapting"):
        opened(tmp_path, resume=True)


@pytest.mark.parametrize("folder", [False, True])
def test_frames_that_were_rewritten_are_other_frames(tmp_path: Path, *, folder: bool) -> None:
    file = tmp_path / "frame-1.npy"
    np.save(file, np.zeros((4, 4)))
    frames = tmp_path if folder else file
    before = named_frames(frames)
    assert named_frames(str(frames)) == before
    # As many bytes as before.
    np.save(file, np.ones((4, 4)))
    os.utime(file, ns=(0, 10**18))
    assert named_frames(frames) != before


def test_options_are_compared_by_their_content() -> None:
    mask = np.zeros((3, 3), np.bool_)
    assert as_json(mask) == as_json(mask.copy())
    assert as_json(mask) != as_json(~mask)
    assert as_json(Path("a.npy")) == "a.npy"
    assert as_json(2.5) == 2.5
