"""What no other user could have changed is told from what another could."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgexnas.guarded_files import Guard, check_folder, read_once


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o644)
    return path


def test_a_file_that_only_its_owner_writes_is_read(file: Path) -> None:
    assert read_once(file, most_bytes=7, guard=Guard()) == b"content"
    assert read_once(file, most_bytes=6, guard=Guard()) is None


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o622, 0o602])
def test_a_file_that_others_write_is_rejected(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(PermissionError, match=f"can be written by others .mode 0{mode:o}"):
        read_once(file, most_bytes=7, guard=Guard())


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_that_others_read_is_rejected(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(PermissionError, match="can be read by others"):
        read_once(file, most_bytes=7, guard=Guard(secret=True))


def test_a_secret_of_two_names_is_rejected(file: Path) -> None:
    file.chmod(0o600)
    os.link(file, file.with_name("second"))
    with pytest.raises(PermissionError, match="has 2 names"):
        read_once(file, most_bytes=7, guard=Guard(secret=True))


def test_a_link_is_followed_only_where_that_is_allowed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert read_once(link, most_bytes=7) == b"content"
    assert read_once(link, most_bytes=7, guard=Guard(links=True)) == b"content"
    with pytest.raises(OSError, match="it is a symbolic link"):
        read_once(link, most_bytes=7, guard=Guard())


@pytest.mark.parametrize("guard", [None, Guard(), Guard(secret=True)])
def test_a_pipe_is_rejected_without_waiting(tmp_path: Path, guard: Guard | None) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(OSError, match="no regular file"):
        read_once(tmp_path / "pipe", most_bytes=7, guard=guard)


def test_a_name_with_a_nul_is_rejected() -> None:
    with pytest.raises(OSError, match="its name holds a NUL"):
        read_once(Path("a\0b"), most_bytes=7)


def test_root_may_own_what_is_said_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    complaint = f"belongs to user {owner}, not to {owner + 1}"
    assert Guard().complaint(file.stat()) == complaint
    assert Guard(root=True).complaint(file.stat()) == (complaint if owner else None)


def test_a_folder_that_is_none_or_a_link_is_rejected(file: Path) -> None:
    assert check_folder(file, Guard()) == "is no folder of its own"
    file.parent.chmod(0o700)
    assert check_folder(file.parent, Guard()) is None
    link = file.with_name("link")
    link.symlink_to(file.parent)
    assert check_folder(link, Guard()) == "is no folder of its own"
    assert check_folder(link, Guard(links=True)) is None
