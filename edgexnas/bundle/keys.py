"""Signing keys: ECDSA on the curve P-256, as PEM files."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgexnas.errors import ConfigurationError, TrustError
from edgexnas.guarded_files import Guard, read_once

__all__ = [
    "KEY_NAME",
    "generate_keys",
    "is_p256",
    "key_id",
    "load_public_key",
    "load_signing_key",
    "parse_public_key",
    "public_pem",
]

# A key on P-256 has some 200 bytes.
MOST_PEM_BYTES = 64 * 1024
KEY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What the name of a key looks like."""

TRUSTED = Guard(root=True)
SIGNING = Guard(root=True, links=True)
"""A secret that a container mounts is often a link."""

_log = logging.getLogger(__name__)


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the PEM file (SubjectPublicKeyInfo) of a public key."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Name a public key: SHA-256 of its PEM file, in hexadecimal, as model-signing's key hint."""
    # Of the PEM and not of the DER, because model-signing's hint is.
    return hashlib.sha256(public_pem(key)).hexdigest()


def is_p256(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> bool:
    """Tell whether a key is on P-256, the one curve that signs bundles."""
    return isinstance(key.curve, ec.SECP256R1)


def generate_keys(
    folder: Path | str, *, name: str = "edgexnas", private: Path | str | None = None
) -> tuple[Path, Path]:
    """Make a pair of keys: one to sign bundles with, one for devices to trust.

    Parameters
    ----------
    folder
        Where the files go; made if it is missing.
    name
        Stem of the file names.
    private
        Another folder for the private key, made for its owner alone if it is missing: then
        `folder` can be copied to devices as it is.

    Returns
    -------
    The private key `NAME.key.pem`, readable by its owner alone, and the public `NAME.pub.pem`.

    Raises
    ------
    ConfigurationError
        If one of the files exists, the name is not a plain one, or the folder is not writable.
    """
    if not re.fullmatch(KEY_NAME, name):
        raise ConfigurationError(f"key name {name!r} is not a plain name: use letters and digits")
    private_path = Path(folder if private is None else private, f"{name}.key.pem")
    public_path = Path(folder, f"{name}.pub.pem")
    # Both before either is made: half a pair would be in the way of the next try.
    for path in (private_path, public_path):
        if path.exists():
            raise ConfigurationError(f"{path} exists: choose another name, keys are not replaced")
    key = ec.generate_private_key(ec.SECP256R1())
    # Not encrypted: exports run unattended, and a password beside the key protects nothing.
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        # Devices reject a folder of keys that a group can write to, as an umask of 002 would make.
        public_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        private_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(private_path, pem, mode=0o600)
        try:
            _write_new(public_path, public_pem(key.public_key()), mode=0o644)
        except BaseException:
            private_path.unlink()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"keys cannot be written to {error.filename or folder}: {error.strerror}"
        ) from error
    return private_path, public_path


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that must not exist; its mode is right from its first byte."""
    # O_EXCL follows no link, so nobody can direct a key to another place.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise


def parse_public_key(raw: bytes, *, what: str) -> ec.EllipticCurvePublicKey:
    """Read a public key from PEM.

    Raises
    ------
    TrustError
        If that is a private key, several keys, no key, or one on another curve than P-256.
    """
    # Said apart, because it is the commonest slip, and the most dangerous one to copy on.
    if b"PRIVATE KEY-----" in raw:
        raise TrustError(f"{what} is a private key: devices need the NAME.pub.pem beside it alone")
    # Of several the library reads the first, and the others would seem to be trusted.
    if raw.count(b"-----BEGIN ") > 1:
        raise TrustError(f"{what} holds several keys: put each in a *.pub.pem of its own")
    try:
        key = serialization.load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError(
            f"{what} holds no public key in PEM form: copy NAME.pub.pem again"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
        raise TrustError(f"{what} is not on the curve P-256, the only one that signs bundles")
    return key


def load_public_key(path: Path | str) -> ec.EllipticCurvePublicKey:
    """Read a public key from a PEM file that nobody but this user and root could have changed.

    Raises
    ------
    TrustError
        If the file cannot be read or relied on, or as `parse_public_key`.
    """
    try:
        # Checked and read through one descriptor: between two openings it could be replaced.
        raw = read_once(Path(path), most_bytes=MOST_PEM_BYTES, guard=TRUSTED)
    except OSError as error:
        raise TrustError(
            f"key {path} cannot be used ({error.strerror}): copy NAME.pub.pem there, owned by you "
            "or root, and run chmod 644"
        ) from error
    return parse_public_key(raw or b"", what=str(path))


def load_signing_key(path: Path | str) -> ec.EllipticCurvePrivateKey:
    """Read a private key from a PEM file; one that others can read is used with a warning.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, is writable by others, is encrypted, is a public key, or is not
        on P-256.
    """
    try:
        raw = read_once(Path(path), most_bytes=MOST_PEM_BYTES, guard=SIGNING) or b""
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            _log.warning("signing key %s can be read by others: run chmod 600 %s", path, path)
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
