"""Clocks and temperatures of the kernel, by the names that people know."""

from __future__ import annotations

from pathlib import Path

from edgexnas.device.power.device_state import read_clocks, read_temperatures


def zone(root: Path, index: int, name: str, temp: str) -> None:
    folder = root / f"sys/class/thermal/thermal_zone{index}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(name + "\n")
    (folder / "temp").write_text(temp)


def test_temperatures_are_degrees_by_the_name_of_the_zone(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "48250\n")
    zone(tmp_path, 1, "tj-thermal", "51000\n")
    assert read_temperatures(tmp_path) == {"cpu": 48.25, "tj": 51.0}


def test_a_zone_that_is_off_is_left_out(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "48250\n")
    zone(tmp_path, 1, "gpu-thermal", "-256000\n")
    zone(tmp_path, 2, "cv0-thermal", "")
    (tmp_path / "sys/class/thermal/thermal_zone3").mkdir()
    assert read_temperatures(tmp_path) == {"cpu": 48.25}


def test_zones_of_one_name_are_all_shown(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", "30000\n")
    zone(tmp_path, 1, "acpitz", "31000\n")
    assert read_temperatures(tmp_path) == {"acpitz": 30.0, "thermal_zone1": 31.0}


def test_clocks_of_cores_and_devices_are_in_megahertz(tmp_path: Path) -> None:
    core = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    gpu = tmp_path / "sys/class/devfreq/17000000.gpu"
    core.mkdir(parents=True)
    gpu.mkdir(parents=True)
    (core / "scaling_cur_freq").write_text("1190400\n")
    (core / "scaling_max_freq").write_text("2201600\n")
    (gpu / "cur_freq").write_text("918000000\n")
    assert read_clocks(tmp_path) == {"cpu0": 1190.4, "17000000.gpu": 918.0}
    assert read_clocks(tmp_path, limits=True) == {"cpu0": 2201.6}
