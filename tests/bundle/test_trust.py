"""Keys and the trust store."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgexnas.bundle import TrustStore, generate_keys, load_signing_key
from edgexnas.bundle.keys import key_id, public_pem
from edgexnas.errors import ConfigurationError, TrustError


def private_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else None
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        lock or serialization.NoEncryption(),
    )


def test_a_private_key_is_readable_by_its_owner_alone(keys: tuple[Path, Path]) -> None:
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600


def test_keys_are_not_replaced(tmp_path: Path) -> None:
    _, public = generate_keys(tmp_path)
    before = public.read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        generate_keys(tmp_path)
    assert public.read_bytes() == before


def test_an_existing_public_key_alone_prevents_new_keys(tmp_path: Path) -> None:
    (tmp_path / "edgexnas.pub.pem").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        generate_keys(tmp_path)
    assert not (tmp_path / "edgexnas.key.pem").exists()


def test_an_interrupt_leaves_no_half_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(key: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgexnas.bundle.keys.public_pem", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_keys(tmp_path)
    assert not list(tmp_path.iterdir())


def test_keys_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "edgexnas.key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        generate_keys(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../key", "", "a/b", ".hidden", "key\n"])
def test_a_key_name_that_is_no_plain_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="plain name"):
        generate_keys(tmp_path, name=name)


def test_keys_cannot_be_made_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        generate_keys(tmp_path / "file")


def test_a_private_key_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path / "keys", name="beam", private=tmp_path / "signing")
    assert (private, public) == (tmp_path / "signing/beam.key.pem", tmp_path / "keys/beam.pub.pem")
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700


def test_generated_keys_are_trusted_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        generate_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert len(TrustStore.load(tmp_path / "keys").keys) == 1


def test_a_generated_key_is_loaded_again(keys: tuple[Path, Path], trust: TrustStore) -> None:
    key = load_signing_key(keys[0])
    assert list(trust.keys) == [key_id(key.public_key())]


def test_a_missing_signing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_signing_key(tmp_path / "none.pem")


def test_a_public_key_does_not_sign(keys: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigurationError, match="is a public key"):
        load_signing_key(keys[1])


def test_a_signing_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(ConfigurationError, match="P-256"):
        load_signing_key(path)


def test_an_encrypted_signing_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    with pytest.raises(ConfigurationError, match="is encrypted"):
        load_signing_key(path)


def test_a_signing_key_of_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigurationError, match="holds no private key"):
        load_signing_key(path)


def test_a_folder_is_a_store_of_its_public_keys(tmp_path: Path) -> None:
    for name in ("old", "new"):
        generate_keys(tmp_path, name=name, private=tmp_path / "private")
    (tmp_path / "notes.txt").write_text("not a key")
    assert len(TrustStore.load(tmp_path).keys) == 2


def test_a_private_key_in_the_store_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate_keys(tmp_path, name="beam")
    assert len(TrustStore.load(tmp_path).keys) == 1
    assert "holds the private key beam.key.pem" in caplog.text


def test_a_signing_key_that_others_can_read_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private, _ = generate_keys(tmp_path)
    load_signing_key(private)
    assert not caplog.records
    private.chmod(0o640)
    load_signing_key(private)
    assert f"can be read by others: run chmod 600 {private}" in caplog.text


def test_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"cannot be used \(No such file"):
        TrustStore.load(tmp_path / "none")


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"holds no \*.pub.pem"):
        TrustStore.load(tmp_path)


def test_a_store_of_private_keys_alone_is_refused(tmp_path: Path) -> None:
    _, public = generate_keys(tmp_path)
    public.unlink()
    with pytest.raises(TrustError, match=r"holds no \*.pub.pem"):
        TrustStore.load(tmp_path)


def test_a_private_key_is_no_store(keys: tuple[Path, Path]) -> None:
    with pytest.raises(TrustError, match="is a private key"):
        TrustStore.load(keys[0])


def test_a_store_with_a_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    foreign = ec.generate_private_key(ec.SECP384R1()).public_key()
    (tmp_path / "foreign.pub.pem").write_bytes(public_pem(foreign))
    with pytest.raises(TrustError, match=r"foreign.pub.pem is not on the curve P-256"):
        TrustStore.load(tmp_path)


def test_a_store_with_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "other.pub.pem").write_bytes(pem)
    with pytest.raises(TrustError, match="P-256"):
        TrustStore.load(tmp_path)


def test_a_store_with_a_damaged_key_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / "bad.pub.pem").write_bytes(keys[1].read_bytes().replace(b"M", b"N"))
    with pytest.raises(TrustError, match="holds no public key"):
        TrustStore.load(tmp_path)


def test_a_file_of_several_keys_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / "two.pub.pem").write_bytes(keys[1].read_bytes() * 2)
    with pytest.raises(TrustError, match="several keys"):
        TrustStore.load(tmp_path)


def test_an_unknown_key_is_refused_by_its_id(trust: TrustStore) -> None:
    with pytest.raises(TrustError, match=r"key abababababababab…, which is not"):
        trust.key("ab" * 32)
