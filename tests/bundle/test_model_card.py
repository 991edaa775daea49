"""The model card: what the signed manifest says, for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgexnas.bundle import AccuracyRow, Coverage, Manifest, model_card
from edgexnas.cli import main

HELD = Coverage(
    group="all", n=500, level=0.9, share=0.912, low=0.884, high=0.934, median_width_px=0.08
)


def with_fields(manifest: Manifest, **fields: object) -> Manifest:
    return manifest.model_copy(update=fields)


def test_it_tells_use_data_accuracy_and_limits(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert card.startswith("# tiny-bragg\n")
    for part in ("## Intended use\n\nTests.", "random numbers", "| width |", "Everything else."):
        assert part in card
    assert "| constant | fit | 100 | 0.4000 |" in card


def test_it_has_the_coverage_with_its_uncertainty(manifest: Manifest) -> None:
    row = AccuracyRow(
        name="model", precision="int8", against="fit", n=500, mean_px=0.1, coverage=(HELD,)
    )
    card = model_card(with_fields(manifest, accuracy=(row,)))
    assert "## Coverage of the 90% intervals on held-out data" in card
    assert "| int8 | all | 500 | 0.912 | 0.884 to 0.934 | 0.0800 |" in card


def test_the_same_manifest_gives_the_same_card(manifest: Manifest) -> None:
    assert model_card(manifest) == model_card(manifest)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("interval_calibration", "they were not calibrated"),
        ("training_data", "Nothing tells whether data is like the training data"),
        ("model_card", "For frames like those of the training data"),
    ],
)
def test_it_says_what_is_not_known(manifest: Manifest, field: str, said: str) -> None:
    assert said in model_card(with_fields(manifest, **{field: None}))


def test_texts_of_a_stranger_stay_texts(manifest: Manifest) -> None:
    card = manifest.model_card
    assert card is not None
    hostile = card.model_copy(update={"intended_use": "<script>x</script> | [a](b) `c`"})
    text = model_card(with_fields(manifest, model_card=hostile))
    assert "<script>" not in text
    assert r"\[a\](b) \`c\`" in text


def test_inspect_prints_the_card(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--card", str(bundle_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("# tiny-bragg\n")
    assert "signature was not checked" in said.err
