"""The bundle of the package is opened by its name, and its key is trusted for that name alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgexnas.bundle import TrustStore, open_bundle, read_manifest, shipped, write_trust_list
from edgexnas.bundle.bundle_file import content_digest_of
from edgexnas.bundle.shipped import located, within
from edgexnas.cli import main
from edgexnas.errors import BundleError, ConfigurationError, TrustError


def test_the_universal_bundle_opens_by_its_name_without_trust() -> None:
    bundle = open_bundle("universal")
    assert (bundle.manifest.model_id, bundle.manifest.task) == ("universal", "bragg")
    assert bundle.manifest.expires is None


def test_a_path_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="trust is missing for universal"):
        open_bundle(Path("universal"))
    with pytest.raises(BundleError, match="universal cannot be read"):
        read_manifest(Path("universal"))
    assert within(tmp_path, "universal") == "universal"
    assert within(tmp_path, "./universal") == tmp_path / "universal"


def test_it_is_small_enough_to_come_with_every_installation() -> None:
    assert located("universal").stat().st_size < 900_000


def test_a_file_needs_trusted_keys(bundle_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"trust is missing for .*good\.edgex; give the"):
        open_bundle(bundle_path)


def test_the_release_key_is_trusted_for_no_file(tmp_path: Path, trust: TrustStore) -> None:
    copy = shutil.copy(located("universal"), tmp_path / "universal.edgex")
    with pytest.raises(ConfigurationError, match="trust is missing"):
        open_bundle(copy)
    with pytest.raises(TrustError, match="not among the 1 trusted"):
        open_bundle(copy, trust=trust)


def test_another_bundle_under_its_name_is_rejected(
    tmp_path: Path, bundle_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(bundle_path, tmp_path / "universal.edgex")
    shutil.copy(keys[1], tmp_path / "universal.pub.pem")
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    with pytest.raises(TrustError, match="trusted for universal alone"):
        open_bundle("universal")


def test_a_trust_list_can_revoke_it(
    tmp_path: Path, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    folder, root = tmp_path / "trust", ec.generate_private_key(ec.SECP256R1())
    write_trust_list(folder, root_key=root, trust={"beam": signing_key.public_key()})
    assert open_bundle("universal", trust=folder)
    write_trust_list(folder, root_key=root, revoke_bundles=[content_digest_of("universal")])
    with pytest.raises(TrustError, match=f"revoked by version 2 of the trust list in {folder}"):
        open_bundle("universal", trust=folder)


def test_no_state_remembers_it(tmp_path: Path) -> None:
    bundle = open_bundle("universal", state=tmp_path)
    bundle.remember()
    assert bundle.state is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
def test_a_file_that_is_called_so_is_named_by_its_path(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "universal").write_bytes(b"nothing")
    monkeypatch.chdir(tmp_path)
    trusted = (
        []
        if command == "inspect"
        else ["--trust", str(located("universal").with_suffix(".pub.pem"))]
    )
    assert main([command, "./universal", *trusted]) != 0
    assert "universal does not start as a bundle" in capsys.readouterr().err


def test_the_shell_inspects_and_verifies_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "universal"]) == main(["verify", "universal"]) == 0
    shown = capsys.readouterr().out
    assert read_manifest("universal").model_id in shown
    assert "specify --state" not in shown
