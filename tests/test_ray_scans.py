"""`label` and `predict` over a folder of scans, spread over two nodes of a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from edgexnas import testing
from edgexnas.bundle import generate_keys
from edgexnas.cli import main

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three series of six frames, each with spots of its own."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        spots = rng.uniform((15, 15), (80, 110), (4, 2))
        with h5py.File(folder / f"scan_{n}.h5", "w") as file:
            frames = [testing.spot_frame(spots, seed=10 * n + k) for k in range(6)]
            file["entry/data/data"] = np.stack(frames)
    return folder


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_nodes_give_the_files_that_one_machine_gives(
    ray_cluster: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    generate_keys(keys)
    bundle = testing.write_centroid_bundle(
        tmp_path / "centroid.edgex", signing_key=keys / "edgexnas.key.pem"
    )
    predict = ["predict", str(bundle)]
    options = ["--trust", str(keys), "--precision", "float32"]
    spread = tmp_path / "predicted"
    # A file that is no scan fails, is named, and does not take the others with it.
    (folder / "broken.h5").write_bytes(b"not an HDF5 file")
    together = [*predict, str(folder), *options, "--output", str(spread), "--ray", ray_cluster]
    assert main(together) == 1
    said = capsys.readouterr().err
    assert "1 of 4 scans failed\nbroken.h5: " in said
    assert "3 of 4 scans written" in said
    (folder / "broken.h5").unlink()
    labelled = tmp_path / "labelled"
    assert main(["label", str(folder), "--output", str(labelled), "--ray", ray_cluster]) == 0
    for n in range(3):
        alone = tmp_path / f"alone_{n}.csv"
        scan = str(folder / f"scan_{n}.h5")
        assert main([*predict, scan, *options, "--output", str(alone)]) == 0
        assert (spread / f"scan_{n}.csv").read_text() == alone.read_text()
        assert len(alone.read_text().splitlines()) > 6
        labels = tmp_path / f"alone_{n}.h5"
        assert main(["label", scan, "--output", str(labels)]) == 0
        with h5py.File(labels) as one, h5py.File(labelled / f"scan_{n}.h5") as other:
            names: list[str] = []
            one.visititems(
                lambda name, item, names=names: (
                    names.append(name) if isinstance(item, h5py.Dataset) else None
                )
            )
            assert names
            for name in names:
                np.testing.assert_array_equal(one[name][()], other[name][()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ((), "has no files named"),
        (("a.h5", "a.cxi"), "has two scans named a"),
    ],
)
def test_a_folder_that_cannot_be_spread_is_rejected_before_a_cluster_is_asked(
    make: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="ray is the extra «ray»")
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in make:
        (folder / name).touch()
    output = str(tmp_path / "labels")
    assert main(["label", str(folder), "--output", output, "--ray", "127.0.0.1:1"]) == 2
    assert message in capsys.readouterr().err
    assert not Path(output).exists()
