"""Argument types and help formatting that the commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from edgexnas.merging import MergeSettings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = [
    "MERGE_OPTIONS",
    "PEAK_OPTIONS",
    "acceptance",
    "add_acceptance",
    "add_command",
    "add_detection",
    "add_merging",
    "bundle_path",
    "detection_options",
    "merge_settings",
    "number",
    "path_or_url",
    "positive_float",
    "positive_int",
    "predictor_options",
    "reject_given",
    "seed",
]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not those that say nothing: None of an option, False of a flag."""

    # argparse has no public way to show some defaults and not others.
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Not `in`: a default of 0 equals False, and is worth showing.
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def add_command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a command whose help shows defaults."""
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=_HelpFormatter,
    )


def add_acceptance(command: argparse.ArgumentParser) -> None:
    """Add the options that decide which bundles this device accepts; see `acceptance`."""
    command.add_argument(
        "--trust",
        type=Path,
        help="folder of trusted keys, or one *.pub.pem; needed for all but universal",
    )
    command.add_argument(
        "--state",
        type=Path,
        help="folder that remembers the newest bundles, so that none older is accepted; "
        "$EDGEXNAS_STATE or ~/.local/state/edgexnas, if there is one",
    )
    for name, unit in (("px", "pixels, of peaks"), ("rad", "radians, of phases")):
        command.add_argument(
            f"--maximum-gate-{name}",
            type=positive_float,
            metavar=name.upper(),
            help=f"widest accuracy gate that is accepted, in {unit}",
        )


def acceptance(options: argparse.Namespace) -> dict[str, Any]:
    """Give `state` and `gates` of `open_bundle` from the options of `add_acceptance`."""
    from edgexnas.bundle import GatePolicy

    gates = GatePolicy.of(
        maximum_gate_px=options.maximum_gate_px, maximum_gate_rad=options.maximum_gate_rad
    )
    return {"state": options.state, "gates": gates}


def bundle_path(text: str) -> Path | str:
    """Read the path of a bundle, or the name of one of the package, which is no path."""
    from edgexnas.bundle.shipped import is_shipped

    return text if is_shipped(text) else Path(text)


PEAK_OPTIONS = ("minimum_counts", "threshold", "keep_hot")
"""Options of `add_detection` that patterns of a scan do not have."""


def add_detection(command: argparse.ArgumentParser) -> None:
    """Add the options that say what of a frame is used and what counts as a peak."""
    command.add_argument(
        "--mask", type=Path, help=".npy file of (H, W) bool, true where a pixel must not be used"
    )
    command.add_argument(
        "--saturation",
        type=positive_float,
        help="counts from which a pixel is saturated; otherwise what the data or the bundle say",
    )
    command.add_argument(
        "--minimum-counts", type=number, help="minimum peak height above background, in counts"
    )
    command.add_argument(
        "--threshold",
        type=number,
        help="minimum peak height above background, in standard deviations of the noise",
    )
    command.add_argument(
        "--keep-hot",
        action="store_true",
        default=None,
        help="do not mask pixels that fire by themselves",
    )


def detection_options(options: argparse.Namespace) -> dict[str, Any]:
    """Give the options of `add_detection` as those of a `PeakPredictor` or of `label_frames`."""
    from edgexnas.detector_mask import read_mask

    names = ("saturation", "minimum_counts", "threshold")
    chosen = {name: getattr(options, name) for name in names}
    mask = None if options.mask is None else read_mask(options.mask)
    return {**chosen, "mask": mask, "mask_hot": False if options.keep_hot else None}


MERGE_OPTIONS = ("omega_start_deg", "omega_step_deg", "tolerance_px", "gap_frames")
"""Options of `add_merging` that frames without a rotation do not have."""


def add_merging(command: argparse.ArgumentParser) -> None:
    """Add the options that say how peaks are merged into spots; see `merge_settings`."""
    command.add_argument(
        "--omega-start-deg",
        type=angle,
        metavar="DEG",
        help="rotation angle at the start of frame 0; otherwise what the frames say",
    )
    command.add_argument(
        "--omega-step-deg",
        type=angle,
        metavar="DEG",
        help="how far each frame turns, negative for backwards",
    )
    command.add_argument(
        "--tolerance-px",
        type=positive_float,
        metavar="PX",
        help="largest distance of peaks on successive frames that belong to one spot (default: 2)",
    )
    command.add_argument(
        "--gap-frames",
        type=whole_number,
        metavar="N",
        help="most missing frames that a spot is followed over (default: 1)",
    )


def merge_settings(options: argparse.Namespace) -> MergeSettings:
    """Give the options of `add_merging` as settings."""
    from edgexnas.merging import MergeSettings

    given = {name: getattr(options, name) for name in MERGE_OPTIONS}
    return MergeSettings(**{name: value for name, value in given.items() if value is not None})


def path_or_url(text: str) -> Path | str:
    """Keep a URL as it is: a path would lose one of its slashes."""
    return text if "://" in text else Path(text)


def predictor_options(options: argparse.Namespace) -> dict[str, Any]:
    """Gather the options of `edgexnas predict` that every predictor takes."""
    names = ("engine", "precision", "batch", "cache")
    return {name: getattr(options, name) for name in names}


def reject_given(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Reject options that would be ignored: those of `names` that are not None.

    Raises
    ------
    ConfigurationError
        Naming the options and the reason.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if given:
        raise ConfigurationError(f"{' and '.join(given)} would be ignored: {reason}; leave it out")


def angle(text: str) -> float:
    """Parse a finite number of degrees."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} is not finite")
    return value


def whole_number(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _whole(text, 0)


def seed(text: str) -> int:
    """Parse a whole number of at least 0, which generators of random numbers take."""
    return _whole(text, 0)


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole(text, 1)


def positive_float(text: str) -> float:
    """Parse a finite number larger than 0."""
    value = number(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{value:g} is not larger than 0")
    return value


def number(text: str) -> float:
    """Parse a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{value:g} is not a finite number from 0 up")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value
