"""What `edgexnas simulate`, `label` and `predict` do with ptychography scans."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import detection_options, predictor_options, reject_given
from edgexnas.cli.outputs import check_output
from edgexnas.cli.tally import say_at_end
from edgexnas.cli.terminal import print_pairs, print_table, progress
from edgexnas.errors import ConfigurationError, RefinementError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle
    from edgexnas.ptycho import Orientation, Refinement
    from edgexnas.scans import Scan

__all__ = ["label_scan_file", "predict_object", "simulate_scan_file"]

_log = logging.getLogger(__name__)


def simulate_scan_file(options: argparse.Namespace) -> None:
    """Simulate the scan of an object and save it with its truth."""
    from edgexnas.simulate import PtychographySettings, save_scan, simulate_scan

    settings = PtychographySettings(object_kind=options.scan_of)
    with progress(f"simulate a scan of a {options.scan_of}"):
        scan = simulate_scan(settings, seed=options.seed)
        save_scan(scan, options.output)
    rows, cols = scan.patterns.shape[1:]
    print_pairs([("patterns", f"{len(scan)} of {rows}×{cols}"), ("file", str(options.output))])


def label_scan_file(path: Path, options: argparse.Namespace) -> None:
    """Pair the patterns of a scan with the object under each and save the dataset."""
    from edgexnas.host import (
        beam_offset_px,
        can_split,
        label_scan,
        label_small_scan,
        with_probe,
        with_synthetic_patterns,
    )
    from edgexnas.host.data.ptycho_labels import check_scan
    from edgexnas.host.data.scan_regions import CELLS
    from edgexnas.host.data.small_scans import SMALL_ITERATIONS
    from edgexnas.scans import open_probe, open_scan

    scan = open_scan(path)
    if options.probe is not None:
        rows, cols = scan.patterns.shape[1:]
        scan = replace(scan, probe=open_probe(options.probe, (rows, cols)))
    check_scan(scan)
    offset = beam_offset_px(scan)
    scan, orientation, how = _oriented(scan, options)
    small = not can_split(scan)
    retrieval: dict[str, Any] = {
        "iterations": options.iterations or (SMALL_ITERATIONS if small else 50),
        "modes": options.modes or 3,
        "threads": options.threads,
    }
    chosen = {"orientation": orientation, **retrieval}
    with progress(f"label {len(scan)} patterns") as step:
        label = label_small_scan if small else label_scan
        dataset = label(scan, **chosen, progress=step)
    # Those of the scan come first, simulated ones behind them as scans of their own.
    count = int((dataset.region < CELLS**2).sum())
    if not small:
        with progress("find the probe of the training part") as step:
            dataset = with_probe(dataset, scan, **retrieval, progress=step)
    if options.synthetic:
        with progress(f"generate {options.synthetic} synthetic patterns"):
            dataset = with_synthetic_patterns(dataset, scan, options.synthetic, **retrieval)
    dataset.save(options.output)
    left_out = len(scan) - count
    without = f", {left_out} left out without a usable position or light" if left_out else ""
    facts = [("patterns", f"{len(dataset)}{without}")]
    if small:
        drawn = f"{len(dataset) - count} of simulated objects under their beam train and choose"
        facts.append(("too few to split", f"the {count} measured ones test, {drawn}"))
    facts += [
        ("direct beam", f"{offset[0]:+.1f} rows, {offset[1]:+.1f} columns beside the middle"),
        ("orientation", how),
        ("scored against", dataset.against),
    ]
    if dataset.residual is not None:
        facts.append(("residual", f"{dataset.residual:.2%} of the light, after phase retrieval"))
    if dataset.probe is not None:
        modes, rows, cols = dataset.probe.shape
        facts.append(("probe", f"{modes} modes of {rows}×{cols}"))
    facts += [
        ("intensity scale", f"{dataset.intensity_scale:g} counts"),
        ("file", str(options.output)),
    ]
    print_pairs(facts)
    say_at_end(f"{count} of {len(scan)} patterns labelled, {left_out} left out")


def _oriented(scan: Scan, options: argparse.Namespace) -> tuple[Scan, Orientation, str]:
    """Find how the detector is turned, unless it is said or the object is known."""
    from edgexnas.host import find_orientation
    from edgexnas.host.data.small_scans import training_numbers

    if options.orientation is not None:
        return scan, options.orientation, f"{options.orientation}, as specified"
    if scan.truth is not None:
        return scan, "as-is", "as-is, that of the known object"
    with progress("find the orientation of the patterns") as step:
        # The probe that is found on the way starts that of the training part.
        found = find_orientation(
            scan, among=training_numbers(scan), threads=options.threads, progress=step
        )
    # A probe that explained the patterns in short is a better guess than none.
    return replace(scan, probe=found.probe), found.orientation, found.sentence


def predict_object(bundle: Bundle, options: argparse.Namespace) -> None:
    """Stitch the patches that a bundle predicts for a scan, and save the object."""
    from edgexnas.device import PtychoPredictor
    from edgexnas.device.ptycho.object_file import check_object_path, save_object

    if options.output is None:
        raise ConfigurationError(
            f"{options.bundle} is for ptychography, whose result is an image: name a file for it, "
            "--output object.npz or object.h5"
        )
    check_object_path(options.output)
    check_output(options.output, inputs=(options.bundle, options.frames))
    if isinstance(options.frames, Path):
        reason = f"{options.frames} is a file, whose positions need no size of a pixel"
        reject_given(options, ("object_pixel_nm",), reason)
    pixel_m = None
    if options.object_pixel_nm is not None:
        row, col = options.object_pixel_nm
        pixel_m = (row * 1e-9, col * 1e-9)
    given = detection_options(options)
    chosen = {name: given[name] for name in ("mask", "saturation")}
    with PtychoPredictor(bundle, **predictor_options(options), **chosen) as predictor:
        stream = predictor.stream(
            options.frames, object_pixel_m=pixel_m, refine=options.refine or 0
        )
        failure: RefinementError | None = None
        try:
            for _ in stream:
                pass
        except RefinementError as error:
            failure = error
    image, refinement = stream.image(), stream.refinement
    if refinement is not None:
        _print_refinement(refinement)
    paths = save_object(image, options.output, refinement=refinement)
    rows, cols = image.values.shape
    counts = stream.counts
    print_pairs(
        [
            ("stitched", f"{counts.stitched} patches to {rows}×{cols} px"),
            ("covered", f"{(image.coverage > 0).mean():.1%}"),
            ("not placed", f"{counts.missing + counts.repeated + counts.outside} patches"),
            *(("file", str(path)) for path in paths),
        ]
    )
    say_at_end(
        f"{counts.stitched} of {counts.patches} patches stitched; not placed: {counts.missing} "
        f"without a position, {counts.repeated} repeated, {counts.outside} outside"
    )
    if stream.familiarity.unfamiliar:
        say_at_end(stream.familiarity.sentence)
    if failure is not None:
        raise failure


def _print_refinement(refinement: Refinement) -> None:
    """Print residual and time of each sweep."""
    rows = [
        (str(sweep), f"{residual:.3%}", f"{seconds:.3f}")
        for sweep, (residual, seconds) in enumerate(
            zip(refinement.residuals, refinement.seconds, strict=True)
        )
    ]
    print_table(
        ("sweep", "residual of the light", "s"),
        rows,
        title=f"refinement of {refinement.patterns} patterns on {refinement.device}",
    )
    if refinement.doubt is not None:
        _log.warning("%s", refinement.doubt)
