"""DSSE: a signature over bytes and their type, as an in-toto envelope holds it.

See https://github.com/secure-systems-lab/dsse. Signatures are ECDSA on P-256 with SHA-256.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Envelope", "sign"]


class Envelope(NamedTuple):
    """A signed payload; nothing of it is to be believed before `fits` is true."""

    kind: str
    """Media type of the payload."""
    payload: bytes
    signature: bytes
    key_id: str = ""
    """A hint which key signed; it is not covered by the signature."""

    @classmethod
    def of(cls, fields: Any) -> Envelope:
        """Pick the parts out of JSON.

        Anything else in there is not looked at: encode the result and compare.

        Raises
        ------
        LookupError, TypeError, ValueError
            If a part is not there or is not base 64.
        """
        # Exactly one: with several, verifiers differ in how many must hold.
        (signed,) = fields["signatures"]
        payload, signature = (base64.b64decode(t) for t in (fields["payload"], signed["sig"]))
        return cls(fields["payloadType"], payload, signature, signed["keyid"])

    def fields(self) -> dict[str, object]:
        """Return the envelope as JSON fields, in the order in which model_signing writes them."""
        sig, payload = (base64.b64encode(b).decode() for b in (self.signature, self.payload))
        return {
            "payload": payload,
            "payloadType": self.kind,
            "signatures": [{"sig": sig, "keyid": self.key_id}],
        }

    def fits(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Tell whether the holder of this key signed this payload of this kind."""
        message = _pre_authentication(self.kind, self.payload)
        try:
            key.verify(self.signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def sign(
    payload: bytes, *, kind: str, key: ec.EllipticCurvePrivateKey, key_id: str = ""
) -> Envelope:
    """Sign a payload."""
    signature = key.sign(_pre_authentication(kind, payload), ec.ECDSA(hashes.SHA256()))
    return Envelope(kind, payload, signature, key_id)


def _pre_authentication(kind: str, payload: bytes) -> bytes:
    """Join payload and its type without ambiguity: this is what gets signed."""
    name = kind.encode()
    # Lengths stand before contents, so that bytes cannot move from the one to the other.
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)
