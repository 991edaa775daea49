"""Parts with known answers, for the tests of programs that use edgexnas.

- `write_centroid_bundle`: a signed bundle for Bragg peaks that predicts the intensity centroid,
  with `spot_frame` and `gaussian_patches` to feed it;
- `write_visible_bundle`: a signed bundle for ptychography that shows each pattern as the object,
  with `visible_scan` to feed it and `visible_object` as the answer;
- `JetsonTree`: the power sensors of a Jetson as files.

Keys come from `edgexnas.bundle.generate_keys`. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.testing.centroid_bundle import (
        SPOTS_PX,
        centroid_manifest,
        centroid_model,
        gaussian_patches,
        spot_frame,
        write_centroid_bundle,
    )
    from edgexnas.testing.jetson_tree import JetsonTree
    from edgexnas.testing.visible_bundle import (
        visible_manifest,
        visible_model,
        visible_network,
        visible_object,
        visible_scan,
        write_visible_bundle,
    )

__all__ = [
    "SPOTS_PX",
    "JetsonTree",
    "centroid_manifest",
    "centroid_model",
    "gaussian_patches",
    "spot_frame",
    "visible_manifest",
    "visible_model",
    "visible_network",
    "visible_object",
    "visible_scan",
    "write_centroid_bundle",
    "write_visible_bundle",
]


def __getattr__(name: str) -> object:
    """Import the module that defines a name when the name is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "visible_bundle" if "visible" in name else "centroid_bundle"
    module = "jetson_tree" if name == "JetsonTree" else room
    return getattr(import_module(f"{__name__}.{module}"), name)
