"""edgexnas keys and verify: from a root key to a device that rejects what is revoked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgexnas.bundle import write_bundle
from edgexnas.cli import main

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a folder of its own and give what it says."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(command.split()) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return call


@pytest.fixture
def trusting(run: Run, bundle_path: Path, keys: tuple[Path, Path]) -> Run:
    """A trust folder of which a root key says what it trusts: the bundle's signer."""
    Path("signer.pub.pem").write_bytes(keys[1].read_bytes())
    Path("signer.pub.pem").chmod(0o644)
    run("keys generate --output offline --name root")
    run("keys trust-list trust --root-key offline/root.key.pem --add signer.pub.pem")
    return run


def test_a_listed_signer_is_trusted(trusting: Run) -> None:
    assert "trusted      signer" in trusting("keys show trust")
    assert "valid, by key" in trusting("verify good.edgex --trust trust")


def test_keys_that_are_added_one_by_one_are_all_listed(trusting: Run) -> None:
    run = trusting
    for name in ("one", "two"):
        run(f"keys generate --output new --name {name}")
    added = "--add new/one.pub.pem --add new/two.pub.pem"
    run(f"keys trust-list trust --root-key offline/root.key.pem {added}")
    shown = run("keys show trust")
    assert "signer, one, two" in shown, shown


@pytest.mark.parametrize("what", ["signer.pub.pem", "good.edgex"])
def test_what_is_revoked_is_rejected(trusting: Run, what: str) -> None:
    trusting(f"keys revoke trust --root-key offline/root.key.pem {what}")
    assert "revoke" in trusting("verify good.edgex --trust trust", 1)
    assert "revoked" in trusting("keys show trust")


def test_a_key_is_revoked_by_its_id(trusting: Run) -> None:
    shown = trusting("keys show trust")
    key_id = shown.split("trusted key")[1].split()[0]
    trusting(f"keys revoke trust --root-key offline/root.key.pem {key_id}")
    assert "revokes" in trusting("verify good.edgex --trust trust", 1)


def test_the_root_key_is_rotated(trusting: Run) -> None:
    trusting("keys generate --output offline --name second")
    sign = "keys trust-list trust --root-key offline"
    assert "announced" in trusting(f"{sign}/root.key.pem --next-root offline/second.pub.pem")
    assert "version  3" in trusting(f"{sign}/second.key.pem --days 30")
    assert "not signed by root key" in trusting(f"{sign}/root.key.pem", 1)
    trusting("verify good.edgex --trust trust")


def test_a_key_goes_to_devices_without_its_other_half(run: Run) -> None:
    run("keys generate --output keys --private signing --name beam")
    assert os.listdir("keys") == ["beam.pub.pem"]
    assert os.listdir("signing") == ["beam.key.pem"]


def test_verify_says_whether_older_bundles_are_rejected(
    trusting: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert "accepted: there is no state folder" in trusting("verify good.edgex --trust trust")
    shown = trusting("verify good.edgex --trust trust --state state")
    assert "rejected, as state remembers" in shown


def test_the_device_says_how_wide_a_gate_may_be(trusting: Run) -> None:
    command = "verify good.edgex --trust trust --maximum-gate-px"
    assert "lets its int8 engine deviate by 0.05 px" in trusting(f"{command} 0.04", 1)
    trusting(f"{command} 0.05")


def test_predict_remembers_the_bundle_that_ran(
    trusting: Run, tiny: object, keys: tuple[Path, Path]
) -> None:
    older = tiny.tiny_manifest().model_copy(update={"sequence": 2})  # type: ignore[attr-defined]
    write_bundle(
        "older.edgex",
        manifest=older,
        models=tiny.tiny_models(),  # type: ignore[attr-defined]
        reference=tiny.tiny_reference(),  # type: ignore[attr-defined]
        signing_key=keys[0],
    )
    options = "sim://hedm?frames=1&shape=128x128 --trust trust --state state --output peaks.csv"
    trusting(f"predict older.edgex {options}")
    trusting(f"predict good.edgex {options}")
    assert "sequence 3 was accepted before" in trusting(f"predict older.edgex {options}", 1)
