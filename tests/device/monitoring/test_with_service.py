"""The page of a service that runs: numbers, health and pictures are those of its frames."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from edgexnas.device import Predictor
from edgexnas.device.monitoring import open_views
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sources import open_event_source

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

FRAMES = 90


def _read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=120) as answer:
        body: bytes = answer.read()
        return body


def test_the_page_follows_a_service_from_its_start_to_its_end(
    bundle_path: Path,
    keys: Path,
    free_port: Callable[[], int],
    until: Callable[[Callable[[], bool]], None],
    begun_threads: Callable[[], set[threading.Thread]],
) -> None:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    # However late frames are taken, none is lost.
    url = f"sim://hedm?shape=96x128&peaks=8&rate=60&frames={FRAMES}&queue={FRAMES}"
    settings = PipelineSettings(max_age_ms=1e6)
    with Predictor(bundle_path, trust=keys, precision="float32") as predictor:
        service = Service(predictor, open_event_source(url), settings=settings)
        service.views = open_views(service, http_port=port, pv_prefix=None, terminal=False)
        service.start()
        waiting = threading.Thread(target=service.wait)
        waiting.start()

        def healthy() -> bool:
            # A machine that stands still for seconds stalls threads.
            with suppress(urllib.error.HTTPError):
                return _read(f"{page}/healthz").startswith((b"idle", b"running"))
            return False

        until(healthy)

        def status() -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(_read(f"{page}/status.json"))
            return answer

        until(lambda: status()["status"]["counts"]["done"] == FRAMES)
        seen = status()
        with Image.open(io.BytesIO(_read(f"{page}/frame.png"))) as image:
            assert image.size == (512, 384)
        families = text_string_to_metric_families(_read(f"{page}/metrics").decode())
        samples = {s.name: s.value for family in families for s in family.samples}
        text = _read(f"{page}/").decode()
        waiting.join()
        service.close()
    counts = seen["status"]["counts"]
    parts = ("done", "dropped", "duplicate", "failed", "pending", "spilled")
    assert counts["received"] == sum(counts[part] for part in parts) == FRAMES
    assert seen["status"]["watermark"] == FRAMES - 1
    assert 0 < seen["status"]["latency_ms"]["p50"] <= seen["status"]["latency_ms"]["max"]
    assert samples["edgexnas_frames_received_total"] == FRAMES
    assert samples["edgexnas_peaks_total"] == service.status().peaks_total > 0
    assert "hedm-0-000001" in text
    with pytest.raises(urllib.error.URLError):
        _read(f"{page}/healthz")
    assert not begun_threads()
