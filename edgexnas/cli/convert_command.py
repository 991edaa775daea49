"""edgexnas convert."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import (
    MERGE_OPTIONS,
    add_command,
    add_merging,
    angle,
    merge_settings,
    reject_given,
)
from edgexnas.cli.outputs import check_output
from edgexnas.cli.terminal import print_pairs
from edgexnas.errors import ConfigurationError, EdgexnasError, InputError
from edgexnas.forms import FORMS
from edgexnas.hdf5_library import h5py_for

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgexnas.cli.arguments import Commands
    from edgexnas.device.sinks.results import SeriesSpots
    from edgexnas.device.sinks.results_file import StoredMerge
    from edgexnas.forms import Form
    from edgexnas.merging import MergeSettings, SpotMerger
    from edgexnas.ptycho import ObjectImage
    from edgexnas.spots import Spots

__all__ = ["add_to"]

_log = logging.getLogger(__name__)


def add_to(commands: Commands) -> None:
    """Add the command."""
    convert = add_command(commands, "convert", "write results in a form that other programs read")
    convert.add_argument(
        "results",
        type=Path,
        help="CSV file of predict; folder or file of a service; .refl; or an object, .npz or .h5",
    )
    convert.add_argument(
        "output",
        type=Path,
        help="file whose suffix tells the form: .flt and .h5 (ImageD11), .refl (DIALS), .cxi, "
        ".nxs, .tiff, .csv",
    )
    convert.add_argument(
        "--form", choices=FORMS, help="the form, where the suffix does not tell it, as of midas"
    )
    convert.add_argument("--series", help="which series of a service's results, if there are more")
    convert.add_argument(
        "--beam-centre-px",
        type=angle,
        nargs=2,
        metavar=("ROW", "COL"),
        help="where the beam meets the detector, for midas",
    )
    add_merging(convert)
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from edgexnas.forms.conversion import form_of, write_form

    check_output(options.output, inputs=(options.results,))
    if not options.results.exists():
        raise ConfigurationError(
            f"there is no {options.results}; specify a file of predict, or the folder that a "
            "service wrote to"
        )
    settings = merge_settings(options)
    is_object = _holds_object(options.results)
    form, kind = form_of(options.output, options.form, peaks=not is_object)
    if form != "midas":
        reject_given(options, ("beam_centre_px",), "only midas has a beam centre")
    result: Spots | npt.NDArray[np.void] | ObjectImage
    frames = None
    about: list[tuple[str, str]] = []
    if is_object:
        from edgexnas.forms.object_nexus import read_object

        reject_given(options, ("series", *MERGE_OPTIONS), f"{options.results} holds an object")
        result = read_object(options.results)
    elif options.results.suffix.lower() in (".csv", ".refl"):
        reject_given(options, ("series",), f"{options.results} holds one series")
        result = _csv_peaks(options) if kind == "peaks" else _file_spots(options, form)
    else:
        merge = _stored(options)
        if kind == "peaks":
            reject_given(options, MERGE_OPTIONS, f"{form} holds peaks that are not merged")
            result, frames = _peaks(merge)
        else:
            result, settings = _spots(options, form, merge)
        about = _about(merge)
    centre = None if options.beam_centre_px is None else tuple(options.beam_centre_px)
    try:
        paths = write_form(
            options.output, form, result, settings=settings, beam_centre_px=centre, frames=frames
        )
    except OSError as error:
        if isinstance(error, EdgexnasError):
            raise
        raise ConfigurationError(
            f"{options.output} cannot be written: {error.strerror or error}; choose another place"
        ) from error
    count = [] if is_object else [(kind, f"{len(result):,}")]  # type: ignore[arg-type]
    print_pairs([*about, *count, *(("file", str(path)) for path in paths)])


def _holds_object(path: Path) -> bool:
    """Tell an object from peaks and spots, by its suffix or what is in the file."""
    if path.suffix.lower() == ".npz":
        return True
    if path.is_dir() or path.suffix.lower() not in (".h5", ".hdf5", ".nxs"):
        return False
    h5py = h5py_for(f"reading the HDF5 file {path}")
    try:
        with h5py.File(path, "r") as file:
            return "entry/object" in file
    # What cannot be opened is told of by who reads it.
    except OSError:
        return False


def _file_spots(options: argparse.Namespace, form: Form) -> Spots:
    """Read spots of a CSV file or of DIALS, or read peaks and merge them."""
    from edgexnas.forms.csv_tables import read_csv
    from edgexnas.forms.reflections import read_reflections, spots_of
    from edgexnas.merging import Rotation, SpotMerger
    from edgexnas.spots import Spots

    settings = merge_settings(options)
    if options.results.suffix.lower() == ".refl":
        _reject_merging(options, "dials", "its spots are merged already")
        return spots_of(read_reflections(options.results), rotation=Rotation.of(settings))
    table = read_csv(options.results)
    if isinstance(table, Spots):
        _reject_merging(options, form, "its spots are merged already")
        return table
    merger = SpotMerger(Rotation.of(settings), settings)
    return Spots.joined([*_merged_table(table, merger), merger.finish()])


def _spots(
    options: argparse.Namespace, form: Form, merge: StoredMerge
) -> tuple[Spots, MergeSettings]:
    """Read the spots of a service, or merge its peaks; give the settings of merging too."""
    import numpy as np

    from edgexnas.merging import Rotation, SpotMerger
    from edgexnas.spots import Spots

    settings, mark = merge_settings(options), merge.mark
    coverage = 0.9
    if mark is not None:
        given = [name for name in MERGE_OPTIONS if getattr(options, name) is not None]
        reject_given(
            options,
            [name for name in given if getattr(options, name) != getattr(mark.settings, name)],
            f"the service merged by {mark.settings}",
        )
        settings, coverage = mark.settings, mark.coverage
        if mark.state == "ended":
            return merge.spots(), settings
        _log.warning(
            "%s has not ended in %s: all its spots are merged from the peaks that are stored",
            merge.key.identity or merge.key.series,
            merge.path,
        )
    elif batches := [batch for batch in _unmarked(merge) if len(batch.spots)]:
        # Of an earlier release, which did not say whether all are there.
        _reject_merging(options, form, "its spots are merged already")
        newest = batches[-1].bundle_digest
        of_it = [batch.spots for batch in batches if batch.bundle_digest == newest]
        return Spots.joined(of_it), settings
    merger = SpotMerger(Rotation.of(settings), settings, coverage=coverage)
    parts, last = [], -1
    for frame in _frames(merge):
        if frame is None:
            parts.append(merger.finish())
        elif frame.number > last:
            last = frame.number
            columns = (
                frame.positions_px, frame.intervals_px, frame.intensities, frame.flags
            )  # fmt: skip
            # As the service does, which stores such peaks and merges the others.
            sound = np.isfinite(columns[0]).all(axis=1) & np.isfinite(columns[2])
            parts.append(merger.add_arrays(last, *(column[sound] for column in columns)))
    return Spots.joined([*parts, merger.finish()]), settings


def _unmarked(merge: StoredMerge) -> list[SeriesSpots]:
    from edgexnas.device.sinks.results import SeriesKey
    from edgexnas.device.sinks.results_file import read_spots

    return [
        batch
        for batch in read_spots(merge.path, name=merge.name)
        if SeriesKey.of(batch.series, batch.identity, "") == merge.key
    ]


def _reject_merging(options: argparse.Namespace, form: Form, reason: str) -> None:
    """Reject options of merging where nothing is merged; two forms need the angles all the same."""
    angles = ("omega_start_deg", "omega_step_deg")
    needed = angles if form in ("midas", "dials") else ()
    names = [name for name in MERGE_OPTIONS if name not in needed]
    reject_given(options, names, f"{options.results}: {reason}")


def _merged_table(table: npt.NDArray[np.void], merger: SpotMerger) -> Iterator[Spots]:
    """Merge peaks of a CSV file, which does not tell missing frames from those without a peak."""
    import numpy as np

    if not len(table):
        return
    table = table[np.argsort(table["frame"], kind="stable")]
    there = np.unique(table["frame"])
    # One without a peak beside each: more of them change nothing, and there may be billions.
    numbers = np.unique([there - 1, there, there + 1])
    numbers = numbers[(numbers >= there[0]) & (numbers <= there[-1])]
    edges = (np.searchsorted(table["frame"], numbers, side) for side in ("left", "right"))
    for number, first, last in zip(numbers.tolist(), *edges, strict=True):
        rows = table[first:last]
        yield merger.add_arrays(
            number,
            np.stack([rows["row_px"], rows["col_px"]], axis=1),
            np.stack([rows["row_interval_px"], rows["col_interval_px"]], axis=1),
            rows["counts"],
            rows["flags"],
        )


def _csv_peaks(options: argparse.Namespace) -> npt.NDArray[np.void]:
    from edgexnas.forms.csv_tables import read_csv
    from edgexnas.spots import Spots

    if options.results.suffix.lower() == ".refl":
        raise ConfigurationError(
            f"{options.results} holds spots, and {options.output.suffix} holds the peaks of each "
            "frame; choose a form of spots"
        )
    reject_given(options, MERGE_OPTIONS, f"{options.output.suffix} holds peaks that are not merged")
    table = read_csv(options.results)
    if isinstance(table, Spots):
        raise InputError(
            f"{options.results} holds spots, and {options.output.suffix} holds the peaks of "
            "each frame; specify what predict has written without --merge"
        )
    return table


def _peaks(merge: StoredMerge) -> tuple[npt.NDArray[np.void], int]:
    """Read the peaks of a service, by their frames' numbers, and how many frames there are."""
    import numpy as np

    from edgexnas.forms.csv_tables import PEAK

    frames: dict[int, Any] = {}
    for frame in _frames(merge):
        if frame is not None:
            # The first, as merging takes it.
            frames.setdefault(frame.number, frame)
    parts = [np.empty(0, PEAK)]
    for number in sorted(frames):
        frame = frames[number]
        part = np.empty(len(frame.positions_px), PEAK)
        part["frame"] = number
        part["row_px"], part["col_px"] = frame.positions_px.T
        part["row_interval_px"], part["col_interval_px"] = frame.intervals_px.T
        part["counts"], part["flags"] = frame.intensities, frame.flags
        parts.append(part)
    return np.concatenate(parts), max(frames, default=-1) + 1


