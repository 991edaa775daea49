"""Search, train, quantise and export: what runs on a workstation or a cluster.

Names are imported when they are first used, so that `import edgexnas.host` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.host.data.matching import DetectionScores, detection_scores, match_peaks
    from edgexnas.host.data.peak_dataset import PeakDataset
    from edgexnas.host.data.peak_labels import label_frames
    from edgexnas.host.data.phase_retrieval import Reconstruction, reconstruct
    from edgexnas.host.data.pseudo_voigt import PseudoVoigtFit, fit_pseudo_voigt
    from edgexnas.host.data.ptycho_dataset import PtychoDataset
    from edgexnas.host.data.ptycho_labels import label_scan
    from edgexnas.host.data.splitting import Split
    from edgexnas.host.data.synthetic_patterns import (
        ObjectVariety,
        PatternSource,
        draw_objects,
        reconstruct_part,
        with_drawn_patterns,
        with_synthetic_patterns,
    )
    from edgexnas.host.data.synthetic_peaks import with_drawn_peaks, with_synthetic_peaks
    from edgexnas.host.exporting.bundle_export import ExportReport, Origin, export_bundle
    from edgexnas.host.exporting.scoring import classical_rows, distance_row
    from edgexnas.host.networks.bragg_models import (
        BRAGGNN_DENSE,
        BraggNN,
        QuantileHead,
        count_parameters,
    )
    from edgexnas.host.networks.hyperparameters import Choice, Configuration, Integer, Real
    from edgexnas.host.networks.search_space import SearchSpace
    from edgexnas.host.networks.spaces import SPACES
    from edgexnas.host.search.configuration import load_configuration
    from edgexnas.host.search.optimization import optimize
    from edgexnas.host.search.result import Candidate, SearchResult
    from edgexnas.host.training.loop import TrainingResult, train
    from edgexnas.host.training.ptycho_pretraining import PretrainingSettings, pretrain
    from edgexnas.host.training.settings import TrainingData, TrainingSettings

_HOME = {
    "Choice": "networks.hyperparameters",
    "Configuration": "networks.hyperparameters",
    "Integer": "networks.hyperparameters",
    "QuantileHead": "networks.bragg_models",
    "Real": "networks.hyperparameters",
    "BRAGGNN_DENSE": "networks.bragg_models",
    "BraggNN": "networks.bragg_models",
    "Candidate": "search.result",
    "DetectionScores": "data.matching",
    "ExportReport": "exporting.bundle_export",
    "ObjectVariety": "data.synthetic_patterns",
    "Origin": "exporting.bundle_export",
    "PatternSource": "data.synthetic_patterns",
    "PeakDataset": "data.peak_dataset",
    "PretrainingSettings": "training.ptycho_pretraining",
    "PseudoVoigtFit": "data.pseudo_voigt",
    "PtychoDataset": "data.ptycho_dataset",
    "Reconstruction": "data.phase_retrieval",
    "SPACES": "networks.spaces",
    "SearchResult": "search.result",
    "SearchSpace": "networks.search_space",
    "Split": "data.splitting",
    "TrainingData": "training.settings",
    "TrainingResult": "training.loop",
    "TrainingSettings": "training.settings",
    "classical_rows": "exporting.scoring",
    "count_parameters": "networks.bragg_models",
    "detection_scores": "data.matching",
    "distance_row": "exporting.scoring",
    "draw_objects": "data.synthetic_patterns",
    "export_bundle": "exporting.bundle_export",
    "fit_pseudo_voigt": "data.pseudo_voigt",
    "label_frames": "data.peak_labels",
    "label_scan": "data.ptycho_labels",
    "load_configuration": "search.configuration",
    "match_peaks": "data.matching",
    "optimize": "search.optimization",
    "pretrain": "training.ptycho_pretraining",
    "reconstruct": "data.phase_retrieval",
    "reconstruct_part": "data.synthetic_patterns",
    "train": "training.loop",
    "with_drawn_patterns": "data.synthetic_patterns",
    "with_drawn_peaks": "data.synthetic_peaks",
    "with_synthetic_patterns": "data.synthetic_patterns",
    "with_synthetic_peaks": "data.synthetic_peaks",
}

__all__ = [  # noqa: RUF022 - ruff sorts by case, a reader looks by name
    "BRAGGNN_DENSE",
    "BraggNN",
    "Candidate",
    "Choice",
    "Configuration",
    "DetectionScores",
    "ExportReport",
    "Integer",
    "ObjectVariety",
    "Origin",
    "PatternSource",
    "PeakDataset",
    "PretrainingSettings",
    "PseudoVoigtFit",
    "PtychoDataset",
    "QuantileHead",
    "Real",
    "Reconstruction",
    "SPACES",
    "SearchResult",
    "SearchSpace",
    "Split",
    "TrainingData",
    "TrainingResult",
    "TrainingSettings",
    "classical_rows",
    "count_parameters",
    "detection_scores",
    "distance_row",
    "draw_objects",
    "export_bundle",
    "fit_pseudo_voigt",
    "label_frames",
    "label_scan",
    "load_configuration",
    "match_peaks",
    "optimize",
    "pretrain",
    "reconstruct",
    "reconstruct_part",
    "train",
    "with_drawn_patterns",
    "with_drawn_peaks",
    "with_synthetic_patterns",
    "with_synthetic_peaks",
]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
