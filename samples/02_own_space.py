"""Search a space of your own: two-layer networks on downsampled patches.

Run: python samples/02_own_space.py PEAKS RUN

PEAKS is a file of labelled peaks (`edgexnas label`), RUN a new folder for the search.

On the shell: `PYTHONPATH=samples edgexnas optimize bragg --space 02_own_space:POOLED --data PEAKS
--output RUN`. The run keeps that name, so that `edgexnas export RUN` finds the space again; a run
of a `SearchSpace` object is exported with `result.export`, or later with
`SearchResult.load(RUN, spaces=[POOLED]).export`.
"""

import sys

from torch import nn

from edgexnas import EdgexnasError
from edgexnas.host import Choice, Configuration, Integer, QuantileHead, SearchSpace, optimize

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def build(configuration: Configuration) -> nn.Module:
    """Network from patches (n, 1, 11, 11) to quantiles of the offset (n, 2, 3)."""
    units = int(configuration["units"])
    return nn.Sequential(
        nn.AvgPool2d(3, stride=2),  # 11×11 → 5×5 pixels
        nn.Flatten(),
        nn.Linear(25, units),
        ACTIVATIONS[str(configuration["activation"])](),
        QuantileHead(units),
    )


WIDTH = Integer("units", 2, 64, "log-uniform")
KIND = Choice("activation", tuple(ACTIVATIONS))
POOLED = SearchSpace("pooled", "bragg", (WIDTH, KIND), build)


def main(peaks: str, run: str) -> None:
    narrow = POOLED.narrow(epochs=(1, 20), learning_rate=(1e-3, 3e-2))
    result = optimize("bragg", data=peaks, output=run, space=narrow, max_evals=12, search="cbo")
    for candidate in result.pareto:
        print(candidate.objectives, candidate.configuration)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} PEAKS RUN")
    try:
        main(*sys.argv[1:])
    except EdgexnasError as error:
        sys.exit(f"error: {error}")
