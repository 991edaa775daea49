"""The key that signs an adapted bundle: one that is given, or a pair made beside the output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgexnas.bundle import generate_keys, load_signing_key
from edgexnas.bundle.keys import KEY_NAME
from edgexnas.errors import ConfigurationError

__all__ = ["key_pair", "signing_key"]


def signing_key(output: Path, given: str | Path | None) -> Path:
    """Say which key signs; before any work one that is there is read, and a new one's place seen.

    Raises
    ------
    ConfigurationError
        If the key cannot be used, or no pair can be made beside the output.
    """
    path = output.parent / f"{output.stem}.key.pem" if given is None else Path(given)
    if given is not None or path.exists():
        load_signing_key(path)
        return path
    public = output.parent / f"{output.stem}.pub.pem"
    if public.exists():
        raise ConfigurationError(
            f"{public} is there, and {path.name} is not; specify where its private key is as the "
            "signing key, or another output"
        )
    if not re.fullmatch(KEY_NAME, output.stem):
        raise ConfigurationError(
            f"{output.name!r} is no plain name for a key pair; use letters and digits for the "
            "output, or specify a signing key"
        )
    return path


@contextmanager
def key_pair(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make the pair beside the output for the block, if it is not there; keep it if that ends."""
    name = path.name.removesuffix(".key.pem")
    made = () if path.exists() else generate_keys(path.parent, name=name)
    try:
        yield
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        raise
    if made:
        say(f"made the key pair {path} (keep it secret) and {name}.pub.pem (for devices)")
