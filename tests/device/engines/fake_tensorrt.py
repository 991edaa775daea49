"""TensorRT's Python API without TensorRT: plans hold the ONNX model, onnxruntime computes it.

Only names that TensorRT 8.5 to 11 have are there, with the names that came or went between them
chosen by version. What TensorRT refuses is refused: a shape outside the profile, a run without
addresses, a plan of another version or GPU. A run happens when its stream gets there, on whatever
the addresses hold then, so wrong order, address, shape or stream shows as a wrong result.
"""

from __future__ import annotations

import enum
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

MAGIC = b"fake plan "


def make(cuda: Any, *, version: str = "10.3.0", name: str = "tensorrt") -> Any:
    """Make the module for a fake GPU; `module.faults` and `module.builds` steer and count.

    As "tensorrt_rtx" it compiles kernels when it runs, as TensorRT-RTX does; `compiled` tells when.

    Faults: "no_memory" (no execution context), "scale" (outputs too large by this factor),
    "not_capturable" (refuses to run while its stream is recorded), "no_build", "no_runtime" (a
    driver that is too old).
    """
    trt: Any = ModuleType(name)
    trt.__version__ = version
    trt.faults = {}
    trt.builds = []
    trt.levels = []
    trt.timing_hits = []
    trt.compiled = []
    rtx = name == "tensorrt_rtx"
    major = int(version.split(".")[0])
    # Strongly typed networks, progress and metadata of layers came after 8.6.
    weak = major < 9 and not rtx

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3
            VERBOSE = 4

        def log(self, severity: Severity, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class WeakFlags(enum.IntEnum):
        EXPLICIT_BATCH = 0
        EXPLICIT_PRECISION = 1

    class StrongFlags(enum.IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class BuilderFlag(enum.IntEnum):
        FP16 = 0
        INT8 = 1

    class TensorIOMode(enum.Enum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class DataType(enum.Enum):
        FLOAT = 0
        HALF = 1
        INT8 = 2

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            assert len(shapes) == 3
            self.shapes[name] = shapes

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"timed;"

    class Config:
        def __init__(self) -> None:
            self.profiling_verbosity: Any = None
            self.flags: set[int] = set()
            if not weak:
                self.progress_monitor: Any = None
            if not version.startswith("8.5"):
                self.builder_optimization_level = 3
            self.profiles: list[Profile] = []
            self.timings: TimingCache | None = None

        def set_flag(self, flag: BuilderFlag) -> None:
            assert weak, "strongly typed networks take no flags of precision"
            self.flags.add(flag)

        def __setattr__(self, attribute: str, value: Any) -> None:
            # pybind11 rejects attributes that its class does not have.
            assert attribute != "progress_monitor" or not weak
            super().__setattr__(attribute, value)

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, content: bytes) -> TimingCache | None:
            fits = not content or content.startswith(place().encode())
            return TimingCache(content or place().encode()) if fits else None

        def set_timing_cache(self, timings: TimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.timings = timings
            return True

    class Network:
        def __init__(self) -> None:
            self.model: onnx.ModelProto | None = None

        @property
        def num_inputs(self) -> int:
            assert self.model is not None
            return len(self.model.graph.input)

        def get_input(self, index: int) -> Any:
            assert self.model is not None
            value = self.model.graph.input[index]
            return SimpleNamespace(name=value.name, shape=dims(value))

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger
            if cuda.gone:
                severity = ILogger.Severity.WARNING if weak else ILogger.Severity.ERROR
                logger.log(severity, "CUDA initialization failure with error: 100")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_builder_config(self) -> Config:
            return Config()

        def create_network(self, flags: int) -> Network:
            assert flags == 1 << (WeakFlags.EXPLICIT_BATCH if weak else StrongFlags.STRONGLY_TYPED)
            return Network()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            watcher = getattr(config, "progress_monitor", None)
            if watcher is not None:
                watcher.phase_start("Building", None, 2)
                for step in range(2):
                    if not watcher.step_complete("Building", step):
                        return None
                watcher.phase_finish("Building")
            if trt.faults.get("no_build"):
                self.logger.log(ILogger.Severity.ERROR, "could not find any implementation")
                return None
            assert network.model is not None
            if weak and (needed := arithmetic(network.model)) != config.flags:
                self.logger.log(
                    ILogger.Severity.ERROR, f"flags {config.flags}, where the network has {needed}"
                )
                return None
            model = network.model.SerializeToString()
            trt.builds.append(model)
            trt.levels.append(getattr(config, "builder_optimization_level", None))
            trt.timing_hits.append(
                config.timings is not None and b"timed;" in config.timings.content
            )
            head = json.dumps({"place": place(), "profiles": [p.shapes for p in config.profiles]})
            return MAGIC + head.encode() + b"\n" + model

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            self.network = network
            self.num_errors = 0

        def parse(self, model: bytes) -> bool:
            try:
                self.network.model = onnx.load_from_string(model)
            except Exception:
                self.num_errors = 1
                return False
            assert not weak or self.network.model.opset_import[0].version <= 17
            return True

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: "failed to parse the ONNX model")

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger
            if trt.faults.get("no_runtime"):
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if not plan.startswith(MAGIC):
                self.logger.log(ILogger.Severity.ERROR, "magic tag does not match")
                return None
            head, _, model = plan[len(MAGIC) :].partition(b"\n")
            described = json.loads(head)
            if described["place"] != place():
                self.logger.log(
                    ILogger.Severity.ERROR, f"the plan is for {described['place']}, not {place()}"
                )
                return None
            return Engine(self.logger, model, described["profiles"])

    class Engine:
        def __init__(self, logger: ILogger, model: bytes, profiles: list[Any]) -> None:
            self.logger = logger
            self.profiles = profiles
            self.model = onnx.load_from_string(model)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            self.session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            self.inputs = {value.name: dims(value) for value in self.model.graph.input}
            self.outputs = {value.name: dims(value) for value in self.model.graph.output}
            self.num_io_tensors = len(self.inputs) + len(self.outputs)
            self.num_optimization_profiles = len(profiles)

        def get_tensor_name(self, index: int) -> str:
            return [*self.inputs, *self.outputs][index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType.FLOAT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = {**self.inputs, **self.outputs}[name]
            ranges = [shapes for profile in self.profiles for shapes in profile.values()]
            # Seen of 8.6.0: one size alone is no free axis any more, and an output has the first.
            one_each = all(least == most for least, _, most in ranges)
            fixed = weak and one_each and (len(ranges) == 1 or name in self.outputs)
            return (ranges[0][0][0], *shape[1:]) if fixed else shape

        def create_execution_context(self, settings: Any = None) -> Context | None:
            assert (settings is not None) == rtx, "TensorRT-RTX alone takes runtime settings"
            if settings is not None:
                # Kernels that it has not got it compiles, and keeps.
                trt.compiled.append(not settings.cache.content)
                settings.cache.content = place().encode()
            if trt.faults.get("no_memory"):
                self.logger.log(ILogger.Severity.ERROR, "out of memory")
                return None
            return Context(self)

        def create_engine_inspector(self) -> Any:
            kinds = {node.op_type for node in self.model.graph.node}
            dtype = "Int8" if "QuantizeLinear" in kinds else "Float"
            layers = [
                {
                    "Name": node.name,
                    "LayerType": node.op_type.lower(),
                    "Inputs": [{"Format/Datatype": f"Row major {dtype} format"}],
                    "Outputs": [{"Format/Datatype": "Row major Float format"}],
                }
                | ({} if weak else {"Metadata": f"[ONNX Layer: {node.name}]"})
                for node in self.model.graph.node
                if node.op_type in {"Gemm", "Conv", "MatMul"}
            ]
            report = json.dumps({"Layers": layers})
            if weak:
                # Separators inside of strings are written as they are.
                report = report.replace('"LayerType": "', '"LayerType": "\x1e')
            return SimpleNamespace(get_engine_information=lambda form: report)

    if rtx:

        class IRuntimeCache:
            def __init__(self) -> None:
                self.content = b""

            def deserialize(self, content: bytes) -> bool:
                fits = content == place().encode()
                self.content = content if fits else b""
                return fits

            def serialize(self) -> bytes:
                return self.content

        class RuntimeConfig:
            def create_runtime_cache(self) -> IRuntimeCache:
                return IRuntimeCache()

            def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
                self.cache = cache
                return True

        trt.IRuntimeCache = IRuntimeCache
        Engine.create_runtime_config = lambda self: RuntimeConfig()  # type: ignore[attr-defined]

    # The device memory of one context: TensorRT 11 dropped the older name.
    if not weak:
        Engine.device_memory_size_v2 = 4096  # type: ignore[attr-defined]
    if major < 11 and not rtx:
        Engine.device_memory_size = 4096  # type: ignore[attr-defined]

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine = engine
            self.profile: int | None = 0 if engine.num_optimization_profiles == 1 else None
            self.shape: tuple[int, ...] | None = None
            self.addresses: dict[str, int] = {}

        def _refuse(self, why: str) -> bool:
            self.engine.logger.log(ILogger.Severity.ERROR, why)
            return False

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            assert stream in cuda.streams
            if not 0 <= index < self.engine.num_optimization_profiles:
                return self._refuse(f"there is no profile {index}")
            self.profile = index
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if self.profile is None:
                return self._refuse("no optimisation profile is set")
            least, _, most = self.engine.profiles[self.profile][name]
            if len(shape) != len(least) or any(
                not low <= length <= high
                for low, length, high in zip(least, shape, most, strict=True)
            ):
                return self._refuse(f"shape {shape} is outside the profile {least} to {most}")
            self.shape = tuple(shape)
            return True

        def infer_shapes(self) -> list[str]:
            return [] if self.shape else list(self.engine.inputs)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if self.shape is None:
                return self.engine.get_tensor_shape(name)
            return (self.shape[0], *self.engine.get_tensor_shape(name)[1:])

        def set_tensor_address(self, name: str, address: int) -> bool:
            if type(address) is not int or address % 4:
                return self._refuse(f"address {address} is not aligned")
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if self.shape is None:
                return self._refuse("the input shape is not set")
            names = {*self.engine.inputs, *self.engine.outputs}
            if set(self.addresses) != names:
                return self._refuse(f"addresses are set for {sorted(self.addresses)} alone")
            if (
                trt.faults.get("not_capturable")
                and cuda.streams[stream_handle].captured is not None
            ):
                return self._refuse("operation not permitted when stream is capturing")
            engine, shape, addresses = self.engine, self.shape, dict(self.addresses)
            (source,), (target,) = engine.inputs, engine.outputs

            def compute() -> None:
                count = int(np.prod(shape)) * 4
                given = cuda.memory(addresses[source], count).view(np.float32).reshape(shape)
                (result,) = engine.session.run([target], {source: given})
                result = result * trt.faults.get("scale", 1)
                raw = np.ascontiguousarray(result, np.float32).reshape(-1).view(np.uint8)
                cuda.memory(addresses[target], raw.nbytes)[:] = raw

            cuda.run_on(stream_handle, compute, "execute_async_v3")
            return True

    def place() -> str:
        return f"{name} {version} SM{cuda.capability[0]}{cuda.capability[1]}"

    def arithmetic(model: onnx.ModelProto) -> set[int]:
        """Flags without which the network does not build."""
        elements = {tensor.data_type for tensor in model.graph.initializer}
        kinds = {node.op_type for node in model.graph.node}
        half = onnx.TensorProto.FLOAT16 in elements
        return {flag for flag, has in ((0, half), (1, "QuantizeLinear" in kinds)) if has}

    def dims(value: Any) -> tuple[int, ...]:
        lengths = value.type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in lengths)

    trt.stand_ins = {
        "Builder": Builder,
        "IBuilderConfig": Config,
        "ICudaEngine": Engine,
        "IExecutionContext": Context,
        "INetworkDefinition": Network,
        "IOptimizationProfile": Profile,
        "ITimingCache": TimingCache,
        "OnnxParser": OnnxParser,
        "Runtime": Runtime,
    }
    if rtx:
        trt.stand_ins |= {"IRuntimeCache": IRuntimeCache, "IRuntimeConfig": RuntimeConfig}
    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = ILogger, Builder, OnnxParser, Runtime
    if weak:
        trt.BuilderFlag = BuilderFlag
    else:
        trt.IProgressMonitor = IProgressMonitor
    trt.NetworkDefinitionCreationFlag = WeakFlags if weak else StrongFlags
    trt.TensorIOMode, trt.DataType = TensorIOMode, DataType
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    trt.LayerInformationFormat = SimpleNamespace(JSON=1)
    return trt
