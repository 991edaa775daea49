"""Make `v2.edgex` and its public key: run once a schema version, then keep for ever.

The private key is thrown away, so the file can only be replaced together with its key.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tiny_bundle import tiny_manifest, tiny_models, tiny_reference

from edgexnas.bundle import SCHEMA_VERSION, generate_keys, write_bundle

if __name__ == "__main__":
    here, name = Path(__file__).parent, f"v{SCHEMA_VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        private, public = generate_keys(folder, name=name)
        write_bundle(
            here / f"{name}.edgex",
            manifest=tiny_manifest(),
            models=tiny_models(),
            reference=tiny_reference(),
            signing_key=private,
        )
        (here / f"{name}.pub.pem").write_bytes(public.read_bytes())
