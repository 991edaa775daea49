"""Latency and energy of a candidate, from the source that a user names.

``"local"`` measures on this machine and ``"ssh://orin"`` on a device, both by `edgexnas bench`,
which runs as a process; ``"model"`` estimates from the architecture. Options follow as in a URL:
``"ssh://me@orin:2222?edgexnas=/home/me/edgexnas/bin/edgexnas&trust=keys&precision=int8"``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import parse_qsl, urlsplit

from edgexnas.errors import ConfigurationError
from edgexnas.host.measuring.bench_transports import BenchTransport, LocalBench, SshBench
from edgexnas.host.measuring.candidate_bundle import CandidateBundle, make_candidate_bundle
from edgexnas.host.measuring.cost_model import CostModel, count_cost
from edgexnas.host.networks.search_space import INPUT_SHAPES
from edgexnas.host.run_files import write_run_file

if TYPE_CHECKING:
    from torch import nn

    from edgexnas.bundle import Precision
    from edgexnas.host.measuring.objectives import Measure, Objective

__all__ = [
    "BenchMeasure",
    "ModelMeasure",
    "is_estimate",
    "labelled",
    "open_measure",
    "source_in_words",
]

ESTIMATE = "estimate for Jetson AGX Orin"
"""Stands in the unit of every objective that the cost model gives."""

NUMBERS = {"batch": 32, "runs": 60, "calls": 10, "threads": 1}
"""Whole numbers of a source's options, with their defaults. A search looks at many candidates, so
each gets 600 inferences and not the protocol's 3,750."""

SECONDS = {"timeout": 600.0, "spread": 1.0, "load": 30.0, "idle": 30.0}
"""The runs are spread over a second: 600 inferences of 0.1 ms in a row are over in one busy moment.
"""

TEXTS = ("precision", "engine", "trust", "edgexnas")

DEVICE_TRUST = "edgexnas/trust"
"""Folder of trusted keys on the device, from the user's home, unless ?trust= names another."""


