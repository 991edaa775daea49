"""A device with a state folder never goes back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgexnas.bundle import Manifest, TrustStore, open_bundle
from edgexnas.bundle.rollback import RollbackState, default_state_folder, open_state
from edgexnas.errors import BundleError, ConfigurationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "state"


@pytest.fixture
def state(folder: Path) -> RollbackState:
    return RollbackState(folder)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a state folder; returned is where that would be."""
    for name in ("EDGEXNAS_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".local" / "state" / "edgexnas"


def with_sequence(manifest: Manifest, sequence: int) -> Manifest:
    return manifest.model_copy(update={"sequence": sequence})


def test_an_older_sequence_is_refused_after_a_newer_one(
    manifest: Manifest, state: RollbackState
) -> None:
    state.remember_bundle(with_sequence(manifest, 3))
    with pytest.raises(BundleError, match=r"sequence 2, but sequence 3 was accepted before.*lower"):
        state.check_bundle(with_sequence(manifest, 2))
    with pytest.raises(BundleError, match="was accepted before"):
        state.remember_bundle(with_sequence(manifest, 2))


def test_the_same_and_newer_sequences_are_accepted(
    manifest: Manifest, state: RollbackState
) -> None:
    for sequence in (3, 3, 8):
        state.remember_bundle(with_sequence(manifest, sequence))
    content = json.loads((state.folder / "accepted-bundles.json").read_text())
    assert content == {"bundles": {"tiny-bragg": 8}, "lists": {}}


def test_what_is_only_checked_is_not_remembered(manifest: Manifest, state: RollbackState) -> None:
    state.check_bundle(with_sequence(manifest, 8))
    state.check_bundle(with_sequence(manifest, 2))
    assert list(state.folder.iterdir()) == []


def test_a_sequence_accepted_again_is_not_written_again(
    manifest: Manifest, state: RollbackState
) -> None:
    state.remember_bundle(manifest)
    before = (state.folder / "accepted-bundles.json").stat()
    state.remember_bundle(manifest)
    assert (state.folder / "accepted-bundles.json").stat().st_ino == before.st_ino


def test_models_are_remembered_apart(manifest: Manifest, state: RollbackState) -> None:
    state.remember_bundle(manifest)
    state.remember_bundle(manifest.model_copy(update={"model_id": "other", "sequence": 0}))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"bundles": {"tiny-bragg": "9"}}',
        '{"bundles": {"tiny-bragg": true}}',
        '{"bundles": {"a": 1, "a": 2}}',
        '{"bundles": {"a": -1}}',
        '{"more": {}}',
    ],
)
def test_a_damaged_memory_accepts_nothing(
    content: str, manifest: Manifest, state: RollbackState
) -> None:
    file = state.folder / "accepted-bundles.json"
    file.write_text(content)
    for use in (state.check_bundle, state.remember_bundle):
        with pytest.raises(ConfigurationError, match=r"is damaged: .*restore it"):
            use(manifest)
    assert file.read_text() == content


def test_a_state_that_is_given_is_made_for_its_user_alone(state: RollbackState) -> None:
    assert state.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("path", ["file", "file/state", "null\0"])
def test_a_state_that_can_be_no_folder_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="rollback state"):
        open_state(tmp_path / path)


def test_by_default_there_is_a_state_where_there_is_its_folder(nowhere: Path) -> None:
    assert open_state(None) is None
    nowhere.mkdir(parents=True, mode=0o700)
    opened = open_state(None)
    assert opened is not None
    assert opened.folder == nowhere
    assert open_state(False) is None


@pytest.mark.parametrize("name", ["EDGEXNAS_STATE", "STATE_DIRECTORY"])
def test_a_service_names_its_state(
    nowhere: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "service"))
    assert default_state_folder() == tmp_path / "service"


def test_a_bundle_is_remembered_when_its_user_says_so(
    bundle_path: Path, trust: TrustStore, folder: Path
) -> None:
    bundle = open_bundle(bundle_path, trust=trust, state=folder)
    assert not (folder / "accepted-bundles.json").exists()
    bundle.remember()
    assert json.loads((folder / "accepted-bundles.json").read_text())["bundles"] == {
        "tiny-bragg": 3
    }


def test_an_older_bundle_is_refused_after_a_newer_one(
    bundle_path: Path, trust: TrustStore, manifest: Manifest, state: RollbackState
) -> None:
    state.remember_bundle(with_sequence(manifest, 4))
    with pytest.raises(BundleError, match="sequence 4 was accepted before"):
        open_bundle(bundle_path, trust=trust, state=state.folder)
    open_bundle(bundle_path, trust=trust, state=False).remember()


def test_a_refused_bundle_leaves_no_trace_in_the_memory(
    bundle_path: Path, trust: TrustStore, folder: Path
) -> None:
    bundle_path.write_bytes(bundle_path.read_bytes()[:-1])
    with pytest.raises(BundleError):
        open_bundle(bundle_path, trust=trust, state=folder)
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_memory_that_cannot_be_written_accepts_nothing(
    manifest: Manifest, state: RollbackState
) -> None:
    state.folder.chmod(0o500)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        state.remember_bundle(manifest)
