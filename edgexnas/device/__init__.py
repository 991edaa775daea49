"""What runs beside the detector: verify a bundle, open an engine, serve predictions.

`Predictor` is the way in. Names are imported on first use, so that importing this package loads
no inference library, and only the engine that is used loads its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.device.engine import Engine, open_engine
    from edgexnas.device.onnx_engine import OnnxEngine
    from edgexnas.device.predictor import Predictor
    from edgexnas.device.proof import EngineProof, prove_engine
    from edgexnas.device.tensorrt_engine import Plan, build_plan
    from edgexnas.device.tensorrt_layers import PlanLayer

__all__ = [
    "Engine",
    "EngineProof",
    "OnnxEngine",
    "Plan",
    "PlanLayer",
    "Predictor",
    "build_plan",
    "open_engine",
    "prove_engine",
]

_MODULES = {
    "Engine": "engine",
    "EngineProof": "proof",
    "OnnxEngine": "onnx_engine",
    "Plan": "tensorrt_engine",
    "PlanLayer": "tensorrt_layers",
    "Predictor": "predictor",
    "build_plan": "tensorrt_engine",
    "open_engine": "engine",
    "prove_engine": "proof",
}


def __getattr__(name: str) -> object:
    """Import the module that defines a public name when the name is first asked for."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