class BenchMeasure:
    """Measures networks by `edgexnas bench`, one at a time, and remembers what it measured.

    Parameters
    ----------
    transport
        Where the bench runs.
    task
        "bragg" or "ptycho".
    signing_key
        Signs the bundles that are sent; kept as an attribute.
    trust
        Folder of trusted keys, at the place where the bench runs.
    options
        "batch", "runs", "calls", "spread", "threads", "precision", "engine", "load", "idle".
    energy
        Whether energy is wanted; it takes minutes for each candidate.
    cache
        Folder of results by the digest of what was measured; None remembers them in memory only.
    """

    def __init__(
        self,
        transport: BenchTransport,
        *,
        task: str,
        signing_key: Path,
        trust: str,
        options: Mapping[str, Any],
        energy: bool,
        cache: Path | None = None,
    ) -> None:
        self.transport, self._task = transport, task
        self.signing_key, self._trust = signing_key, trust
        self._options, self._energy, self._cache = dict(options), energy, cache
        self._known: dict[str, dict[str, Any]] = {}
        self._one_at_a_time = threading.Lock()
        self.measurements = 0

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Measure an untrained network.

        Returns
        -------
        "latency", ms of one inference of the batch, and "energy", mJ of it, if it is wanted.

        Raises
        ------
        SourceError
            If the device cannot be reached.
        MeasurementError
            If the measurement fails or is void.
        QuantisationError
            If the network cannot be quantised.
        """
        precision = self._options["precision"]
        candidate = make_candidate_bundle(model, self._task, precision, self.signing_key)
        kept = self.measure_bundle(candidate, precision)
        return {name: float(value) for name, value in kept["measured"].items()}

    def measure_bundle(self, candidate: CandidateBundle, precision: Precision) -> Mapping[str, Any]:
        """Measure a bundle in one precision, unless this was done before.

        Returns
        -------
        "measured", as of `__call__`, and "report", that of `edgexnas bench`.

        Raises
        ------
        SourceError
            If the device cannot be reached.
        MeasurementError
            If the measurement fails, also because the engine deviates, or is void.
        """
        options = {**self._options, "precision": precision}
        # An entry without energy must not answer a search that wants it.
        key = f"{candidate.content_digest[:32]}-{'energy' if self._energy else 'latency'}"
        # Two measurements at once would disturb each other.
        with self._one_at_a_time:
            known = self._known.get(key) or self._read(key, options)
            if known is None:
                report = self.transport.bench(candidate.raw, self._trust, self._arguments(options))
                self.measurements += 1
                known = {
                    "source": self.transport.name,
                    "options": options,
                    "measured": _numbers(report),
                    "report": report,
                }
                self._write(key, known)
            self._known[key] = known
            return known

    def _arguments(self, options: Mapping[str, Any]) -> list[str]:
        names = ["precision", "engine", "batch", "runs", "calls", "spread", "threads"]
        arguments = [part for name in names for part in (f"--{name}", str(options[name]))]
        # Without sizes: no batch but the one that is asked about.
        arguments.append("--sweep")
        if not self._energy:
            return [*arguments, "--energy", "off"]
        windows = ["--load", str(options["load"]), "--idle", str(options["idle"])]
        return [*arguments, "--energy", "on", *windows, "--blocks", "1"]

    def _place(self, key: str) -> Path | None:
        return None if self._cache is None else self._cache / f"{key}.json"

    def _read(self, key: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
        place = self._place(key)
        if place is None or not place.exists():
            return None
        kept: dict[str, Any] = json.loads(place.read_text())
        # The same network elsewhere, or with other options, is another measurement.
        if kept["source"] != self.transport.name or kept["options"] != options:
            return None
        return kept

    def _write(self, key: str, content: Mapping[str, Any]) -> None:
        place = self._place(key)
        if place is None:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        write_run_file(place, json.dumps(content).encode())


class ModelMeasure:
    """Estimates latency and energy on a Jetson AGX Orin; see `CostModel`."""

    def __init__(self, *, task: str, batch: int = 32, model: CostModel | None = None) -> None:
        self._shape = INPUT_SHAPES[task]
        self._batch, self._model = batch, model or CostModel()

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Estimate "latency" in ms and "energy" in mJ of one inference of the batch."""
        cost = count_cost(model, self._shape)
        return {
            "latency": self._model.latency_ms(cost, self._batch),
            "energy": self._model.energy_mj(cost, self._batch),
        }


def open_measure(
    source: str,
    *,
    task: str,
    wanted: Collection[str],
    workers: int = 1,
    signing_key: str | Path | None = None,
    cache: Path | None = None,
) -> Measure:
    """Open a source of measurements by name.

    Parameters
    ----------
    source
        "local", "ssh://...", or "model", with options.
    wanted
        Names of objectives and constraints.
    workers
        Trainings at once.
    signing_key
        Signs what is sent to a device; "local" makes a key of its own.
    cache
        Folder for results.

    Raises
    ------
    ConfigurationError
        If the name or an option is unknown, trainings would disturb a local measurement, a key is
        missing, or the device has another version.
    SourceError
        If the device cannot be reached.
    """
    try:
        parts = urlsplit(source)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(
            f"measure is {source!r}, which is no URL ({error}); specify ssh://HOST:PORT"
        ) from None
    kind = parts.scheme or parts.path
    if kind not in ("local", "ssh", "model"):
        raise ConfigurationError(
            f"measure is {source!r}; specify 'local', 'ssh://HOST', 'model' or a function"
        )
    options = _options(parts.query, source, defaults_to="int8" if kind == "ssh" else "float32")
    if kind == "model":
        return ModelMeasure(task=task, batch=options["batch"])
    if kind == "local":
        return _open_local(options, task, wanted, workers, signing_key, cache)
    if signing_key is None:
        raise ConfigurationError(
            f"measure={source!r} needs signing_key=, whose public key the device trusts"
        )
    if parts.hostname is None:
        raise ConfigurationError(f"measure={source!r} names no host; specify ssh://HOST")
    user = f"{parts.username}@" if parts.username else ""
    transport = SshBench(
        f"{user}{parts.hostname}",
        port=port,
        command=options.pop("edgexnas") or "edgexnas",
        timeout_s=options.pop("timeout"),
    )
    # What is left of the options is part of each cached result, which another value voids.
    trust = options.pop("trust") or DEVICE_TRUST
    transport.check()
    return BenchMeasure(
        transport, task=task, signing_key=Path(signing_key), trust=trust, options=options,
        energy="energy" in wanted, cache=cache,
    )  # fmt: skip


