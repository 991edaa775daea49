"""edgexnas convert."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.cli.arguments import add_command, add_merging, angle, merge_settings
from edgexnas.cli.outputs import check_output
from edgexnas.cli.terminal import print_pairs
from edgexnas.errors import ConfigurationError, EdgexnasError, InputError
from edgexnas.forms import FORMS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgexnas.cli.arguments import Commands
    from edgexnas.merging import SpotMerger
    from edgexnas.ptycho import ObjectImage
    from edgexnas.spots import Spots

__all__ = ["add_to"]


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
    settings = merge_settings(options)
    is_object = _holds_object(options.results)
    form, kind = form_of(options.output, options.form, peaks=not is_object)
    result: Spots | npt.NDArray[np.void] | ObjectImage
    frames = None
    if is_object:
        from edgexnas.forms.object_nexus import read_object

        result = read_object(options.results)
    elif kind == "peaks":
        result, frames = _peaks(options)
    else:
        result = _spots(options)
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
    print_pairs([*count, *(("file", str(path)) for path in paths)])


def _holds_object(path: Path) -> bool:
    """Tell an object from peaks and spots, by its suffix or what is in the file."""
    if path.suffix.lower() == ".npz":
        return True
    if path.is_dir() or path.suffix.lower() not in (".h5", ".hdf5", ".nxs"):
        return False
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "entry/object" in file
    # What cannot be opened is told of by who reads it.
    except OSError:
        return False


def _spots(options: argparse.Namespace) -> Spots:
    """Read spots, or read peaks and merge them."""
    from edgexnas.forms.csv_tables import read_csv
    from edgexnas.forms.reflections import read_reflections, spots_of
    from edgexnas.merging import Rotation, SpotMerger
    from edgexnas.spots import Spots

    settings = merge_settings(options)
    suffix = options.results.suffix.lower()
    if suffix == ".refl":
        return spots_of(read_reflections(options.results), rotation=Rotation.of(settings))
    if suffix == ".csv":
        table = read_csv(options.results)
        if isinstance(table, Spots):
            return table
        merger = SpotMerger(Rotation.of(settings), settings)
        return Spots.joined([*_merged_table(table, merger), merger.finish()])
    from edgexnas.device.sinks.results_file import read_spots

    batches = [batch for batch in read_spots(options.results) if len(batch.spots)]
    if batches:
        name = _series(options, {batch.series for batch in batches})
        return Spots.joined([batch.spots for batch in batches if batch.series == name])
    merger = SpotMerger(Rotation.of(settings), settings)
    parts = [
        merger.add_arrays(
            frame.number, frame.positions_px, frame.intervals_px, frame.intensities, frame.flags
        )
        for frame in _frames(options)
    ]
    return Spots.joined([*parts, merger.finish()])


def _merged_table(table: npt.NDArray[np.void], merger: SpotMerger) -> Iterator[Spots]:
    """Merge peaks of a CSV file, which does not tell missing frames from those without a peak."""
    import numpy as np

    if not len(table):
        return
    table = table[np.argsort(table["frame"], kind="stable")]
    numbers = np.arange(table["frame"][0], table["frame"][-1] + 1)
    edges = np.searchsorted(table["frame"], [*numbers, numbers[-1] + 1])
    for number, first, last in zip(numbers.tolist(), edges[:-1], edges[1:], strict=True):
        rows = table[first:last]
        yield merger.add_arrays(
            number,
            np.stack([rows["row_px"], rows["col_px"]], axis=1),
            np.stack([rows["row_interval_px"], rows["col_interval_px"]], axis=1),
            rows["counts"],
            rows["flags"],
        )


def _peaks(options: argparse.Namespace) -> tuple[npt.NDArray[np.void], int | None]:
    """Read peaks, and how many frames there are."""
    import numpy as np

    from edgexnas.forms.csv_tables import PEAK, read_csv
    from edgexnas.spots import Spots

    if options.results.suffix.lower() == ".csv":
        table = read_csv(options.results)
        if isinstance(table, Spots):
            raise InputError(
                f"{options.results} holds spots, and {options.output.suffix} holds the peaks of "
                "each frame; specify what predict has written without --merge"
            )
        return table, None
    parts = [np.empty(0, PEAK)]
    last = -1
    for frame in _frames(options):
        part = np.empty(len(frame.positions_px), PEAK)
        part["frame"] = frame.number
        part["row_px"], part["col_px"] = frame.positions_px.T
        part["row_interval_px"], part["col_interval_px"] = frame.intervals_px.T
        part["counts"], part["flags"] = frame.intensities, frame.flags
        parts.append(part)
        last = max(last, frame.number)
    return np.concatenate(parts), last + 1


def _frames(options: argparse.Namespace) -> list[Any]:
    """Read the processed frames of one series of a service's results, by their numbers."""
    from edgexnas.device.sinks.results_file import read_results

    frames = [frame for frame in read_results(options.results) if frame.state == "done"]
    name = _series(options, {frame.series for frame in frames})
    newest = {frame.number: frame for frame in frames if frame.series == name}
    return [newest[number] for number in sorted(newest)]


def _series(options: argparse.Namespace, names: set[str]) -> str:
    if options.series is not None and options.series in names:
        return str(options.series)
    if options.series is None and len(names) == 1:
        return next(iter(names))
    raise ConfigurationError(
        f"{options.results} has results of {', '.join(sorted(names)) or 'no series'}; specify one "
        "of them with --series"
    )
