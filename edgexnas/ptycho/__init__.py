"""The contract of ptychography: patterns, scaling, patches, phase and stitching.

Training and inference call the same functions here. numpy only.

Conventions
-----------
* A pattern is a far-field diffraction pattern, 64×64 photon counts with the direct beam in the
  middle: pixel (32, 32).
* A patch is the object under the probe, 64×64: amplitude without unit and phase in radians.
* Positions are (row, col) in object pixels: where the first pixel of a patch lies on the canvas.
  They need not be whole numbers.
* A detector may be turned or mirrored against the axes of the positions; see `Orientation`.
* The phase of a diffraction pattern is known up to a constant, so phases are compared and shown
  after that constant is removed; see `align_phase`.
"""

from edgexnas.ptycho.canvas import (
    ObjectCanvas,
    ObjectImage,
    SpreadPatch,
    hann_weight,
    spread_patch,
)
from edgexnas.ptycho.orientation import ORIENTATIONS, Orientation, oriented
from edgexnas.ptycho.patches import (
    ComplexArray,
    ObjectPatches,
    PatchErrors,
    PlacedPatches,
    align_phase,
    decode_patches,
    patch_errors,
    to_complex,
)
from edgexnas.ptycho.patterns import (
    PATTERN_SIZE,
    FloatArray,
    as_patterns,
    bin_patterns,
    check_counts,
    scale_patterns,
)
from edgexnas.ptycho.refinement import PatternStore, Refinement, Refiner

__all__ = [
    "ORIENTATIONS",
    "PATTERN_SIZE",
    "ComplexArray",
    "FloatArray",
    "ObjectCanvas",
    "ObjectImage",
    "ObjectPatches",
    "Orientation",
    "PatchErrors",
    "PatternStore",
    "PlacedPatches",
    "Refinement",
    "Refiner",
    "SpreadPatch",
    "align_phase",
    "as_patterns",
    "bin_patterns",
    "check_counts",
    "decode_patches",
    "hann_weight",
    "oriented",
    "patch_errors",
    "scale_patterns",
    "spread_patch",
    "to_complex",
]
