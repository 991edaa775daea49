"""edgexnas keys, inspect and verify."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgexnas.cli.arguments import add_command
from edgexnas.cli.terminal import print_pairs

if TYPE_CHECKING:
    from edgexnas.cli.arguments import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the commands."""
    keys = add_command(commands, "keys", "make keys that sign and verify bundles")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    generate = add_command(actions, "generate", "make a key pair on the curve P-256")
    generate.add_argument("--output", type=Path, default=Path("keys"), help="folder for both files")
    generate.add_argument("--name", default="edgexnas", help="first part of the file names")
    generate.set_defaults(run=_generate)

    inspect = add_command(commands, "inspect", "show what a bundle says, without verifying it")
    inspect.add_argument("bundle", type=Path, help="*.edgex")
    inspect.set_defaults(run=_inspect)

    verify = add_command(commands, "verify", "verify a bundle's signature and contents")
    verify.add_argument("bundle", type=Path, help="*.edgex")
    verify.add_argument(
        "--trust", type=Path, required=True, help="folder of *.pub.pem files, or one such file"
    )
    verify.set_defaults(run=_verify)


def _generate(options: argparse.Namespace) -> None:
    from edgexnas.bundle import generate_keys

    private, public = generate_keys(options.output, name=options.name)
    print_pairs(
        [
            ("signing key", f"{private} (keep it secret)"),
            ("public key", f"{public} (give it to devices)"),
        ]
    )


def _inspect(options: argparse.Namespace) -> None:
    from edgexnas.bundle import describe, read_manifest

    print_pairs([*describe(read_manifest(options.bundle)), ("signature", "not checked")])


def _verify(options: argparse.Namespace) -> None:
    from edgexnas.bundle import describe, open_bundle

    bundle = open_bundle(options.bundle, trust=options.trust)
    signature = [("digest", bundle.digest), ("signature", f"valid, by key {bundle.key_id}")]
    print_pairs([*describe(bundle.manifest), *signature])
