"""Which precision and placement of INT8 is the fastest on this machine, of networks on real peaks.

    python host/measured_recipes.py PEAKS --source "local?engine=tensorrt" --output recipes.json
    python host/measured_recipes.py --page recipes.json > docs/results/recipes.md

Each network is trained briefly, which its accuracy gate needs, and then searched as `edgexnas
export --quantise-for` does. Weights and measurements are kept beside the output: what was stopped
goes on. `--only-train` leaves out what needs the device, `--bench` names another interpreter for
`edgexnas bench`, where TensorRT has one of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from edgexnas.errors import MeasurementError
from edgexnas.host import PeakDataset
from edgexnas.host.exporting.bundle_export import MAXIMUM_LOSS
from edgexnas.host.measuring import bench_transports
from edgexnas.host.measuring.recipe_search import choose_recipe
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.whole_files import write_whole

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlpBragg 50×5": lambda: MlpBragg(50, 5),
    "cnnBragg 16×4": lambda: CnnBragg(16, 4),
    "BraggNN": BraggNN,
}

Row = dict[str, Any]


def trained(name: str, dataset: PeakDataset, folder: Path, seconds: float) -> nn.Module:
    """Train a network, unless its weights are kept."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    kept = folder / f"{name}.pt"
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network.eval()
    data = TrainingData.from_dataset(dataset, dataset.split(), "cpu")
    train(network, data, TrainingSettings(seconds=seconds, learning_rate=3e-3, batch_size=32))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), kept)
    return network.eval()


def searched(
    name: str, network: nn.Module, dataset: PeakDataset, options: argparse.Namespace, kept: Path
) -> Row:
    """Search the recipe of one network; give every candidate and the choice."""
    began = time.monotonic()
    row: Row = {"network": name, "maximum loss": options.maximum_loss}
    try:
        choice = choose_recipe(
            network, dataset, dataset.split(), options.source,
            maximum_loss=options.maximum_loss, cache=kept,
            progress=lambda line: print(f"{name}: {line}", flush=True),
        )  # fmt: skip
    except MeasurementError as error:
        return row | {"failed": str(error)}
    trials = [
        {
            "name": trial.name,
            "ms": None if trial.latency is None else trial.latency.median_ms,
            "refusal": trial.refusal,
        }
        for trial in choice.trials
    ]
    (latency, *_) = (trial.latency for trial in choice.trials if trial.latency is not None)
    return row | {
        "trials": trials,
        "choice": choice.name,
        "reason": choice.reason,
        "engine": latency.engine,
        "device": latency.device,
        "seconds": round(time.monotonic() - began, 1),
    }


def page(rows: list[Row]) -> str:
    """Lay out what was measured as docs/results/recipes.md."""
    done = [row for row in rows if "failed" not in row]
    where = ", ".join(sorted({f"{row['device']}, {row['engine']}" for row in done}))
    lines = [
        "# Recipes by measured latency",
        "",
        f'`python host/measured_recipes.py PEAKS --source "local?engine=tensorrt"` on {where}: the '
        "search of `edgexnas export --quantise-for`, batch 32, from host memory to host memory, on "
        "ruby peaks. Each time is that of a plan which was built; at most eight are tried. INT8 "
        f"may add {rows[0]['maximum loss']:.0%} to the error.",
        "",
        "| network | candidate | ms |",
        "|---|---|---|",
    ]
    for row in done:
        for trial in row["trials"]:
            told = trial["refusal"] if trial["ms"] is None else f"{trial['ms']:.4f}"
            lines.append(f"| {row['network']} | {trial['name']} | {told} |")
    lines += ["", *(f"- {row['network']}: **{row['choice']}**; {row['reason']}." for row in done)]
    lines += [f"- {row['network']}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peaks", type=Path, nargs="?", help="labelled peaks, from edgexnas label")
    parser.add_argument("--source", default="local?engine=tensorrt", help="as of --quantise-for")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=60.0, help="training of each network")
    parser.add_argument(
        "--maximum-loss", type=float, default=MAXIMUM_LOSS,
        help="share that INT8 may add to the error; what loses more is not measured",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("recipes.json"))
    parser.add_argument("--only-train", action="store_true", help="measure nothing")
    parser.add_argument("--bench", help="interpreter that runs edgexnas bench, if not this one")
    parser.add_argument("--page", type=Path, metavar="JSON", help="print the page and end")
    options = parser.parse_args()
    if options.page is not None:
        print(page(json.loads(options.page.read_text(encoding="utf-8"))), end="")
        return
    if options.peaks is None:
        parser.error("PEAKS is missing")
    torch.set_num_threads(1)
    if options.bench:
        # Only `LocalBench` asks for the interpreter there.
        setattr(bench_transports, "sys", SimpleNamespace(executable=options.bench))  # noqa: B010
    dataset = PeakDataset.load(options.peaks)
    folder = options.output.parent / "recipes"
    rows = []
    for name in options.networks:
        network = trained(name, dataset, folder, options.seconds)
        if options.only_train:
            continue
        rows.append(searched(name, network, dataset, options, folder / "measurements"))
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        write_whole(options.output, text.encode())


if __name__ == "__main__":
    main()
