"""The trust store: the public keys whose bundles a device accepts, and what is revoked."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from edgexnas.bundle.dsse import Envelope
from edgexnas.bundle.keys import (
    TRUSTED,
    is_p256,
    load_public_key,
    parse_public_key,
    public_pem,
)
from edgexnas.bundle.keys import key_id as key_id_of
from edgexnas.bundle.rollback import StateOption, open_state
from edgexnas.bundle.strict_json import explain
from edgexnas.bundle.trust_list import (
    MOST_LIST_BYTES,
    SignedList,
    TrustList,
    sign_list,
    verify_list,
)
from edgexnas.bundle.validity import check_validity
from edgexnas.errors import ConfigurationError, TrustError
from edgexnas.guarded_files import check_folder, read_once
from edgexnas.whole_files import write_whole

__all__ = ["TrustStore", "write_trust_list"]

LIST_FILE = "trust.json"
ROOT_FILE = "root.pem"
"""The root key of a trust folder; not `*.pub.pem`, because it signs no bundle."""

SOON = timedelta(days=30)
"""A list that expires within this is warned of."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Public keys by their `key_id`, and what must not be accepted whoever signed it.

    Attributes
    ----------
    keys
        Keys on P-256; each is filed under the id computed from the key itself.
    source
        What the store was loaded from, for messages.
    trust_list
        The signed list that says so; None for a plain folder or file of keys.
    """

    keys: Mapping[str, ec.EllipticCurvePublicKey]
    source: str
    trust_list: TrustList | None = None

    @classmethod
    def load(
        cls, path: Path | str, *, state: StateOption = None, now: datetime | None = None
    ) -> TrustStore:
        """Read the public keys of a folder, or one public key.

        Parameters
        ----------
        path
            A folder with a signed list, `trust.json`, and the root key that signs it, `root.pem`;
            or a folder with `*.pub.pem` files, whatever else lies there being ignored, hidden files
            too; or one PEM file.
        state
            Folder that remembers the newest list, which is never followed by an older one; see
            `open_state`.
        now
            Time against which the list's expiry is held, with time zone; None is the clock's.

        Raises
        ------
        TrustError
            If the path is missing or holds no public key, another user could have changed the
            folder or a file, a key cannot be read or is not on P-256, or the list is not valid: a
            store that is partly unreadable is trusted for nothing.
        ConfigurationError
            If `state` cannot be used.
        """
        path = Path(path)
        if not os.path.isdir(path):
            return cls._of([load_public_key(path)], path)
        try:
            fault = check_folder(path, TRUSTED)
            # macOS leaves a hidden companion of the same suffix beside what it copies.
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        except OSError as error:
            raise TrustError(f"trust folder {path} cannot be read: {error.strerror}") from error
        if fault is not None:
            raise TrustError(
                f"trust folder {path} {fault}: check what is in it, then make it yours or "
                "root's and run chmod 755"
            )
        for name in names:
            if name.endswith(".key.pem"):
                _warn_of_private_key(path / name)
        # Either is enough: deleting the list must not bring the plain keys back.
        if LIST_FILE in names or ROOT_FILE in names:
            signed, what = _read_list(path), f"trust list {path / LIST_FILE}"
            content, now = signed.content, now or datetime.now(timezone.utc)
            # Before the state remembers it: an expired list must not displace the one in use.
            check_validity(content.created, content.expires, now=now, what=what, error=TrustError)
            if content.expires - now < SOON:
                _log.warning("%s expires at %s: get a newer one", what, content.expires)
            if (memory := open_state(state)) is not None:
                memory.accept_list(content.version, signed.roots, what=what)
            return cls(MappingProxyType(signed.keys), str(path), signed.content)
        keys = [load_public_key(path / name) for name in names if name.endswith(".pub.pem")]
        if not keys:
            raise TrustError(f"trust folder {path} holds no *.pub.pem: copy the signer's there")
        return cls._of(keys, path)

    @classmethod
    def _of(cls, keys: Iterable[ec.EllipticCurvePublicKey], path: Path) -> TrustStore:
        return cls(MappingProxyType({key_id_of(key): key for key in keys}), str(path))

    def key(self, key_id: str) -> ec.EllipticCurvePublicKey:
        """Return the trusted key with this id, which is computed from the key once more.

        Raises
        ------
        TrustError
            If there is none, it is revoked, or it is not on P-256.
        """
        listed = self.trust_list
        # Before the look-up: a revoked key is not listed any more, and the reason would be lost.
        if listed is not None and key_id in listed.revoked_keys:
            raise TrustError(
                f"signed by key {key_id[:16]}…, which version {listed.version} of the trust list "
                f"in {self.source} revokes: sign with another key"
            )
        found = self.keys.get(key_id)
        if found is None:
            remedy = "copy its NAME.pub.pem there" if listed is None else "list it"
            raise TrustError(
                f"signed by key {key_id[:16]}…, which is not among the {len(self.keys)} trusted in "
                f"{self.source}: {remedy} if you trust it"
            )
        # A store may also be made by hand, of any mapping.
        if key_id_of(found) != key_id:
            raise TrustError(f"key ID mismatch in trust store {self.source}: load it again")
        if not is_p256(found):
            raise TrustError(f"key {key_id[:16]}… in {self.source} is not on the curve P-256")
        return found

    def check_content(self, content_digest: str) -> None:
        """Reject a bundle that is revoked by its `content_digest`.

        Raises
        ------
        TrustError
            If it is.
        """
        listed = self.trust_list
        if listed is not None and content_digest in listed.revoked_bundles:
            raise TrustError(
                f"revoked by version {listed.version} of the trust list in {self.source} (content "
                f"{content_digest[:16]}…): use a newer bundle"
            )


@functools.cache
def _warn_of_private_key(path: Path) -> None:
    """Warn once: the folder is still good, and whoever copies it gives the key away."""
    _log.warning(
        "trust folder %s holds the private key %s, which no device needs: keep it elsewhere",
        path.parent,
        path.name,
    )


def write_trust_list(
    folder: Path | str,
    *,
    root_key: ec.EllipticCurvePrivateKey,
    trust: Mapping[str, ec.EllipticCurvePublicKey] | None = None,
    revoke_keys: Iterable[str] = (),
    revoke_bundles: Iterable[str] = (),
    next_root: ec.EllipticCurvePublicKey | None = None,
    valid: timedelta = timedelta(days=400),
) -> TrustList:
    """Sign the next version of a folder's trust list, or its first.

    Parameters
    ----------
    folder
        Trust folder; its `root.pem` is written with the first list.
    root_key
        Root key on P-256: the folder's, or the one that its list announced.
    trust
        Keys to add, by name.
    revoke_keys
        Ids of keys to take out for good.
    revoke_bundles
        `Bundle.content_digest` of bundles to reject.
    next_root
        Key that signs the lists after this one.
    valid
        Time until the list expires.

    Raises
    ------
    TrustError
        If the folder's list is not valid or of another root, or the new one would contradict
        itself.
    ConfigurationError
        If the folder cannot be written.
    """
    folder, signer = Path(folder), key_id_of(root_key.public_key())
    root, old = root_key.public_key(), None
    chain: tuple[Envelope, ...] = ()
    added = {name: public_pem(key).decode() for name, key in (trust or {}).items()}
    announced = None if next_root is None else public_pem(next_root).decode()
    if (folder / ROOT_FILE).exists() or (folder / LIST_FILE).exists():
        root, signed = load_public_key(folder / ROOT_FILE), _read_list(folder)
        chain, old = signed.envelopes, signed.content
        if old.next_root is None or _id(old.next_root) != signer:
            # Only what announced a root must stay, for devices that have not seen it.
            chain, announced = chain[:-1], announced or old.next_root
    created = datetime.now(timezone.utc).replace(microsecond=0)
    # Revocations are never taken back: a device that missed a list must not miss them.
    gone = {*(old.revoked_keys if old else ()), *revoke_keys}
    kept = {name: pem for name, pem in (old.keys if old else {}).items() if _id(pem) not in gone}
    try:
        content = TrustList(
            version=old.version + 1 if old else 1,
            created=created,
            expires=created + valid,
            keys=kept | added,
            revoked_keys=tuple(sorted(gone)),
            revoked_bundles=tuple(sorted({*(old.revoked_bundles if old else ()), *revoke_bundles})),
            next_root=announced,
        )
    except ValidationError as error:
        raise ConfigurationError(f"trust list of {folder} is wrong at {explain(error)}") from None
    except OverflowError:
        raise ConfigurationError(f"{valid.days} days are too many: specify fewer") from None
    # Held against the folder's own root before it is written: a wrong key changes nothing.
    raw = sign_list(content, root_key, before=chain)
    verify_list(raw, root=root, what=f"trust list of {folder}")
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The root first: without its list it trusts nothing, and a list without it neither.
        if old is None:
            write_whole(folder / ROOT_FILE, public_pem(root), mode=0o644)
        write_whole(folder / LIST_FILE, raw, mode=0o644)
    except OSError as error:
        raise ConfigurationError(
            f"trust list cannot be written to {folder}: {error.strerror}"
        ) from error
    return content


def _id(pem: str) -> str:
    return key_id_of(parse_public_key(pem.encode(), what="a listed key"))


def _read_list(folder: Path) -> SignedList:
    root = load_public_key(folder / ROOT_FILE)
    path = folder / LIST_FILE
    try:
        raw = read_once(path, most_bytes=MOST_LIST_BYTES, guard=TRUSTED)
    except OSError as error:
        raise TrustError(
            f"trust list {path} cannot be used ({error.strerror}): copy it there, owned by you or "
            "root, and run chmod 644"
        ) from error
    return verify_list(raw or b"", root=root, what=f"trust list {path}")
