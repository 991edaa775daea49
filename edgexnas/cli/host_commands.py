"""edgexnas simulate and label."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import (
    PEAK_OPTIONS,
    add_command,
    add_detection,
    detection_options,
    positive_int,
    reject_given,
    seed,
)
from edgexnas.cli.outputs import HDF5_SUFFIXES, check_output
from edgexnas.cli.ray_scans import add_ray, run_on_cluster
from edgexnas.cli.scan_commands import label_scan_file, simulate_scan_file
from edgexnas.cli.tally import PeakTally, say_at_end
from edgexnas.cli.terminal import print_pairs, progress
from edgexnas.ptycho import ORIENTATIONS

if TYPE_CHECKING:
    from edgexnas.cli.arguments import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the commands."""
    simulate = add_command(
        commands, "simulate", "simulate far-field HEDM frames with a known answer"
    )
    simulate.add_argument("--output", type=Path, required=True, help="HDF5 file to write")
    simulate.add_argument("--frames", type=positive_int, help="number of frames (default: 36)")
    simulate.add_argument(
        "--shape", type=positive_int, nargs=2, metavar=("ROWS", "COLS"), help="shape of a frame"
    )
    simulate.add_argument("--grains", type=positive_int, help="number of grains in the beam")
    simulate.add_argument("--like", choices=("default", "ruby-dexela"), help="experiment preset")
    simulate.add_argument(
        "--scan-of",
        choices=("siemens-star", "circuit", "cells"),
        help="simulate a ptychography scan of this object instead of frames",
    )
    simulate.add_argument("--seed", type=seed, default=0, help="random seed")
    simulate.set_defaults(run=_simulate)

    label = add_command(
        commands, "label", "fit a pseudo-Voigt to each peak of frames, or retrieve a scan's object"
    )
    label.add_argument(
        "frames",
        type=Path,
        help="HDF5, NeXus, frame cache, image or folder; a file that holds positions beside its "
        "patterns (HDF5, CXI, .npz) is a ptychography scan",
    )
    label.add_argument("--output", type=Path, required=True, help="HDF5 file to write")
    label.add_argument("--dataset", help="dataset of the HDF5 file that holds the frames")
    add_detection(label)
    label.add_argument(
        "--iterations",
        type=positive_int,
        help="iterations of phase retrieval, for scans (default: 50, or 500 where a scan is too "
        "small to be split)",
    )
    label.add_argument(
        "--modes",
        type=positive_int,
        help="number of incoherent probe modes, for scans (default: 3)",
    )
    label.add_argument(
        "--probe",
        type=Path,
        metavar="FILE",
        help="known or estimated probe of a scan, to begin with: .npy, .npz or HDF5 (default: that "
        "of the scan's file, or a defocused beam)",
    )
    label.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        help="how a scan's detector is turned against its positions (default: it is found)",
    )
    label.add_argument(
        "--threads",
        type=positive_int,
        default=1,
        help="CPU threads of fits and phase retrieval (default: 1; more are slower on a machine "
        "that others use)",
    )
    label.add_argument(
        "--synthetic",
        "--drawn",
        type=positive_int,
        metavar="N",
        help="add N synthetic peaks resampled from the measured ones, or N patterns simulated "
        "with a scan's own beam, to the training part; --drawn is deprecated",
    )
    add_ray(label)
    label.set_defaults(run=_label)


def _simulate(options: argparse.Namespace) -> None:
    check_output(options.output, suffixes=HDF5_SUFFIXES)
    if options.scan_of is not None:
        reason = "with --scan-of a scan is simulated and not frames"
        reject_given(options, ("frames", "shape", "grains", "like"), reason)
        simulate_scan_file(options)
        return
    from edgexnas.simulate import HedmSettings, save_series, simulate_hedm

    changes: dict[str, Any] = {"frames": options.frames or 36}
    if options.shape is not None:
        changes["shape"] = tuple(options.shape)
    if options.grains is not None:
        changes["grains"] = options.grains
    preset = HedmSettings.ruby_dexela if options.like == "ruby-dexela" else HedmSettings
    series = simulate_hedm(preset(**changes), seed=options.seed)
    with progress(f"simulate {len(series)} frames"):
        save_series(series, options.output)
    print_pairs(
        [
            ("frames", f"{len(series)} of {series.shape[0]}×{series.shape[1]}"),
            ("visible spots", str(int(series.truth.visible.sum()))),
            ("file", str(options.output)),
        ]
    )


def _label(options: argparse.Namespace) -> None:
    from edgexnas.frames import open_frames
    from edgexnas.host import label_frames, with_synthetic_peaks
    from edgexnas.scans import holds_scan

    if options.ray is not None:
        run_on_cluster(options, ".h5")
        return
    given = (options.frames, options.probe)
    inputs = [path for path in given if path is not None]
    check_output(options.output, inputs=inputs, suffixes=HDF5_SUFFIXES)
    # Positions beside the patterns make a scan; frames have none.
    if holds_scan(options.frames):
        reason = f"{options.frames} holds a scan and not frames"
        reject_given(options, (*PEAK_OPTIONS, "mask", "saturation", "dataset"), reason)
        label_scan_file(options.frames, options)
        return
    of_scans = ("iterations", "modes", "probe", "orientation")
    reject_given(options, of_scans, f"{options.frames} holds frames and no scan")
    chosen = detection_options(options)
    with (
        open_frames(options.frames, dataset=options.dataset) as series,
        progress(f"label {len(series)} frames") as step,
    ):
        read = 0

        # Called once for each frame that is there.
        def count(done: int, total: int) -> None:
            nonlocal read
            read += 1
            step(done, total)

        dataset = label_frames(series, **chosen, threads=options.threads, progress=count)
        tally = PeakTally()
        tally.add(dataset.flags, frames=read)
        missing = len(series) - read
    facts = [
        ("peaks", f"{len(dataset)}, of which {int(dataset.good.sum())} have a good label"),
        ("scored against", dataset.against),
    ]
    if options.synthetic:
        with progress(f"generate {options.synthetic} synthetic peaks"):
            dataset = with_synthetic_peaks(dataset, options.synthetic, threads=options.threads)
        facts.append(("synthetic, to train on", str(options.synthetic)))
    dataset.save(options.output)
    print_pairs([*facts, ("file", str(options.output))])
    say_at_end(f"peaks found with {dataset.finder_report}")
    tally.say(options.frames, missing=missing)
