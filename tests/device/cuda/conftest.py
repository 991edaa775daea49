from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgexnas.device.cuda import CudaSession, why_no_cuda


@pytest.fixture(params=["stand-in", "gpu"])
def session(request: pytest.FixtureRequest) -> Iterator[CudaSession]:
    """A session on a GPU that is none, and on one where there is one."""
    if request.param == "stand-in":
        request.getfixturevalue("fake_cuda")
    elif (obstacle := why_no_cuda()) is not None:
        pytest.skip(f"no CUDA device: {obstacle}")
    with CudaSession() as opened:
        yield opened
