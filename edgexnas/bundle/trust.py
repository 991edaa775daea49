"""The trust store: the public keys whose bundles a device accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgexnas.bundle.keys import MOST_PEM_BYTES, is_p256
from edgexnas.bundle.keys import key_id as key_id_of
from edgexnas.errors import TrustError
from edgexnas.guarded_files import read_once

__all__ = ["TrustStore"]


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Public keys by their `key_id`.

    Attributes
    ----------
    keys
        Keys on P-256; each is filed under the id computed from the key itself.
    source
        What the store was loaded from, for messages.
    """

    keys: Mapping[str, ec.EllipticCurvePublicKey]
    source: str

    @classmethod
    def load(cls, path: Path | str) -> TrustStore:
        """Read the public keys of a folder, or one public key.

        Parameters
        ----------
        path
            A folder with `*.pub.pem` files, whatever else lies there being ignored, private keys
            too; or one PEM file.

        Raises
        ------
        TrustError
            If the path is missing or holds no public key, or a key cannot be read or is not on
            P-256: a store that is partly unreadable is trusted for nothing.
        """
        path = Path(path)
        try:
            files = sorted(path.glob("*.pub.pem")) if path.is_dir() else [path]
            keys = [_read_public_key(file) for file in files]
        except OSError as error:
            raise TrustError(
                f"trust store {path} cannot be read ({error.strerror}): "
                "name a public key or a folder of *.pub.pem files"
            ) from error
        if not keys:
            raise TrustError(f"trust store {path} holds no *.pub.pem: copy the signer's there")
        return cls(MappingProxyType({key_id_of(key): key for key in keys}), str(path))

    def key(self, key_id: str) -> ec.EllipticCurvePublicKey:
        """Give the trusted key with this id, which is computed from the key once more.

        Raises
        ------
        TrustError
            If there is none, or it is not on P-256.
        """
        found = self.keys.get(key_id)
        if found is None:
            raise TrustError(
                f"signed by key {key_id[:16]}…, which is not among the {len(self.keys)} trusted in "
                f"{self.source}: copy its NAME.pub.pem there if you trust it"
            )
        if key_id_of(found) != key_id:
            raise TrustError(f"trust store {self.source} files a key under a wrong id: load it")
        if not is_p256(found):
            raise TrustError(f"key {key_id[:16]}… in {self.source} is not on the curve P-256")
        return found


def _read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    raw = read_once(path, most_bytes=MOST_PEM_BYTES) or b""
    if b"PRIVATE KEY-----" in raw:
        raise TrustError(f"{path} is a private key: devices need the NAME.pub.pem beside it alone")
    if raw.count(b"-----BEGIN ") > 1:
        raise TrustError(f"{path} holds several keys: give each its own *.pub.pem in a folder")
    try:
        key = serialization.load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError(
            f"{path} holds no public key in PEM form: copy NAME.pub.pem again"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
        raise TrustError(f"{path} is not on the curve P-256, the only one that signs bundles")
    return key
