"""The model card of a bundle: what its signed manifest says, for people, as Markdown.

It is generated from the manifest and nothing else, so that the signature holds for it too, and one
that disagrees with its bundle cannot exist. Mitchell et al., "Model Cards for Model Reporting"
(2019), whose headings it keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgexnas.bundle.deployment import Coverage, Distribution, IntervalCalibration, TrainingData
from edgexnas.bundle.manifest import AccuracyRow, Manifest

__all__ = ["model_card"]

_TASKS = {
    "bragg": (
        "Sub-pixel positions of Bragg peaks on area-detector frames, with an interval for each "
        "coordinate."
    ),
    "ptycho": "Amplitude and phase of an object from far-field diffraction patterns.",
}

_MEASURES = (
    ("mean_px", "mean, px"),
    ("p50_px", "50 %, px"),
    ("p75_px", "75 %, px"),
    ("p95_px", "95 %, px"),
    ("phase_mae_rad", "phase error, rad"),
    ("amplitude_mae", "amplitude error"),
)


def model_card(manifest: Manifest) -> str:
    """Write the model card of a manifest, in Markdown.

    The same manifest always gives the same card. Texts of the manifest are escaped: they come from
    whoever made the bundle. Whether they are true is a question of the signature, not asked here.
    """
    parts = [
        f"# {_text(manifest.model_id)}",
        _details(manifest),
        "## Intended use",
        _use(manifest),
        "## Training data",
        _training(manifest),
        "## Accuracy on held-out data",
        _accuracy(manifest.accuracy),
        *_coverage(manifest),
        "## Limits",
        _limits(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    """Escape what Markdown and HTML would not show as it is."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|#":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _details(manifest: Manifest) -> str:
    made = manifest.provenance
    versions = ", ".join(f"{_text(name)} {_text(v)}" for name, v in made.versions.items())
    rows = [
        ("task", _TASKS[manifest.task]),
        (
            "model",
            f"{_text(manifest.architecture)}, {manifest.parameters:,} parameters, sequence "
            f"{manifest.sequence}",
        ),
        ("precisions", ", ".join(manifest.precisions)),
        ("created", manifest.created.isoformat()),
        ("expires", manifest.expires.isoformat() if manifest.expires else "never"),
        ("search", _text(made.search) if made.search else "none"),
        ("made with", versions or "not recorded"),
    ]
    if (card := manifest.model_card) is not None:
        rows += [("licence", _text(card.licence)), ("contact", _text(card.contact))]
    return _table(("", ""), rows)


def _use(manifest: Manifest) -> str:
    if manifest.model_card is not None:
        return _text(manifest.model_card.intended_use)
    like = "frames" if manifest.task == "bragg" else "scans"
    return f"{_TASKS[manifest.task]} For {like} like those of the training data, below."


def _training(manifest: Manifest) -> str:
    made, data = manifest.provenance, manifest.training_data
    source = f"{_text(made.data_source)} (sha256 {made.data_digest})."
    if data is None:
        return f"{source} Its distribution was not recorded: nothing tells data unlike it."
    rows = [_distribution(quantity) for quantity in data.quantities]
    table = _table(("quantity", "unit", "of the training data", "familiar"), rows)
    items = "peaks" if manifest.task == "bragg" else "patterns"
    return f"{source} {data.n:,} {items}.\n\n{table}"


def _distribution(quantity: Distribution) -> tuple[str, str, str, str]:
    spread = ", ".join(
        f"{level:g}: {value:.3g}"
        for level, value in zip(quantity.levels, quantity.quantiles, strict=True)
    )
    ends = ("" if end is None else f"{end:.3g}" for end in (quantity.low, quantity.high))
    unit = "" if quantity.unit == "1" else _text(quantity.unit)
    return _text(quantity.name), unit, spread, " to ".join(ends)


def _accuracy(rows: Sequence[AccuracyRow]) -> str:
    shown = [(n, title) for n, title in _MEASURES if any(getattr(r, n) is not None for r in rows)]
    if not rows:
        return "Not measured."
    lines = []
    for row in rows:
        values = [getattr(row, name) for name, _ in shown]
        name = f"{_text(row.name)} {row.precision}" if row.precision else _text(row.name)
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        lines.append([name, row.against, f"{row.n:,}", *cells])
    return _table(("", "against", "items", *(title for _, title in shown)), lines)


def _coverage(manifest: Manifest) -> list[str]:
    rows = [
        (row, coverage) for row in manifest.accuracy if row.coverage for coverage in row.coverage
    ]
    if not rows:
        return []
    level = rows[0][1].level
    lines = [(str(row.precision or ""), *_share(coverage)) for row, coverage in rows]
    return [
        f"## Coverage of the {level:.0%} intervals on held-out data",
        _table(
            ("precision", "peaks", "number", "held", "95 % interval", "median width, px"), lines
        ),
    ]


def _share(row: Coverage) -> tuple[str, ...]:
    return (
        _text(row.group),
        f"{row.n:,}",
        f"{row.share:.3f}",
        f"{row.low:.3f} to {row.high:.3f}",
        f"{row.median_width_px:.4f}",
    )


def _limits(manifest: Manifest) -> str:
    sentences = []
    if manifest.model_card is not None:
        sentences.append(_text(manifest.model_card.limits))
    if manifest.task == "bragg":
        sentences.append(_interval_limits(manifest.interval_calibration))
    sentences.append(_familiar_limits(manifest.training_data))
    if (made := manifest.quantisation) is not None:
        sentences.append(
            f"INT8 changes the mean error of float32 by {made.loss_fraction:+.1%} on held-out data."
        )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _interval_limits(calibration: IntervalCalibration | None) -> str:
    if calibration is None:
        return "Intervals are as the network gives them: they were not calibrated."
    peaks = sum(number for row in calibration.counts for number in row)
    return (
        f"Intervals hold {calibration.level:.0%} of the coordinates of peaks like those of the "
        f"training data, as calibrated on {peaks:,} peaks that trained nothing; of other peaks "
        "they promise nothing."
    )


def _familiar_limits(data: TrainingData | None) -> str:
    if data is None:
        return "Nothing tells whether data is like the training data."
    return (
        "Data outside the familiar ranges is marked as unfamiliar where it is found, and intervals "
        "of peaks are widened there. What lies within is not proven to be like the training data."
    )
