from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device import cache as engine_cache
from edgexnas.device.cache import EngineCache, default_cache_folder
from edgexnas.errors import EngineError

KEY: dict[str, object] = {"bundle": "b", "version": "10.3"}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "a" / "cache")


def stored(cache: EngineCache, content: bytes = b"plan") -> Path:
    assert cache.store("plan", KEY, {"seconds": 2.5}, content)
    (path,) = cache.folder.glob("plan-*")
    return path


def test_what_is_stored_is_loaded_by_another_start(cache: EngineCache) -> None:
    stored(cache, b"\0" * 1000)
    assert EngineCache(cache.folder).load("plan", KEY) == ({"seconds": 2.5}, b"\0" * 1000)
    assert cache.load("plan", {**KEY, "version": "11"}) is None
    assert cache.load("timings", KEY) is None


def test_folder_and_files_are_for_the_user_alone(cache: EngineCache) -> None:
    stored(cache)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in cache.folder.iterdir()}
    assert modes == {0o600}


def test_a_folder_that_others_only_read_is_closed_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    EngineCache(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_cache_that_others_came_to_read_is_closed_to_them(cache: EngineCache) -> None:
    stored(cache)
    cache.folder.chmod(0o755)
    EngineCache(cache.folder)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_a_folder_with_other_things_in_it_stays_readable_for_whom_it_was(tmp_path: Path) -> None:
    (tmp_path / "scan.h5").touch()
    tmp_path.chmod(0o755)
    for _ in range(2):
        assert EngineCache(tmp_path).store("plan", {"a": 1}, {}, b"x")
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    kept = [path for path in tmp_path.iterdir() if path.name != "scan.h5"]
    assert len(kept) == 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(EngineError, match=f"can be written by others .mode 0{mode:o}.*chmod 700"):
        EngineCache(tmp_path)


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(EngineError, match=rf"belongs to user {other - 1}, not to {other}"):
        EngineCache(tmp_path)


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(EngineError, match="is no folder of its own"):
        EngineCache(tmp_path / "link")


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EngineError, match=r"cannot be made \(.*\); specify one that this user may write to"
    ):
        EngineCache(tmp_path / "file" / "cache")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "grow"])
def test_damage_is_left_out_said_aloud_and_removed(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = stored(cache)
    raw = path.read_bytes()
    path.write_bytes(
        {"flip": bytes([raw[0] ^ 1]) + raw[1:], "cut": raw[:-1], "empty": b"", "grow": raw + b"x"}[
            damage
        ]
    )
    assert cache.load("plan", KEY) is None
    assert "is not used, because it is damaged" in caplog.text
    assert not path.exists()


def test_every_single_byte_counts(cache: EngineCache) -> None:
    raw = stored(cache).read_bytes()
    for place in range(len(raw)):
        assert cache._opened(raw[:place] + bytes([raw[place] ^ 0x40]) + raw[place + 1 :]) is None
    assert cache._opened(raw) is not None


@given(st.binary())
def test_nothing_that_was_not_written_here_is_opened(raw: bytes) -> None:
    cache = EngineCache.__new__(EngineCache)
    cache._secret = b"k" * 32
    assert cache._opened(raw) is None
    assert cache._opened(engine_cache.MAGIC + raw) is None


def test_an_entry_under_another_name_is_not_taken_for_it(cache: EngineCache) -> None:
    path = stored(cache)
    other = cache._path("plan", {**KEY, "version": "11"})
    path.rename(other)
    assert cache.load("plan", {**KEY, "version": "11"}) is None
    assert not other.exists()


def test_an_entry_of_another_device_is_not_taken(cache: EngineCache, tmp_path: Path) -> None:
    path = stored(cache)
    other = EngineCache(tmp_path / "other")
    target = other._path("plan", KEY)
    target.write_bytes(path.read_bytes())
    target.chmod(0o600)
    assert other.load("plan", KEY) is None


@pytest.mark.parametrize("trick", ["readable", "linked", "symbolic", "folder"])
def test_a_file_that_others_reach_is_not_taken(
    cache: EngineCache, tmp_path: Path, trick: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = stored(cache)
    if trick == "readable":
        path.chmod(0o644)
    elif trick == "linked":
        os.link(path, tmp_path / "second")
    elif trick == "symbolic":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        path.mkdir()
    assert cache.load("plan", KEY) is None
    assert "is not used" in caplog.text


def test_a_pipe_in_the_cache_is_left_out_at_once(cache: EngineCache) -> None:
    path = stored(cache)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert cache.load("plan", KEY) is None
    (cache.folder / "device.key").unlink()
    os.mkfifo(cache.folder / "device.key", 0o600)
    assert EngineCache(cache.folder).store("plan", KEY, {}, b"plan")


def test_a_key_that_is_damaged_is_made_anew_and_said_aloud(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    stored(cache)
    (cache.folder / "device.key").write_bytes(b"short")
    again = EngineCache(cache.folder)
    assert "it holds no key" in caplog.text
    assert again.load("plan", KEY) is None
    stored(again)
    assert EngineCache(cache.folder).load("plan", KEY) is not None


def test_a_cache_without_space_is_said_aloud_and_leaves_nothing_half_written(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert not cache.store("plan", KEY, {}, b"plan")
    assert "(No space left on device): the next start" in caplog.text
    assert [path.name for path in cache.folder.iterdir()] == ["device.key"]
    stored(cache)


def test_others_are_told_apart_by_what_differs(cache: EngineCache) -> None:
    stored(cache)
    wanted: dict[str, Any] = {**KEY, "version": "11"}
    assert cache.others("plan", wanted, same=("bundle",)) == [KEY]
    assert cache.others("plan", {**wanted, "bundle": "c"}, same=("bundle",)) == []
    assert cache.others("plan", KEY, same=("bundle",)) == []


def test_what_was_not_used_for_longest_goes_first(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cache, "MOST_CACHE_BYTES", 3500)
    for number in range(3):
        cache.store("plan", {"n": number}, {}, b"x" * 1000)
        os.utime(cache._path("plan", {"n": number}), (number, number))
    assert cache.load("plan", {"n": 0}) is not None
    cache.store("plan", {"n": 3}, {}, b"x" * 1000)
    kept = [number for number in range(4) if cache.load("plan", {"n": number}) is not None]
    assert kept == [0, 2, 3]


def test_the_folder_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEXNAS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "edgexnas"
    monkeypatch.setenv("EDGEXNAS_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
