from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from edgexnas.device.monitoring.status import QueueLevel, ServiceStatus
from edgexnas.device.monitoring.watch import ServiceWatch
from edgexnas.device.monitoring.web_view import WebView

Browse = Callable[..., subprocess.CompletedProcess[bytes]]


class Ageing:
    """A service that is seen a second older each time, with a frame further."""

    def __init__(self, status: ServiceStatus) -> None:
        self.now = replace(status, uptime_s=0)

    def status(self) -> ServiceStatus:
        result = self.now.last_result
        assert result is not None
        self.now = replace(
            self.now,
            uptime_s=self.now.uptime_s + 1,
            last_result=replace(result, number=result.number + 1),
        )
        return self.now


@pytest.fixture
def ageing(source: Any) -> Ageing:
    return Ageing(source.now)


@pytest.fixture
def address(ageing: Ageing) -> Iterator[str]:
    watch = ServiceWatch(ageing)
    view = WebView(watch, port=0)
    view.start()
    yield view.url
    view.close()
    watch.close()


def _age(text: str) -> int:
    found = re.search(r"Uptime</th><td>00:00:(\d\d)</td>", text)
    assert found, text
    return int(found[1])


def test_the_page_keeps_itself_fresh_and_breaks_no_policy(
    address: str, ageing: Ageing, browse: Browse
) -> None:
    # On a busy machine the browser's own clock may run out before enough answers were worked on.
    for _ in range(20):
        before_s = int(ageing.now.uptime_s)
        run = browse("--dump-dom", address)
        page = run.stdout.decode()
        # The page itself and its first request are observations, so only later ones are older.
        renewed = _age(page) > before_s + 3
        if renewed and 'data-fresh="yes"' in page:
            break
    assert 'data-fresh="yes"' in page
    assert renewed
    # Pictures are put in after they were decoded.
    assert re.search(r'<img src="/frame.png\?frame=scan_7%2F\d+" alt="Frame \d+ of series', page)
    assert "logarithmic scale" in page
    assert 'id="error" role="alert" hidden' in page
    assert "CONSOLE" not in run.stderr.decode()


def test_the_page_shows_the_frame_beside_its_numbers(
    address: str, ageing: Ageing, browse: Browse, tmp_path: Path
) -> None:
    # The name of a sink holds its folder, which has no place to break a line.
    name = "hdf5 /data/2026-11/a_folder_of_a_visit_whose_name_is_long_as_they_are/results"
    ageing.now = replace(ageing.now, queues={name: QueueLevel(1000, 1024)})
    browse("--window-size=1400,1000", f"--screenshot={tmp_path / 'page.png'}", address)
    with Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (1000, 1400, 3)
    # The frame is on the left in dark violets with bright peaks, numbers on white on the right.
    frame = pixels[120:300, 60:500]
    assert np.median(frame.sum(-1)) < 400
    assert (frame.sum(-1) > 550).any()
    assert np.median(pixels[:, 800:].sum(-1)) > 700
    # Nothing runs over the edge of the page.
    assert len(np.unique(pixels[100:, -12:].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("width", [390, 1200, 1920])
def test_nothing_of_the_page_is_cut(
    address: str, ageing: Ageing, page_width: Callable[..., int], width: int
) -> None:
    name = "hdf5 /data/2026-11/a_folder_of_a_visit_whose_name_is_long_as_they_are/results"
    ageing.now = replace(ageing.now, queues={name: QueueLevel(1000, 1024)})
    page = urlopen(address).read().decode()
    style = urlopen(urljoin(address, "page.css")).read().decode()
    link = '<link rel="stylesheet" href="/page.css">'
    assert link in page
    assert page_width(page.replace(link, f"<style>{style}</style>"), width) <= width
