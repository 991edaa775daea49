"""Search, train, quantise and export: what runs on a workstation or a cluster.

Names are imported when they are first used, so that `import edgexnas.host` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.host.configuration import load_configuration
    from edgexnas.host.dataset import PeakDataset
    from edgexnas.host.drawn_peaks import with_drawn_peaks
    from edgexnas.host.export import ExportReport, Origin, export_bundle
    from edgexnas.host.labels import label_frames
    from edgexnas.host.matching import DetectionScores, detection_scores, match_peaks
    from edgexnas.host.models import BRAGGNN_DENSE, BraggNN, count_parameters
    from edgexnas.host.phase_retrieval import Reconstruction, reconstruct
    from edgexnas.host.pseudo_voigt import PseudoVoigtFit, fit_pseudo_voigt
    from edgexnas.host.ptycho_dataset import PtychoDataset
    from edgexnas.host.ptycho_labels import label_scan
    from edgexnas.host.ptycho_patterns import (
        ObjectVariety,
        PatternSource,
        draw_objects,
        reconstruct_part,
        with_drawn_patterns,
    )
    from edgexnas.host.ptycho_pretraining import PretrainingSettings, pretrain
    from edgexnas.host.result import Candidate, SearchResult
    from edgexnas.host.scoring import classical_rows, distance_row
    from edgexnas.host.search import optimize
    from edgexnas.host.search_space import SearchSpace
    from edgexnas.host.spaces import SPACES
    from edgexnas.host.splitting import Split
    from edgexnas.host.training import TrainingData, TrainingResult, TrainingSettings, train

_HOME = {
    "BRAGGNN_DENSE": "models",
    "BraggNN": "models",
    "Candidate": "result",
    "DetectionScores": "matching",
    "ExportReport": "export",
    "ObjectVariety": "ptycho_patterns",
    "Origin": "export",
    "PatternSource": "ptycho_patterns",
    "PeakDataset": "dataset",
    "PretrainingSettings": "ptycho_pretraining",
    "PseudoVoigtFit": "pseudo_voigt",
    "PtychoDataset": "ptycho_dataset",
    "Reconstruction": "phase_retrieval",
    "SPACES": "spaces",
    "SearchResult": "result",
    "SearchSpace": "search_space",
    "Split": "splitting",
    "TrainingData": "training",
    "TrainingResult": "training",
    "TrainingSettings": "training",
    "classical_rows": "scoring",
    "count_parameters": "models",
    "detection_scores": "matching",
    "distance_row": "scoring",
    "draw_objects": "ptycho_patterns",
    "export_bundle": "export",
    "fit_pseudo_voigt": "pseudo_voigt",
    "label_frames": "labels",
    "label_scan": "ptycho_labels",
    "load_configuration": "configuration",
    "match_peaks": "matching",
    "optimize": "search",
    "pretrain": "ptycho_pretraining",
    "reconstruct": "phase_retrieval",
    "reconstruct_part": "ptycho_patterns",
    "train": "training",
    "with_drawn_patterns": "ptycho_patterns",
    "with_drawn_peaks": "drawn_peaks",
}

__all__ = [  # noqa: RUF022 - ruff sorts by case, a reader looks by name
    "BRAGGNN_DENSE",
    "BraggNN",
    "Candidate",
    "DetectionScores",
    "ExportReport",
    "ObjectVariety",
    "Origin",
    "PatternSource",
    "PeakDataset",
    "PretrainingSettings",
    "PseudoVoigtFit",
    "PtychoDataset",
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
]


def __getattr__(name: str) -> object:
    """Import the module that holds a public name."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