def is_estimate(source: str | None) -> bool:
    """Whether a source estimates instead of measuring."""
    return source is not None and source.split("?")[0] == "model"


def source_in_words(source: str) -> str:
    """Format a source for tables; estimates are marked as such."""
    return f"{source} ({ESTIMATE})" if is_estimate(source) else source


def labelled(objective: Objective, source: str | None) -> Objective:
    """Mark an objective's unit and description as an estimate, if its source is one."""
    if objective.kind != "measured" or not is_estimate(source):
        return objective
    return dataclasses.replace(
        objective,
        unit=f"{objective.unit}, {ESTIMATE}",
        description=f"{objective.description}: {ESTIMATE}",
    )


def _open_local(
    options: dict[str, Any],
    task: str,
    wanted: Collection[str],
    workers: int,
    signing_key: str | Path | None,
    cache: Path | None,
) -> BenchMeasure:
    from edgexnas.bundle import generate_keys

    if workers > 1:
        raise ConfigurationError(
            f"measure='local' and workers={workers}: trainings would disturb the measurement; "
            "specify workers=1 or another measure"
        )
    options.pop("edgexnas")
    transport = LocalBench(timeout_s=options.pop("timeout"))
    folder = None
    if signing_key is None or not options["trust"]:
        folder = tempfile.mkdtemp(prefix="edgexnas-measure-")
        signing_key, public = generate_keys(Path(folder))
        options["trust"] = str(public)
    trust = options.pop("trust")
    measure = BenchMeasure(
        transport, task=task, signing_key=Path(signing_key), trust=trust, options=options,
        energy="energy" in wanted, cache=cache,
    )  # fmt: skip
    if folder is not None:
        # The key signs only what is measured here, and goes with it.
        weakref.finalize(measure, shutil.rmtree, folder, ignore_errors=True)
    return measure


def _options(query: str, source: str, *, defaults_to: str) -> dict[str, Any]:
    from edgexnas.bundle import Precision

    options: dict[str, Any] = {**NUMBERS, **SECONDS, **dict.fromkeys(TEXTS, "")}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise ConfigurationError(
                f"measure={source!r} sets {name!r}, which is unknown; specify one of "
                f"{list(options)}"
            )
        try:
            options[name] = (
                int(text) if name in NUMBERS else float(text) if name in SECONDS else text
            )
        except ValueError:
            raise ConfigurationError(f"measure={source!r} sets {name} to no number") from None
        if name not in TEXTS and not options[name] > 0:
            raise ConfigurationError(
                f"measure={source!r} sets {name} to {text}; specify more than 0"
            )
    options["precision"] = options["precision"] or defaults_to
    options["engine"] = options["engine"] or "auto"
    if options["precision"] not in get_args(Precision):
        raise ConfigurationError(
            f"measure={source!r} sets precision to {options['precision']!r}; specify one of "
            f"{', '.join(get_args(Precision))}"
        )
    return options


def _numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """Take latency in ms and energy in mJ from a report of one bundle."""
    (bench,) = report["bundles"]
    measured = {"latency": float(bench["latency"]["p50_ms"])}
    if bench["energy"] is not None:
        measured["energy"] = float(bench["energy"]["total_mj"])
    return measured
