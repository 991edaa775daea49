"""What runs beside the detector: verify a bundle, open an engine, serve predictions.

`Predictor` is the way in. Names are imported on first use, so that importing this package loads
no inference library, and only the engine that is used loads its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgexnas.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgexnas.device.bragg.predictor import PeakPredictor as PeakPredictor
    from edgexnas.device.cache import EngineCache as EngineCache
    from edgexnas.device.engines.device_engine import DeviceEngine as DeviceEngine
    from edgexnas.device.engines.engine import Engine as Engine
    from edgexnas.device.engines.gate import EngineProof as EngineProof
    from edgexnas.device.engines.gate import ObjectProof as ObjectProof
    from edgexnas.device.engines.gate import prove_engine as prove_engine
    from edgexnas.device.engines.onnx_engine import OnnxEngine as OnnxEngine
    from edgexnas.device.engines.opening import open_engine as open_engine
    from edgexnas.device.engines.selection import PrecisionTrial as PrecisionTrial
    from edgexnas.device.engines.tensorrt_engine import TensorRTEngine as TensorRTEngine
    from edgexnas.device.engines.tensorrt_layers import PlanLayer as PlanLayer
    from edgexnas.device.engines.tensorrt_plan import Plan as Plan
    from edgexnas.device.engines.tensorrt_plan import build_plan as build_plan
    from edgexnas.device.predictor import Predictor as Predictor
    from edgexnas.device.ptycho.patch_stream import PatchStream as PatchStream
    from edgexnas.device.ptycho.predictor import PtychoPredictor as PtychoPredictor
    from edgexnas.device.ptycho.scan import PositionReading as PositionReading
    from edgexnas.device.ptycho.stitching import StitchCounts as StitchCounts

__getattr__, __dir__, __all__ = lazy_names(__name__)
