"""What runs beside the detector: verify a bundle, open an engine, serve predictions.

`Predictor` is the way in. Names are imported on first use, so that importing this package loads
no inference library, and only the engine that is used loads its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.engines.engine import Engine
    from edgexnas.device.engines.gate import EngineProof, ObjectProof, prove_engine
    from edgexnas.device.engines.onnx_engine import OnnxEngine
    from edgexnas.device.engines.opening import open_engine
    from edgexnas.device.engines.selection import PrecisionTrial
    from edgexnas.device.engines.tensorrt_engine import TensorRTEngine
    from edgexnas.device.engines.tensorrt_layers import PlanLayer
    from edgexnas.device.engines.tensorrt_plan import Plan, build_plan
    from edgexnas.device.predictor import Predictor
    from edgexnas.device.ptycho.patch_stream import PatchStream
    from edgexnas.device.ptycho.predictor import PtychoPredictor
    from edgexnas.device.ptycho.scan import PositionReading
    from edgexnas.device.ptycho.stitching import StitchCounts

__all__ = [
    "DeviceEngine",
    "Engine",
    "EngineCache",
    "EngineProof",
    "ObjectProof",
    "OnnxEngine",
    "PatchStream",
    "PeakPredictor",
    "Plan",
    "PlanLayer",
    "PositionReading",
    "PrecisionTrial",
    "Predictor",
    "PtychoPredictor",
    "StitchCounts",
    "TensorRTEngine",
    "build_plan",
    "open_engine",
    "prove_engine",
]

_MODULES = {
    "DeviceEngine": "engines.device_engine",
    "Engine": "engines.engine",
    "EngineCache": "cache",
    "EngineProof": "engines.gate",
    "ObjectProof": "engines.gate",
    "OnnxEngine": "engines.onnx_engine",
    "PatchStream": "ptycho.patch_stream",
    "PeakPredictor": "bragg.predictor",
    "Plan": "engines.tensorrt_plan",
    "PlanLayer": "engines.tensorrt_layers",
    "PositionReading": "ptycho.scan",
    "PrecisionTrial": "engines.selection",
    "Predictor": "predictor",
    "PtychoPredictor": "ptycho.predictor",
    "StitchCounts": "ptycho.stitching",
    "TensorRTEngine": "engines.tensorrt_engine",
    "build_plan": "engines.tensorrt_plan",
    "open_engine": "engines.opening",
    "prove_engine": "engines.gate",
}


def __getattr__(name: str) -> object:
    """Import the module that defines a public name when the name is first asked for."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
