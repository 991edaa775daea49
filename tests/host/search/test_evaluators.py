"""Evaluators: every request ends in one result, whatever becomes of its evaluation."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from edgexnas.errors import ConfigurationError, InputError, SearchError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.networks.spaces import SPACES, Configuration, SearchSpace
from edgexnas.host.search.evaluation import (
    EvaluationContext,
    EvaluationRequest,
    EvaluationResult,
    evaluate,
    evaluation_context,
    load_checkpoint,
)
from edgexnas.host.search.evaluators import (
    Evaluator,
    ProcessEvaluator,
    SerialEvaluator,
    make_evaluator,
)

MLP = SPACES["mlpBragg"].narrow(epochs=(1, 27), units=(1, 32))
GOOD: Configuration = {
    "units": 8, "layers": 1, "epochs": 3, "batch_size": 32, "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def context(tiny_peaks: PeakDataset) -> EvaluationContext:
    return evaluation_context(tiny_peaks, tiny_peaks.split(), device="cpu")


@pytest.fixture(scope="module")
def workers(
    context: EvaluationContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Evaluator]:
    log = tmp_path_factory.mktemp("workers") / "log"
    evaluator = ProcessEvaluator(
        context, workers=1, kill_after_s=6, memory_limit=3_000_000_000, log=log
    )
    yield evaluator
    evaluator.close()


def request(trial: int = 0, space: SearchSpace = MLP, **changes: float) -> EvaluationRequest:
    return EvaluationRequest(trial, space, GOOD | changes, seed=7)


def space_with(builder: Callable[[Configuration], nn.Module]) -> SearchSpace:
    return dataclasses.replace(MLP, name="own", builder=builder, sizer=None)


def run_one(evaluator: Evaluator, wanted: EvaluationRequest) -> EvaluationResult:
    evaluator.submit(wanted)
    (result,) = evaluator.collect()
    assert result.trial == wanted.trial
    return result


def test_an_evaluation_scores_the_network_and_keeps_its_weights(
    context: EvaluationContext, tmp_path: Path
) -> None:
    result = evaluate(request(), context)
    assert result.reason == ""
    assert {"error", "quantile_loss", "p95_px", "epochs"} <= result.metrics.keys()
    assert sorted(result.rungs) == [1, 3]
    assert result.checkpoint is not None
    path = tmp_path / "weights.pt"
    path.write_bytes(result.checkpoint)
    data = context.training_data
    with torch.no_grad():
        offsets = load_checkpoint(path, MLP)(data.validation_x)[:, :, 1]
    error = (offsets - data.validation_y).norm(dim=1).mean()
    assert float(error) == pytest.approx(result.metrics["error"], rel=1e-5)


def test_what_a_worker_prepares_is_not_the_time_of_its_first_evaluation(
    context: EvaluationContext, tmp_path: Path
) -> None:
    class SlowDrawing:
        def source(self, device: str) -> None:
            time.sleep(4)

    slow = dataclasses.replace(context, drawing=SlowDrawing())  # type: ignore[arg-type]
    evaluator = ProcessEvaluator(
        slow, workers=1, kill_after_s=3, memory_limit=None, log=tmp_path / "log"
    )
    try:
        assert run_one(evaluator, request()).reason == ""
    finally:
        evaluator.close()


def test_a_checkpoint_belongs_to_its_space(context: EvaluationContext, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(evaluate(request(), context).checkpoint or b"")
    with pytest.raises(ConfigurationError, match="is of space mlpBragg, not cnnBragg"):
        load_checkpoint(path, SPACES["cnnBragg"])
    path.write_bytes(b"torn")
    with pytest.raises(SearchError, match="cannot be read"):
        load_checkpoint(path, MLP)


def test_an_evaluation_leaves_the_callers_random_numbers_alone(context: EvaluationContext) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    evaluate(request(), context)
    assert torch.equal(before, torch.get_rng_state())


def test_a_training_is_stopped_at_a_rung_where_its_error_is_too_high(
    context: EvaluationContext,
) -> None:
    stopped = dataclasses.replace(request(epochs=27), stop_above={3: 0.0})
    assert evaluate(stopped, context).metrics["epochs"] == 3


def test_too_few_peaks_are_refused_with_their_number(tiny_peaks: PeakDataset) -> None:
    split = dataclasses.replace(tiny_peaks.split(), train=tiny_peaks.split().train[:60])
    with pytest.raises(InputError, match="leaves 60 good peaks for train and a search needs 64"):
        evaluation_context(tiny_peaks, split)


def test_a_worker_gives_the_same_result_as_this_process(
    context: EvaluationContext, workers: Evaluator
) -> None:
    here = run_one(SerialEvaluator(context), request())
    there = run_one(workers, request())
    assert there.metrics == pytest.approx(here.metrics, rel=1e-6)


def test_a_worker_stays_warm(workers: Evaluator) -> None:
    def report_pid(configuration: Configuration) -> nn.Module:
        import os

        raise RuntimeError(f"process {os.getpid()}")

    space = space_with(report_pid)
    messages = {run_one(workers, request(trial, space)).message for trial in range(3)}
    assert len(messages) == 1
    assert str(os.getpid()) not in messages.pop()


def raise_error(configuration: Configuration) -> nn.Module:
    raise KeyError("no such layer")


def test_an_exception_is_a_result_with_its_message(workers: Evaluator) -> None:
    def build(configuration: Configuration) -> nn.Module:
        raise KeyError("no such layer")

    result = run_one(workers, request(4, space_with(build)))
    assert (result.reason, result.message) == ("exception", "KeyError: 'no such layer'")


def test_a_builder_that_a_worker_cannot_import_is_a_result(workers: Evaluator) -> None:
    result = run_one(workers, request(4, space_with(raise_error)))
    assert result.reason == "exception"
    assert run_one(workers, request()).reason == ""


def test_an_evaluation_that_hangs_is_killed_and_the_next_one_runs(workers: Evaluator) -> None:
    def build(configuration: Configuration) -> nn.Module:
        import time

        time.sleep(600)
        raise AssertionError

    assert run_one(workers, request(5, space_with(build))).reason == "timeout"
    assert run_one(workers, request(6)).reason == ""


def test_a_worker_that_dies_is_a_result_that_names_the_signal(workers: Evaluator) -> None:
    def build(configuration: Configuration) -> nn.Module:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    result = run_one(workers, request(7, space_with(build)))
    assert (result.reason, result.message) == ("killed", "the worker ended with signal SIGKILL")
    assert run_one(workers, request(8)).reason == ""


def test_an_evaluation_that_wants_too_much_memory_fails_alone(workers: Evaluator) -> None:
    def build(configuration: Configuration) -> nn.Module:
        import torch

        return torch.nn.Linear(40_000, 40_000)

    result = run_one(workers, request(9, space_with(build)))
    assert result.reason == "memory"
    assert run_one(workers, request(10)).reason == ""


def test_a_network_that_gives_no_numbers_has_diverged(context: EvaluationContext) -> None:
    class Nan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(float("nan")))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(len(x), 2, 3) * self.weight

    result = evaluate(request(space=space_with(lambda _: Nan())), context)
    assert result.reason == "diverged"
    assert result.checkpoint is None


def test_no_more_requests_than_workers_are_taken(workers: Evaluator) -> None:
    workers.submit(request(11))
    with pytest.raises(SearchError, match="all 1 workers are busy"):
        workers.submit(request(12))
    assert [result.trial for result in workers.collect()] == [11]


def test_waiting_ends_with_the_time_out(workers: Evaluator) -> None:
    workers.submit(request(13, epochs=27))
    results = workers.collect(timeout_s=0)
    results += workers.collect()
    assert [result.trial for result in results] == [13]


def test_workers_are_born_anew_if_the_process_that_forks_them_dies(
    context: EvaluationContext, tmp_path: Path
) -> None:
    evaluator = ProcessEvaluator(context, log=tmp_path / "log")
    try:
        assert run_one(evaluator, request()).reason == ""
        evaluator._server._process.kill()
        results = [run_one(evaluator, request(trial)).reason for trial in (1, 2, 3)]
        # The worker ends with its fork server, within half a second or in one of these evaluations.
        assert results[-1] == ""
        assert set(results) <= {"", "killed"}
    finally:
        evaluator.close()


def test_what_keeps_workers_from_starting_is_in_the_log(
    context: EvaluationContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('this torch is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    evaluator = ProcessEvaluator(context, log=tmp_path / "log")
    with pytest.raises(SearchError, match="ended with status 1 before it was ready; see"):
        run_one(evaluator, request())
    assert "this torch is broken" in (tmp_path / "log").read_text()


def test_workers_end_with_a_search_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import numpy as np, time\n"
        "from edgexnas.host.search.evaluation import EvaluationContext\n"
        "from edgexnas.host.search.evaluators import ProcessEvaluator\n"
        "empty = np.zeros((1, 1, 11, 11), 'f4'), np.zeros((1, 2), 'f4')\n"
        "evaluator = ProcessEvaluator(EvaluationContext(*empty, *empty, device='cpu'))\n"
        "worker = evaluator._workers[0]\n"
        "worker.receive()\n"
        "print(worker.process, flush=True)\n"
        "time.sleep(600)\n"
    )
    search = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with search:
        assert search.stdout is not None
        worker = int(search.stdout.readline())
        search.send_signal(signal.SIGKILL)
    for _ in range(300):
        with suppress(ProcessLookupError):
            os.kill(worker, 0)
            if Path(f"/proc/{worker}/stat").read_text().rsplit(")")[-1].split()[0] != "Z":
                time.sleep(0.1)
                continue
        break
    else:
        pytest.fail(f"worker {worker} still lives")


@pytest.mark.parametrize(
    ("name", "count", "named"),
    [
        ("threads", 1, "evaluator 'threads' is unknown"),
        ("process", 0, "workers is 0"),
        ("process", 1.5, "workers is 1.5"),
        ("serial", 2, "one evaluation at a time and workers is 2"),
    ],
)
def test_a_wrong_evaluator_is_refused_by_name(
    context: EvaluationContext, name: str, count: int, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make_evaluator(name, context, workers=count, kill_after_s=None, memory_limit=None)
