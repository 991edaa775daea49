"""Parts with known answers, for the tests of programs that use edgexnas.

- `write_centroid_bundle`: a signed bundle for Bragg peaks that predicts the intensity centroid,
  with `spot_frame` and `gaussian_patches` to feed it;
- `write_visible_bundle`: a signed bundle for ptychography that shows each pattern as the object,
  with `visible_scan` to feed it and `visible_object` as the answer;
- `JetsonTree`: the power sensors of a Jetson as files.

Keys come from `edgexnas.bundle.generate_keys`. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgexnas.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgexnas.testing.centroid_bundle import SPOTS_PX as SPOTS_PX
    from edgexnas.testing.centroid_bundle import centroid_manifest as centroid_manifest
    from edgexnas.testing.centroid_bundle import centroid_model as centroid_model
    from edgexnas.testing.centroid_bundle import gaussian_patches as gaussian_patches
    from edgexnas.testing.centroid_bundle import spot_frame as spot_frame
    from edgexnas.testing.centroid_bundle import write_centroid_bundle as write_centroid_bundle
    from edgexnas.testing.jetson_tree import JetsonTree as JetsonTree
    from edgexnas.testing.visible_bundle import visible_manifest as visible_manifest
    from edgexnas.testing.visible_bundle import visible_model as visible_model
    from edgexnas.testing.visible_bundle import visible_network as visible_network
    from edgexnas.testing.visible_bundle import visible_object as visible_object
    from edgexnas.testing.visible_bundle import visible_scan as visible_scan
    from edgexnas.testing.visible_bundle import write_visible_bundle as write_visible_bundle

__getattr__, __dir__, __all__ = lazy_names(__name__)
