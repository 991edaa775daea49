"""The public command `model_signing` and this package accept each other's signatures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgexnas.bundle import Bundle
from edgexnas.bundle.archive import encode_archive
from edgexnas.errors import SignatureError, TrustError

Verify = Callable[[bytes], Bundle]


@pytest.fixture
def unpacked(members: Mapping[str, bytes], tmp_path: Path) -> Path:
    """A folder with the members of a good bundle."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)
    return folder


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def verify_by_command(folder: Path, public: Path, *options: str) -> bool:
    signature = ["--signature", folder / "model.sig"]
    done = model_signing("verify", "key", "--public_key", public, *signature, *options, folder)
    return done.returncode == 0


def sign_by_command(folder: Path, private: Path, *options: str) -> None:
    signature = ["--signature", folder / "model.sig"]
    done = model_signing("sign", "key", "--private_key", private, *signature, *options, folder)
    assert done.returncode == 0, done.stderr


def packed(folder: Path, members: Mapping[str, bytes]) -> bytes:
    return encode_archive({name: (folder / name).read_bytes() for name in members})


@pytest.mark.parametrize("options", [(), ("--no-ignore-git-paths",)])
def test_the_public_command_accepts_our_signature(
    options: tuple[str, ...], unpacked: Path, keys: tuple[Path, Path]
) -> None:
    assert verify_by_command(unpacked, keys[1], *options)


@pytest.mark.parametrize("name", ["manifest.json", "model.int8.onnx", "reference.npz"])
def test_the_public_command_notices_an_altered_member(
    name: str, unpacked: Path, keys: tuple[Path, Path]
) -> None:
    (unpacked / name).write_bytes((unpacked / name).read_bytes() + b"\n")
    assert not verify_by_command(unpacked, keys[1])


@pytest.mark.parametrize("options", [(), ("--no-ignore-git-paths",)])
def test_we_accept_a_signature_of_the_public_command(
    options: tuple[str, ...],
    unpacked: Path,
    keys: tuple[Path, Path],
    members: Mapping[str, bytes],
    verify: Verify,
) -> None:
    (unpacked / "model.sig").unlink()
    sign_by_command(unpacked, keys[0], *options)
    bundle = verify(packed(unpacked, members))
    assert bundle.manifest.model_id == "tiny-bragg"


def test_we_refuse_a_signature_that_the_command_made_before_a_change(
    unpacked: Path, keys: tuple[Path, Path], members: Mapping[str, bytes], verify: Verify
) -> None:
    (unpacked / "model.sig").unlink()
    sign_by_command(unpacked, keys[0])
    (unpacked / "model.onnx").write_bytes(members["model.int8.onnx"])
    with pytest.raises(SignatureError, match=r"a model.onnx other than the one"):
        verify(packed(unpacked, members))


def test_we_refuse_a_member_that_the_command_was_told_to_ignore(
    unpacked: Path, keys: tuple[Path, Path], members: Mapping[str, bytes], verify: Verify
) -> None:
    (unpacked / "model.sig").unlink()
    sign_by_command(unpacked, keys[0], "--ignore-paths", str(unpacked / "model.int8.onnx"))
    with pytest.raises(SignatureError, match="ignore_paths"):
        verify(packed(unpacked, members))


def test_we_refuse_a_signature_of_the_command_by_another_key(
    unpacked: Path, tmp_path: Path, members: Mapping[str, bytes], verify: Verify
) -> None:
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "other.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (unpacked / "model.sig").unlink()
    sign_by_command(unpacked, tmp_path / "other.pem")
    with pytest.raises(TrustError, match="not among the 1 trusted"):
        verify(packed(unpacked, members))
