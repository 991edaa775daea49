"""edgexnas predict."""

from __future__ import annotations

import argparse
import csv
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgexnas.cli.arguments import (
    MERGE_OPTIONS,
    PEAK_OPTIONS,
    acceptance,
    add_acceptance,
    add_command,
    add_detection,
    add_merging,
    bundle_path,
    detection_options,
    merge_settings,
    path_or_url,
    positive_float,
    positive_int,
    predictor_options,
    reject_given,
)
from edgexnas.cli.outputs import check_output
from edgexnas.cli.ray_scans import add_ray, run_on_cluster
from edgexnas.cli.scan_commands import predict_object
from edgexnas.cli.tally import PeakTally, say_at_end
from edgexnas.device.engines.opening import ENGINES
from edgexnas.errors import ConfigurationError, EdgexnasError
from edgexnas.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgexnas.cli.arguments import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the commands."""
    predict = add_command(
        commands, "predict", "find the peaks of frames, or the object of a scan, with a bundle"
    )
    predict.add_argument("bundle", type=bundle_path, help="*.edgex, or universal")
    predict.add_argument(
        "frames",
        type=path_or_url,
        help="HDF5, NeXus, frame cache, image or folder, or the URL of a detector (pva://, "
        "simplon://, sim://, ...); a scan (HDF5, CXI, .npz) for a bundle of ptychography",
    )
    predict.add_argument(
        "--object-pixel-nm",
        type=positive_float,
        nargs=2,
        metavar=("ROW", "COL"),
        help="size of an object pixel, for a scan from a URL, whose positions are in metres",
    )
    predict.add_argument(
        "--refine",
        type=positive_int,
        metavar="SWEEPS",
        help="refine the object of a scan by so many sweeps of phase retrieval, with the probe of "
        "the bundle",
    )
    predict.add_argument("--dataset", help="dataset of the HDF5 file that holds the frames")
    add_detection(predict)
    add_acceptance(predict)
    predict.add_argument("--engine", default="auto", choices=ENGINES, help="inference engine")
    predict.add_argument(
        "--precision",
        default="int8",
        choices=("int8", "float16", "float32", "auto"),
        help="precision; auto measures float16 and int8 on this device and keeps the faster one "
        "within the accuracy gate",
    )
    predict.add_argument(
        "--cache", type=Path, help="folder of plans and measurements (default: the user's cache)"
    )
    predict.add_argument("--batch", type=positive_int, default=32, help="batch size of the engine")
    predict.add_argument(
        "--merge",
        action="store_true",
        default=None,
        help="merge the peaks of successive frames into spots in three dimensions",
    )
    add_merging(predict)
    predict.add_argument(
        "--output",
        type=Path,
        help="CSV file of peaks or spots (default: standard output); .npz or .h5 file of an "
        "object, with pictures beside it",
    )
    add_ray(predict)
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    from edgexnas.bundle import open_bundle
    from edgexnas.device import PeakPredictor
    from edgexnas.device.bragg.predictor import interval_coverage
    from edgexnas.forms.csv_tables import PEAK_HEADER, peak_rows, spot_rows
    from edgexnas.frames import open_frames
    from edgexnas.merging import Rotation, SpotMerger, merge_peaks
    from edgexnas.spots import SPOT_COLUMNS

    bundle = open_bundle(options.bundle, trust=options.trust, **acceptance(options))
    if options.ray is not None:
        run_on_cluster(options, ".h5" if bundle.manifest.task == "ptycho" else ".csv")
        return
    if bundle.manifest.task == "ptycho":
        reject_given(
            options, ("dataset",), f"{options.bundle} is for scans, which have their place"
        )
        for names in (PEAK_OPTIONS, ("merge", *MERGE_OPTIONS)):
            reject_given(options, names, f"{options.bundle} is for scans, which have no peaks")
        predict_object(bundle, options)
        return
    reason = f"{options.bundle} is for Bragg peaks and not for ptychography"
    reject_given(options, ("object_pixel_nm", "refine"), reason)
    if not isinstance(options.frames, Path):
        reject_given(options, ("dataset",), "the frames come from a URL, which can say dataset=")
    if not options.merge:
        reject_given(options, MERGE_OPTIONS, "peaks are merged only with --merge")
    if options.output is not None:
        check_output(options.output, inputs=(options.bundle, options.frames))
    merged = 0
    with (
        PeakPredictor(
            bundle, **predictor_options(options), **detection_options(options)
        ) as predictor,
        _sink(options.output) as sink,
        ExitStack() as stack,
    ):
        source = options.frames
        if isinstance(source, Path):
            source = stack.enter_context(open_frames(source, dataset=options.dataset))
        writer = csv.writer(sink)
        tally = PeakTally()
        peaks = tally.counted(predictor.stream(source))
        if not options.merge:
            writer.writerow(PEAK_HEADER)
            for frame in peaks:
                writer.writerows(peak_rows(frame))
        else:
            settings = merge_settings(options)
            rotation = Rotation.of(settings, getattr(source, "omega_deg", None))
            merger = SpotMerger(rotation, settings, coverage=interval_coverage(bundle.manifest))
            writer.writerow(SPOT_COLUMNS)
            for spots in merge_peaks(peaks, merger):
                writer.writerows(spot_rows(spots))
                merged += len(spots)
    # Of a live source only the numbers say how many there were.
    there = tally.numbers if isinstance(source, str) else len(source)
    say_at_end(f"peaks found with {predictor.finder_report}")
    tally.say(options.frames, missing=there - tally.frames)
    if options.merge:
        say_at_end(f"{merged} spots")


@contextmanager
def _sink(path: Path | None) -> Iterator[IO[str]]:
    """Open standard output, or a file that appears whole when all frames are done."""
    if path is None:
        yield sys.stdout
        return
    try:
        with whole_file(path) as draft, draft.open("w", newline="") as file:
            yield file
    except OSError as error:
        # EdgexnasError comes first: some of them are OSErrors too, and have their own sentence.
        if isinstance(error, EdgexnasError):
            raise
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
