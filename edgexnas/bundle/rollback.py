"""Protection against old bundles: the highest sequence that was accepted of each model."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgexnas.bundle.manifest import Manifest
from edgexnas.bundle.strict_json import parse_json
from edgexnas.errors import BundleError, ConfigurationError
from edgexnas.guarded_files import read_once
from edgexnas.whole_files import write_whole

__all__ = ["accept_sequence"]

MOST_STATE_BYTES = 1024 * 1024


def accept_sequence(state: Path | str, manifest: Manifest) -> None:
    """Refuse a model older than one accepted before, else remember its sequence.

    Call this after everything else about the bundle is verified: only an accepted bundle counts.

    Parameters
    ----------
    state
        JSON file of sequence by `model_id`; made if it is missing. A lock lies beside it.
    manifest
        Manifest of a verified bundle.

    Raises
    ------
    BundleError
        If a higher sequence of the same model was accepted before.
    ConfigurationError
        If the file cannot be read or written: without memory, nothing is accepted.
    """
    path = Path(state)
    try:
        with _locked(path):
            highest = _read_state(path)
            known = highest.get(manifest.model_id, -1)
            if manifest.sequence < known:
                raise BundleError(
                    f"model {manifest.model_id} has sequence {manifest.sequence}, but sequence "
                    f"{known} was accepted before: to go back, lower its entry in {path}"
                )
            if manifest.sequence > known:
                highest[manifest.model_id] = manifest.sequence
                write_whole(path, f"{json.dumps(highest, sort_keys=True, indent=2)}\n".encode())
    except OSError as error:
        raise ConfigurationError(
            f"rollback state {path} cannot be used ({error.strerror}): name a writable file"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time read and replace the state, or an update would be lost."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _read_state(path: Path) -> dict[str, int]:
    try:
        raw = read_once(path, most_bytes=MOST_STATE_BYTES)
    except FileNotFoundError:
        return {}
    try:
        fields = parse_json(raw or b"", what=str(path))
    except BundleError:
        fields = {"": None}
    # A bool is an int to Python.
    sequences = {name: value for name, value in fields.items() if type(value) is int}
    if len(sequences) < len(fields):
        raise ConfigurationError(
            f"rollback state {path} is damaged: restore it as JSON of whole numbers by model_id"
        )
    return sequences