def _frames(merge: StoredMerge) -> list[Any]:
    """Read processed frames; where no marks tell two bundles apart, those of the newest."""
    frames = [frame for frame in merge.frames() if frame is None or frame.state == "done"]
    if merge.mark is not None:
        return frames
    done = [frame for frame in frames if frame is not None]
    # A bundle that was replaced in the series has frames of its own: all are of one series.
    repeats = len({frame.number for frame in done}) < len(done)
    if repeats and len({frame.bundle_digest for frame in done}) > 1:
        newest = done[-1].bundle_digest
        _log.warning(
            "several bundles made results of %s; those of the newest are taken, %s…",
            merge.key.identity or merge.key.series,
            newest[:12],
        )
        done = [frame for frame in done if frame.bundle_digest == newest]
    return sorted(done, key=lambda frame: frame.number)


def _stored(options: argparse.Namespace) -> StoredMerge:
    """Choose a series of a service's results: of one name the newest, by what identifies it."""
    from edgexnas.device.sinks.results_file import read_merge, read_series

    prefix = _prefix(options.results)
    series = read_series(options.results, name=prefix)
    name = _series(options, {name for name, _ in series})
    found = list(dict.fromkeys(identity for of, identity in series if of == name))
    if len(found) > 1:
        _log.warning("%d series are named %s; the newest is taken, %s", len(found), name, found[-1])
    return read_merge(options.results, name, found[-1], name=prefix)


