"""Signing keys: ECDSA on the curve P-256, as PEM files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgexnas.errors import ConfigurationError
from edgexnas.guarded_files import read_once

__all__ = ["generate_keys", "is_p256", "key_id", "load_signing_key", "public_pem"]

MOST_PEM_BYTES = 64 * 1024


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Give the PEM file (SubjectPublicKeyInfo) of a public key."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Name a public key: SHA-256 of its PEM file, in hexadecimal, as model-signing's key hint."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def is_p256(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> bool:
    """Tell whether a key is on P-256, the one curve that signs bundles."""
    return isinstance(key.curve, ec.SECP256R1)


def generate_keys(folder: Path | str, *, name: str = "edgexnas") -> tuple[Path, Path]:
    """Make a pair of keys: one to sign bundles with, one for devices to trust.

    Parameters
    ----------
    folder
        Where the two files go; made if it is missing.
    name
        Stem of the file names.

    Returns
    -------
    The private key `NAME.key.pem`, readable by its owner alone, and the public `NAME.pub.pem`.

    Raises
    ------
    ConfigurationError
        If one of the files exists, the name is no plain file name, or the folder is not writable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigurationError(f"key name {name!r} is no plain name: use letters and digits")
    private_path, public_path = Path(folder, f"{name}.key.pem"), Path(folder, f"{name}.pub.pem")
    for path in (private_path, public_path):
        if path.exists():
            raise ConfigurationError(f"{path} exists: choose another name, keys are not replaced")
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        private_path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(private_path, private, mode=0o600)
        _write_new(public_path, public_pem(key.public_key()), mode=0o644)
    except OSError as error:
        raise ConfigurationError(f"keys cannot be written to {folder}: {error.strerror}") from error
    return private_path, public_path


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that must not exist; its mode is right from its first byte."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load_signing_key(path: Path | str) -> ec.EllipticCurvePrivateKey:
    """Read a private key from a PEM file.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, is encrypted, is a public key, or is not on P-256.
    """
    try:
        raw = read_once(Path(path), most_bytes=MOST_PEM_BYTES) or b""
    except OSError as error:
        raise ConfigurationError(
            f"signing key {path} cannot be read ({error.strerror}): `edgexnas keys` makes one"
        ) from error
    if b"PUBLIC KEY-----" in raw:
        raise ConfigurationError(f"{path} is a public key: sign with the private NAME.key.pem")
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except TypeError:
        raise ConfigurationError(
            f"signing key {path} is encrypted: decrypt it with `openssl pkey -in {path}`"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(
            f"{path} holds no private key in PEM form: `edgexnas keys` makes one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key):
        raise ConfigurationError(
            f"signing key {path} is not on the curve P-256: `edgexnas keys` makes one"
        )
    return key
