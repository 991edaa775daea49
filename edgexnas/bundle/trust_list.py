"""The trust list: which keys a device accepts and what is revoked, signed by an offline root key.

``trust.json`` holds DSSE envelopes, oldest first. The last one is the list that counts; each one
before it was signed by a root key that announced, as `next_root`, the key that signs the one after
it. So a device that was given only the first root key follows any number of replacements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, FailFast, Field, StringConstraints, model_validator

from edgexnas.bundle.dsse import Envelope, sign
from edgexnas.bundle.keys import KEY_NAME, MOST_PEM_BYTES, key_id, parse_public_key
from edgexnas.bundle.record import Digest, Record
from edgexnas.bundle.strict_json import parse_json, parse_record
from edgexnas.errors import BundleError, TrustError

__all__ = ["MOST_LIST_BYTES", "SignedList", "TrustList", "sign_list", "verify_list"]

PAYLOAD_TYPE = "application/vnd.edgexnas.trust-list.v1+json"
MOST_LIST_BYTES = 4 * 1024 * 1024
MOST_ROOTS = 16
"""Root keys that may follow each other; then devices are given the newest as their first."""

Pem = Annotated[str, StringConstraints(max_length=MOST_PEM_BYTES)]
Name = Annotated[str, StringConstraints(pattern=f"^{KEY_NAME}$")]
Digests = Annotated[tuple[Digest, ...], Field(max_length=10_000), FailFast()]


class TrustList(Record):
    """What the root key's holder says."""

    # Below 2^53, which every JSON reader keeps exactly.
    version: Annotated[int, Field(ge=1, lt=2**53)]
    """Rises with every list; a device with a state folder never goes back."""
    created: AwareDatetime
    expires: AwareDatetime
    """When devices stop accepting anything by this list."""
    keys: Annotated[dict[Name, Pem], Field(max_length=1000)]
    """Public keys whose bundles are accepted, by name."""
    revoked_keys: Digests = ()
    """Ids of keys that were trusted."""
    revoked_bundles: Digests = ()
    """`Bundle.content_digest` of bundles that are not accepted, whoever signed them."""
    next_root: Pem | None = None
    """Public key that signs lists after this one."""

    @model_validator(mode="after")
    def _check_consistency(self) -> TrustList:
        if self.expires <= self.created:
            raise ValueError(f"it expires at {self.expires}, before it is made at {self.created}")
        return self


@dataclass(frozen=True)
class SignedList:
    """A verified list.

    Attributes
    ----------
    content
        What it says.
    keys
        The keys it trusts, by id.
    roots
        Ids of root keys from the first to the signer.
    envelopes
        All of ``trust.json``, for who adds a list.
    """

    content: TrustList
    keys: dict[str, ec.EllipticCurvePublicKey]
    roots: tuple[str, ...]
    envelopes: tuple[Envelope, ...]


def sign_list(
    content: TrustList, key: ec.EllipticCurvePrivateKey, *, before: Sequence[Envelope] = ()
) -> bytes:
    """Sign a list.

    Parameters
    ----------
    content
        What it says.
    key
        The root key.
    before
        Lists that announced root keys, oldest first.

    Returns
    -------
    Content of ``trust.json``.
    """
    payload = content.model_dump_json().encode()
    signer = key_id(key.public_key())
    return _encode([*before, sign(payload, kind=PAYLOAD_TYPE, key=key, key_id=signer)])


def verify_list(raw: bytes, *, root: ec.EllipticCurvePublicKey, what: str) -> SignedList:
    """Verify who signed a list and that it is consistent: a function of these arguments alone.

    Nothing that a list says is parsed before its signature holds. Whether it has expired is the
    caller's question.

    Parameters
    ----------
    raw
        Content of ``trust.json``.
    root
        The root key that the device was given.
    what
        Name of the list, for messages.

    Raises
    ------
    TrustError
        If the file is malformed, not signed by the root or by one that it announced, or
        contradicts itself.
    """
    envelopes = _decode(raw, what)
    signer, roots, version = root, [key_id(root)], 0
    # A device that was given a later root has no use for what came before it.
    while len(envelopes) > 1 and envelopes[0].key_id != roots[0]:
        envelopes = envelopes[1:]
    for number, envelope in enumerate(envelopes, start=1):
        # The id is only a hint, but one that must be right, or bytes of the file were free.
        if envelope.key_id != roots[-1] or not envelope.fits(signer):
            raise TrustError(
                f"{what} is not signed by root key {roots[-1][:16]}…: use the list of its holder"
            )
        # Only now, when the signature holds: parsers are never fed by strangers.
        content = _parse(envelope.payload, what)
        if content.version <= version:
            raise TrustError(f"{what} follows version {version} with {content.version}: sign anew")
        version = content.version
        if number < len(envelopes):
            if content.next_root is None:
                raise TrustError(f"{what} changes its root key unannounced: use its holder's list")
            signer = _key(content.next_root, f"next_root of {what}")
            roots.append(key_id(signer))
    # Only the last list counts; those before it did nothing but announce.
    keys = [_key(pem, f"key {name} of {what}") for name, pem in content.keys.items()]
    # Filed under the id of the key itself; names are for people.
    trusted = {key_id(key): key for key in keys}
    both = sorted({*roots, *content.revoked_keys} & set(trusted))
    if both:
        # A root key lies offline, and signs lists alone.
        raise TrustError(f"{what} trusts key {both[0][:16]}…, which it revokes or is its root's")
    return SignedList(content, trusted, tuple(roots), tuple(envelopes))


def _key(pem: str, what: str) -> ec.EllipticCurvePublicKey:
    return parse_public_key(pem.encode(errors="replace"), what=what)


def _parse(payload: bytes, what: str) -> TrustList:
    try:
        return parse_record(payload, TrustList, what=what, remedy="sign it anew")
    except BundleError as error:
        raise TrustError(str(error)) from None


def _encode(envelopes: Sequence[Envelope]) -> bytes:
    return json.dumps({"lists": [e.fields() for e in envelopes]}, indent=1).encode() + b"\n"


def _decode(raw: bytes, what: str) -> list[Envelope]:
    """Take the envelopes out of a file whose every byte is accounted for."""
    try:
        content: Any = parse_json(raw, what=what)
        envelopes = [Envelope.of(item) for item in content["lists"]]
        kinds = {envelope.kind for envelope in envelopes}
        if kinds == {PAYLOAD_TYPE} and len(envelopes) <= MOST_ROOTS and _encode(envelopes) == raw:
            return envelopes
    except (BundleError, LookupError, TypeError, ValueError):
        pass
    raise TrustError(f"{what} is not a trust list as edgexnas writes it: copy it again")
