"""Labelling takes no more threads than it is told to, and leaves torch's own setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from edgexnas.errors import ConfigurationError
from edgexnas.host.data import phase_retrieval, pseudo_voigt
from edgexnas.host.threads import torch_threads
from edgexnas.scans import Scan
from edgexnas.testing import gaussian_patches


@pytest.fixture
def many() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_threads_are_bounded_in_the_block_and_restored_after_it(many: int) -> None:
    inside = []

    def fail() -> None:
        inside.append(torch.get_num_threads())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), torch_threads(2):
        fail()
    assert inside == [2]
    assert torch.get_num_threads() == many


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
def test_a_number_of_threads_that_is_none_is_refused(count: int) -> None:
    with pytest.raises(ConfigurationError, match="threads is"), torch_threads(count):
        pass


def test_fits_and_phase_retrieval_run_in_one_thread_unless_told_otherwise(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    solve, update = pseudo_voigt._solve, phase_retrieval._Solver._update

    def watched_solve(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.get_num_threads())
        return solve(*arguments)

    def watched_update(solver: object, *arguments: object) -> float:
        seen.append(torch.get_num_threads())
        return update(solver, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pseudo_voigt, "_solve", watched_solve)
    monkeypatch.setattr(phase_retrieval._Solver, "_update", watched_update)
    counts = np.random.default_rng(0).poisson(5, (4, 64, 64))
    scan = Scan(patterns=counts, positions_px=np.eye(4)[:, :2] * 9, source="small")
    told: list[tuple[dict[str, Any], int]] = [({}, 1), ({"threads": 2}, 2)]
    for options, threads in told:
        seen.clear()
        pseudo_voigt.fit_pseudo_voigt(gaussian_patches(3), **options)
        phase_retrieval.reconstruct(scan, iterations=1, modes=1, **options)
        assert set(seen) == {threads}
        assert torch.get_num_threads() == many
