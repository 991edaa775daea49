"""The bundle: one signed file that carries a model from the host to the device."""

from edgexnas.bundle.bundle_file import (
    Bundle,
    open_bundle,
    read_manifest,
    verify_bundle,
    write_bundle,
)
from edgexnas.bundle.deployment import (
    Coverage,
    Distribution,
    Familiarity,
    IntervalCalibration,
    MeasuredLatency,
    ModelCard,
    PeakDetection,
    PrecisionFactors,
    Probe,
    QuantisationRecipe,
    TrainingData,
    Widening,
)
from edgexnas.bundle.description import describe
from edgexnas.bundle.gate_policy import GatePolicy
from edgexnas.bundle.keys import generate_keys, load_signing_key
from edgexnas.bundle.manifest import (
    MODEL_MEMBERS,
    SCHEMA_VERSION,
    AccuracyRow,
    AmplitudeGate,
    BraggPreprocessing,
    Gate,
    Manifest,
    Precision,
    Provenance,
    PtychoPreprocessing,
    Quantisation,
    Tensor,
)
from edgexnas.bundle.model_card import model_card
from edgexnas.bundle.probe import describe_probe
from edgexnas.bundle.rollback import StateOption
from edgexnas.bundle.trust import TrustStore, write_trust_list
from edgexnas.bundle.trust_list import TrustList

__all__ = [
    "MODEL_MEMBERS",
    "SCHEMA_VERSION",
    "AccuracyRow",
    "AmplitudeGate",
    "BraggPreprocessing",
    "Bundle",
    "Coverage",
    "Distribution",
    "Familiarity",
    "Gate",
    "GatePolicy",
    "IntervalCalibration",
    "Manifest",
    "MeasuredLatency",
    "ModelCard",
    "PeakDetection",
    "Precision",
    "PrecisionFactors",
    "Probe",
    "Provenance",
    "PtychoPreprocessing",
    "Quantisation",
    "QuantisationRecipe",
    "StateOption",
    "Tensor",
    "TrainingData",
    "TrustList",
    "TrustStore",
    "Widening",
    "describe",
    "describe_probe",
    "generate_keys",
    "load_signing_key",
    "model_card",
    "open_bundle",
    "read_manifest",
    "verify_bundle",
    "write_bundle",
    "write_trust_list",
]
