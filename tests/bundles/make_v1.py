"""Make `v1.edgex` and its public key: run once a schema version, then keep for ever.

The private key is thrown away, so the file can only be replaced together with its key.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tiny_bundle import tiny_manifest, tiny_models, tiny_reference

from edgexnas.bundle import generate_keys, write_bundle

if __name__ == "__main__":
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        private, public = generate_keys(folder, name="v1")
        write_bundle(
            here / "v1.edgex",
            manifest=tiny_manifest(),
            models=tiny_models(),
            reference=tiny_reference(),
            signing_key=private,
        )
        (here / "v1.pub.pem").write_bytes(public.read_bytes())
