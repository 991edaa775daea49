"""Bundles with known answers, and stand-ins for libraries and networks that are not here."""

from __future__ import annotations

import importlib.machinery
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from edgexnas import testing
from edgexnas.bundle import Bundle, Manifest, Precision, generate_keys, open_bundle

HERE = Path(__file__).parent

FloatArray = npt.NDArray[np.float32]
MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def centroid_model() -> Callable[..., bytes]:
    """`centroid_model(precision, batch="n")` gives an ONNX file."""
    return testing.centroid_model


@pytest.fixture(scope="session")
def gaussian_patches() -> Callable[..., FloatArray]:
    """`gaussian_patches(count, seed=0)` gives (n, 11, 11) counts."""
    return testing.gaussian_patches


@pytest.fixture(scope="session")
def spot_frame() -> Callable[..., npt.NDArray[np.uint16]]:
    """`spot_frame(positions=truth_px, level=5, seed=0)` gives (96, 128) counts."""
    return testing.spot_frame


@pytest.fixture(scope="session")
def bragg_manifest() -> Callable[..., Manifest]:
    """`bragg_manifest(**changes)` gives the manifest of the centroid bundle."""
    return testing.centroid_manifest


@pytest.fixture(scope="session")
def truth_px() -> npt.NDArray[np.float64]:
    """(3, 2) positions of the spots of `spot_frame`."""
    return testing.SPOTS_PX


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a key pair named «edgexnas»."""
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder)
    return folder


@pytest.fixture(scope="session")
def make_bundle(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Write a bundle; precisions and fields of the manifest can be given."""

    def make(precisions: tuple[Precision, ...] = get_args(Precision), **changes: Any) -> Path:
        return testing.write_centroid_bundle(
            tmp_path_factory.mktemp("bundle") / "centroid.edgex",
            signing_key=keys / "edgexnas.key.pem",
            precisions=precisions,
            **changes,
        )

    return make


@pytest.fixture(scope="session")
def bundle_path(make_bundle: MakeBundle) -> Path:
    return make_bundle()


@pytest.fixture(scope="session")
def bundle(bundle_path: Path, keys: Path) -> Bundle:
    return open_bundle(bundle_path, trust=keys)


@pytest.fixture(scope="session")
def fake_cuda_module(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module of the GPU that is none; `install(monkeypatch, ...)` puts one in place."""
    return load_module(HERE / "cuda" / "fake_cuda.py")


@pytest.fixture
def fake_cuda(fake_cuda_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A discrete GPU, SM87, that is none."""
    return fake_cuda_module.install(monkeypatch)


@pytest.fixture
def host_copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is copied from ordinary to pinned memory on its way to a GPU."""
    from edgexnas.device.cuda.host_copy import HostCopy

    copied: list[Any] = []
    original = HostCopy.parts

    def parts(self: HostCopy, source: Any, target: Any) -> Any:
        copied.append(source)
        return original(self, source, target)

    monkeypatch.setattr(HostCopy, "parts", parts)
    return copied


@pytest.fixture
def fake_tensorrt(
    fake_cuda: Any, load_module: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`fake_tensorrt(version="10.3.0", name="tensorrt", cuda=fake_cuda)` installs a TensorRT."""
    module = load_module(HERE / "engines" / "fake_tensorrt.py")

    def install(version: str = "10.3.0", name: str = "tensorrt", cuda: Any = fake_cuda) -> Any:
        from edgexnas.device.engines import tensorrt_library

        library = module.make(cuda, version=version, name=name)
        library.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="fake")
        monkeypatch.setitem(sys.modules, name, library)
        monkeypatch.setattr(tensorrt_library, "LIBRARIES", (name,))
        # The real library of this name keeps its one logger.
        own_journals = cache(tensorrt_library._journal_of.__wrapped__)
        monkeypatch.setattr(tensorrt_library, "_journal_of", own_journals)
        return library

    return install


ReadPvs = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def epics_network() -> Iterator[dict[str, str]]:
    """An EPICS network that ends at this machine and meets that of no other process.

    It belongs to the session: pvapy reads it when a process's first channel is opened, and again
    only when all channels are gone.
    """
    with _search_port() as port, pytest.MonkeyPatch.context() as patch:
        settings = {
            "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_BROADCAST_PORT": str(port),
            "EPICS_PVAS_BROADCAST_PORT": str(port),
            "EPICS_PVA_SERVER_PORT": "0",
        }
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings


@contextmanager
def _search_port() -> Iterator[int]:
    """A UDP port that no other program gets meanwhile: whoever did would take searches away.

    It lies below those that the system hands out to sockets that ask for any, and is held at an
    address that EPICS is not told of, so that the port is taken for whoever wants it at all
    addresses or looks for one here.
    """
    for port in range(20_000, 32_000):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as everywhere:
            with suppress(OSError):
                everywhere.bind(("", port))
            free = everywhere.getsockname()[1] == port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
            with suppress(OSError):
                held.bind(("127.0.0.2", port))
            if free and held.getsockname()[1] == port:
                yield port
                return
    pytest.fail("no UDP port from 20000 to 31999 is free")


@pytest.fixture(scope="session")
def read_pvs(epics_network: dict[str, str]) -> ReadPvs:
    """`read_pvs("NAME", ..., put=7)` is what a client in a process of its own gets.

    It maps each name to "text" and "fields", and "put" to what the server said of a value written
    to the last one; what the client printed is under "printed".

    Clients may try for minutes. Linux gives EPICS' sockets, as they share ports, now and then a
    port that another EPICS program searches from, which then gets half of the answers; and a
    handshake that took longer than 5 s is repeated after half a minute. A PV that is not served no
    client finds.
    """

    def read(*names: str, put: int | None = None) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "pva_client.py"), *names]
        if put is not None:
            command.append(f"--put={put}")
        end_s = time.monotonic() + 180
        while True:
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode == 0 or time.monotonic() > end_s:
                break
        printed = run.stdout + run.stderr
        assert run.returncode == 0, printed
        answers: dict[str, Any] = json.loads(run.stdout.partition("ANSWERS")[2])
        return {**answers, "printed": printed}

    return read