def _prefix(path: Path) -> str:
    """How the names of a service's files begin; a warning where one of several is given."""
    from edgexnas.device.sinks.results_layout import segments

    if not path.is_dir():
        prefix = path.stem.rpartition("_")[0]
        others = len(segments(path.parent, prefix)) - 1 if prefix else 0
        if others > 0:
            _log.warning(
                "%s is one of %d files, and a series may go over several; specify %s for all",
                path, others + 1, path.parent,
            )  # fmt: skip
        return "results"
    names = {file.stem.rpartition("_")[0] for file in path.glob("*_*.h5")}
    names = {name for name in names if segments(path, name) and not name.startswith("object_")}
    if len(names) > 1:
        raise ConfigurationError(
            f"{path} holds files of {', '.join(sorted(names))}; specify one of the files"
        )
    return next(iter(names), "results")


def _about(merge: StoredMerge) -> list[tuple[str, str]]:
    bundle = [("bundle", f"{merge.bundle_digest[:12]}…")] if merge.bundle_digest else []
    return [("series", merge.key.identity or merge.key.series), *bundle]


def _series(options: argparse.Namespace, names: set[str]) -> str:
    if options.series is not None and options.series in names:
        return str(options.series)
    if options.series is None and len(names) == 1:
        return next(iter(names))
    raise ConfigurationError(
        f"{options.results} has results of {', '.join(sorted(names)) or 'no series'}; specify one "
        "of them with --series"
    )
