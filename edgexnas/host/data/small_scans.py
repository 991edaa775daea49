"""Label a scan that is too small to be split: simulated objects train, its own patterns test.

A scan of a few dozen patterns leaves no region to train on and none to test on. It tells the beam
all the same, and under that beam simulated objects give as many patterns as are wanted. The
measured ones serve the search in no other way than through the beam, so that what a network makes
of them shows what it will make of the next scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.ptycho_labels import doubt, labelled_by, labelled_numbers
from edgexnas.host.data.scan_parts import oriented_scan
from edgexnas.host.data.scan_regions import CELLS, scan_regions, split_regions
from edgexnas.host.data.splitting import MINIMUM_ITEMS, split_of
from edgexnas.host.data.synthetic_patterns import Drawing, drawn_dataset
from edgexnas.host.threads import torch_threads
from edgexnas.ptycho import PATTERN_SIZE, Orientation
from edgexnas.scans import Scan

__all__ = ["can_split", "label_small_scan", "training_numbers"]

TRAIN_PATTERNS = 1024
"""Kept for the baselines of the accuracy table; a training draws its own."""

VALIDATION_PATTERNS = 192
CALIBRATION_PATTERNS = 64
SMALL_ITERATIONS = 500
"""Sweeps of phase retrieval: few patterns make few updates. Of 20 patterns cut out of a measured
star, 50 sweeps leave the object 0.163 rad from that of the whole scan, 500 leave 0.090."""

HELD_OUT_OBJECTS = 24
"""Objects that validation and calibration show, and training never does."""

TEST_REGION = CELLS - 1
"""In the last column of cells, which tests."""

VALIDATION_REGION = (CELLS - 1) * CELLS
"""In the last row of cells, which validates."""


def can_split(scan: Scan) -> bool:
    """Tell whether each part of a split of the scan would hold enough patterns."""
    return training_numbers(scan) is not None


def training_numbers(scan: Scan) -> npt.NDArray[np.intp] | None:
    """Tell which patterns of a scan a split will train on; None if it cannot be split."""
    labelled = labelled_numbers(scan, by_truth=True)
    known = scan.positions_px[labelled]
    part = split_regions(scan_regions(known), known, guard_px=PATTERN_SIZE)
    try:
        split = split_of(part, what="", remedy="")
    except ConfigurationError:
        return None
    return labelled[split.train]


def label_small_scan(
    scan: Scan,
    *,
    iterations: int = SMALL_ITERATIONS,
    modes: int = 3,
    seed: int = 0,
    orientation: Orientation = "as-is",
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PtychoDataset:
    """Label a scan of 16 patterns or more that cannot be split by regions.

    All measured patterns are the test part. The other parts show simulated objects under the beam
    that they give, of the amplitude and contrast that they have.

    Parameters
    ----------
    scan, iterations, modes, seed, orientation, device, threads, progress
        As of `edgexnas.host.label_scan`. A known object is used where there is one; its scan needs
        a probe then.

    Raises
    ------
    InputError
        If fewer than 16 patterns have a usable position, or phase retrieval does not explain them:
        a beam that is wrong would spoil all that is drawn with it.
    """
    count = len(labelled_numbers(scan, by_truth=True))
    if count < MINIMUM_ITEMS:
        raise InputError(
            f"{scan.source} has {count} patterns with a usable position, too few to find its "
            f"beam; record {MINIMUM_ITEMS} or more"
        )
    found = None
    if scan.truth is None:
        from edgexnas.host.data.phase_retrieval import reconstruct

        found = reconstruct(
            oriented_scan(scan, orientation), iterations=iterations, modes=modes, seed=seed,
            device=device, threads=threads, progress=progress,
        )  # fmt: skip
        if not found.explains:
            raise InputError(doubt(scan, found))
    measured = replace(
        labelled_by(scan, found, orientation=orientation),
        probe=scan.probe if found is None else found.probe,
        mask=scan.mask,
    )
    drawing = Drawing.of(measured, np.arange(len(measured)))
    if drawing is None:
        raise InputError(f"{scan.source} has a known object and no probe; save the scan with both")
    with torch_threads(threads):
        # Of other objects than those that a training draws, which begin at seed 0.
        held_out = drawing.source(objects=HELD_OUT_OBJECTS, seed=seed + 2**20, device=device)
        train = drawing.source(objects=HELD_OUT_OBJECTS, seed=seed, device=device)
        parts = [
            drawn_dataset(measured, train, TRAIN_PATTERNS, source_name="to train"),
            drawn_dataset(
                measured,
                held_out,
                VALIDATION_PATTERNS + CALIBRATION_PATTERNS,
                source_name="held out",
            ),
        ]
    region = np.full(len(parts[1]), VALIDATION_REGION, np.int32)
    # At the place of the validating ones, which makes them calibrate.
    region[VALIDATION_PATTERNS:] = 0
    parts[1] = replace(parts[1], region=region)
    tested = replace(measured, region=np.full(len(measured), TEST_REGION, np.int32))
    return PtychoDataset.concatenate([tested, *parts])
