"""What edgexnas raises.

::

    EdgexnasError
    ├── ConfigurationError      an option, a name or a combination of them is wrong
    ├── InputError              an array has the wrong shape, dtype or values
    │   └── RefinementError     ... a stitched object cannot be refined
    ├── SourceError             a file or a stream of frames cannot be read
    │   └── MissingFrameError   ... a frame's bytes are not there
    ├── MissingDependencyError  an optional package is not installed
    ├── BundleError             a bundle is malformed, incomplete or inconsistent
    │   ├── SignatureError      ... its signature does not cover what it holds
    │   └── TrustError          ... it is signed by a key that is not trusted
    ├── EngineError             an engine cannot be built, opened or run
    │   └── EngineAccuracyError ... it deviates further from the reference than the gate allows
    ├── ControlError            a running service cannot be followed from a plan
    │   └── DroppedFramesError  ... frames of the plan are missing
    ├── MeasurementError        power, energy or latency was measured and cannot be trusted
    ├── SearchError             a search cannot start, continue or has no result
    └── QuantisationError       the INT8 model loses more accuracy than allowed

Every message is one sentence that names the thing, the value and the remedy.
"""

__all__ = [
    "BundleError",
    "ConfigurationError",
    "ControlError",
    "DroppedFramesError",
    "EdgexnasError",
    "EngineAccuracyError",
    "EngineError",
    "InputError",
    "MeasurementError",
    "MissingDependencyError",
    "MissingFrameError",
    "QuantisationError",
    "RefinementError",
    "SearchError",
    "SignatureError",
    "SourceError",
    "TrustError",
]


class EdgexnasError(Exception):
    """Any failure that edgexnas foresees."""


class ConfigurationError(EdgexnasError, ValueError):
    """An option, a name or a combination of them is wrong."""


class InputError(EdgexnasError, ValueError):
    """An array has the wrong shape, dtype or values."""


class RefinementError(InputError):
    """A stitched object cannot be refined; it is there as it was stitched."""


class SourceError(EdgexnasError, OSError):
    """A file or a stream of frames cannot be read."""


class MissingFrameError(SourceError):
    """A frame is announced, but its bytes are not there: it was not written, or not copied."""


class MissingDependencyError(EdgexnasError, ImportError):
    """An optional package is not installed."""

    @classmethod
    def of(cls, package: str, *, extra: str, purpose: str) -> "MissingDependencyError":
        """Say which extra of edgexnas installs `package` and what it is needed for."""
        return cls(
            f"{purpose} needs {package}, which is not installed: "
            f"run pip install 'edgexnas[{extra}]', or '.[{extra}]' in a checkout"
        )


class BundleError(EdgexnasError):
    """A bundle is malformed, incomplete or inconsistent."""


class SignatureError(BundleError):
    """A bundle's signature does not cover what the bundle holds."""


class TrustError(BundleError):
    """A bundle is signed by a key that is not trusted."""


class EngineError(EdgexnasError):
    """An engine cannot be built, opened or run."""


class EngineAccuracyError(EngineError):
    """An engine deviates further from the reference outputs than the gate allows."""


class ControlError(EdgexnasError):
    """A running service cannot be followed from a plan: it is away, not ready, or started anew."""


class DroppedFramesError(ControlError):
    """Frames of a plan were dropped, lost, or failed."""


class MeasurementError(EdgexnasError):
    """Power, energy or latency was measured and cannot be trusted."""


class SearchError(EdgexnasError):
    """A search cannot start, cannot continue or has no result."""


class QuantisationError(EdgexnasError):
    """The INT8 model loses more accuracy than is allowed."""
