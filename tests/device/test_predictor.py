"""`Predictor` is the factory: of the bundle's application, and typed by the task it is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgexnas.device import PeakPredictor, Predictor, PtychoPredictor
from edgexnas.errors import ConfigurationError

INTERNAL = [
    "in_turn",
    "close_pipeline",
    "detection",
    "locate",
    "open_pipeline",
    "process_in",
    "intake",
    "predict_admitted",
    "predict_in",
    "stitcher",
]


def test_a_predictor_shows_only_what_users_call() -> None:
    for kind in (PeakPredictor, PtychoPredictor):
        assert not {name for name in INTERNAL if hasattr(kind, name)}


@pytest.mark.parametrize(("task", "other"), [("bragg", "ptycho"), (None, "ptycho")])
def test_the_bundle_decides_the_kind_and_a_told_task_must_be_the_bundle_s(
    bundle: Any, task: Any, other: Any
) -> None:
    with Predictor(bundle, task=task) as predictor:
        assert type(predictor) is PeakPredictor
    with pytest.raises(ConfigurationError, match="is for bragg; this predictor serves ptycho"):
        Predictor(bundle, task=other)
    with pytest.raises(ConfigurationError, match="is for bragg; this predictor serves ptycho"):
        PtychoPredictor(bundle)


def test_an_unknown_option_is_rejected_by_name(bundle: Any) -> None:
    with pytest.raises(TypeError, match="bacth"):
        Predictor(bundle, bacth=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="bacth"):
        PeakPredictor(bundle, bacth=3, mask=np.zeros((2, 2), bool))  # type: ignore[call-arg]
