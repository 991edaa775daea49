"""A manifest in words, for people."""

from __future__ import annotations

from collections.abc import Mapping

from edgexnas.bundle.manifest import AccuracyRow, Manifest, Tensor

__all__ = ["describe"]


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """List what a manifest says, as pairs of label and value.

    Values hold no line breaks or other control characters. Whether they are true is a question
    of the signature, which is not asked here.
    """
    gate, made = manifest.gate, manifest.provenance
    rows = [
        ("task", manifest.task),
        ("model", f"{manifest.model_id}, sequence {manifest.sequence}"),
        ("architecture", f"{manifest.architecture}, {manifest.parameters:,} parameters"),
        ("created", manifest.created.isoformat()),
        ("expires", manifest.expires.isoformat() if manifest.expires else "never"),
        ("precisions", ", ".join(manifest.precisions)),
        ("inputs", "; ".join(map(_tensor, manifest.inputs))),
        ("outputs", "; ".join(map(_tensor, manifest.outputs))),
    ]
    if manifest.quantile_levels:
        rows.append(
            ("quantile levels", ", ".join(f"{level:g}" for level in manifest.quantile_levels))
        )
    fields = manifest.preprocessing.model_dump(mode="json").items()
    rows.append(("preprocessing", ", ".join(f"{name} {value}" for name, value in fields)))
    limits = ", ".join(f"{name} {getattr(gate, name):g}" for name in manifest.precisions)
    rows.append(("accuracy gate", f"{limits} {gate.unit}"))
    if gate.amplitude is not None:
        shares = (f"{name} {getattr(gate.amplitude, name):.3g}" for name in manifest.precisions)
        rows.append(("amplitude gate", f"{', '.join(shares)} of the mean"))
    rows += [("accuracy", _accuracy(row)) for row in manifest.accuracy]
    rows += _quantisation(manifest)
    rows += _deployment(manifest)
    trial = "" if made.trial is None else f", trial {made.trial}"
    rows += [
        ("search", f"{made.search or 'none'}{trial}, seed {made.seed}"),
        ("data", f"{made.data_source} (sha256 {made.data_digest})"),
        *_label_residual(made.label_residual),
        ("configuration", _pairs(made.configuration)),
        ("made with", _pairs(made.versions)),
    ]
    return rows


def _label_residual(residual: float | None) -> list[tuple[str, str]]:
    return [] if residual is None else [("phase retrieval", f"residual {residual:.2%} of light")]


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "not recorded"


def _tensor(tensor: Tensor) -> str:
    axes = ", ".join(
        f"{axis} {length}" for axis, length in zip(tensor.axes, tensor.shape, strict=True)
    )
    return f"{tensor.name} {tensor.dtype} ({axes}) in {tensor.unit}"


def _accuracy(row: AccuracyRow) -> str:
    measures = [
        f"{label} {value:.4f}{unit}"
        for label, value, unit in (
            ("mean", row.mean_px, " px"),
            ("median", row.p50_px, " px"),
            ("75 %", row.p75_px, " px"),
            ("95 %", row.p95_px, " px"),
            ("phase error", row.phase_mae_rad, " rad"),
            ("amplitude error", row.amplitude_mae, ""),
        )
        if value is not None
    ]
    name = f"{row.name} {row.precision}" if row.precision else row.name
    # Of all peaks; the groups are on the model card.
    measures += [
        f"intervals of {held.level:.0%} hold {held.share:.3f} ({held.low:.3f} to {held.high:.3f})"
        for held in row.coverage[:1]
    ]
    return f"{name} against {row.against} on {row.n}: {', '.join(measures) or 'not measured'}"


def _quantisation(manifest: Manifest) -> list[tuple[str, str]]:
    made = manifest.quantisation
    if made is None:
        return []
    kept = ", ".join(made.float_layers) or "none"
    return [
        (
            "quantisation",
            f"{made.method} by {made.calibration_method} of {made.calibration_items} items, "
            f"{len(made.quantised_layers)} layers in INT8, in float: {kept}, "
            f"mean error {made.loss_fraction:+.1%}",
        )
    ]


def _deployment(manifest: Manifest) -> list[tuple[str, str]]:
    """Describe the parts that a manifest may leave out."""
    rows = []
    for name in ("detection", "probe", "quantisation_recipe"):
        part = getattr(manifest, name)
        if part is not None:
            fields = part.model_dump(mode="json", exclude={"latencies"})
            rows.append((name.replace("_", " "), _pairs(fields)))
    if (calibration := manifest.interval_calibration) is not None:
        factors = [factor for row in calibration.factors for factor in row]
        groups = f"by {len(factors)} groups of signal-to-noise and width"
        scale = f"factors {min(factors):.3g} to {max(factors):.3g}"
        rows.append(("intervals", f"{calibration.level:.0%}, {groups}, {scale}"))
    elif manifest.task == "bragg":
        rows.append(("intervals", "not calibrated"))
    if (data := manifest.training_data) is not None:
        names = ", ".join(quantity.name for quantity in data.quantities)
        rows.append(("training data", f"{data.n} items, distributions of {names or 'nothing'}"))
    elif manifest.task == "bragg":
        rows.append(("training data", "not described: nothing tells data unlike it"))
    if (recipe := manifest.quantisation_recipe) is not None:
        for run in recipe.latencies:
            where = f"by {run.engine} on {run.device}"
            told = f"{run.precision}, batch {run.batch}: {run.median_ms:.4g} ms {where}"
            rows.append(("latency", told))
    if (card := manifest.model_card) is not None:
        rows += [(name.replace("_", " "), text) for name, text in card]
    return rows
