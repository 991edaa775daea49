"""Series of detector frames, read one frame at a time from the files that detectors write.

`open_frames` opens HDF5 and NeXus files, hexrd frame caches, .npy arrays, single images and
folders of them; `ArrayFrames` wraps an array in memory. All of them are a `FrameSeries`. What a
simulated series holds beside its frames is a `Truth`.
"""

from edgexnas.frames.opening import load_truth, open_frames
from edgexnas.frames.series import ArrayFrames, FrameSeries, LazyFrames
from edgexnas.frames.truth import Truth

__all__ = ["ArrayFrames", "FrameSeries", "LazyFrames", "Truth", "load_truth", "open_frames"]
