"""Search, train, quantise and export: what runs on a workstation or a cluster.

Names are imported when they are first used, so that `import edgexnas.host` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgexnas.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgexnas.host.adapting.adaptation import AdaptReport as AdaptReport
    from edgexnas.host.adapting.adaptation import adapt as adapt
    from edgexnas.host.data.matching import DetectionScores as DetectionScores
    from edgexnas.host.data.matching import detection_scores as detection_scores
    from edgexnas.host.data.matching import match_peaks as match_peaks
    from edgexnas.host.data.peak_dataset import PeakDataset as PeakDataset
    from edgexnas.host.data.peak_labels import label_frames as label_frames
    from edgexnas.host.data.phase_retrieval import Reconstruction as Reconstruction
    from edgexnas.host.data.phase_retrieval import reconstruct as reconstruct
    from edgexnas.host.data.pseudo_voigt import PseudoVoigtFit as PseudoVoigtFit
    from edgexnas.host.data.pseudo_voigt import fit_pseudo_voigt as fit_pseudo_voigt
    from edgexnas.host.data.ptycho_dataset import PtychoDataset as PtychoDataset
    from edgexnas.host.data.ptycho_labels import label_scan as label_scan
    from edgexnas.host.data.scan_geometry import FoundOrientation as FoundOrientation
    from edgexnas.host.data.scan_geometry import beam_offset_px as beam_offset_px
    from edgexnas.host.data.scan_geometry import find_orientation as find_orientation
    from edgexnas.host.data.small_scans import can_split as can_split
    from edgexnas.host.data.small_scans import label_small_scan as label_small_scan
    from edgexnas.host.data.splitting import Split as Split
    from edgexnas.host.data.synthetic_patterns import Drawing as Drawing
    from edgexnas.host.data.synthetic_patterns import ObjectVariety as ObjectVariety
    from edgexnas.host.data.synthetic_patterns import PatternSource as PatternSource
    from edgexnas.host.data.synthetic_patterns import draw_objects as draw_objects
    from edgexnas.host.data.synthetic_patterns import reconstruct_part as reconstruct_part
    from edgexnas.host.data.synthetic_patterns import with_drawn_patterns as with_drawn_patterns
    from edgexnas.host.data.synthetic_patterns import with_probe as with_probe
    from edgexnas.host.data.synthetic_patterns import (
        with_synthetic_patterns as with_synthetic_patterns,
    )
    from edgexnas.host.data.synthetic_peaks import with_drawn_peaks as with_drawn_peaks
    from edgexnas.host.data.synthetic_peaks import with_synthetic_peaks as with_synthetic_peaks
    from edgexnas.host.exporting.bundle_export import ExportReport as ExportReport
    from edgexnas.host.exporting.bundle_export import Origin as Origin
    from edgexnas.host.exporting.bundle_export import export_bundle as export_bundle
    from edgexnas.host.exporting.scoring import classical_rows as classical_rows
    from edgexnas.host.exporting.scoring import distance_row as distance_row
    from edgexnas.host.networks.bragg_models import BRAGGNN_DENSE as BRAGGNN_DENSE
    from edgexnas.host.networks.bragg_models import BraggNN as BraggNN
    from edgexnas.host.networks.bragg_models import QuantileHead as QuantileHead
    from edgexnas.host.networks.bragg_models import count_parameters as count_parameters
    from edgexnas.host.networks.hyperparameters import Choice as Choice
    from edgexnas.host.networks.hyperparameters import Configuration as Configuration
    from edgexnas.host.networks.hyperparameters import Integer as Integer
    from edgexnas.host.networks.hyperparameters import Real as Real
    from edgexnas.host.networks.search_space import SearchSpace as SearchSpace
    from edgexnas.host.networks.spaces import SPACES as SPACES
    from edgexnas.host.search.configuration import load_configuration as load_configuration
    from edgexnas.host.search.optimization import optimize as optimize
    from edgexnas.host.search.result import Candidate as Candidate
    from edgexnas.host.search.result import SearchResult as SearchResult
    from edgexnas.host.training.loop import TrainingResult as TrainingResult
    from edgexnas.host.training.loop import train as train
    from edgexnas.host.training.ptycho_pretraining import PretrainingSettings as PretrainingSettings
    from edgexnas.host.training.ptycho_pretraining import pretrain as pretrain
    from edgexnas.host.training.settings import TrainingData as TrainingData
    from edgexnas.host.training.settings import TrainingSettings as TrainingSettings

__getattr__, __dir__, __all__ = lazy_names(__name__)
