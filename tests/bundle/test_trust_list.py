"""A signed list says which keys count, revokes, and passes from one root key to the next."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.bundle import TrustStore, open_bundle, write_trust_list
from edgexnas.bundle.bundle_file import content_digest_of
from edgexnas.bundle.dsse import sign
from edgexnas.bundle.keys import key_id, public_pem
from edgexnas.bundle.trust_list import PAYLOAD_TYPE, TrustList, sign_list, verify_list
from edgexnas.errors import ConfigurationError, TrustError

NOW = datetime.now(timezone.utc).replace(microsecond=0)

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def id_of(key: Key) -> str:
    return key_id(key.public_key())


@pytest.fixture(scope="module")
def root() -> Key:
    return new_key()


@pytest.fixture
def folder(tmp_path: Path, root: Key, signing_key: Key) -> Path:
    """A trust folder whose list trusts the signer."""
    path = tmp_path / "trust"
    write_trust_list(path, root_key=root, trust={"beam": signing_key.public_key()})
    return path


def listing(**changes: Any) -> TrustList:
    content = {"version": 1, "created": NOW, "expires": NOW + timedelta(days=90), "keys": {}}
    return TrustList(**{**content, **changes})


def pem(key: Key) -> str:
    return public_pem(key.public_key()).decode()


def test_the_listed_key_is_trusted(folder: Path, bundle_path: Path, signing_key: Key) -> None:
    assert open_bundle(bundle_path, trust=folder, state=False).key_id == id_of(signing_key)


def test_a_key_that_lies_beside_the_list_is_not_trusted(folder: Path) -> None:
    stranger = new_key()
    (folder / "stranger.pub.pem").write_text(pem(stranger))
    store = TrustStore.load(folder, state=False)
    with pytest.raises(TrustError, match=r"not among the 1 trusted in .*: list it"):
        store.key(id_of(stranger))


def test_the_root_key_signs_no_bundle(folder: Path, root: Key) -> None:
    with pytest.raises(TrustError, match="not among"):
        TrustStore.load(folder, state=False).key(id_of(root))


def test_a_revoked_key_is_rejected_by_name(
    folder: Path, bundle_path: Path, root: Key, signing_key: Key
) -> None:
    content = write_trust_list(folder, root_key=root, revoke_keys=[id_of(signing_key)])
    assert (content.version, content.keys) == (2, {})
    with pytest.raises(TrustError, match=r"which version 2 of the trust list .* revokes"):
        open_bundle(bundle_path, trust=folder, state=False)


def test_a_revoked_bundle_is_rejected_whoever_signed_it(
    folder: Path, bundle_path: Path, root: Key
) -> None:
    write_trust_list(folder, root_key=root, revoke_bundles=[content_digest_of(bundle_path)])
    with pytest.raises(TrustError, match=r"good.edgex: revoked by version 2"):
        open_bundle(bundle_path, trust=folder, state=False)


def test_what_is_revoked_stays_so_in_later_lists(folder: Path, root: Key, signing_key: Key) -> None:
    write_trust_list(
        folder, root_key=root, revoke_keys=[id_of(signing_key)], revoke_bundles=["ab" * 32]
    )
    later = write_trust_list(folder, root_key=root, trust={"new": new_key().public_key()})
    assert later.revoked_keys == (id_of(signing_key),)
    assert later.revoked_bundles == ("ab" * 32,)
    with pytest.raises(TrustError, match="which it revokes"):
        write_trust_list(folder, root_key=root, trust={"beam": signing_key.public_key()})


def test_an_announced_root_signs_the_next_list(
    folder: Path, bundle_path: Path, root: Key, tmp_path: Path
) -> None:
    first_root = (folder / "root.pem").read_bytes()
    second, third = new_key(), new_key()
    write_trust_list(folder, root_key=root, next_root=second.public_key())
    write_trust_list(folder, root_key=second, next_root=third.public_key())
    last = write_trust_list(folder, root_key=third)
    assert last.version == 4
    assert (folder / "root.pem").read_bytes() == first_root
    # A device that has seen none of the lists between follows, and so does one given a later root.
    for key in (root, second, third):
        (folder / "root.pem").write_text(pem(key))
        open_bundle(bundle_path, trust=folder, state=False)


def test_an_announcement_holds_until_the_new_root_signs(folder: Path, root: Key) -> None:
    second = new_key()
    write_trust_list(folder, root_key=root, next_root=second.public_key())
    write_trust_list(folder, root_key=root)
    assert write_trust_list(folder, root_key=second).version == 4


def test_a_root_that_was_not_announced_is_rejected(folder: Path, root: Key) -> None:
    before = (folder / "trust.json").read_bytes()
    with pytest.raises(TrustError, match="is not signed by root key"):
        write_trust_list(folder, root_key=new_key())
    assert (folder / "trust.json").read_bytes() == before


def test_a_root_that_was_replaced_signs_no_more_for_who_has_seen_it(
    folder: Path, root: Key, tmp_path: Path
) -> None:
    second, state = new_key(), tmp_path / "state"
    write_trust_list(folder, root_key=root, next_root=second.public_key())
    write_trust_list(folder, root_key=second)
    TrustStore.load(folder, state=state)
    (folder / "trust.json").write_bytes(sign_list(listing(version=99), root))
    with pytest.raises(TrustError, match=r"signed by root key .* has replaced"):
        TrustStore.load(folder, state=state)


def test_an_older_list_is_rejected_after_a_newer_one(
    folder: Path, root: Key, tmp_path: Path
) -> None:
    old = (folder / "trust.json").read_bytes()
    write_trust_list(folder, root_key=root)
    TrustStore.load(folder, state=tmp_path / "state")
    (folder / "trust.json").write_bytes(old)
    with pytest.raises(TrustError, match="has version 1, but version 2 was accepted before"):
        TrustStore.load(folder, state=tmp_path / "state")


def test_an_expired_list_trusts_nothing_and_can_be_renewed(folder: Path, root: Key) -> None:
    late = datetime.now(timezone.utc) + timedelta(days=401)
    with pytest.raises(TrustError, match=r"trust.json expired at"):
        TrustStore.load(folder, state=False, now=late)
    past = listing(created=NOW - timedelta(days=9), expires=NOW - timedelta(days=2))
    (folder / "trust.json").write_bytes(sign_list(past, root))
    with pytest.raises(TrustError, match="expired"):
        TrustStore.load(folder, state=False)
    write_trust_list(folder, root_key=root)
    TrustStore.load(folder, state=False)


def test_a_list_that_expires_soon_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TrustStore.load(folder, state=False, now=NOW + timedelta(days=300))
    assert not caplog.records
    TrustStore.load(folder, state=False, now=NOW + timedelta(days=380))
    assert "get a newer one" in caplog.text


def test_a_clock_before_the_list_was_made_is_to_be_set(folder: Path) -> None:
    with pytest.raises(TrustError, match="set the clock"):
        TrustStore.load(folder, state=False, now=NOW - timedelta(days=1))


@pytest.mark.parametrize("missing", ["trust.json", "root.pem"])
def test_a_folder_that_lost_half_of_its_list_trusts_nothing(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    (folder / "beam.pub.pem").write_text(pem(new_key()))
    with pytest.raises(TrustError, match=rf"{missing} cannot be used"):
        TrustStore.load(folder, state=False)


def test_the_root_of_a_folder_is_not_replaced_by_another(folder: Path) -> None:
    (folder / "trust.json").unlink()
    with pytest.raises(TrustError, match=r"trust.json cannot be used"):
        write_trust_list(folder, root_key=new_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"expires": NOW},
        {"keys": {"../x": "a"}},
        {"revoked_keys": ["a"]},
        {"revoked_bundles": ["A" * 64]},
        {"more": 1},
        {"created": "2026-01-01T00:00:00"},
        {"version": True},
        {"keys": {"a": "no key"}},
        {"next_root": 1},
    ],
)
def test_a_signed_list_that_says_nonsense_is_rejected(changes: dict[str, Any], root: Key) -> None:
    fields = {**listing().model_dump(mode="json"), **changes}
    if isinstance(fields["expires"], datetime):
        fields["expires"] = fields["expires"].isoformat()
    envelope = sign(json.dumps(fields).encode(), kind=PAYLOAD_TYPE, key=root, key_id=id_of(root))
    raw = json.dumps({"lists": [envelope.fields()]}, indent=1).encode() + b"\n"
    with pytest.raises(TrustError, match=r"wrong at|holds no public key"):
        verify_list(raw, root=root.public_key(), what="list")


def test_a_version_that_does_not_rise_along_the_roots_is_rejected(root: Key) -> None:
    second = new_key()
    first = verify_list(
        sign_list(listing(version=5, next_root=pem(second)), root),
        root=root.public_key(),
        what="list",
    )
    raw = sign_list(listing(version=5), second, before=first.envelopes)
    with pytest.raises(TrustError, match="follows version 5 with 5"):
        verify_list(raw, root=root.public_key(), what="list")


def test_a_list_after_one_that_announces_nothing_is_rejected(root: Key) -> None:
    first = verify_list(sign_list(listing(), root), root=root.public_key(), what="list")
    raw = sign_list(listing(version=2), new_key(), before=first.envelopes)
    with pytest.raises(TrustError, match="unannounced"):
        verify_list(raw, root=root.public_key(), what="list")


def test_a_bundles_signature_is_no_list(root: Key) -> None:
    payload = listing().model_dump_json().encode()
    envelope = sign(payload, kind="application/vnd.in-toto+json", key=root, key_id=id_of(root))
    for kind in (envelope.kind, PAYLOAD_TYPE):
        fields = envelope._replace(kind=kind).fields()
        raw = json.dumps({"lists": [fields]}, indent=1).encode() + b"\n"
        with pytest.raises(TrustError, match=r"not a trust list|not signed by"):
            verify_list(raw, root=root.public_key(), what="list")


@given(position=st.integers(0), value=st.integers(1, 255))
def test_no_byte_of_a_list_can_be_changed(root: Key, position: int, value: int) -> None:
    raw = bytearray(sign_list(listing(keys={"a": pem(new_key())}), root))
    raw[position % len(raw)] ^= value
    with pytest.raises(TrustError):
        verify_list(bytes(raw), root=root.public_key(), what="list")


@given(st.binary())
def test_bytes_that_are_no_list_are_rejected(root: Key, raw: bytes) -> None:
    with pytest.raises(TrustError, match="not a trust list"):
        verify_list(raw, root=root.public_key(), what="list")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(more=1),
        lambda c: c.update(lists=[]),
        lambda c: c.update(lists=c["lists"] * 17),
        lambda c: c.update(lists={}),
        lambda c: c["lists"][0].update(more=1),
        lambda c: c["lists"][0].update(payloadType="text/plain"),
        lambda c: c["lists"][0].update(payload=base64.b64encode(b"{}").decode()),
        lambda c: c["lists"][0]["signatures"].append(c["lists"][0]["signatures"][0]),
        lambda c: c["lists"][0]["signatures"].clear(),
        lambda c: c["lists"][0]["signatures"][0].update(keyid=""),
        lambda c: c["lists"][0]["signatures"][0].update(keyid=1),
    ],
)
def test_a_list_of_another_form_is_rejected(change: Change, root: Key) -> None:
    content = json.loads(sign_list(listing(), root))
    change(content)
    raw = json.dumps(content, indent=1).encode() + b"\n"
    with pytest.raises(TrustError):
        verify_list(raw, root=root.public_key(), what="list")


@pytest.mark.parametrize("days", [-1, 0, 10**8])
def test_a_list_is_valid_for_some_time(tmp_path: Path, root: Key, days: int) -> None:
    with pytest.raises(ConfigurationError):
        write_trust_list(tmp_path / "trust", root_key=root, valid=timedelta(days=days))
    assert not (tmp_path / "trust").exists()
