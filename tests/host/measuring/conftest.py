"""A device to measure on: a real sshd, which ssh starts behind a pipe for each connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgexnas.bundle import generate_keys
from edgexnas.host.measuring import bench_transports
from edgexnas.host.measuring.measure_source import BenchMeasure, open_measure

ROOT = Path(__file__).resolve().parents[3]


class Device:
    """A real sshd behind a pipe, and an `edgexnas` that stands where a device has it.

    A port could be taken by another program, and would have to be waited for.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.signing_key, _ = generate_keys(folder, name="beam")
        for key in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\n"
            "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "PidFile none\n"
        )
        public = (folder / "host.pub").read_text().split()
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"device {public[0]} {public[1]}\n")
        (folder / "ssh_config").write_text(
            f"Host orin\n HostName device\n IdentitiesOnly yes\n"
            f" ProxyCommand {server} -i -f {folder}/sshd_config -E {folder}/sshd.log\n"
            f" IdentityFile {folder}/user\n UserKnownHostsFile {self.known_hosts}\n"
            " GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n"
        )
        self.edgexnas = folder / "edgexnas"
        self.install(f'exec env PYTHONPATH={ROOT} {sys.executable} -m edgexnas.cli "$@"')

    def install(self, script: str) -> None:
        self.edgexnas.write_text(f"#!/bin/sh\n{script}\n")
        self.edgexnas.chmod(0o755)

    def url(self, **options: Any) -> str:
        fixed = {"edgexnas": self.edgexnas, "trust": self.folder, "runs": 3, "calls": 2}
        return "ssh://orin?" + "&".join(f"{k}={v}" for k, v in (fixed | options).items())

    def open(self, **options: Any) -> BenchMeasure:
        measure = open_measure(
            self.url(**options), task="bragg", wanted=("latency",), signing_key=self.signing_key
        )
        assert isinstance(measure, BenchMeasure)
        return measure


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Device:
    server = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if server is None or shutil.which("ssh") is None:
        pytest.skip("no sshd or no ssh here: install Debian's openssh-server and openssh-client")
    if os.geteuid() == 0:
        # Where sshd, run by root, locks its unprivileged half in.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return Device(tmp_path_factory.mktemp("device"), server)


@pytest.fixture
def device(sshd: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device, as the `ssh` of this machine knows it by its configuration."""
    real = shutil.which("ssh")
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {real} -F {sshd.folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(bench_transports, "PAUSES_S", (0.0,))
    sshd.install(f'exec env PYTHONPATH={ROOT} {sys.executable} -m edgexnas.cli "$@"')
    return sshd
