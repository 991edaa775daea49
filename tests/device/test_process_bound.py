"""What a fork does not copy says so, whichever way it is entered."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.bundle import Bundle
from edgexnas.device import PeakPredictor, open_engine
from edgexnas.device.cuda import CudaSession
from edgexnas.errors import EngineError


def act_as_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other)


def test_every_entry_of_a_predictor_says_in_a_forked_process_to_open_one_there(
    bundle_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = PeakPredictor(
        bundle_path, trust=keys, engine="onnxruntime", precision="float32", cache=False
    )
    one = np.ones((64, 64), np.uint16)
    entries: list[Callable[[], Any]] = [
        lambda: predictor.process(one),
        lambda: predictor.predict(np.ones((1, 11, 11))),
        lambda: list(predictor.stream([one])),
        lambda: predictor.calibrate_background([one]),
        lambda: predictor.frame_buffers(1, (64, 64), np.uint16),
        lambda: predictor.pin_frames(np.ones((1, 64, 64), np.uint16)),
    ]
    with monkeypatch.context() as forked:
        act_as_forked(forked)
        for entry in entries:
            with pytest.raises(EngineError, match=r"opened in another process .* open one here"):
                entry()
        predictor.close()
    predictor.process(one)
    predictor.close()


def test_an_engine_of_its_own_says_so_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(bundle, engine="onnxruntime", precision="float32")
    patches = np.ones((1, 1, 11, 11), np.float32)
    with monkeypatch.context() as forked:
        act_as_forked(forked)
        engine.close()
        with pytest.raises(EngineError, match="this onnxruntime engine was opened in another"):
            engine.run(patches)
    engine.run(patches)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(EngineError, match="open one there"):
            attempt(engine)
    engine.close()


def test_a_cuda_session_is_left_to_the_process_that_opened_it(
    fake_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = CudaSession()
    buffer = session.device_buffer((2,), np.float32)
    with monkeypatch.context() as forked:
        act_as_forked(forked)
        session.close()
        with pytest.raises(EngineError, match="this CUDA session was opened in another process"):
            session.device_buffer((2,), np.float32)
    with session.current():
        assert session.device_bytes == buffer.nbytes
    session.close()
