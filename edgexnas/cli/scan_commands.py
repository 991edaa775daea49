"""What `edgexnas simulate`, `label` and `predict` do with ptychography scans."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgexnas.cli.arguments import detection_options, predictor_options, reject_given
from edgexnas.cli.outputs import check_output
from edgexnas.cli.tally import say_at_end
from edgexnas.cli.terminal import print_pairs, print_table, progress
from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle
    from edgexnas.ptycho import Refinement

__all__ = ["label_scan_file", "predict_object", "simulate_scan_file"]


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
    from edgexnas.host import label_scan, with_synthetic_patterns
    from edgexnas.scans import open_scan

    scan = open_scan(path)
    iterations, modes = options.iterations or 50, options.modes or 3
    with progress(f"label {len(scan)} patterns") as step:
        dataset = label_scan(
            scan,
            iterations=iterations,
            modes=modes,
            threads=options.threads,
            progress=step,
        )
    count, left_out = len(dataset), len(scan) - len(dataset)
    if options.synthetic:
        with progress(f"generate {options.synthetic} synthetic patterns"):
            dataset = with_synthetic_patterns(
                dataset,
                scan,
                options.synthetic,
                iterations=iterations,
                threads=options.threads,
            )
    dataset.save(options.output)
    without = f", {left_out} left out without a usable position or light" if left_out else ""
    print_pairs(
        [
            ("patterns", f"{len(dataset)}{without}"),
            ("scored against", dataset.against),
            *(
                [("residual", f"{dataset.residual:.2%} of the light, after phase retrieval")]
                if dataset.residual is not None
                else []
            ),
            ("intensity scale", f"{dataset.intensity_scale:g} counts"),
            ("file", str(options.output)),
        ]
    )
    say_at_end(f"{count} of {len(scan)} patterns labelled, {left_out} left out")


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
        for _ in stream:
            pass
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


def _print_refinement(refinement: Refinement) -> None:
    """Print residual and time of each sweep."""
    rows = [
        (str(sweep), f"{residual:.3%}", f"{seconds:.2f}")
        for sweep, (residual, seconds) in enumerate(
            zip(refinement.residuals, refinement.seconds, strict=True)
        )
    ]
    print_table(
        ("sweep", "residual of the light", "s"),
        rows,
        title=f"refinement of {refinement.patterns} patterns",
    )
