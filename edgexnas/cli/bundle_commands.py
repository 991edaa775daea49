"""edgexnas keys, inspect and verify."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import (
    acceptance,
    add_acceptance,
    add_command,
    bundle_path,
    positive_int,
)
from edgexnas.cli.tally import say_at_end
from edgexnas.cli.terminal import print_pairs

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, TrustList
    from edgexnas.cli.arguments import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the commands."""
    keys = add_command(commands, "keys", "make keys, and sign which of them devices trust")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    generate = add_command(actions, "generate", "make a key pair on the curve P-256")
    generate.add_argument("--output", type=Path, default=Path("keys"), help="folder for the files")
    generate.add_argument("--name", default="edgexnas", help="first part of the file names")
    generate.add_argument(
        "--private", type=Path, help="another folder for the private key, that goes to no device"
    )
    generate.set_defaults(run=_generate)

    show = add_command(actions, "show", "show what a trust folder trusts and revokes")
    show.add_argument("trust", type=Path, help="trust folder, or one public key")
    show.set_defaults(run=_show)

    listing = add_command(actions, "trust-list", "sign the next list of trusted keys of a folder")
    _add_list(listing)
    listing.add_argument(
        "--add", type=Path, nargs="+", action="extend", default=[], metavar="KEY",
        help="NAME.pub.pem to trust",
    )  # fmt: skip
    listing.add_argument("--next-root", type=Path, metavar="KEY", help="root key after this one")
    listing.set_defaults(run=_trust_list)

    revoke = add_command(actions, "revoke", "revoke keys or bundles in a folder's trust list")
    _add_list(revoke)
    revoke.add_argument(
        "revoked", nargs="+", metavar="WHAT", help="NAME.pub.pem, *.edgex, or the id of a key"
    )
    revoke.set_defaults(run=_revoke)

    inspect = add_command(commands, "inspect", "show what a bundle says, without verifying it")
    inspect.add_argument("bundle", type=bundle_path, help="*.edgex, or universal")
    inspect.add_argument(
        "--card", action="store_true", help="print the model card, in Markdown, instead"
    )
    inspect.set_defaults(run=_inspect)

    verify = add_command(commands, "verify", "verify a bundle's signature and contents")
    verify.add_argument("bundle", type=bundle_path, help="*.edgex, or universal")
    add_acceptance(verify)
    verify.set_defaults(run=_verify)


def _add_list(command: argparse.ArgumentParser) -> None:
    command.add_argument("trust", type=Path, help="trust folder")
    command.add_argument("--root-key", type=Path, required=True, help="*.key.pem, kept offline")
    command.add_argument(
        "--days", type=positive_int, default=400, help="time until the list expires"
    )


def _generate(options: argparse.Namespace) -> None:
    from edgexnas.bundle import generate_keys

    private, public = generate_keys(options.output, name=options.name, private=options.private)
    print_pairs(
        [
            ("signing key", f"{private} (keep it secret)"),
            ("public key", f"{public} (give it to devices)"),
        ]
    )


def _show(options: argparse.Namespace) -> None:
    from edgexnas.bundle import TrustStore

    store = TrustStore.load(options.trust, state=False)
    pairs = [] if store.trust_list is None else _list_pairs(store.trust_list)
    print_pairs([*pairs, *(("trusted key", key_id) for key_id in store.keys)])


def _trust_list(options: argparse.Namespace) -> None:
    from edgexnas.bundle.keys import load_public_key

    added = {path.name.removesuffix(".pub.pem"): load_public_key(path) for path in options.add}
    next_root = None if options.next_root is None else load_public_key(options.next_root)
    _sign_list(options, trust=added, next_root=next_root)


def _revoke(options: argparse.Namespace) -> None:
    from edgexnas.bundle.bundle_file import content_digest_of
    from edgexnas.bundle.keys import key_id, load_public_key

    keys, bundles = [], []
    for what in options.revoked:
        # Bundles are revoked by their file, whose content is what the list names.
        if re.fullmatch("[0-9a-f]{64}", what):
            keys.append(what)
        elif what.endswith(".pem"):
            keys.append(key_id(load_public_key(what)))
        else:
            bundles.append(content_digest_of(what))
    _sign_list(options, revoke_keys=keys, revoke_bundles=bundles)


def _sign_list(options: argparse.Namespace, **changes: Any) -> None:
    from edgexnas.bundle import load_signing_key, write_trust_list

    key, valid = load_signing_key(options.root_key), timedelta(days=min(options.days, 10**8))
    listed = write_trust_list(options.trust, root_key=key, valid=valid, **changes)
    print_pairs([*_list_pairs(listed), ("file", f"{options.trust / 'trust.json'}")])


def _list_pairs(listed: TrustList) -> list[tuple[str, str]]:
    return [
        ("version", str(listed.version)),
        ("expires", listed.expires.isoformat()),
        ("trusted", ", ".join(listed.keys) or "nobody"),
        *(("revoked key", key_id) for key_id in listed.revoked_keys),
        *(("revoked bundle", digest) for digest in listed.revoked_bundles),
        *([("next root key", "announced")] if listed.next_root else []),
    ]


def _inspect(options: argparse.Namespace) -> None:
    from edgexnas.bundle import describe, model_card, read_manifest

    if options.card:
        print(model_card(read_manifest(options.bundle)), end="")  # noqa: T201
        say_at_end("the signature was not checked: edgexnas verify checks it")
        return
    print_pairs([*describe(read_manifest(options.bundle)), ("signature", "not checked")])


def _verify(options: argparse.Namespace) -> None:
    from edgexnas.bundle import describe, open_bundle

    bundle = open_bundle(options.bundle, trust=options.trust, **acceptance(options))
    print_pairs(
        [
            *describe(bundle.manifest),
            ("digest", bundle.digest),
            ("content digest", bundle.content_digest),
            ("signature", f"valid, by key {bundle.key_id}"),
            ("older bundles", _older(bundle, options.bundle)),
        ]
    )


def _older(bundle: Bundle, path: Path | str) -> str:
    """Say what becomes of older bundles of the model."""
    from edgexnas.bundle.shipped import is_shipped

    if is_shipped(path):
        return "come with older packages alone"
    if bundle.state is None:
        return "accepted: there is no state folder, specify --state"
    return f"rejected, as {bundle.state.folder} remembers"
