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
from types import SimpleNamespace

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

KILL_AFTER_S = 200.0
"""Longer than any machine is held up; tests of it let the clock jump ahead."""


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the clock by which evaluations are killed go by more than `KILL_AFTER_S`."""
    ahead = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr("edgexnas.host.search.evaluators.time", clock)

    def go_on() -> None:
        ahead[0] += 1.1 * KILL_AFTER_S

    return go_on


@pytest.fixture(scope="module")
def context(tiny_peaks: PeakDataset) -> EvaluationContext:
    return evaluation_context(tiny_peaks, tiny_peaks.split(), device="cpu")


@pytest.fixture(scope="module")
def workers(
    context: EvaluationContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessEvaluator]:
    log = tmp_path_factory.mktemp("workers") / "log"
    evaluator = ProcessEvaluator(
        context, workers=1, kill_after_s=KILL_AFTER_S, memory_limit=3_000_000_000, log=log
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


def hanging() -> SearchSpace:
    def hang(configuration: Configuration) -> nn.Module:
        import time

        time.sleep(600)
        raise AssertionError

    return space_with(hang)


def assert_only_the_next_is_late(
    evaluator: ProcessEvaluator, go_on: Path, jump: Callable[[], None]
) -> None:
    """Let the limit pass for what waits to `go_on`, and then for an evaluation that hangs."""
    jump()
    assert evaluator.collect(timeout_s=0) == []
    go_on.touch()
    assert [result.reason for result in evaluator.collect()] == [""]
    evaluator.submit(request(1, hanging()))
    jump()
    assert [result.reason for result in evaluator.collect()] == ["timeout"]


def test_what_a_worker_prepares_is_not_the_time_of_its_first_evaluation(
    context: EvaluationContext, tmp_path: Path, jump: Callable[[], None]
) -> None:
    drawn, go_on = tmp_path / "drawn", tmp_path / "go_on"

    class HeldDrawing:
        def objects(self, count: int) -> str:
            assert count == context.object_count
            while not go_on.exists():
                time.sleep(0.01)
            with drawn.open("a") as file:
                file.write("once ")
            return "objects"

        def source(self, objects: str, device: str) -> SimpleNamespace:
            assert (objects, device) == ("objects", "cpu")
            return SimpleNamespace(mixed=lambda x, y: None)

    held = dataclasses.replace(context, drawing=HeldDrawing())  # type: ignore[arg-type]
    evaluator = ProcessEvaluator(
        held, workers=1, kill_after_s=KILL_AFTER_S, memory_limit=None, log=tmp_path / "log"
    )
    try:
        evaluator.submit(request())
        assert_only_the_next_is_late(evaluator, go_on, jump)
        # The worker that takes its place does not draw them anew.
        assert run_one(evaluator, request(2)).reason == ""
    finally:
        evaluator.close()
    assert drawn.read_text() == "once "


def test_on_a_gpu_a_workers_first_evaluation_may_load_before_it_is_killed(
    context: EvaluationContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump: Callable[[], None],
) -> None:
    go_on = tmp_path / "go_on"

    def load(configuration: Configuration) -> nn.Module:
        while not go_on.exists():
            time.sleep(0.01)
        return nn.Sequential(nn.Flatten(), nn.Linear(121, 6), nn.Unflatten(1, (2, 3)))

    evaluator = ProcessEvaluator(
        context, workers=1, kill_after_s=KILL_AFTER_S, memory_limit=None, log=tmp_path / "log"
    )
    # The worker itself has none.
    monkeypatch.setattr(evaluator, "_gpus", ["0"])
    worker = evaluator._workers[0]
    assert worker is not None
    try:
        evaluator.submit(request(0, space_with(load)))
        while not worker.ready:
            assert evaluator.collect(timeout_s=0.1) == []
        assert_only_the_next_is_late(evaluator, go_on, jump)
    finally:
        evaluator.close()


def test_the_first_training_of_a_fresh_worker_has_its_time_though_torch_must_load(
    context: EvaluationContext, tmp_path: Path
) -> None:
    class Doubled(nn.Linear):
        """Not one of torch's layers, so that its training needs torch's own optimiser."""

    def build(configuration: Configuration) -> nn.Module:
        import sys

        from edgexnas.host.training.loop import train

        loaded: list[bool] = []

        def clock() -> float:
            loaded.append("torch._dynamo" in sys.modules)
            if loaded[-1] > loaded[0]:
                raise RuntimeError("torch's compiler was loaded in the network's time")
            return 0.01 * len(loaded)

        train.__kwdefaults__["clock"] = clock
        return nn.Sequential(nn.Flatten(), Doubled(121, 6), nn.Unflatten(1, (2, 3)))

    # torch's first optimiser of a process imports its compiler, which takes a second or more.
    timed = dataclasses.replace(request(space=space_with(build)), seconds=0.5)
    evaluator = ProcessEvaluator(context, workers=1, memory_limit=None, log=tmp_path / "log")
    try:
        result = run_one(evaluator, timed)
    finally:
        evaluator.close()
    assert (result.reason, result.message) == ("", "")
    assert result.metrics["steps"] > 10


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
    hopeless = dataclasses.replace(request(5, hanging()), kill_after_s=0.5)
    assert run_one(workers, hopeless).reason == "timeout"
    assert run_one(workers, request(6)).reason == ""


def test_a_result_that_came_while_the_search_was_held_up_counts(
    workers: ProcessEvaluator, jump: Callable[[], None]
) -> None:
    assert run_one(workers, request(14)).reason == ""
    workers.submit(request(15))
    (worker,) = workers._workers
    assert worker is not None
    assert worker.connection.poll(120)
    jump()
    assert [(result.trial, result.reason) for result in workers.collect()] == [(15, "")]


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
        # The worker ends with its fork server, half a second later.
        while (reason := run_one(evaluator, request()).reason) == "":
            pass
        assert reason == "killed"
        assert run_one(evaluator, request()).reason == ""
    finally:
        evaluator.close()


def test_what_keeps_workers_from_starting_is_in_the_log(
    context: EvaluationContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the machine is busy, it takes a process a while to end.
    (tmp_path / "torch.py").write_text(
        "import atexit, time; atexit.register(time.sleep, 1)\n"
        "raise ImportError('this torch is broken')"
    )
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
    for _ in range(1200):
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
